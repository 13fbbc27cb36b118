"""What a CloudTrail record means: one table of calls, which docs/sources/aws.md repeats for people.

https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html . A record is a
call by an actor (`userIdentity`) upon a target (`requestParameters`), and failed calls are recorded too (`errorCode`).
IAM user names and Identity Store user ids are two namespaces. This file knows nothing of how a record came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from typing_extensions import TypedDict

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.sources import wire
from offboard_worker.sources.source import Learned, Statement

IAM: Final = "iam.amazonaws.com"
DIRECTORY: Final = "sso-directory.amazonaws.com"
STORE: Final = "identitystore.amazonaws.com"
SCIM: Final = "identitystore-scim.amazonaws.com"
SSO: Final = "sso.amazonaws.com"
HIDDEN: Final = "HIDDEN_DUE_TO_SECURITY_REASONS"


class Space(StrEnum):
    """Whose ids a call names."""

    IAM = "iam"
    STORE = "identity-store"


class Record(TypedDict, total=False):
    eventID: str | None
    eventSource: str | None
    eventName: str | None
    eventTime: str | None
    errorCode: str | None
    recipientAccountId: str | None
    requestParameters: dict[str, Any] | None
    responseElements: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Meaning:
    """`kind` None: nobody's access ends, and `says` is why; `teaches`: it is kept for the ids that it names."""

    kind: EventKind | None
    space: Space
    says: str
    teaches: bool = False


def _step(says: str) -> Meaning:
    return Meaning(None, Space.IAM, f"{says}: a step, not a departure")


_PURGED = Meaning(EventKind.ACCOUNT_PURGED, Space.STORE, "the user was deleted")
_CHANGED = Meaning(EventKind.ACCOUNT_CHANGED, Space.STORE, "the user changed, values are hidden: re-read")
_CREATED = Meaning(None, Space.STORE, "a user was created", teaches=True)

MEANING: Final[Mapping[tuple[str, str], Meaning]] = {
    (IAM, "DeleteUser"): Meaning(EventKind.ACCOUNT_PURGED, Space.IAM, "the IAM user was deleted"),
    (IAM, "CreateUser"): Meaning(None, Space.IAM, "an IAM user was created", teaches=True),
    (IAM, "UpdateUser"): Meaning(None, Space.IAM, "an IAM user was renamed", teaches=True),
    (IAM, "RemoveUserFromGroup"): Meaning(EventKind.ACCESS_REMOVED, Space.IAM, "left a group"),
    (IAM, "AddUserToGroup"): _step("joined a group"),
    (IAM, "CreateLoginProfile"): _step("a console password was made"),
    (IAM, "UpdateLoginProfile"): _step("a console password was changed"),
    (IAM, "DeleteLoginProfile"): _step("a console password was removed"),
    (IAM, "CreateAccessKey"): _step("an access key was made"),
    (IAM, "UpdateAccessKey"): _step("an access key was switched"),
    (IAM, "DeleteAccessKey"): _step("an access key was deleted"),
    (IAM, "DeactivateMFADevice"): _step("an MFA device was taken off"),
    (IAM, "AttachUserPolicy"): _step("a policy was attached"),
    (IAM, "DetachUserPolicy"): _step("a policy was detached"),
    (IAM, "PutUserPolicy"): _step("an inline policy was written"),
    (IAM, "DeleteUserPolicy"): _step("an inline policy was deleted"),
    (IAM, "DeleteSSHPublicKey"): _step("an SSH key was deleted"),
    (IAM, "DeleteSigningCertificate"): _step("a signing certificate was deleted"),
    (IAM, "DeleteServiceSpecificCredential"): _step("a service-specific credential was deleted"),
    (DIRECTORY, "DisableUser"): Meaning(EventKind.ACCOUNT_DISABLED, Space.STORE, "the user was disabled"),
    (DIRECTORY, "EnableUser"): Meaning(EventKind.ACCOUNT_ENABLED, Space.STORE, "the user was enabled"),
    (DIRECTORY, "DeleteUser"): _PURGED,
    (DIRECTORY, "CreateUser"): _CREATED,
    (DIRECTORY, "UpdateUser"): Meaning(None, Space.STORE, "a profile changed; a disable is DisableUser"),
    (DIRECTORY, "RemoveMemberFromGroup"): Meaning(EventKind.ACCESS_REMOVED, Space.STORE, "left a group"),
    (STORE, "DisableUser"): Meaning(EventKind.ACCOUNT_DISABLED, Space.STORE, "the user was disabled"),
    (STORE, "EnableUser"): Meaning(EventKind.ACCOUNT_ENABLED, Space.STORE, "the user was enabled"),
    (STORE, "DeleteUser"): _PURGED,
    (STORE, "CreateUser"): _CREATED,
    (STORE, "UpdateUser"): _CHANGED,
    (STORE, "DeleteGroupMembership"): Meaning(EventKind.ACCESS_REMOVED, Space.STORE, "a group membership ended"),
    (SCIM, "PatchUser"): _CHANGED,
    (SCIM, "PutUser"): _CHANGED,
    (SCIM, "DeleteUser"): _PURGED,
    (SCIM, "CreateUser"): _CREATED,
    (SSO, "DeleteAccountAssignment"): Meaning(EventKind.ACCESS_REMOVED, Space.STORE, "lost an account assignment"),
}

