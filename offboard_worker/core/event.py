"""What an identity provider told us, normalised. Kinds use the names of RISC and CAEP where these have one.

https://openid.net/specs/openid-risc-profile-specification-1_0.html, https://openid.net/specs/openid-caep-1_0.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from offboard_worker.core.person import Subject


class EventKind(StrEnum):
    """What happened to an account. `account-suspended` and `account-changed` are ours: vendors say these too."""

    ACCOUNT_DISABLED = "account-disabled"
    ACCOUNT_SUSPENDED = "account-suspended"
    ACCOUNT_PURGED = "account-purged"
    ACCOUNT_ENABLED = "account-enabled"
    ACCOUNT_CHANGED = "account-changed"  # "something changed": means nothing until a re-read confirms it
    SESSION_REVOKED = "session-revoked"
    CREDENTIAL_COMPROMISE = "credential-compromise"
    ACCESS_REMOVED = "access-removed"


ENDS_ACCESS = frozenset({EventKind.ACCOUNT_DISABLED, EventKind.ACCOUNT_SUSPENDED, EventKind.ACCOUNT_PURGED})


@dataclass(frozen=True, slots=True)
class IdentityEvent:
    """One statement about one person. `key` is the source's own dedupe key, unique within the source for ever."""

    source: str
    key: str
    kind: EventKind
    subject: Subject
    occurred_at: datetime
    vendor_type: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A statement that ends nobody's access, kept with the reason so that an auditor can see it was read."""

    key: str
    reason: str
    vendor_type: str = ""
