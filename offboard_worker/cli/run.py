"""`offboard up | receiver | worker | proxy | scheduler | valkey | dashboard`: the long-running processes.

Each says once that it is ready: with `--json` as one line of JSON with its bound addresses, else as a sentence.
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Annotated

import typer

from offboard_worker.cli.output import DEFAULT_CONFIG, ConfigOption, JsonOption, read_config, set_up_logging


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("up", up),
        ("receiver", receiver),
        ("worker", worker),
        ("proxy", proxy),
        ("scheduler", scheduler),
        ("valkey", valkey),
        ("dashboard", dashboard),
    ):
        app.command(name, rich_help_panel="Run")(command)


def _ready(component: str, as_json: bool, addresses: dict[str, str]) -> None:
    if as_json:
        print(json.dumps({"component": component, **addresses}), flush=True)
        return
    print(f"{component} is ready", *(f"{name}: {url}" for name, url in addresses.items()), sep="  ", flush=True)


def up(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    proxies: Annotated[
        int, typer.Option(min=1, max=16, help="How many proxy replicas; all but the first on port 0.")
    ] = 1,
) -> None:
    """Run receiver, proxy, worker and scheduler together on this machine (and Valkey, unless redis: is set)."""
    from offboard_worker.supervisor import Supervisor

    set_up_logging()
    settings = read_config(config)
    asyncio.run(Supervisor(settings, config, proxies=proxies).run(lambda found: _up_ready(as_json, found)))


def _up_ready(as_json: bool, found: dict[str, object]) -> None:
    if as_json:
        print(json.dumps(found), flush=True)
        return
    for name, url in found.items():
        if isinstance(url, str):
            print(f"{name:18} {url}", flush=True)
    print("ready; Ctrl-C ends everything", flush=True)


def receiver(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    listen: Annotated[str | None, typer.Option(help="Listen here instead of receiver.listen.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Serve metrics here instead of receiver.metrics.")] = None,
) -> None:
    """Run the webhook receiver."""
    from offboard_worker.app import App
    from offboard_worker.event_loop import use_uvloop
    from offboard_worker.receiver.run import run_receiver

    set_up_logging()
    use_uvloop()
    whole = read_config(config)
    changes = {name: value for name, value in (("listen", listen), ("metrics", metrics)) if value}
    app = App(whole.model_copy(update={"receiver": whole.receiver.model_copy(update=changes)}))
    asyncio.run(run_receiver(app, lambda found: _ready("receiver", as_json, found)))


def worker(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Run the job workers (jobs.workers processes)."""
    from offboard_worker.app import App
    from offboard_worker.worker import run_worker

    set_up_logging()
    run_worker(App(read_config(config)), lambda: _ready("worker", as_json, {}))


def proxy(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    listen: Annotated[
        str | None, typer.Option(help="Listen here instead of proxy.listen (for further replicas).")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Serve metrics and health here instead of proxy.metrics.")] = None,
) -> None:
    """Run one replica of the API access proxy. It needs Redis, and neither store, connectors nor queue."""
    from offboard_worker.event_loop import use_uvloop
    from offboard_worker.proxy.server import run_proxy

    set_up_logging()
    use_uvloop()
    whole = read_config(config)
    changes = {name: value for name, value in (("listen", listen), ("metrics", metrics)) if value}
    asyncio.run(
        run_proxy(
            whole.proxy.model_copy(update=changes),
            whole.redis_url,
            prefix=whole.redis.prefix,
            data_dir=whole.data_dir,
            on_ready=lambda found: _ready("proxy", as_json, found),
        )
    )


def scheduler(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Run the schedule, the reconciler and the push. One is enough; two do no harm."""
    from offboard_worker.app import App
    from offboard_worker.scheduler import run_scheduler

    set_up_logging()
    asyncio.run(run_scheduler(App(read_config(config)), lambda: _ready("scheduler", as_json, {})))


def valkey(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Run nothing: return once Redis (this one, or redis:) answers.")
    ] = False,
) -> None:
    """Run the embedded Valkey alone: what a Procfile needs on a machine without a Redis."""
    from offboard_worker.supervisor import embedded_valkey, wait_for_others, wait_for_redis

    set_up_logging()
    settings = read_config(config)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with embedded_valkey(settings) as server:
            _ready("valkey", as_json, {})
            await stop.wait()
            if server is not None:
                await wait_for_others(server)

    asyncio.run(wait_for_redis(settings) if wait else run())


def dashboard(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    listen: Annotated[str | None, typer.Option(help="Listen here instead of dashboard.listen.")] = None,
) -> None:
    """Run rq-dashboard on loopback with basic auth: look at jobs, and re-run failed ones."""
    from offboard_worker.supervisor import run_dashboard

    set_up_logging()
    whole = read_config(config)
    changes = {"listen": listen} if listen else {}
    whole = whole.model_copy(update={"dashboard": whole.dashboard.model_copy(update=changes)})
    run_dashboard(whole, lambda found: _ready("dashboard", as_json, found))
