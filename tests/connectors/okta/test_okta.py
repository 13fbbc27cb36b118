"""The Okta connector against the simulator: the contract, whom it finds, what it does, and what it must leave alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from connectors.okta import Okta, OktaConfig
from offboard_worker.core.credential import (
    Action,
    CredentialKind,
    CredentialState,
    Outcome,
    Strength,
    strength_of,
)
from offboard_worker.core.person import Person
from offboard_worker.demo.okta_records import User
from offboard_worker.demo.okta_simulator import OktaSimulator
from offboard_worker.errors import AccessRefused, NeedsHuman
from offboard_worker.secret import Secret
from offboard_worker.testing import ConnectorContract, CredentialsAlive, Key, found
from tests.connectors.okta.world import SUSPEND, SYSTEM, account, config, held, living, person
from tests.contract_checks import VendorContract

pytestmark = pytest.mark.integration


class TestContract(ConnectorContract):
    """With the default configuration: accounts are suspended."""

    @pytest.fixture
    def connector(self, connector: Okta) -> Okta:
        return connector

    @pytest.fixture
    def leaver(self, ada: User) -> Person:
        return person(ada)

    @pytest.fixture
    def bystander(self, bob: User) -> Person:
        return person(bob)

    @pytest.fixture
    def stranger(self, ada: User) -> Person:
        return Person("p-stranger", aliases={SYSTEM: ("ada",)}, emails=("ada@example.net", ada.email))

    @pytest.fixture
    def credentials_alive(self, okta: OktaSimulator) -> CredentialsAlive:
        async def alive(who: Person) -> frozenset[Key]:
            return frozenset(living(okta, who.aliases[SYSTEM][0]))

        return alive


class TestContractWhereAccountsAreDeactivatedAndDeleted(TestContract):
    @pytest.fixture
    async def connector(self, okta: OktaSimulator) -> AsyncIterator[Okta]:
        async with Okta.open(SYSTEM, config(okta, deactivate=True, delete_account=True)) as opened:
            yield opened


class TestWhomItFinds:
    async def test_nobody_is_matched_by_address_unless_configured(self, connector: Okta, ada: User) -> None:
        assert await connector.identify(Person("p", emails=(ada.email,))) == ()

    async def test_an_address_matches_whatever_its_case(self, okta: OktaSimulator) -> None:
        user = okta.add_user("Carol@Example.com")
        async with Okta.open(SYSTEM, config(okta, match="email")) as connector:
            assert await connector.identify(Person("p", emails=("carol@example.com",))) == (user.id,)

    async def test_a_deactivated_user_is_still_identified(self, okta: OktaSimulator) -> None:
        user = okta.add_user("dan@example.com", status="DEPROVISIONED")
        async with Okta.open(SYSTEM, config(okta, match="login")) as connector:
            assert await connector.identify(Person("p", emails=("dan@example.com",))) == (user.id,)

    async def test_login_and_email_are_not_mixed_up(self, okta: OktaSimulator) -> None:
        okta.add_user("eve@example.com", email="eve.private@example.net")
        async with Okta.open(SYSTEM, config(okta, match="login")) as connector:
            assert await connector.identify(Person("p", emails=("eve.private@example.net",))) == ()

    async def test_a_search_hit_that_is_somebody_else_now_is_refused(self, okta: OktaSimulator, ada: User) -> None:
        """The search index lags behind: it names Ada for an address that isn't hers."""
        okta.faults.answer("GET /api/v1/users", status=200, json=[{"id": ada.id}], times=1)
        async with Okta.open(SYSTEM, config(okta, match="email")) as connector:
            assert await connector.identify(Person("p", emails=("somebody.else@example.com",))) == ()

    @pytest.mark.parametrize(
        ("address", "term"),
        [
            (
                'x" or profile.email eq "ada@example.com',
                r'profile.email eq "x\" or profile.email eq \"ada@example.com"',
            ),
            ("zoë@example.com", 'profile.email eq "zoë@example.com"'),
        ],
    )
    async def test_an_address_can_not_break_out_of_the_search_expression(
        self, okta: OktaSimulator, ada: User, address: str, term: str
    ) -> None:
        async with Okta.open(SYSTEM, config(okta, match="email")) as connector:
            assert await connector.identify(Person("p", emails=(address,))) == ()
        assert {dict(c.query).get("search", term) for c in okta.faults.calls if c.line == "GET /api/v1/users"} == {term}

    async def test_a_recorded_login_finds_the_user_and_a_part_of_it_does_not(self, connector: Okta, ada: User) -> None:
        by_login = Person("p", aliases={SYSTEM: ("ADA@example.com",)})
        by_part = Person("p", aliases={SYSTEM: ("ada",)})
        assert {c.owner for c in await found(connector, by_login)} == {ada.id}
        assert await found(connector, by_part) == []

    async def test_the_account_comes_first_and_api_tokens_are_found_before_it_is_ended(
        self, connector: Okta, ada: User
    ) -> None:
        credentials = await found(connector, person(ada))
        assert [c.kind for c in credentials[:2]] == [CredentialKind.ACCOUNT, CredentialKind.SESSION]
        assert [c.label for c in credentials if c.kind is CredentialKind.API_TOKEN] == ["nightly-export"]

    async def test_the_inventory_holds_deactivated_users(self, connector: Okta, okta: OktaSimulator) -> None:
        gone = okta.add_user("fay@example.com", status="DEPROVISIONED")
        accounts = {c.id: c.state async for c in connector.inventory() if c.kind is CredentialKind.ACCOUNT}
        assert accounts[gone.id] is CredentialState.DISABLED

    @pytest.mark.parametrize("next_first", [False, True])
    async def test_every_page_is_read_in_whatever_order_the_links_come(
        self, contract: VendorContract, next_first: bool
    ) -> None:
        async with OktaSimulator(page_size=2, next_before_self=next_first) as okta:
            grants = [(f"0oaApp{n}", "profile") for n in range(5)]
            user = okta.add_user("gil@example.com", grants=grants, api_tokens=["a", "b", "c"])
            okta.add_user("hal@example.com", roles=["APP_ADMIN"])
            async with Okta.open(SYSTEM, config(okta)) as connector:
                mine = await found(connector, person(user))
                everybody = {c.owner async for c in connector.inventory()}
            assert sum(c.kind is CredentialKind.OAUTH_GRANT for c in mine) == 5
            assert sum(c.kind is CredentialKind.API_TOKEN for c in mine) == 3
            assert everybody == set(okta.users)
            contract.check_all(okta.faults.calls)


