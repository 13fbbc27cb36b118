"""The Okta connector's verbs. https://developer.okta.com/docs/api/ (Users, User Sessions, API Tokens, Role Assignments)

Suspending is the reversible end of an account; deactivating deprovisions every application and can't be undone, so it
happens only where the configuration says so. It never touches the account, tokens or roles of the user whose API token
it works with, nor the last super administrator: these become tasks for a person.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, Self

from yarl import URL

from connectors.okta import holdings
from connectors.okta.config import ABILITIES, OktaConfig, abilities
from connectors.okta.holdings import Document
from connectors.okta.standing import standing
from connectors.okta.wire import Gone, Wire, load_sdk
from offboard_worker.connector import Connector, Standing, drained, side_by_side
from offboard_worker.core.credential import Ability, Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person, normal_email
from offboard_worker.errors import AccessRefused, Fatal, NeedsHuman

PAGE: Final = 200
EVERYBODY: Final = " or ".join(f'status eq "{status}"' for status in holdings.STATUSES)


class Okta(Connector[OktaConfig]):
    """One Okta organisation."""

    name: ClassVar[str] = "okta"
    title: ClassVar[str] = "Okta"
    Config: ClassVar[type[OktaConfig]] = OktaConfig
    kinds: ClassVar[Mapping[CredentialKind, Ability]] = ABILITIES
    stages: ClassVar[tuple[tuple[CredentialKind, ...], ...]] = (
        (CredentialKind.ACCOUNT,),  # first, so that no new session can begin
        (CredentialKind.SESSION, CredentialKind.API_TOKEN, CredentialKind.ROLE),
        (CredentialKind.OAUTH_GRANT,),  # ending the sessions has ended the refresh tokens: read back here one by one
    )

    def __init__(self, instance: str, config: OktaConfig) -> None:
        super().__init__(instance, config)
        # Whether the account can come back, and whether it may be deleted, is this instance's configuration.
        self.kinds = abilities(config)  # type: ignore[misc]
        self._wire = Wire(
            config.base_url,
            config.api_token,
            timeout=config.timeout,
            concurrency=config.concurrency,
            proxy=config.proxy,
        )
        self._me: Document | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, instance: str, config: OktaConfig) -> AsyncIterator[Self]:
        """Own the SDK's client and its one HTTP session."""
        connector = cls(instance, config)
        async with connector._wire:
            yield connector

    @classmethod
    def preload(cls) -> None:
        load_sdk()

    async def check(self) -> Standing:
        return await standing(self._wire, await self._myself())

    # Whom it knows

    async def identify(self, person: Person) -> tuple[str, ...]:
        recorded = person.aliases.get(self.system, ())
        if recorded or self.config.match == "none":
            return tuple(recorded)
        ids: dict[str, None] = {}
        for address in person.emails:
            ids.update(dict.fromkeys([user["id"] async for user in self._matching(self.config.match, address)]))
        return tuple(ids)

    async def _matching(self, name: str, address: str) -> AsyncIterator[Document]:
        """Yield the users whose attribute is exactly this address, re-read one by one.

        `search` compares without regard to case and lags behind; `filter` is current and compares exactly. Both include
        DEPROVISIONED users, which a plain list leaves out.
        """
        term = f"profile.{name} eq {json.dumps(address, ensure_ascii=False)}"
        ids: dict[str, None] = {}
        for how in ("search", "filter"):
            candidates = self._wire.pages("UserApi", "list_users", limit=PAGE, **{how: term})
            ids.update(dict.fromkeys([user["id"] async for user in candidates]))
        for user_id in ids:
            user = await self._user(user_id)
            if user is not None and normal_email(holdings.attribute(user, name)) == normal_email(address):
                yield user

    async def _users_of(self, person: Person) -> AsyncIterator[Document]:
        """Yield each user that the person's ids name, once; then raise for those that couldn't be read."""
        ids: set[str] = set()
        async for user in side_by_side(*map(self._named, await self.identify(person))):
            if user["id"] not in ids:
                ids.add(user["id"])
                yield user

    async def _named(self, alias: str) -> AsyncIterator[Document]:
        user = await self._user(alias)
        if user is not None:
            yield user

    async def _user(self, id_or_login: str) -> Document | None:
        """Read one user. Okta also answers to the part of a login before the @, which is a likeness: refused here."""
        try:
            user: Document = (await self._wire.call("UserApi", "get_user", id_or_login)).json()
        except Gone:
            return None
        wanted = id_or_login.casefold()
        exact = user["id"] == id_or_login or holdings.attribute(user, "login").casefold() == wanted
        return user if exact else None

    async def _myself(self) -> Document:
        """The user whose API token we work with."""
        if self._me is None:
            self._me = (await self._wire.call("UserApi", "get_user", "me")).json()
        return self._me

    # What they hold

    async def find(self, person: Person) -> AsyncIterator[Credential]:
        users, unread = await drained(self._users_of(person))
        for user in users:
            yield holdings.account(self.instance, user)
            yield holdings.sessions(self.instance, user)
        lists = [each for user in users for each in self._lists_of(user)]
        if users:
            lists.append(self._api_tokens({user["id"] for user in users}))
        async for credential in side_by_side(*lists, unread=unread):
            yield credential

    async def inventory(self) -> AsyncIterator[Credential]:
        async for token in self._api_tokens(None):
            yield token
        users = self._wire.pages("UserApi", "list_users", filter=EVERYBODY, limit=PAGE)
        async for batch in _batches(users, self.config.concurrency):
            async for credential in side_by_side(*map(self._held_by, batch)):
                yield credential

    async def _api_tokens(self, owners: set[str] | None) -> AsyncIterator[Credential]:
        async for token in self._wire.pages("ApiTokenApi", "list_api_tokens"):
            if token.get("userId") and (owners is None or token["userId"] in owners):
                yield holdings.api_token(self.instance, token)

    async def _held_by(self, user: Document) -> AsyncIterator[Credential]:
        """Everything of one user but the API tokens, which Okta lists for the whole organisation at once."""
        yield holdings.account(self.instance, user)
        yield holdings.sessions(self.instance, user)
        async for credential in side_by_side(*self._lists_of(user)):
            yield credential

    def _lists_of(self, user: Document) -> list[AsyncIterator[Credential]]:
        user_id = user["id"]
        return [self._roles_of(user_id), self._grants_of(user_id), self._refresh_tokens_of(user_id)]

    async def _roles_of(self, user_id: str) -> AsyncIterator[Credential]:
        async for role in self._role_documents(user_id):
            yield holdings.role(self.instance, user_id, role)

    async def _grants_of(self, user_id: str) -> AsyncIterator[Credential]:
        async for document in self._all("UserGrantApi", "list_user_grants", user_id, limit=PAGE):
            grant = holdings.grant(self.instance, user_id, document)
            if grant.state is not CredentialState.GONE:
                yield grant

    async def _refresh_tokens_of(self, user_id: str) -> AsyncIterator[Credential]:
        clients, unread = await drained(self._all("UserResourcesApi", "list_user_clients", user_id))
        lists = (self._refresh_tokens_at(user_id, client["client_id"]) for client in clients)
        async for token in side_by_side(*lists, unread=unread):
            yield token

    async def _refresh_tokens_at(self, user_id: str, client_id: str) -> AsyncIterator[Credential]:
        method = "list_refresh_tokens_for_user_and_client"
        async for document in self._all("UserOAuthApi", method, user_id, client_id, limit=PAGE):
            token = holdings.refresh_token(self.instance, user_id, client_id, document)
            if token.state is not CredentialState.GONE:
                yield token

    def _role_documents(self, user_id: str) -> AsyncIterator[Document]:
        return self._all("RoleAssignmentAUserApi", "list_assigned_roles_for_user", user_id)

    async def _is_super_admin(self, user_id: str) -> bool:
        return any([holdings.is_super_admin(role) async for role in self._role_documents(user_id)])

    async def _all(self, api: str, method: str, *args: str, **options: Any) -> AsyncIterator[Document]:
        """Every item of a list; none where the user was deleted meanwhile."""
        try:
            async for item in self._wire.pages(api, method, *args, **options):
                yield item
        except Gone:
            return

    # What is done about it

    async def disable(self, credential: Credential) -> Outcome:
        if credential.kind is CredentialKind.ACCOUNT:
            await self._refuse_what_must_stay(credential)
            return await (self._deactivate(credential) if self.config.deactivate else self._suspend(credential))
        return await self._revoke(credential)

    async def delete(self, credential: Credential) -> Outcome:
        if credential.kind is not CredentialKind.ACCOUNT:
            return await self._revoke(credential)
        if not self.config.delete_account:
            raise self._task(
                credential,
                "the configuration doesn't allow to delete accounts",
                "Delete the user in Okta's admin console, or set delete_account: true for this connector.",
            )
        await self._refuse_what_must_stay(credential)
        user = await self._user(credential.id)
        if user is None:
            return Outcome.ALREADY
        # DELETE on a user who is not deactivated only deactivates: a second one deletes.
        if user["status"] != "DEPROVISIONED":
            await self._end("UserApi", "delete_user", credential.id)
        return await self._end("UserApi", "delete_user", credential.id)

    async def restore(self, credential: Credential) -> Outcome:
        if credential.kind is not CredentialKind.ACCOUNT:
            raise self._task(
                credential,
                f"a revoked {credential.kind} can't be given back",
                "If it is needed again, let the person sign in or consent anew, or assign it in Okta's admin console.",
            )
        user = await self._user(credential.id)
        if user is None or user["status"] == "DEPROVISIONED":
            raise self._task(
                credential,
                "a deactivated or deleted user can't be restored as they were",
                "Activate or create the user in Okta's admin console, and assign the applications anew.",
            )
        if user["status"] != "SUSPENDED":
            return Outcome.ALREADY
        await self._wire.call("UserLifecycleApi", "unsuspend_user", credential.id)
        return Outcome.DONE

    async def _suspend(self, credential: Credential) -> Outcome:
        try:
            await self._wire.call("UserLifecycleApi", "suspend_user", credential.id)
        except Gone:
            return Outcome.ALREADY
        except Fatal as refusal:
            if refusal.status != 400:
                raise
            return await self._why_not_suspended(credential, refusal)
        return Outcome.DONE

    async def _why_not_suspended(self, credential: Credential, refusal: Fatal) -> Outcome:
        """Okta suspends ACTIVE users alone; tell "it is done already" from "it can't be done"."""
        user = await self._user(credential.id)
        if user is None or user["status"] in holdings.POWERLESS:
            return Outcome.ALREADY
        if user["status"] == "ACTIVE":
            raise refusal
        raise self._task(
            credential,
            f"Okta suspends only ACTIVE users, and this one is {user['status']}",
            "Deactivate the user in Okta's admin console, or set deactivate: true for this connector and retry.",
        ) from refusal

    async def _deactivate(self, credential: Credential) -> Outcome:
        user = await self._user(credential.id)
        if user is None or user["status"] == "DEPROVISIONED":
            return Outcome.ALREADY
        return await self._end("UserLifecycleApi", "deactivate_user", credential.id)

    async def _revoke(self, credential: Credential) -> Outcome:
        """End what can't be ended halfway."""
        match credential.kind:
            case CredentialKind.SESSION:
                everything = {"oauth_tokens": True, "forget_devices": True}
                return await self._end("UserSessionsApi", "revoke_user_sessions", credential.id, **everything)
            case CredentialKind.API_TOKEN:
                await self._refuse_our_own(credential)
                return await self._end("ApiTokenApi", "revoke_api_token", credential.id)
            case CredentialKind.ROLE:
                return await self._unassign(credential)
            case CredentialKind.OAUTH_GRANT:
                user_id, _, client_id = credential.scope.partition("/")
                if client_id:
                    method = "revoke_token_for_user_and_client"
                    return await self._end("UserOAuthApi", method, user_id, client_id, credential.id)
                return await self._end("UserGrantApi", "revoke_user_grant", user_id, credential.id)
        raise Fatal(
            f"{credential.ref}: Okta has no {credential.kind}", connector=self.instance, credential=credential.ref
        )

    async def _unassign(self, credential: Credential) -> Outcome:
        await self._refuse_our_own(credential)
        assigned = await self._role(credential)
        if assigned is None:
            return Outcome.ALREADY
        if assigned.get("assignmentType") == "GROUP":
            raise self._task(
                credential,
                f"the role {assigned.get('label', assigned['type'])} comes from a group",
                "Take the person out of the group that carries the role, in Okta's admin console.",
            )
        if holdings.is_super_admin(assigned) and not await self._another_super_admin(credential.owner):
            raise self._last_owner(credential)
        return await self._end("RoleAssignmentAUserApi", "unassign_role_from_user", credential.scope, credential.id)

    async def _end(self, api: str, method: str, *args: str, **options: Any) -> Outcome:
        try:
            await self._wire.call(api, method, *args, **options)
        except Gone:
            return Outcome.ALREADY
        return Outcome.DONE

    # The read-back

    async def state(self, credential: Credential) -> CredentialState:
        match credential.kind:
            case CredentialKind.ACCOUNT:
                user = await self._user(credential.id)
                return CredentialState.GONE if user is None else holdings.account_state(user)
            case CredentialKind.API_TOKEN:
                token = await self._read("ApiTokenApi", "get_api_token", credential.id)
                return CredentialState.GONE if token is None else CredentialState.ACTIVE
            case CredentialKind.ROLE:
                role = await self._role(credential)
                return CredentialState.GONE if role is None else holdings.role_state(role)
            case CredentialKind.OAUTH_GRANT:
                grant = await self._grant(credential)
                return CredentialState.GONE if grant is None else holdings.grant_state(grant)
        return CredentialState.UNKNOWN  # sessions: Okta lists none

    async def _role(self, credential: Credential) -> Document | None:
        return await self._read("RoleAssignmentAUserApi", "get_user_assigned_role", credential.scope, credential.id)

    async def _grant(self, credential: Credential) -> Document | None:
        user_id, _, client_id = credential.scope.partition("/")
        if client_id:
            method = "get_refresh_token_for_user_and_client"
            return await self._read("UserOAuthApi", method, user_id, client_id, credential.id)
        return await self._read("UserGrantApi", "get_user_grant", user_id, credential.id)

    async def _read(self, api: str, method: str, *args: str) -> Document | None:
        """Read one thing back; None where Okta itself says that it doesn't exist."""
        try:
            document = (await self._wire.call(api, method, *args)).json()
        except Gone:
            return None
        if not isinstance(document, dict) or document.get("id") != args[-1]:
            raise Fatal(f"{api}.{method} answered about something else than {args[-1]}", connector=self.instance)
        return document

    # What must stay

    async def _refuse_what_must_stay(self, account: Credential) -> None:
        """Raise NeedsHuman for our own account and for the last super administrator's.

        Where we may not read roles (403), our user is no super administrator, and Okta itself refuses to let such a
        one touch a super administrator's account: the page is named in `standing`. A list that fails otherwise says
        nothing: then only another super administrator lets this account go, and without one the error goes up.
        """
        _, (roles, unread) = await asyncio.gather(
            self._refuse_our_own(account), drained(self._role_documents(account.id))
        )
        owner = any(map(holdings.is_super_admin, roles))
        harmless = unread is None or (isinstance(unread, AccessRefused) and unread.status == 403)
        if (not owner and harmless) or await self._another_super_admin(account.id):
            return
        raise self._last_owner(account) if owner or unread is None else unread

    async def _refuse_our_own(self, credential: Credential) -> None:
        if credential.owner == (await self._myself())["id"]:
            raise self._task(
                credential,
                "it belongs to the user whose API token offboard-worker itself works with",
                "Give the connector a token of another service user, then retry the case.",
            )

    async def _another_super_admin(self, but: str) -> bool:
        """Whether somebody else who can sign in is a super administrator."""
        my_id = (await self._myself())["id"]
        if my_id != but and await self._is_super_admin(my_id):
            return True  # the usual case, one call
        async for user_id in self._assignees():
            if user_id == but or not await self._is_super_admin(user_id):
                continue
            user = await self._user(user_id)
            if user is not None and user["status"] == "ACTIVE":
                return True
        return False

    async def _assignees(self) -> AsyncIterator[str]:
        """The ids of all users with an administrator's role; this list pages by a link in its body."""
        reply = await self._wire.call("RoleAssignmentAUserApi", "list_users_with_role_assignments", limit=PAGE)
        while True:
            document = reply.json()
            for entry in document.get("value", ()):
                yield entry["id"]
            following = document.get("_links", {}).get("next", {}).get("href")
            if not following:
                return
            reply = await self._wire.get(URL(following).raw_path_qs)

    def _last_owner(self, credential: Credential) -> NeedsHuman:
        return self._task(
            credential,
            "nobody else who can sign in is a super administrator of this organisation",
            "Make somebody else a super administrator in Okta, then retry the case.",
        )

    def _task(self, credential: Credential, why: str, advice: str) -> NeedsHuman:
        return NeedsHuman(f"{credential.ref}: {why}", advice=advice, connector=self.instance, credential=credential.ref)


async def _batches(items: AsyncIterator[Document], size: int) -> AsyncIterator[list[Document]]:
    batch: list[Document] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
