"""The simulated Okta behaves as Okta does, seen by a client that is not our connector."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from offboard_worker.demo.okta_filter import matches
from offboard_worker.demo.okta_simulator import OktaSimulator

USERS = "/api/v1/users"


@pytest.fixture
async def okta() -> AsyncIterator[OktaSimulator]:
    async with OktaSimulator(page_size=2) as simulator:
        yield simulator


@pytest.fixture
async def client(okta: OktaSimulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(okta.url, headers={"Authorization": f"SSWS {okta.token}"}) as session:
        yield session


async def call(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as response:
        text = await response.text()
        return response.status, await response.json() if text else None


@pytest.mark.integration
class TestSimulator:
    @pytest.mark.parametrize("prefix", ["SSWS ", "SSWS"])
    async def test_the_token_is_taken_with_and_without_the_space(self, okta: OktaSimulator, prefix: str) -> None:
        async with aiohttp.ClientSession(okta.url, headers={"Authorization": prefix + okta.token}) as client:
            status, me = await call(client, "GET", f"{USERS}/me")
        assert (status, me["id"]) == (200, okta.service_user.id)

    @pytest.mark.parametrize("sent", ["", "SSWS wrong", "Bearer {token}", "SSWS"])
    async def test_any_other_credential_is_401(self, okta: OktaSimulator, sent: str) -> None:
        async with aiohttp.ClientSession(okta.url) as client:
            header = {"Authorization": sent.format(token=okta.token)}
            status, body = await call(client, "GET", f"{USERS}/me", headers=header)
        assert (status, body["errorCode"]) == (401, "E0000011")

    async def test_a_token_dies_with_its_owner(self, okta: OktaSimulator, client: aiohttp.ClientSession) -> None:
        okta.service_user.status = "SUSPENDED"
        status, _ = await call(client, "GET", USERS)
        assert status == 401

    async def test_what_does_not_exist_is_oktas_404(self, okta: OktaSimulator, client: aiohttp.ClientSession) -> None:
        user = okta.add_user("ann@example.com")
        for path in (f"{USERS}/00uNobody", f"{USERS}/{user.id}/grants/x", "/api/v1/api-tokens/x", "/api/v1/nothing"):
            status, body = await call(client, "GET", path)
            assert (status, body["errorCode"]) == (404, "E0000007"), path

    async def test_lists_follow_links_and_leave_out_the_deactivated(
        self, okta: OktaSimulator, client: aiohttp.ClientSession
    ) -> None:
        for number in range(4):
            okta.add_user(f"user{number}@example.com", status="DEPROVISIONED" if number == 0 else "ACTIVE")
        seen: list[str] = []
        url: str | None = USERS
        while url:
            async with client.get(url) as response:
                page = await response.json()
                assert len(page) <= 2
                seen += [user["profile"]["login"] for user in page]
                link = response.links.get("next")
                url = str(link["url"]) if link else None
        assert seen == [okta.service_user.login, "user1@example.com", "user2@example.com", "user3@example.com"]
        term = {"search": 'profile.login eq "USER0@example.com"'}
        _, found = await call(client, "GET", USERS, params=term)
        assert [user["status"] for user in found] == ["DEPROVISIONED"]

    async def test_the_lifecycle_allows_only_what_okta_allows(
        self, okta: OktaSimulator, client: aiohttp.ClientSession
    ) -> None:
        user = okta.add_user("ben@example.com", api_tokens=["x"])
        steps = [
            ("unsuspend", 400, "ACTIVE"),
            ("suspend", 200, "SUSPENDED"),
            ("suspend", 400, "SUSPENDED"),
            ("unsuspend", 200, "ACTIVE"),
            ("activate", 403, "ACTIVE"),
            ("deactivate", 200, "DEPROVISIONED"),
            ("suspend", 400, "DEPROVISIONED"),
            ("activate", 200, "PROVISIONED"),
        ]
        for step, expected, after in steps:
            status, _ = await call(client, "POST", f"{USERS}/{user.id}/lifecycle/{step}")
            assert (status, user.status) == (expected, after), step
        assert okta.of(user.id, "api_tokens") == []

    async def test_delete_deactivates_first_and_deletes_the_second_time(
        self, okta: OktaSimulator, client: aiohttp.ClientSession
    ) -> None:
        user = okta.add_user("cat@example.com")
        for expected, left in ((204, "DEPROVISIONED"), (204, None), (404, None)):
            status, _ = await call(client, "DELETE", f"{USERS}/{user.id}")
            now = okta.users.get(user.id)
            assert (status, now.status if now else None) == (expected, left)

    async def test_clearing_sessions_leaves_oauth_tokens_unless_asked(
        self, okta: OktaSimulator, client: aiohttp.ClientSession
    ) -> None:
        user = okta.add_user("dee@example.com", refresh_tokens=["0oaApp"])
        await call(client, "DELETE", f"{USERS}/{user.id}/sessions")
        assert user.sessions == []
        assert okta.of(user.id, "refresh_tokens")
        await call(client, "DELETE", f"{USERS}/{user.id}/sessions", params={"oauthTokens": "true"})
        assert okta.of(user.id, "refresh_tokens") == []

    async def test_the_rate_limit_is_told_and_kept(self, okta: OktaSimulator, client: aiohttp.ClientSession) -> None:
        okta.rate_limit = 0
        async with client.get(USERS) as response:
            body = await response.json()
            assert (response.status, body["errorCode"]) == (429, "E0000047")
            assert response.headers["X-Rate-Limit-Remaining"] == "0"
            assert int(response.headers["X-Rate-Limit-Reset"]) % 60 == 0

    async def test_one_users_credential_is_not_reached_through_another(
        self, okta: OktaSimulator, client: aiohttp.ClientSession
    ) -> None:
        user = okta.add_user("eli@example.com", grants=[("0oaApp", "profile")])
        other = okta.add_user("flo@example.com")
        [grant] = okta.of(user.id, "grants")
        status, _ = await call(client, "DELETE", f"{USERS}/{other.id}/grants/{grant}")
        assert status == 404
        assert okta.of(user.id, "grants") == [grant]


class TestFilter:
    item = {"status": "ACTIVE", "profile": {"email": 'a"b@example.com', "login": "Ann@example.com"}}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("expression", "fold", "expected"),
        [
            ('status eq "ACTIVE"', False, True),
            ('status eq "active"', False, False),
            ('profile.login eq "ann@EXAMPLE.com"', True, True),
            ('status eq "X" or status eq "ACTIVE" and profile.login eq "Ann@example.com"', False, True),
            ('status eq "ACTIVE" and profile.login eq "x" or status eq "Y"', False, False),
            ('profile.email eq "a\\"b@example.com"', False, True),
            ('profile.none eq "x"', False, False),
        ],
    )
    def test_it_says_what_matches(self, expression: str, fold: bool, expected: bool) -> None:
        assert matches(expression, self.item, fold_case=fold) is expected

    @pytest.mark.parametrize("expression", ["", 'status ne "X"', 'status eq "X" xor', 'status eq "X" or', "status"])
    def test_it_refuses_what_it_does_not_understand(self, expression: str) -> None:
        with pytest.raises(ValueError, match="understand"):
            matches(expression, self.item, fold_case=False)
