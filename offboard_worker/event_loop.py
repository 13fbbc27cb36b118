"""What entry points alone decide for their process: the event loop, and how memory is kept once it is up."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys


def use_uvloop() -> None:
    """Make uvloop the default event loop, where it exists."""
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            return
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def settle_memory() -> None:
    """Give back what starting up left behind, and spare the collector all that lives as long as the process."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
