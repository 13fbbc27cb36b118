"""The `entra` connector: finds, ends, reads back and restores what one person holds in a tenant.

The vendor's pages are named in the package's docstring. Here is what may be done and what becomes a task for a person;
reading.py and changes.py make the calls, graph.py knows HTTP and the vendor's errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Self

from connectors.entra import credentials as seen
from connectors.entra.config import EntraConfig, lacking, needed
from offboard_worker.connector import Connector, ConnectorConfig, Standing, side_by_side
from offboard_worker.core.credential import Ability, Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.errors import NeedsHuman, Retryable

if TYPE_CHECKING:
    from connectors.entra.changes import Changes
    from connectors.entra.graph import Graph
    from connectors.entra.reading import Reader

ISSUED = timedelta(minutes=90)
ISSUED_NOTE = "access tokens already issued keep what they say until they expire: 60 to 90 min"


class Entra(Connector[EntraConfig]):
    """One Entra tenant."""

    name: ClassVar[str] = "entra"
    title: ClassVar[str] = "Entra ID"
    Config: ClassVar[type[ConnectorConfig]] = EntraConfig
    kinds: ClassVar[Mapping[CredentialKind, Ability]] = {
        CredentialKind.ACCOUNT: Ability(
            reversible=True,
            read_back=True,
            permission="User.ReadWrite.All",
            residual=timedelta(hours=28),
            residual_note="access tokens already issued: about 1 h, up to 28 h where client and service support "
            "continuous access evaluation (these are told within about 15 min)",
        ),
        CredentialKind.SESSION: Ability(
            reversible=False,
            read_back=False,
            permission="User.RevokeSessions.All",
            deletable=False,
            residual=timedelta(hours=28),
            residual_note="refresh tokens end within minutes; access tokens already issued: about 1 h, up to 28 h with "
            "continuous access evaluation (which reacts within about 15 min)",
        ),
        CredentialKind.ROLE: Ability(
            True, True, "RoleManagement.ReadWrite.Directory", residual=ISSUED, residual_note=ISSUED_NOTE
        ),
        CredentialKind.GROUP_MEMBERSHIP: Ability(
            True, True, "GroupMember.ReadWrite.All", residual=ISSUED, residual_note=ISSUED_NOTE
        ),
        CredentialKind.APP_ASSIGNMENT: Ability(
            True, True, "AppRoleAssignment.ReadWrite.All", residual=ISSUED, residual_note=ISSUED_NOTE
        ),
        CredentialKind.OAUTH_GRANT: Ability(
            True, True, "DelegatedPermissionGrant.ReadWrite.All", residual=ISSUED, residual_note=ISSUED_NOTE
        ),
        CredentialKind.APP_SECRET: Ability(
            reversible=False,
            read_back=True,
            permission="Application.ReadWrite.All",
            residual=timedelta(hours=24),
            residual_note="access tokens that the application already has: about 1 h, up to 24 h with continuous "
            "access evaluation for workloads",
        ),
    }
    stages: ClassVar[tuple[tuple[CredentialKind, ...], ...]] = (
        (CredentialKind.ACCOUNT,),
        (
            CredentialKind.SESSION,
            CredentialKind.ROLE,
            CredentialKind.GROUP_MEMBERSHIP,
            CredentialKind.APP_ASSIGNMENT,
            CredentialKind.OAUTH_GRANT,
            CredentialKind.APP_SECRET,
        ),
    )

    def __init__(self, instance: str, config: EntraConfig) -> None:
        super().__init__(instance, config)
        self._opened: tuple[Graph, Reader, Changes] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, instance: str, config: EntraConfig) -> AsyncIterator[Self]:
        from connectors.entra.changes import Changes
        from connectors.entra.graph import Graph
        from connectors.entra.reading import Reader

        connector = cls(instance, config)
        graph = Graph(instance, config)
        connector._opened = (graph, Reader(instance, graph), Changes(instance, graph, config.base_url))
        try:
            yield connector
        finally:
            connector._opened = None
            await graph.close()

    @classmethod
    def preload(cls) -> None:
        """Import the SDK, with what it would import at the first call of each sort."""
        from connectors.entra.preload import preload

        preload()

    async def check(self) -> Standing:
        roles = await self._graph.permissions()
        missing = lacking(needed(self.kinds, self.config), roles)
        if "User.ReadWrite.All" not in missing:
            await self._read.any_user()
        notes = () if roles else ("the token holds no application permission: was admin consent given?",)
        return Standing(f"application {self.config.client_id} in tenant {self.config.tenant_id}", missing, notes)

    async def identify(self, person: Person) -> tuple[str, ...]:
        recorded = person.aliases.get(self.system, ())
        ids = tuple(dict.fromkeys(alias.lower() for alias in recorded if seen.exact(alias)))
        if ids:
            return ids  # object ids are for ever; a user name may have been given to somebody else since
        named = await self._matching("userPrincipalName", recorded)
        if named or self.config.match == "none":
            return named
        return await self._matching(self.config.match, person.emails)

    async def _matching(self, attribute: str, values: tuple[str, ...]) -> tuple[str, ...]:
        """The users whose attribute is exactly one of the values. Raises NeedsHuman where two share a value."""
        found: dict[str, None] = {}
        for value in values:
            ids = await self._read.matching(attribute, value)
            if len(ids) > 1:
                raise NeedsHuman(
                    f"{len(ids)} users have the {attribute} {value}: none is an exact match",
                    advice="Find out which account is the leaver's, and record its object id as an alias of the person.",
                    connector=self.instance,
                )
            found.update(dict.fromkeys(ids))
        return tuple(found)

    async def find(self, person: Person) -> AsyncIterator[Credential]:
        async for credential in side_by_side(*map(self._read.held_by, await self.identify(person))):
            yield credential

    async def inventory(self) -> AsyncIterator[Credential]:
        async for credential in self._read.everything():
            yield credential

    async def disable(self, credential: Credential) -> Outcome:
        match credential.kind:
            case CredentialKind.ACCOUNT:
                await self._refuse_last_owner(credential)
                return await self._change.enable(credential.id, enabled=False)
            case CredentialKind.SESSION:
                self._refuse_guest(credential)
                return await self._change.end_sessions(credential.id)
            case CredentialKind.APP_SECRET:
                return await self._remove_app_secret(credential)
            case CredentialKind.ROLE:
                await self._refuse_last_owner(credential)
            case CredentialKind.GROUP_MEMBERSHIP:
                self._refuse_unchangeable_group(credential)
        return await self._change.take_away(credential)

    async def delete(self, credential: Credential) -> Outcome:
        match credential.kind:
            case CredentialKind.ACCOUNT:
                await self._refuse_last_owner(credential)
                return await self._change.delete_user(credential.id)
            case CredentialKind.SESSION:
                raise self._task(credential, "sessions can't be deleted, only ended", "Nothing: disabling ends them.")
        return await self.disable(credential)  # everything else is gone by being disabled

    async def state(self, credential: Credential) -> CredentialState:
        match credential.kind:
            case CredentialKind.ACCOUNT:
                return await self._account_state(credential)
            case CredentialKind.SESSION:
                return await self._sessions_state(credential)
            case CredentialKind.APP_SECRET:
                there = await self._read.secrets_of(credential.scope, credential.owner)
            case kind:
                there = [held async for held in self._read.held_now(kind, credential.owner)]
        held = any(seen.same_power(credential, other) for other in there)
        return CredentialState.ACTIVE if held else CredentialState.GONE

    async def restore(self, credential: Credential) -> Outcome:
        if not self.kinds[credential.kind].reversible:
            raise self._task(credential, f"a {credential.kind} can't be brought back", "Let the person make a new one.")
        if credential.snapshot.get("accountEnabled") == "false":
            return Outcome.ALREADY  # it was disabled before we came: not ours to enable
        if await self.state(credential) is CredentialState.ACTIVE:
            return Outcome.ALREADY
        if credential.kind is CredentialKind.ACCOUNT:
            return await self._bring_back(credential)
        if credential.kind is CredentialKind.GROUP_MEMBERSHIP:
            self._refuse_unchangeable_group(credential)
        await self._change.give_back(credential)
        return Outcome.DONE

    # The parts of those

    @property
    def _graph(self) -> Graph:
        return self._parts[0]

    @property
    def _read(self) -> Reader:
        return self._parts[1]

    @property
    def _change(self) -> Changes:
        return self._parts[2]

    @property
    def _parts(self) -> tuple[Graph, Reader, Changes]:
        if self._opened is None:
            raise RuntimeError("use the connector within `async with Entra.open(…)`")
        return self._opened

    async def _account_state(self, credential: Credential) -> CredentialState:
        user = await self._read.user(credential.id)
        if user is None:
            return CredentialState.GONE
        if not isinstance(user.get("accountEnabled"), bool):
            raise Retryable("Graph answered a user without accountEnabled", connector=self.instance)
        return CredentialState.ACTIVE if user["accountEnabled"] else CredentialState.DISABLED

    async def _sessions_state(self, credential: Credential) -> CredentialState:
        """Gone once the time from which sessions count has moved on; before that nobody can tell."""
        user = await self._read.user(credential.id)
        if user is None:
            return CredentialState.GONE  # with the user, who can't sign in
        before = seen.moment(credential.snapshot.get("validFrom"))
        after = seen.moment(user.get("signInSessionsValidFromDateTime"))
        moved = before is not None and after is not None and after > before
        return CredentialState.GONE if moved else CredentialState.UNKNOWN

    async def _bring_back(self, credential: Credential) -> Outcome:
        """Enable the account; where it was soft-deleted meanwhile, take it out of the deleted items first."""
        if await self._change.enable(credential.id, enabled=True) is Outcome.DONE:
            return Outcome.DONE
        if await self._change.undelete_user(credential.id) is Outcome.ALREADY:
            raise self._task(credential, "the account was deleted for good", "Make a new account for the person.")
        return await self._change.enable(credential.id, enabled=True)

    async def _remove_app_secret(self, credential: Credential) -> Outcome:
        if credential.snapshot.get("appId") == self.config.client_id:
            advice = "Rotate the secret of offboard-worker's application by hand, and take the leaver off its owners."
            raise self._task(credential, "this is the application that offboard-worker itself uses", advice)
        if credential.snapshot.get("sort") == "certificate":
            advice = "Replace the certificate in Entra: Graph asks for a proof that is signed with another one."
            raise self._task(credential, f"the {credential.label} can't be removed by us", advice)
        if not self.config.remove_app_secrets:
            advice = "Rotate it with the application's other owners, or set remove_app_secrets on the connector."
            raise self._task(credential, f"the leaver may know the {credential.label}", advice)
        if await self.state(credential) is CredentialState.GONE:
            return Outcome.ALREADY  # Graph would answer 400
        return await self._change.remove_password(credential.scope, credential.id)

    async def _refuse_last_owner(self, credential: Credential) -> None:
        """Raise NeedsHuman where nobody else who can sign in is a Global Administrator.

        Where `find` could not tell whether this one is, it is asked again, and as long as that can't be read the
        error goes up: nothing is disabled that may lock everybody out.
        """
        ownership = credential.snapshot.get("globalAdministrator")
        owner = ownership == "true" or credential.snapshot.get("roleDefinitionId") == seen.GLOBAL_ADMINISTRATOR
        if not owner and ownership != "unknown":
            return
        if await self._read.last_global_administrator(credential.owner, known=owner):
            advice = "Make somebody else a Global Administrator, then retry the case."
            raise self._task(credential, "this is the last Global Administrator who can sign in", advice)

    def _refuse_guest(self, credential: Credential) -> None:
        if credential.snapshot.get("userType") == "Guest":
            raise self._task(
                credential,
                "a guest signs in through the home tenant: Graph doesn't end these sessions",
                "Ask the home tenant to revoke them. The guest's account here is disabled all the same.",
            )

    def _refuse_unchangeable_group(self, credential: Credential) -> None:
        reasons = {
            "dynamic": ("its members follow from a rule", "Change the attribute that the rule of the group asks for."),
            "synced": ("it is mastered on premises", "Remove the member in the on-premises directory."),
            "mailList": ("it is a distribution list", "Remove the member in Exchange: Graph can't."),
        }
        for name, (reason, advice) in reasons.items():
            if credential.snapshot.get(name) == "true":
                raise self._task(credential, f"Graph can't change the group {credential.label}: {reason}", advice)

    def _task(self, credential: Credential, message: str, advice: str) -> NeedsHuman:
        return NeedsHuman(message, advice=advice, connector=self.instance, credential=credential.ref)