DETAILS: Final = (
    "identityStoreId", "groupName", "groupId", "membershipId", "permissionSetArn", "targetId", "instanceArn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The two id spaces. `accounts` says which system an account's IAM users belong to; empty: all to `iam`."""

    iam: str
    store: str
    accounts: Mapping[str, str]


def statements(source: str, record: Record, spaces: Namespaces, received: datetime) -> Iterator[Statement]:
    """Say what one record means. The dedupe key is its eventID."""
    event_source, name = record.get("eventSource") or "", record.get("eventName") or ""
    key, vendor_type = record.get("eventID") or "", f"{event_source}:{name}"[:200]
    meaning = MEANING.get((event_source, name))
    if not key:
        digest = hashlib.sha256(repr(sorted(record.items(), key=lambda item: item[0])).encode("utf-8", "surrogatepass"))
        key = f"no-id:{digest.hexdigest()[:32]}"  # CloudTrail always has one; without, the content stands for it
    if record.get("errorCode"):
        yield Ignored(key, f"the call failed: {str(record.get('errorCode'))[:60]}", vendor_type)
    elif meaning is None:
        yield Ignored(key, "a call that ends nobody's access", vendor_type)
    elif meaning.kind is None and not meaning.teaches:
        yield Ignored(key, meaning.says, vendor_type)
    else:
        yield _about_user(source, key, record, meaning, spaces, received)


def _about_user(
    source: str, key: str, record: Record, meaning: Meaning, spaces: Namespaces, received: datetime
) -> Statement:
    vendor_type = f"{record.get('eventSource')}:{record.get('eventName')}"
    account = record.get("recipientAccountId") or ""
    if meaning.space is Space.IAM and spaces.accounts and account not in spaces.accounts:
        return Ignored(key, f"IAM account {account[:20]} is not under accounts: of this source", vendor_type)
    subject = _iam_user(record, spaces) if meaning.space is Space.IAM else _store_user(record, spaces.store)
    if subject is None:
        return Ignored(key, f"names no user: {meaning.says}", vendor_type)
    if meaning.kind is None:
        return Learned(key, subject, vendor_type)
    parameters = record.get("requestParameters") or {}
    detail = {name: value for name in DETAILS if (value := _text(parameters, name))}
    if account:
        detail["account"] = account
    occurred = wire.instant(record.get("eventTime"), received)
    return IdentityEvent(source, key, meaning.kind, subject, occurred, vendor_type, detail)


def _iam_user(record: Record, spaces: Namespaces) -> Subject | None:
    parameters = record.get("requestParameters") or {}
    name, new = _text(parameters, "userName"), _text(parameters, "newUserName")
    if not name or (record.get("eventName") == "UpdateUser" and not new):
        return None
    system = spaces.accounts.get(record.get("recipientAccountId") or "", spaces.iam)
    return Subject(system, id=new or name, logins=(name,) if new else ())


def _store_user(record: Record, system: str) -> Subject | None:
    """Find the user id where the three services put it; a new user's stands in the answer."""
    asked, answered = record.get("requestParameters") or {}, record.get("responseElements") or {}
    if _text(asked, "principalType") == "GROUP":
        return None
    member = asked.get("member") or asked.get("memberId")
    made = answered.get("user")
    places: tuple[tuple[object, str], ...] = (
        (asked, "userId"), (asked, "id"), (asked, "principalId"), (asked, "memberId"), (member, "userId"),
        (member, "memberId"), (answered, "userId"), (answered, "id"), (made, "userId"), (made, "id"),
    )  # fmt: skip
    user_id = next((found for place, name in places if (found := _text(place, name))), None)
    if user_id is None:
        return None
    logins = (_text(asked, "userName"), _text(answered, "userName"), _text(made, "userName"))
    return Subject(system, id=user_id, logins=tuple(dict.fromkeys(login for login in logins if login)))


def _text(place: object, name: str) -> str | None:
    """A text that CloudTrail tells: not hidden, not empty, not some other type."""
    value = place.get(name) if isinstance(place, dict) else None
    return value if isinstance(value, str) and value and value != HIDDEN else None
