"""The Procfile under honcho: every process starts on an empty folder, is ready, and ends in time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = {"valkey", "scheduler", "worker", "proxy", "receiver", "dashboard"}
CONFIG = """
data_dir: data
receiver: {listen: "127.0.0.1:0"}
proxy: {listen: "127.0.0.1:0"}
dashboard: {listen: "127.0.0.1:0", password: a-password-of-the-test}
sources: {okta-main: {type: okta, secret: a-secret-of-the-test}}
"""


@pytest.mark.e2e
def test_the_procfile_brings_every_process_up_and_ends_them_cleanly(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OFFBOARD_CONFIG": str(tmp_path / "config.yaml"),
    }
    output = tmp_path / "output"
    command: list[str | Path] = [binaries / "honcho", "-f", ROOT / "Procfile", "-d", tmp_path, "start", "--no-colour"]
    with output.open("wb") as file:
        honcho = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path)
        try:
            ready: set[str] = set()
            until = time.monotonic() + 90
            while ready != PROCESSES and honcho.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                ready = set(re.findall(r"\b(\w+) is ready", output.read_text("utf-8")))
            assert ready == PROCESSES, output.read_text("utf-8")
            begun = time.monotonic()
            honcho.send_signal(signal.SIGTERM)
            honcho.wait(15)
            assert time.monotonic() - begun < 10
        finally:
            honcho.kill()
    said = output.read_text("utf-8")
    assert set(re.findall(r"(\w+)\.1 stopped \(rc=0\)", said)) == PROCESSES, said
    assert "Traceback" not in said, said
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert tmp_path / "data" / "store.db" in written
    assert not [path for path in written if path.stat().st_mode & 0o077], "nothing is readable by other users"
