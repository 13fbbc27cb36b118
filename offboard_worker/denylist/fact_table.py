"""Deny facts in memory, small: a number instead of an object per fact. No I/O and no idea where facts come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from offboard_worker.denylist.facts import Fact, FactKind, Key, TokenIdentity, kills

_Packed = int | tuple[int, int]
"""`before` shifted left by one with `denied` as the lowest bit; with the expiry beside it where there is one."""


def _pack(fact: Fact) -> _Packed:
    packed = fact.before << 1 | fact.denied
    return packed if fact.expires_at is None else (packed, fact.expires_at)


def _unpack(key: Key, value: _Packed) -> Fact:
    packed, expires_at = value if isinstance(value, tuple) else (value, None)
    return Fact(key, bool(packed & 1), packed >> 1, expires_at)


class FactTable:
    """The current fact of each key."""

    __slots__ = ("_values",)

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._values: dict[Key, _Packed] = {fact.key: _pack(fact) for fact in facts}

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Fact]:
        return (_unpack(key, value) for key, value in self._values.items())

    def get(self, key: Key) -> Fact | None:
        """Return the fact of a key, expired ones included."""
        value = self._values.get(key)
        return None if value is None else _unpack(key, value)

    def put(self, facts: Iterable[Fact]) -> None:
        """Set each fact, replacing what stood under its key."""
        for fact in facts:
            self._values[fact.key] = _pack(fact)

    def killer(self, identity: TokenIdentity, now: float) -> Fact | None:
        """Return the first fact that makes a token dead at `now` (Unix seconds), as `facts.first_killer` does."""
        values = self._values
        for key in identity.all_keys():
            value = values.get(key)
            if value is not None:
                fact = _unpack(key, value)
                if kills(fact, identity, now):
                    return fact
        return None

    def changes_from(self, older: FactTable) -> list[Fact]:
        """Return what is new or different here; a key that only the older table has counts as lifted."""
        values, before = self._values, older._values
        changed = [_unpack(key, value) for key, value in values.items() if before.get(key) != value]
        changed.extend(Fact(key, denied=False) for key in before if key not in values)
        return changed

    def drop_expired(self, before: float) -> int:
        """Forget facts about tokens that expired at or before a time (Unix seconds); return how many."""
        prefix = f"{FactKind.TOKEN.value}|"
        dead = [
            key
            for key, value in self._values.items()
            if isinstance(value, tuple) and value[1] <= before and key.startswith(prefix)
        ]
        for key in dead:
            del self._values[key]
        return len(dead)
