"""Finds the material that lies beside the checkout (vendor contracts, real payloads, outside vectors).

It is read in place, never copied. Where it is missing a test skips and says so; in CI it must be there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent / "shared"


def shared(path: str) -> Path:
    """Return a file or folder below ../shared, or skip the test (fail it in CI) where that is missing."""
    found = ROOT / path
    if not found.exists():
        message = f"{found} is missing: this test reads it in place, put the shared folder beside the checkout"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return found
