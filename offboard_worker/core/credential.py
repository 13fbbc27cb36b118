"""Credentials, what can be done to them, and how strongly we know that it was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class CredentialKind(StrEnum):
    """Everything that lets a person in. A connector maps each vendor thing to exactly one of these."""

    PERMISSIONS = "permissions"  # everything an identity may do, cut as a whole (AWS deny-all policy)
    ACCOUNT = "account"  # the login itself
    PASSWORD = "password"  # noqa: S105 - the kind's name, not a password
    ACCESS_KEY = "access-key"
    API_TOKEN = "api-token"  # noqa: S105
    SSH_KEY = "ssh-key"
    CERTIFICATE = "certificate"
    SERVICE_CREDENTIAL = "service-credential"
    MFA_DEVICE = "mfa-device"
    SESSION = "session"
    OAUTH_GRANT = "oauth-grant"
    APP_ASSIGNMENT = "app-assignment"
    GROUP_MEMBERSHIP = "group-membership"
    ROLE = "role"
    POLICY = "policy"
    APP_SECRET = "app-secret"  # noqa: S105 - a secret of an application that the person owns


class CredentialState(StrEnum):
    ACTIVE = "active"
    DISABLED = "disabled"
    GONE = "gone"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """What the vendor answered to one action."""

    DONE = "done"
    ALREADY = "already"  # it was so before: already gone, already disabled


class Strength(StrEnum):
    """How strongly a result is known, strongest first (DESIGN section 1)."""

    VERIFIED = "verified"
    ACKNOWLEDGED = "acknowledged"
    ATTESTED = "attested"
    UNKNOWN = "unknown"
    FAILED = "failed"


SETTLED = frozenset({Strength.VERIFIED, Strength.ACKNOWLEDGED, Strength.ATTESTED})


class Action(StrEnum):
    DISABLE = "disable"
    DELETE = "delete"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Ability:
    """What a connector can do to one kind of credential.

    `read_back=False` means that the vendor only acknowledges. `permission` is the vendor's name for the right that
    our own credential needs. `residual` is how long exposure can outlast a successful call, at most, and
    `residual_note` says which exposure that is.
    """

    reversible: bool
    read_back: bool
    permission: str
    deletable: bool = True
    residual: timedelta = timedelta(0)
    residual_note: str = ""


@dataclass(frozen=True, slots=True)
class Credential:
    """One credential, bound to an exact vendor id. Never holds the secret itself.

    `owner` is the owner as the vendor knows it (its id in the connector's namespace); `scope` is what else is needed
    to address it (a user name, a group id). `snapshot` is what `restore` needs and the evidence keeps.
    """

    connector: str
    kind: CredentialKind
    id: str
    owner: str
    scope: str = ""
    label: str = ""
    state: CredentialState = CredentialState.UNKNOWN
    created_at: datetime | None = None
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    snapshot: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """A printable exact reference: connector/kind/scope/id."""
        return "/".join(part for part in (self.connector, self.kind.value, self.scope, self.id) if part)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was done to one credential, when, and how strongly it is known. Times are UTC."""

    credential: Credential
    action: Action
    strength: Strength
    state: CredentialState
    requested_at: datetime
    acknowledged_at: datetime | None = None
    verified_at: datetime | None = None
    attempts: int = 1
    method: str = ""  # the call that read it back, or why nothing could
    error: str = ""
    advice: str = ""
    residual_until: datetime | None = None
    residual_note: str = ""


def strength_of(state: CredentialState, ability: Ability, action: Action) -> Strength:
    """Say how strongly a result is known after the vendor accepted the action and `state` was read back.

    A credential that can't be read back is `acknowledged` at best; one that is read back as still active has
    `failed`, whatever the vendor answered to the action.
    """
    if state is CredentialState.UNKNOWN:
        return Strength.UNKNOWN if ability.read_back else Strength.ACKNOWLEDGED
    if state not in _REACHED[action]:
        return Strength.FAILED
    return Strength.VERIFIED if ability.read_back else Strength.ACKNOWLEDGED


_REACHED: Mapping[Action, frozenset[CredentialState]] = {
    Action.DISABLE: frozenset({CredentialState.DISABLED, CredentialState.GONE}),
    Action.DELETE: frozenset({CredentialState.GONE}),
    Action.RESTORE: frozenset({CredentialState.ACTIVE}),
}
