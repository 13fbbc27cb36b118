"""Who a person is to us: one stable id, and the exact names that other systems know them by.

A likeness (same local part, similar name) never makes two names one person; only recorded aliases do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class PersonState(StrEnum):
    ACTIVE = "active"
    DEPARTED = "departed"


def normal_email(address: str) -> str:
    """Return the form in which we compare e-mail addresses: trimmed and lower case.

    Not `casefold`: it makes `straße@` and `strasse@`, two people's addresses, the same.
    """
    return address.strip().lower()


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an event names, in the words of the system that sent it.

    `system` is the namespace of `id` (an instance's `system:` setting, its own name by default). At least one of
    `id` and `emails` is set. `logins` are further exact ids in the same namespace (an Okta login beside the id).
    """

    system: str
    id: str | None = None
    emails: tuple[str, ...] = ()
    logins: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """One human. `aliases` maps a system's namespace to every id that the system knows them by, primary id first."""

    id: str
    name: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    emails: tuple[str, ...] = ()
    state: PersonState = PersonState.ACTIVE
    generation: int = 0
    protected: bool = False

    def alias(self, system: str) -> str | None:
        """Return the primary id in a system, or None where no exact one is recorded."""
        ids = self.aliases.get(system, ())
        return ids[0] if ids else None
