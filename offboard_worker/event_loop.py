"""The fast event loop, for entry points alone: a library never chooses one for its caller."""

from __future__ import annotations

import asyncio
import sys


def use_uvloop() -> None:
    """Make uvloop the default event loop, where it exists."""
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            return
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
