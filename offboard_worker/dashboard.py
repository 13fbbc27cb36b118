"""rq-dashboard, embedded: on loopback, behind basic auth, with the JSON serializer.

Ops look at jobs here and re-run failed ones; a re-run is the same idempotent thing as `offboard case retry`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from rq.serializers import JSONSerializer
from rq_dashboard import default_settings
from rq_dashboard.cli import add_basic_auth
from rq_dashboard.web import blueprint, setup_rq_connection
from rq_dashboard.web import config as service_config

from offboard_worker.config import Config, is_loopback, split_listen
from offboard_worker.errors import ConfigError


def serve(config: Config, ready: Callable[[dict[str, str]], None]) -> None:
    """Serve until SIGTERM. Raises ConfigError where no password is set, or the address isn't this machine's own."""
    from flask import Flask
    from werkzeug.serving import make_server

    settings = config.dashboard
    host, port = split_listen(settings.listen)
    if settings.password is None:
        raise ConfigError(
            "dashboard.password is not set", advice="Set it, e.g. to ${DASHBOARD_PASSWORD}: jobs can be re-run there."
        )
    if not is_loopback(host):
        raise ConfigError(
            f"dashboard.listen is {settings.listen}\n  expected  an address of this machine's loopback",
            advice="Reach it through an SSH tunnel: basic auth without TLS is not for a network.",
        )
    app = Flask(__name__)
    app.config.from_object(default_settings)
    app.config["RQ_DASHBOARD_REDIS_URL"] = config.redis_url
    service_config.serializer = JSONSerializer
    add_basic_auth(blueprint, settings.username, settings.password.reveal())
    app.register_blueprint(blueprint)
    setup_rq_connection(app)
    server = make_server(host, port, app, threaded=True)

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()  # shutdown waits for the loop that this frame interrupts

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    ready({"url": f"http://{host}:{server.server_port}"})
    server.serve_forever()
