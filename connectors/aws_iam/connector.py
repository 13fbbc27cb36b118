"""The verbs: what is done to an IAM user's credentials, in the words of the IAM API.

Reads are `reading`'s, the wire and AWS's errors are `calls`'. Two choices differ from the obvious:

- A console password can't be disabled, only replaced or deleted. A replaced one can't be read back, a deleted one can:
  so `disable` deletes it, and giving it back is a task for a person.
- Taking MFA from a user whose password still works would open the door wider. So MFA devices go last, and only once
  the password is gone or the deny-all is in force.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from connectors.aws_iam import abilities, calls
from connectors.aws_iam.access import standing
from connectors.aws_iam.calls import Calls, Limited, Missing
from connectors.aws_iam.config import AwsIamConfig
from connectors.aws_iam.owners import Owners
from connectors.aws_iam.policies import denied_since, deny_all, revoke_older_sessions
from connectors.aws_iam.reading import (
    DOCUMENT,
    QUARANTINED,
    USER_ID,
    IamUser,
    Reading,
    all_of,
    deny_all_arn,
    is_attached_policy,
    is_virtual_device,
)
from offboard_worker.connector import Connector, Standing, blocking, drained, side_by_side
from offboard_worker.core.credential import Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, NeedsHuman, Retryable

TRUST_A_NAME_FOR = 60.0  # seconds for which a name read as belonging to a user is believed

# Keys that have a status: the call that sets it, the call that deletes, and the parameter that names the key.
WITH_STATUS = {
    CredentialKind.ACCESS_KEY: ("update_access_key", "delete_access_key", "AccessKeyId"),
    CredentialKind.SSH_KEY: ("update_ssh_public_key", "delete_ssh_public_key", "SSHPublicKeyId"),
    CredentialKind.SERVICE_CREDENTIAL: (
        "update_service_specific_credential",
        "delete_service_specific_credential",
        "ServiceSpecificCredentialId",
    ),
    CredentialKind.CERTIFICATE: ("update_signing_certificate", "delete_signing_certificate", "CertificateId"),
}


class AwsIam(Connector[AwsIamConfig]):
    """The IAM users of one AWS account."""

    name = "aws_iam"
    title = "AWS IAM"
    Config = AwsIamConfig
    kinds: ClassVar = abilities.KINDS
    stages: ClassVar = abilities.STAGES

    def __init__(self, instance: str, config: AwsIamConfig) -> None:
        super().__init__(instance, config)
        self._calls = Calls(instance, config)
        self._reading = Reading(instance, config, self._calls)
        self._owners = Owners(self.system, config, self._calls, self._reading)
        self._trusted: dict[tuple[str, str], float] = {}

    @classmethod
    def open(cls, instance: str, config: AwsIamConfig) -> AbstractAsyncContextManager[Self]:
        return cls._opened(instance, config)

    @classmethod
    @asynccontextmanager
    async def _opened(cls, instance: str, config: AwsIamConfig) -> AsyncIterator[Self]:
        await blocking(calls.require_sdk)
        connector = cls(instance, config)
        try:
            yield connector
        finally:
            await connector._calls.close()

    @classmethod
    def preload(cls) -> None:
        calls.preload()

    async def check(self) -> Standing:
        return await standing(self.config, self._calls)

    # --- whose, and what ----------------------------------------------------------------------------------------

    async def identify(self, person: Person) -> tuple[str, ...]:
        users = await self._owners.matching(person)
        # The name is what calls and events use; the unique id tells this user from a later one of the same name.
        return tuple(dict.fromkeys(each for user in users for each in (user.name, user.id)))

    async def find(self, person: Person) -> AsyncIterator[Credential]:
        (users, unread), _ = await asyncio.gather(drained(self._owners.recorded(person)), self._learn_who_we_are())
        for user in users:
            self._trusted[user.name, user.id] = time.monotonic()
        if self.config.revoke_role_sessions and unread is None:  # a user who couldn't be read may well be there
            for session in self._sessions_left_behind(person, {user.name for user in users}):
                yield session
        reads = (read for user in users for read in self._reading.reads(user))
        async for credential in side_by_side(*reads, unread=unread):
            yield credential

    async def _learn_who_we_are(self) -> None:
        """Ask beside the lists what every action wants to know. A failure is that action's: it asks again."""
        with suppress(ConnectorError):
            await self._calls.ourselves()

    def _sessions_left_behind(self, person: Person, living: set[str]) -> list[Credential]:
        """Return the sessions of users who are deleted already: those of roles outlive the user by up to 12 h."""
        gone = [name for name in self._owners.names(person) if name not in living]
        now = datetime.now(UTC)
        unique = next(iter(self._owners.unique_ids(person)), "")
        return [self._reading.session(name, unique or name, now, CredentialState.ACTIVE) for name in gone]

    async def inventory(self) -> AsyncIterator[Credential]:
        details = self._calls.stream("get_account_authorization_details", "UserDetailList", Filter=["User"])
        batch: list[IamUser] = []
        async for detail in details:
            batch.append(self._reading.described(detail))
            if len(batch) >= self.config.concurrency:
                async for credential in side_by_side(*map(self._reading.holdings, batch)):
                    yield credential
                batch = []
        async for credential in side_by_side(*map(self._reading.holdings, batch)):
            yield credential

    async def state(self, credential: Credential) -> CredentialState:
        return await self._reading.state(credential)

    # --- disable ------------------------------------------------------------------------------------------------

    async def disable(self, credential: Credential) -> Outcome:
        await self._refuse_ourselves(credential)
        kind, user = credential.kind, credential.owner
        if kind is CredentialKind.SESSION:
            return await self._strip_sessions(credential)
        if not await self._still_theirs(credential):
            return Outcome.ALREADY
        if kind in WITH_STATUS:
            return await self._set_status(credential, "Inactive")
        match kind:
            case CredentialKind.PERMISSIONS:
                return await self._deny(user)
            case CredentialKind.PASSWORD:
                return await self._do("delete_login_profile", UserName=user)
            case CredentialKind.MFA_DEVICE:
                return await self._take_mfa(credential)
            case CredentialKind.GROUP_MEMBERSHIP:
                return await self._do("remove_user_from_group", UserName=user, GroupName=credential.id)
            case CredentialKind.POLICY if is_attached_policy(credential):
                return await self._do("detach_user_policy", UserName=user, PolicyArn=credential.id)
            case CredentialKind.POLICY:
                return await self._do("delete_user_policy", UserName=user, PolicyName=credential.id)
        raise self._not_ours(credential)

    async def _deny(self, user: str) -> Outcome:
        """Put the deny-all. A deny-all of ours that stands is left as it is: it says since when."""
        policy = self.config.deny_policy_name
        with suppress(AccessRefused):  # we may not look: then it is put, and counts from now
            if denied_since(await self._reading.inline_policy(user, policy)) is not None:
                return Outcome.ALREADY
        document = deny_all(datetime.now(UTC))
        try:
            return await self._do("put_user_policy", UserName=user, PolicyName=policy, PolicyDocument=document)
        except Limited:  # inline policies of a user may have 2,048 characters together: AWS's own policy needs none
            owner = await self._reading.user(user)
            if owner is None:
                return Outcome.ALREADY
            return await self._do("attach_user_policy", UserName=user, PolicyArn=deny_all_arn(owner.arn))

    async def _strip_sessions(self, credential: Credential) -> Outcome:
        """Take the power from sessions already issued: the user's by the deny-all, a role's where configured."""
        outcome = Outcome.ALREADY
        if await self._still_theirs(credential) and await self._deny(credential.owner) is Outcome.DONE:
            outcome = Outcome.DONE
        # A session that is issued while the deny-all still spreads must die too.
        document = revoke_older_sessions(datetime.now(UTC) + abilities.SPREAD)
        policy = {"PolicyName": self.config.revoke_policy_name, "PolicyDocument": document}
        for role in await self._reading.uncut_roles(credential):
            outcome = await self._do("put_role_policy", RoleName=role, **policy)
        return outcome

    async def _take_mfa(self, credential: Credential) -> Outcome:
        password, denied = await all_of(
            [self._has_password(credential.owner), self._reading.is_denied(credential.owner)]
        )
        if password and not denied:
            raise Retryable(
                f"{credential.label or credential.id} still guards a working password of {credential.owner}",
                retry_after=5.0,
                advice="Nothing: it is removed once the password is gone or the deny-all policy is in force.",
                connector=self.instance,
                credential=credential.ref,
            )
        return await self._do("deactivate_mfa_device", UserName=credential.owner, SerialNumber=credential.id)

    async def _has_password(self, user: str) -> bool:
        return await self._calls.exists("get_login_profile", UserName=user) is not None

    # --- delete -------------------------------------------------------------------------------------------------

    async def delete(self, credential: Credential) -> Outcome:
        await self._refuse_ourselves(credential)
        kind = credential.kind
        if kind in (CredentialKind.PERMISSIONS, CredentialKind.SESSION):
            advice = (
                "Leave the deny-all policy in force for 36 h at least, then delete the user where you manage users."
            )
            message = f"{kind} of {credential.owner} can't be deleted: sessions already issued would have power again"
            raise NeedsHuman(message, advice=advice, connector=self.instance, credential=credential.ref)
        if kind is CredentialKind.MFA_DEVICE:
            return await self._delete_mfa(credential)
        if not await self._still_theirs(credential):
            return Outcome.ALREADY
        if kind in WITH_STATUS:
            _, operation, parameter = WITH_STATUS[kind]
            return await self._do(operation, UserName=credential.owner, **{parameter: credential.id})
        return await self.disable(credential)  # removed for good already by what disables it

    async def _delete_mfa(self, credential: Credential) -> Outcome:
        outcome = Outcome.ALREADY
        if await self._still_theirs(credential):
            outcome = await self._take_mfa(credential)
        if is_virtual_device(credential):
            deleted = await self._do("delete_virtual_mfa_device", SerialNumber=credential.id)
            outcome = Outcome.DONE if Outcome.DONE in (outcome, deleted) else Outcome.ALREADY
        return outcome

    # --- restore ------------------------------------------------------------------------------------------------

    async def restore(self, credential: Credential) -> Outcome:
        await self._refuse_ourselves(credential)
        kind, user = credential.kind, credential.owner
        self._refuse_irreversible(credential)
        try:
            if not await self._still_theirs(credential):
                raise self._by_hand(credential, "the user is gone", "Create the user anew where you manage users.")
            if kind in WITH_STATUS:
                operation, _, parameter = WITH_STATUS[kind]
                return await self._must(operation, UserName=user, Status="Active", **{parameter: credential.id})
            match kind:
                case CredentialKind.PERMISSIONS:
                    return await self._allow(credential)
                case CredentialKind.GROUP_MEMBERSHIP:
                    return await self._must("add_user_to_group", UserName=user, GroupName=credential.id)
                case CredentialKind.POLICY if is_attached_policy(credential):
                    return await self._must("attach_user_policy", UserName=user, PolicyArn=credential.id)
                case CredentialKind.POLICY:
                    document = credential.snapshot[DOCUMENT]
                    named = {"PolicyName": credential.id, "PolicyDocument": document}
                    return await self._must("put_user_policy", UserName=user, **named)
        except Missing as missing:
            raise self._by_hand(credential, str(missing), "It was deleted meanwhile: create it anew.") from None
        except KeyError:
            raise self._by_hand(credential, "its document was not kept", "Write the policy anew.") from None
        raise self._not_ours(credential)

    async def _allow(self, credential: Credential) -> Outcome:
        """Lift the deny-all, and keep the sessions from before it dead: only new ones get their power back."""
        user, policy = credential.owner, self.config.revoke_policy_name
        if not await self._reading.is_denied(user):
            return Outcome.ALREADY
        document = revoke_older_sessions(datetime.now(UTC))
        await self._must("put_user_policy", UserName=user, PolicyName=policy, PolicyDocument=document)
        await self._do("delete_user_policy", UserName=user, PolicyName=self.config.deny_policy_name)
        arn = credential.snapshot.get("arn")
        if arn and credential.snapshot.get(QUARANTINED) == "no":  # whoever else quarantined them, also lifts that
            await self._do("detach_user_policy", UserName=user, PolicyArn=deny_all_arn(arn))
        return Outcome.DONE

    def _refuse_irreversible(self, credential: Credential) -> None:
        advice = {
            CredentialKind.PASSWORD: "Create a new console password for the user.",
            CredentialKind.MFA_DEVICE: "Let the person enrol an MFA device again.",
            CredentialKind.SESSION: "Let the person sign in again; new sessions work once the permissions are restored.",
        }.get(credential.kind)
        if advice is not None:
            raise self._by_hand(credential, f"a {credential.kind} can't be given back", advice)

    # --- what all of them need ----------------------------------------------------------------------------------

    async def _do(self, operation: str, **params: Any) -> Outcome:
        """Make a call whose aim is that something is gone or powerless: not being there is what we wanted."""
        try:
            await self._calls.call(operation, **params)
        except Missing:
            return Outcome.ALREADY
        return Outcome.DONE

    async def _must(self, operation: str, **params: Any) -> Outcome:
        """Make a call whose aim is that something is there. Raises Missing."""
        await self._calls.call(operation, **params)
        return Outcome.DONE

    async def _set_status(self, credential: Credential, status: str) -> Outcome:
        operation, _, parameter = WITH_STATUS[credential.kind]
        named = {"UserName": credential.owner, parameter: credential.id}
        return await self._do(operation, Status=status, **named)

    async def _still_theirs(self, credential: Credential) -> bool:
        """Say whether the user's name still names the same user: another may have got it since (days may pass)."""
        key = (credential.owner, credential.snapshot.get(USER_ID, credential.id))
        if time.monotonic() - self._trusted.get(key, -TRUST_A_NAME_FOR) < TRUST_A_NAME_FOR:
            return True
        if not await self._reading.is_same_user(credential):
            return False
        self._trusted[key] = time.monotonic()
        return True

    async def _refuse_ourselves(self, credential: Credential) -> None:
        """Never cut what the worker itself stands on. Raises NeedsHuman."""
        ourselves = await self._calls.ourselves()
        key = self.config.access_key_id
        own_key = key is not None and credential.id == key.reveal()
        own_role = credential.kind is CredentialKind.SESSION and ourselves.roles & {*self.config.revoke_role_sessions}
        if credential.owner in ourselves.users or own_key or own_role:
            advice = "Give offboard-worker another credential in this account, then retry the case."
            raise self._by_hand(credential, f"offboard-worker itself works as {ourselves.arn}", advice)

    def _by_hand(self, credential: Credential, why: str, advice: str) -> NeedsHuman:
        message = f"{credential.kind} of {credential.owner}: {why}"
        return NeedsHuman(message, advice=advice, connector=self.instance, credential=credential.ref)

    def _not_ours(self, credential: Credential) -> Fatal:
        message = f"{self.title} knows no {credential.kind}"
        return Fatal(message, connector=self.instance, credential=credential.ref)
