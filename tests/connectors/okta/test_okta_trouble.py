"""What Okta, the network and the SDK can get wrong, and that no secret gets out while they do."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.okta import Okta, OktaConfig
from offboard_worker.core.credential import (
    CredentialState,
    Outcome,
)
from offboard_worker.demo.okta_records import User
from offboard_worker.demo.okta_simulator import OktaSimulator
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, Retryable
from offboard_worker.secret import Secret
from offboard_worker.testing import found
from tests.connectors.okta.world import SUSPEND, SYSTEM, account, config, person

pytestmark = pytest.mark.integration


class TestTrouble:
    """Each vendor trouble becomes one of our errors, and none of them is ever a success."""

    async def disabling(self, connector: Okta, user: User) -> ConnectorError:
        with pytest.raises(ConnectorError) as caught:
            await connector.disable(account(user))
        return caught.value

    async def test_429_says_how_long_to_wait(self, connector: Okta, okta: OktaSimulator, ada: User) -> None:
        okta.faults.answer(SUSPEND, status=429, headers={"Retry-After": "7"}, json={"errorCode": "E0000047"})
        error = await self.disabling(connector, ada)
        assert isinstance(error, Retryable)
        assert error.retry_after == 7
        assert okta.faults.count(SUSPEND) == 1, "retries are the job's, not the SDK's"

    @pytest.mark.parametrize(
        ("status", "headers", "seconds"),
        [
            (429, {"Retry-After": "Tue, 24 Nov 2026 10:00:09 GMT"}, 9),
            (429, {"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "1795514430"}, 30),
            (429, {"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "1795514000"}, 0),
            (503, {"Retry-After": "1.5"}, 1.5),
            (500, {"X-Rate-Limit-Remaining": "599", "X-Rate-Limit-Reset": "1795514430"}, None),
            (429, {"Retry-After": "soon"}, None),
            (429, {}, None),
        ],
    )
    async def test_the_wait_is_told_by_oktas_own_clock(
        self,
        connector: Okta,
        okta: OktaSimulator,
        ada: User,
        status: int,
        headers: dict[str, str],
        seconds: float | None,
    ) -> None:
        clock = {"Date": "Tue, 24 Nov 2026 10:00:00 GMT"}
        okta.faults.answer(SUSPEND, status=status, headers={**clock, **headers})
        error = await self.disabling(connector, ada)
        assert isinstance(error, Retryable)
        assert error.retry_after == seconds

    async def test_oktas_own_429_is_waited_for_until_the_limit_resets(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        okta.rate_limit = 0
        error = await self.disabling(connector, ada)
        assert isinstance(error, Retryable)
        assert error.retry_after is not None
        assert 0 <= error.retry_after <= 60

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    @pytest.mark.parametrize("performed", [False, True])
    async def test_an_empty_5xx_is_no_success_whether_it_was_done_or_not(
        self, connector: Okta, okta: OktaSimulator, ada: User, status: int, performed: bool
    ) -> None:
        """The SDK takes an empty 502 for a success, and raises AttributeError on a 503 without rate headers."""
        okta.faults.answer(SUSPEND, status=status, performed=performed)
        assert isinstance(await self.disabling(connector, ada), Retryable)
        again = await connector.disable(account(ada))
        assert again is (Outcome.ALREADY if performed else Outcome.DONE)
        assert await connector.state(account(ada)) is CredentialState.DISABLED

    async def test_a_hanging_okta_is_given_up_in_time(self, okta: OktaSimulator, ada: User) -> None:
        async with Okta.open(SYSTEM, config(okta, timeout=0.3)) as connector:
            okta.faults.hang(SUSPEND, seconds=30)
            async with asyncio.timeout(5):
                assert isinstance(await self.disabling(connector, ada), Retryable)

    @pytest.mark.parametrize("performed", [False, True])
    async def test_a_half_written_body_is_tried_again(
        self, connector: Okta, okta: OktaSimulator, ada: User, performed: bool
    ) -> None:
        okta.faults.drop(SUSPEND, performed=performed)
        assert isinstance(await self.disabling(connector, ada), Retryable)
        await connector.disable(account(ada))
        assert await connector.state(account(ada)) is CredentialState.DISABLED

    async def test_a_half_written_read_back_is_no_evidence(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        okta.faults.drop("GET /api/v1/users/*")
        with pytest.raises(Retryable):
            await connector.state(account(ada))

    @pytest.mark.parametrize("body", ["", "<html>", '{"id":'])
    async def test_a_read_back_that_is_no_document_is_no_evidence(
        self, connector: Okta, okta: OktaSimulator, ada: User, body: str
    ) -> None:
        okta.faults.answer("GET /api/v1/users/*", status=200, text=body, content_type="application/json")
        with pytest.raises(Retryable):
            await connector.state(account(ada))

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [(200, "", "application/json"), (204, "", "application/json"), (200, "{}", "application/json")],
    )
    async def test_an_odd_success_is_a_success(
        self, connector: Okta, okta: OktaSimulator, ada: User, status: int, body: str, kind: str
    ) -> None:
        """The SDK raises on these, though the deed is done."""
        okta.faults.answer(SUSPEND, status=status, text=body, content_type=kind, performed=True)
        assert await connector.disable(account(ada)) is Outcome.DONE

    async def test_documents_that_the_sdk_cannot_model_are_read_all_the_same(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        odd = {"id": ada.id, "status": "SUSPENDED", "profile": {"login": ada.login, "email": 7}, "created": "yesterday"}
        okta.faults.answer("GET /api/v1/users/*", status=200, json=odd)
        assert await connector.state(account(ada)) is CredentialState.DISABLED

    async def test_a_404_that_is_not_oktas_is_never_taken_for_already_gone(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        okta.faults.answer(
            "GET /api/v1/users/*", status=404, text="<html>no such site</html>", content_type="text/html"
        )
        with pytest.raises(Fatal, match="404") as caught:
            await connector.state(account(ada))
        assert "base_url" in caught.value.advice

    async def test_a_redirect_is_not_followed_with_the_token(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        okta.faults.answer(SUSPEND, status=302, headers={"Location": f"{okta.url}/elsewhere"})
        assert isinstance(await self.disabling(connector, ada), Fatal)
        assert okta.faults.count("* /elsewhere") == 0

    async def test_a_lacking_permission_is_refused_access(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        okta.forbidden = {"/lifecycle/suspend"}
        error = await self.disabling(connector, ada)
        assert isinstance(error, AccessRefused)
        assert error.status == 403

    async def test_a_400_for_another_reason_is_fatal(self, connector: Okta, okta: OktaSimulator, ada: User) -> None:
        okta.faults.answer(SUSPEND, status=400, json={"errorCode": "E0000003", "errorSummary": "malformed"})
        error = await self.disabling(connector, ada)
        assert isinstance(error, Fatal)
        assert "E0000003" in str(error)

    async def test_a_refused_connection_is_tried_again(self, ada: User) -> None:
        async with OktaSimulator() as dead:
            settings = config(dead)
        async with Okta.open(SYSTEM, settings) as connector:
            assert isinstance(await self.disabling(connector, ada), Retryable)

    async def test_a_next_link_to_another_host_never_gets_the_token(
        self, connector: Okta, okta: OktaSimulator, ada: User
    ) -> None:
        async with OktaSimulator() as thief:
            link = {"Link": f'<{thief.url}/api/v1/users/{ada.id}/grants?after=1>; rel="next"'}
            okta.faults.answer("GET /api/v1/users/*/grants", status=200, headers=link, json=[])
            await found(connector, person(ada))
            assert thief.faults.calls == []
            assert okta.faults.count("GET /api/v1/users/*/grants") == 2


class TestSecretsAndSettings:
    async def test_nothing_logs_the_token_even_at_debug(
        self, okta: OktaSimulator, ada: User, caplog: pytest.LogCaptureFixture
    ) -> None:
        sdk = logging.getLogger("okta-sdk-python")
        disabled, sdk.disabled = sdk.disabled, False
        caplog.set_level(logging.DEBUG)
        caplog.set_level(logging.DEBUG, logger="okta-sdk-python")
        try:
            async with Okta.open(SYSTEM, config(okta)) as connector:
                await found(connector, person(ada))
                okta.faults.answer(SUSPEND, status=500, times=1)
                with pytest.raises(Retryable):
                    await connector.disable(account(ada))
        finally:
            sdk.disabled = disabled
        assert okta.token not in caplog.text

    async def test_no_error_carries_the_token(self, okta: OktaSimulator, ada: User) -> None:
        async with Okta.open(SYSTEM, config(okta)) as connector:
            for status in (400, 401, 403, 404, 429, 500):
                okta.faults.answer("GET /api/v1/users/*", status=status)
                with pytest.raises(ConnectorError) as caught:
                    await connector.state(account(ada))
                assert okta.token not in f"{caught.value!r} {caught.value.advice}"

    async def test_the_sdks_own_settings_are_not_read(
        self, okta: OktaSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "okta.yaml").write_text("okta: {client: {token: 00fromfile, orgUrl: 'https://file.example.com'}}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OKTA_CLIENT_TOKEN", "00fromenvironment")
        monkeypatch.setenv("OKTA_CLIENT_ORGURL", "https://environment.example.com")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        async with Okta.open(SYSTEM, config(okta)) as connector:
            assert (await connector.check()).ok

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.okta.com",
            "https://example-admin.okta.com",
            "https://example.okta.com/api/v1",
            "https://user@example.okta.com",
            "example.okta.com",
        ],
    )
    def test_an_address_that_would_leak_or_fail_is_refused(self, url: str) -> None:
        with pytest.raises(ValidationError, match="expected"):
            OktaConfig(base_url=url, api_token=Secret("00x"))

    def test_the_sdk_is_imported_by_preload_alone_and_without_its_whole_client(self) -> None:
        program = (
            "import sys; from connectors.okta import Okta; assert 'okta' not in sys.modules;"
            "Okta.preload(); assert 'okta.api.user_api' in sys.modules; assert 'okta.client' not in sys.modules"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
