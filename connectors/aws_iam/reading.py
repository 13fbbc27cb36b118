"""What an IAM user holds, and the state of one credential: reads only.

Maps each of IAM's things to exactly one kind. Knows neither order nor actions. Name-addressed things (password,
permissions, sessions) are bound to the user's unique id, because a name can be given to somebody else later:
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from connectors.aws_iam.calls import Calls, Missing
from connectors.aws_iam.config import AwsIamConfig
from connectors.aws_iam.policies import denied_since, revoked_before
from offboard_worker.connector import drained, foremost, side_by_side
from offboard_worker.core.credential import Credential, CredentialKind, CredentialState
from offboard_worker.errors import ConnectorError

T = TypeVar("T")

FOUND_AT = "found_at"  # snapshot keys
USER_ID = "user_id"
DOCUMENT = "document"
QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class IamUser:
    """A user and what is granted to them directly. `inline` maps policy names to documents."""

    name: str
    id: str
    arn: str
    groups: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    inline: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def partition(self) -> str:
        return partition_of(self.arn)


@dataclass(frozen=True, slots=True)
class Listing:
    """How IAM lists one kind of credential that has an id and a status of its own."""

    operation: str
    key: str
    id: str
    date: str
    label: str


LISTINGS: Mapping[CredentialKind, Listing] = {
    CredentialKind.ACCESS_KEY: Listing("list_access_keys", "AccessKeyMetadata", "AccessKeyId", "CreateDate", ""),
    CredentialKind.SSH_KEY: Listing("list_ssh_public_keys", "SSHPublicKeys", "SSHPublicKeyId", "UploadDate", ""),
    CredentialKind.SERVICE_CREDENTIAL: Listing(
        "list_service_specific_credentials",
        "ServiceSpecificCredentials",
        "ServiceSpecificCredentialId",
        "CreateDate",
        "ServiceName",
    ),
    CredentialKind.CERTIFICATE: Listing("list_signing_certificates", "Certificates", "CertificateId", "UploadDate", ""),
}
# Kinds of which a user has one: their id is the user's.
BOUND_BY_USER_ID = frozenset({CredentialKind.PERMISSIONS, CredentialKind.PASSWORD, CredentialKind.SESSION})
# Active, Inactive or Expired; an expired one lets nobody in.
STATUS = {
    "Active": CredentialState.ACTIVE,
    "Inactive": CredentialState.DISABLED,
    "Expired": CredentialState.DISABLED,
}


def partition_of(arn: str) -> str:
    """Return aws, aws-cn or aws-us-gov."""
    return arn.split(":")[1]


def deny_all_arn(arn: str) -> str:
    """Return the ARN of AWS's own AWSDenyAll in the partition of another ARN."""
    return f"arn:{partition_of(arn)}:iam::aws:policy/AWSDenyAll"


def is_attached_policy(credential: Credential) -> bool:
    """Tell a managed policy, which has an ARN, from an inline one: a policy's name can't hold a colon."""
    return credential.id.startswith("arn:")


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for everything side by side, then raise the first failure: for answers that are no use without the others.

    Nothing is left running behind.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


