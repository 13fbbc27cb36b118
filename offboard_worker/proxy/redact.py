"""Keeps an upstream's key out of what goes back to a client, should the upstream echo it. No I/O.

The key is overwritten by asterisks of the same length, so that no framing changes. A stream is never delayed, but for
the few last bytes of a piece that could be the beginning of the key. Encoded bodies are not looked into.
"""

from __future__ import annotations

from offboard_worker.secret import Secret

SHORTEST = 8
"""Shorter secrets would be found in innocent text."""


class Mask:
    """Overwrites one secret. An instance is immutable, `stream()` gives what one body needs."""

    __slots__ = ("_needle",)

    def __init__(self, secret: Secret | None) -> None:
        bare = secret.reveal().rpartition(" ")[2].encode() if secret is not None else b""
        self._needle = bare if len(bare) >= SHORTEST else b""

    def __repr__(self) -> str:
        return "Mask(••••)"

    def data(self, data: bytes) -> bytes:
        return data.replace(self._needle, b"*" * len(self._needle)) if self._needle else data

    def text(self, text: str) -> str:
        return text.replace(self._needle.decode(), "*" * len(self._needle)) if self._needle else text

    def stream(self) -> MaskedStream:
        return MaskedStream(self, self._needle)


class MaskedStream:
    """One body, piece by piece."""

    __slots__ = ("_held", "_mask", "_needle")

    def __init__(self, mask: Mask, needle: bytes) -> None:
        self._mask = mask
        self._needle = needle
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may go out now."""
        needle = self._needle
        if not needle:
            return data
        if self._held:
            data = self._held + data
        if needle in data:
            data = self._mask.data(data)
        keep = self._overlap(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep] if keep else data

    def end(self) -> bytes:
        """Return what was held back."""
        held, self._held = self._held, b""
        return held

    def _overlap(self, data: bytes) -> int:
        """The length of the longest end of `data` that the secret begins with."""
        needle, longest = self._needle, min(len(self._needle) - 1, len(data))
        start = data.find(needle[:1], len(data) - longest) if longest else -1
        while start != -1:
            if needle.startswith(data[start:]):
                return len(data) - start
            start = data.find(needle[:1], start + 1)
        return 0
