"""Whoever can write to Redis can't make a worker run anything but our own jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from offboard_worker import worker
from offboard_worker.app import App
from offboard_worker.config import loads
from offboard_worker.denylist.connection import open_blocking_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.jobs.own_job import FUNCTIONS
from offboard_worker.scheduler import duties

CONFIG = """
data_dir: data
redis: {url}
sources: {{okta-main: {{type: okta, secret: a-secret-of-the-test}}}}
"""


def app_for(url: str, folder: Path) -> App:
    return App(loads(CONFIG.format(url=url), "config.yaml", folder, {}))


def test_each_function_of_ours_is_listed_and_exists(tmp_path: Path) -> None:
    recurring = {
        f"{duty.function.__module__}.{duty.function.__name__}" for duty in duties(app_for("redis://x", tmp_path))
    }
    assert recurring < FUNCTIONS
    assert all(callable(getattr(worker, name.rpartition(".")[2])) for name in FUNCTIONS)


def put(queue: Queue, function: str, **options: Any) -> Job:
    return queue.enqueue(function, result_ttl=60, failure_ttl=60, job_timeout=60, **options)


@pytest.mark.integration
async def test_a_worker_runs_our_jobs_and_neither_foreign_functions_nor_callbacks(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path / "valkey") as server:
        app = app_for(server.url, tmp_path)
        queue = Queue("contain", connection=open_blocking_client(server.url, 5.0), serializer=JSONSerializer)
        trace = tmp_path / "trace"
        hostile = put(queue, "os.system", args=(f"touch {trace}",))
        method = put(queue, "pathlib.Path.touch", args=(str(trace),))
        ours = put(queue, "offboard_worker.worker.close")
        ours._success_callback_name = "os.remove"  # would raise, and fail the job
        ours.save()
        worker.use(app)
        worker.JobWorker(app, "test").work(burst=True, logging_level="CRITICAL")
        for job in (hostile, method):
            assert job.get_status(refresh=True) is JobStatus.FAILED
        assert not trace.exists()
        assert ours.get_status(refresh=True) is JobStatus.FINISHED