class Reading:
    """Everything that is read from one account."""

    def __init__(self, instance: str, config: AwsIamConfig, calls: Calls) -> None:
        self._instance = instance
        self._config = config
        self._calls = calls

    # --- users --------------------------------------------------------------------------------------------------

    async def user(self, name: str) -> IamUser | None:
        """Read a user's identity alone, without what is granted to them."""
        answer = await self._calls.exists("get_user", UserName=name)
        if answer is None:
            return None
        found = answer["User"]
        return IamUser(found["UserName"], found["UserId"], found["Arn"])

    def described(self, detail: Mapping[str, Any]) -> IamUser:
        """Understand one user of GetAccountAuthorizationDetails."""
        return IamUser(
            name=detail["UserName"],
            id=detail["UserId"],
            arn=detail["Arn"],
            groups=tuple(detail.get("GroupList", ())),
            attached=tuple(policy["PolicyArn"] for policy in detail.get("AttachedManagedPolicies", ())),
            inline={policy["PolicyName"]: policy["PolicyDocument"] for policy in detail.get("UserPolicyList", ())},
            tags={tag["Key"]: tag["Value"] for tag in detail.get("Tags", ())},
        )

    async def _groups(self, name: str) -> AsyncIterator[str]:
        async for group in self._calls.stream("list_groups_for_user", "Groups", UserName=name):
            yield group["GroupName"]

    async def _attached(self, name: str) -> AsyncIterator[str]:
        async for policy in self._calls.stream("list_attached_user_policies", "AttachedPolicies", UserName=name):
            yield policy["PolicyArn"]

    async def _inline(self, name: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield names and documents of a user's inline policies."""
        names, unread = await drained(self._calls.stream("list_user_policies", "PolicyNames", UserName=name))
        documents = (self._documented(name, str(policy)) for policy in names)
        async for policy in side_by_side(*documents, unread=unread):
            yield policy

    async def _documented(self, user: str, policy: str) -> AsyncIterator[tuple[str, Any]]:
        document = await self.inline_policy(user, policy)
        if document is not None:
            yield policy, document

    async def inline_policy(self, user: str, policy: str) -> Any | None:
        """Read the document of a user's inline policy, or None where there is none."""
        answer = await self._calls.exists("get_user_policy", UserName=user, PolicyName=policy)
        return None if answer is None else answer["PolicyDocument"]

    # --- what a user holds --------------------------------------------------------------------------------------

    def reads(self, user: IamUser) -> list[AsyncIterator[Credential]]:
        """Return the reads that together yield every credential of a user, what takes the most power away first."""
        return [self._granted(user), *self._own(user, last_used=False)]

    async def holdings(self, user: IamUser) -> AsyncIterator[Credential]:
        """Yield every credential of a user whose grants are known, with the last use of each key."""
        async for credential in side_by_side(self._power(user, whole=True), *self._own(user, last_used=True)):
            yield credential

    def _own(self, user: IamUser, *, last_used: bool) -> list[AsyncIterator[Credential]]:
        listed = [self._listed(kind, user, last_used=last_used) for kind in LISTINGS]
        return [self._password(user), self._mfa_devices(user), *listed]

    async def _granted(self, user: IamUser) -> AsyncIterator[Credential]:
        """Read what is granted to a user directly, and yield what follows from it.

        The permissions are yielded whatever of this can't be read: to deny them all, none of it need be known.
        """
        (groups, no_groups), (attached, no_attached), (inline, no_inline) = await asyncio.gather(
            drained(self._groups(user.name)), drained(self._attached(user.name)), drained(self._inline(user.name))
        )
        known = replace(user, groups=tuple(groups), attached=tuple(attached), inline=dict(inline))
        power = self._power(known, whole=no_attached is None and no_inline is None)
        async for credential in side_by_side(power, unread=foremost(no_groups, no_attached, no_inline)):
            yield credential

    async def _power(self, user: IamUser, *, whole: bool) -> AsyncIterator[Credential]:
        """Yield permissions, grants and sessions. Unless the policies are `whole`, a deny-all may have gone unseen."""
        quarantined = "yes" if deny_all_arn(user.arn) in user.attached else "no" if whole else "unknown"
        powerless = CredentialState.ACTIVE if whole else CredentialState.UNKNOWN
        if self._denied(user):
            powerless = CredentialState.DISABLED
        yield self._made(
            CredentialKind.PERMISSIONS,
            user,
            user.id,
            label=f"everything that {user.name} may do",
            state=powerless,
            snapshot={"arn": user.arn, QUARANTINED: quarantined},
        )
        for grant in self._grants(user):
            yield grant
        session = self.session(user.name, user.id, datetime.now(UTC), powerless)
        if not self._config.revoke_role_sessions:
            yield session
            return
        try:
            yield replace(session, state=await self.state(session))
        except ConnectorError:
            yield replace(session, state=CredentialState.UNKNOWN)  # the leaver has them all the same
            raise

    def session(
        self, name: str, user_id: str, now: datetime, state: CredentialState = CredentialState.UNKNOWN
    ) -> Credential:
        """The sessions that a user may have, as one credential: STS lists none of them."""
        return Credential(
            connector=self._instance,
            kind=CredentialKind.SESSION,
            id=user_id,
            owner=name,
            label=f"STS sessions of {name}",
            state=state,
            snapshot={USER_ID: user_id, FOUND_AT: now.isoformat()},
        )

    def _denied(self, user: IamUser) -> bool:
        """Say whether a user's grants, as read, hold the deny-all."""
        ours = user.inline.get(self._config.deny_policy_name)
        return denied_since(ours) is not None or deny_all_arn(user.arn) in user.attached

    def _made(
        self, kind: CredentialKind, user: IamUser, id_: str, *, snapshot: Mapping[str, str] | None = None, **more: Any
    ) -> Credential:
        return Credential(
            connector=self._instance,
            kind=kind,
            id=id_,
            owner=user.name,
            snapshot={USER_ID: user.id, **(snapshot or {})},
            **more,
        )

    async def _password(self, user: IamUser) -> AsyncIterator[Credential]:
        answer = await self._calls.exists("get_login_profile", UserName=user.name)
        if answer is None:
            return
        made = answer["LoginProfile"].get("CreateDate")
        label = f"console password of {user.name}"
        state = CredentialState.ACTIVE
        yield self._made(CredentialKind.PASSWORD, user, user.id, label=label, state=state, created_at=made)

    async def _mfa_devices(self, user: IamUser) -> AsyncIterator[Credential]:
        async for device in self._calls.stream("list_mfa_devices", "MFADevices", UserName=user.name):
            yield self._made(
                CredentialKind.MFA_DEVICE,
                user,
                device["SerialNumber"],
                state=CredentialState.ACTIVE,
                created_at=device.get("EnableDate"),
            )

    async def _listed(self, kind: CredentialKind, user: IamUser, *, last_used: bool) -> AsyncIterator[Credential]:
        listing = LISTINGS[kind]
        async for item in self._calls.stream(listing.operation, listing.key, UserName=user.name):
            dated = last_used and kind is CredentialKind.ACCESS_KEY  # a user has two of them at most
            yield self._made(
                kind,
                user,
                item[listing.id],
                label=item.get(listing.label, ""),
                state=STATUS.get(item["Status"], CredentialState.UNKNOWN),
                created_at=item.get(listing.date),
                last_used_at=await self._last_used(item[listing.id]) if dated else None,
                expires_at=item.get("ExpirationDate"),
                snapshot={"status": item["Status"]},
            )

    async def _last_used(self, key: str) -> Any:
        answer = await self._calls.exists("get_access_key_last_used", AccessKeyId=key)
        return None if answer is None else answer.get("AccessKeyLastUsed", {}).get("LastUsedDate")

    def _grants(self, user: IamUser) -> list[Credential]:
        ours = {self._config.deny_policy_name, self._config.revoke_policy_name}
        active = CredentialState.ACTIVE
        member, policy = CredentialKind.GROUP_MEMBERSHIP, CredentialKind.POLICY
        return [
            *(self._made(member, user, group, scope=user.name, state=active) for group in user.groups),
            *(
                self._made(policy, user, arn, scope=user.name, label="attached", state=active)
                for arn in user.attached
                if arn != deny_all_arn(user.arn)
            ),
            *(
                self._made(
                    policy,
                    user,
                    name,
                    scope=user.name,
                    label="inline",
                    state=active,
                    snapshot={DOCUMENT: json.dumps(document)},
                )
                for name, document in user.inline.items()
                if name not in ours
            ),
        ]

    # --- the state of one credential ----------------------------------------------------------------------------

    async def state(self, credential: Credential) -> CredentialState:
        """Read one credential back. A user who is gone took everything along, except virtual MFA devices."""
        kind, owner = credential.kind, credential.owner
        try:
            if kind in LISTINGS:
                return await self._listed_state(credential, LISTINGS[kind])
            match kind:
                case CredentialKind.PERMISSIONS:
                    return await self._permissions_state(credential)
                case CredentialKind.SESSION:
                    return await self._session_state(credential)
                case CredentialKind.PASSWORD:
                    gone = not await self.is_same_user(credential) or (
                        await self._calls.exists("get_login_profile", UserName=owner) is None
                    )
                    return CredentialState.GONE if gone else CredentialState.ACTIVE
                case CredentialKind.MFA_DEVICE:
                    return await self._mfa_state(credential)
                case CredentialKind.GROUP_MEMBERSHIP:
                    return _present(credential.id in [group async for group in self._groups(owner)])
                case CredentialKind.POLICY if is_attached_policy(credential):
                    return _present(credential.id in [arn async for arn in self._attached(owner)])
                case CredentialKind.POLICY:
                    return _present(await self.inline_policy(owner, credential.id) is not None)
        except Missing:
            return CredentialState.GONE
        return CredentialState.UNKNOWN

    async def is_same_user(self, credential: Credential) -> bool:
        """Say whether the name still belongs to the user whom the credential was found with."""
        user = await self.user(credential.owner)
        by_id = credential.id if credential.kind in BOUND_BY_USER_ID else None
        expected = credential.snapshot.get(USER_ID, by_id)
        return user is not None and expected in (None, user.id)

    async def _listed_state(self, credential: Credential, listing: Listing) -> CredentialState:
        for item in await self._calls.pages(listing.operation, listing.key, UserName=credential.owner):
            if item[listing.id] == credential.id:
                return STATUS.get(item["Status"], CredentialState.UNKNOWN)
        return CredentialState.GONE

    async def _permissions_state(self, credential: Credential) -> CredentialState:
        same, denied = await all_of([self.is_same_user(credential), self.is_denied(credential.owner)])
        if not same:
            return CredentialState.GONE
        return CredentialState.DISABLED if denied else CredentialState.ACTIVE

    async def is_denied(self, name: str) -> bool:
        """Say whether a deny-all is in force: ours, or AWS's own where ours found no room."""
        if denied_since(await self.inline_policy(name, self._config.deny_policy_name)) is not None:
            return True
        try:
            attached = [arn async for arn in self._attached(name)]
        except Missing:
            return False
        return any(arn.endswith(":iam::aws:policy/AWSDenyAll") for arn in attached)

    async def _mfa_state(self, credential: Credential) -> CredentialState:
        assigned, unassigned = await all_of([self._assigned_to(credential.owner), self._unassigned(credential)])
        if credential.id in assigned:
            return CredentialState.ACTIVE
        return CredentialState.DISABLED if credential.id in unassigned else CredentialState.GONE

    async def _assigned_to(self, user: str) -> set[str]:
        try:
            devices = await self._calls.pages("list_mfa_devices", "MFADevices", UserName=user)
        except Missing:
            return set()
        return {device["SerialNumber"] for device in devices}

    async def _unassigned(self, credential: Credential) -> set[str]:
        """The serial numbers of virtual devices that nobody uses: such a device outlives its deactivation."""
        if not is_virtual_device(credential):
            return set()
        status = {"AssignmentStatus": "Unassigned"}
        devices = self._calls.stream("list_virtual_mfa_devices", "VirtualMFADevices", **status)
        return {device["SerialNumber"] async for device in devices}

    async def _session_state(self, credential: Credential) -> CredentialState:
        permissions = await self._permissions_state(credential)
        if permissions is CredentialState.ACTIVE:
            return CredentialState.ACTIVE
        if permissions is CredentialState.GONE and FOUND_AT not in credential.snapshot:
            return CredentialState.UNKNOWN if self._config.revoke_role_sessions else permissions
        uncut = await self.uncut_roles(credential)
        return CredentialState.ACTIVE if uncut else permissions

    async def uncut_roles(self, credential: Credential) -> list[str]:
        """Return the configured roles in which a session of the leaver may still have power."""
        needed = await self._sessions_end(credential)
        cuts = await all_of(self._is_cut(role, needed) for role in self._config.revoke_role_sessions)
        return [role for role, cut in zip(self._config.revoke_role_sessions, cuts, strict=True) if not cut]

    async def _sessions_end(self, credential: Credential) -> datetime:
        """Return since when the user can start no session: when the deny-all was put, else when they were found."""
        denied = denied_since(await self.inline_policy(credential.owner, self._config.deny_policy_name))
        if denied is not None:
            return denied
        found_at = credential.snapshot.get(FOUND_AT)
        return datetime.fromisoformat(found_at) if found_at else datetime.now(UTC)

    async def _is_cut(self, role: str, needed: datetime) -> bool:
        answer = await self._calls.exists("get_role_policy", RoleName=role, PolicyName=self._config.revoke_policy_name)
        if answer is None:  # no such policy, or no such role: the latter has no sessions
            return await self._calls.exists("get_role", RoleName=role) is None
        before = revoked_before(answer["PolicyDocument"])
        return before is not None and before >= needed


def is_virtual_device(credential: Credential) -> bool:
    """Tell a virtual MFA device, which is an object in IAM, from a key or a token that one can hold in the hand."""
    return ":mfa/" in credential.id


def _present(there: bool) -> CredentialState:
    return CredentialState.ACTIVE if there else CredentialState.GONE