class TestWhatMustStay:
    async def test_our_own_account_token_and_role_are_left_to_a_person(
        self, connector: Okta, okta: OktaSimulator
    ) -> None:
        before = set(living(okta, okta.service_user.id))
        for credential in await found(connector, person(okta.service_user)):
            if credential.kind is not CredentialKind.SESSION:
                with pytest.raises(NeedsHuman, match="offboard-worker itself"):
                    await connector.disable(credential)
        assert set(living(okta, okta.service_user.id)) == before

    async def test_the_last_super_administrator_is_left_to_a_person(self, connector: Okta, okta: OktaSimulator) -> None:
        okta.state.roles.clear()
        okta.add_role(okta.service_user.id, "ORG_ADMIN")
        last = okta.add_user("ida@example.com", roles=["SUPER_ADMIN"])
        okta.add_user("jim@example.com", roles=["SUPER_ADMIN"], status="SUSPENDED")
        [role] = await held(connector, last, CredentialKind.ROLE)
        for credential in (account(last), role):
            with pytest.raises(NeedsHuman, match="super administrator"):
                await connector.disable(credential)
        assert last.status == "ACTIVE"
        assert okta.of(last.id, "roles") == [role.id]

    async def test_one_of_two_super_administrators_is_ended(self, okta: OktaSimulator) -> None:
        okta.state.roles.clear()
        okta.add_role(okta.service_user.id, "ORG_ADMIN")
        leaver = okta.add_user("kim@example.com", roles=["SUPER_ADMIN"])
        okta.add_user("lou@example.com", roles=["SUPER_ADMIN"])
        okta.page_size = 1  # the other one is on a later page
        async with Okta.open(SYSTEM, config(okta)) as connector:
            [role] = await held(connector, leaver, CredentialKind.ROLE)
            assert await connector.disable(account(leaver)) is Outcome.DONE
            assert await connector.disable(role) is Outcome.DONE
        assert leaver.status == "SUSPENDED"
        assert okta.of(leaver.id, "roles") == []

    async def test_a_role_that_a_group_gives_is_left_to_a_person(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        given = okta.add_role(ada.id, "APP_ADMIN", assignment="GROUP")
        [role] = [c for c in await held(connector, ada, CredentialKind.ROLE) if c.id == given.id]
        with pytest.raises(NeedsHuman, match="group"):
            await connector.disable(role)

    @pytest.mark.parametrize("status", ["STAGED", "PROVISIONED", "RECOVERY", "PASSWORD_EXPIRED", "LOCKED_OUT"])
    async def test_a_user_whom_okta_does_not_suspend_is_a_task_and_not_a_success(
        self, connector: Okta, okta: OktaSimulator, status: str
    ) -> None:
        user = okta.add_user("moe@example.com", status=status)
        with pytest.raises(NeedsHuman, match=status):
            await connector.disable(account(user))
        assert await connector.state(account(user)) is CredentialState.ACTIVE

    async def test_an_account_is_not_deleted_unless_configured(self, connector: Okta, ada: User) -> None:
        assert not connector.kinds[CredentialKind.ACCOUNT].deletable
        with pytest.raises(NeedsHuman, match="configuration"):
            await connector.delete(account(ada))
        assert ada.status == "ACTIVE"

    async def test_deleting_really_deletes_though_okta_wants_to_be_asked_twice(
        self, okta: OktaSimulator, ada: User
    ) -> None:
        async with Okta.open(SYSTEM, config(okta, delete_account=True)) as connector:
            assert await connector.delete(account(ada)) is Outcome.DONE
            assert await connector.state(account(ada)) is CredentialState.GONE
        assert ada.id not in okta.users
        assert okta.faults.count("DELETE /api/v1/users/*") == 2


class TestWhatItDoes:
    async def test_ending_sessions_takes_the_oauth_tokens_and_devices_with_them(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        [sessions] = await held(connector, ada, CredentialKind.SESSION)
        assert await connector.disable(sessions) is Outcome.DONE
        assert ada.sessions == []
        assert okta.of(ada.id, "refresh_tokens") == []
        assert dict(okta.faults.calls[-1].query) == {"oauthTokens": "true", "forgetDevices": "true"}
        state = await connector.state(sessions)
        assert strength_of(state, connector.kinds[sessions.kind], Action.DISABLE) is Strength.ACKNOWLEDGED

    async def test_an_account_comes_back_from_suspension_and_not_from_deactivation(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        await connector.disable(account(ada))
        assert await connector.restore(account(ada)) is Outcome.DONE
        assert await connector.restore(account(ada)) is Outcome.ALREADY
        assert ada.status == "ACTIVE"
        async with Okta.open(SYSTEM, config(okta, deactivate=True)) as deactivating:
            assert not deactivating.kinds[CredentialKind.ACCOUNT].reversible
            assert await deactivating.disable(account(ada)) is Outcome.DONE
            assert ada.status == "DEPROVISIONED"
            assert okta.of(ada.id, "api_tokens") == []
            with pytest.raises(NeedsHuman):
                await deactivating.restore(account(ada))

    async def test_what_is_gone_already_is_a_result(self, connector: Okta, okta: OktaSimulator, ada: User) -> None:
        mine = await found(connector, person(ada))
        okta.purge(ada.id)
        for credential in mine:
            assert await connector.disable(credential) is Outcome.ALREADY, credential.ref
            if credential.kind is not CredentialKind.SESSION:
                assert await connector.state(credential) is CredentialState.GONE

    @pytest.mark.parametrize(
        ("kind", "call"),
        [
            (CredentialKind.ACCOUNT, SUSPEND),
            (CredentialKind.API_TOKEN, "DELETE /api/v1/api-tokens/*"),
            (CredentialKind.ROLE, "DELETE /api/v1/users/*/roles/*"),
            (CredentialKind.OAUTH_GRANT, "DELETE /api/v1/users/**"),
        ],
    )
    async def test_a_lying_okta_is_seen_through_by_the_read_back(
        self, connector: Okta, okta: OktaSimulator, ada: User, kind: CredentialKind, call: str
    ) -> None:
        """Okta answers success and changes nothing."""
        okta.faults.lie(call)
        for credential in await held(connector, ada, kind):
            assert await connector.disable(credential) is Outcome.DONE
            state = await connector.state(credential)
            assert state is CredentialState.ACTIVE
            assert strength_of(state, connector.kinds[kind], Action.DISABLE) is Strength.FAILED
        assert ada.status == "ACTIVE"


class TestCheck:
    async def test_it_says_who_we_are(self, connector: Okta, okta: OktaSimulator) -> None:
        standing = await connector.check()
        assert standing.ok
        assert okta.service_user.login in standing.identity

    async def test_it_names_the_permissions_that_are_missing(self, connector: Okta, okta: OktaSimulator) -> None:
        okta.state.roles.clear()
        okta.add_role(okta.service_user.id, "ORG_ADMIN")
        okta.forbidden = {"/api-tokens"}
        standing = await connector.check()
        assert set(standing.missing) == {"okta.apiTokens.read", "okta.apiTokens.manage", "okta.roles.manage"}

    async def test_a_custom_role_is_reported_as_not_knowable(self, connector: Okta, okta: OktaSimulator) -> None:
        okta.state.roles.clear()
        okta.add_role(okta.service_user.id, "CUSTOM")
        standing = await connector.check()
        assert standing.ok
        assert any("custom role" in note for note in standing.notes)

    async def test_a_bad_token_is_refused(self, okta: OktaSimulator) -> None:
        bad = OktaConfig(base_url=okta.url, api_token=Secret("00wrong"))
        async with Okta.open(SYSTEM, bad) as connector:
            with pytest.raises(AccessRefused, match="E0000011"):
                await connector.check()
