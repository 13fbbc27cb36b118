"""The operators' listener: /healthz (the process lives), /readyz (it holds a fresh lease), /metrics (Prometheus)."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from offboard_worker.proxy.admission import DenyView
from offboard_worker.proxy.observe import Metrics


def health_app(view: DenyView, metrics: Metrics) -> web.Application:
    """Build the application. It knows no token and no upstream."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(request: web.Request) -> web.Response:
        if view.fresh:
            return web.json_response({"status": "ready", "lease_seconds": round(view.lease_left, 3)})
        body = {"status": "not-ready", "reason": "lease-expired", "advice": "Check that Redis at redis: answers."}
        return web.json_response(body, status=503, headers={"Retry-After": "1"})

    async def prometheus(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", prometheus)
    return app
