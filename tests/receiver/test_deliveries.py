"""What each delivery is answered, and what is durable then."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid

import pytest
from aiohttp import ClientSession

from offboard_worker.errors import MalformedDelivery, SourceUnavailable, StaleDelivery, UnknownTopic
from tests.receiver.conftest import FIXTURES, SECRET, Build, World, leaver

pytestmark = pytest.mark.integration


async def test_a_leaver_is_on_disk_denied_pushed_and_enqueued_before_the_answer(world: World) -> None:
    status, body, _ = await world.okta_event()
    assert (status, body) == (200, b"")
    assert await world.count("deliveries") == await world.count("events") == await world.count("cases") == 1
    assert await world.count("targets") == 2
    assert await world.count("denials") == 1
    assert (world.pushes, world.nudges) == (1, 1)
    assert [len(accepted.cases) for accepted in world.enqueued] == [1]
    assert world.enqueued[0].kinds == {("account-disabled", "offboard"): 1}


async def test_the_stored_delivery_has_the_raw_bytes_and_no_secret(world: World) -> None:
    body = leaver()
    await world.okta_event(body, **{"X-Request-Id": "r-1", "X-Api-Key": SECRET})
    async with world.store.read() as conn:
        row = (await conn.exec_driver_sql("SELECT body, headers FROM deliveries")).one()
    assert bytes(row.body) == body
    assert SECRET not in row.headers
    assert json.loads(row.headers)["x-request-id"] == "r-1"


async def test_a_duplicate_is_answered_as_the_first_was_and_does_nothing(world: World) -> None:
    body = leaver()
    answers = [(await world.okta_event(body))[:2] for _ in range(3)]
    assert answers == [(200, b"")] * 3
    assert await world.count("cases") == await world.count("events") == await world.count("denials") == 1
    assert world.pushes == 1
    assert await world.metric("offboard_receiver_duplicates_total") == 2


async def test_the_same_delivery_many_times_at_once_opens_one_case(world: World) -> None:
    body = leaver()
    answers = await asyncio.gather(*(world.okta_event(body) for _ in range(20)))
    assert {status for status, *_ in answers} == {200}
    assert await world.count("cases") == await world.count("events") == 1


async def test_each_source_answers_in_its_own_way(world: World) -> None:
    body = json.dumps({"person": "p1", "key": "k1", "kind": "account-disabled"})
    status, answer, headers = await world.post("plain", body, **{"X-Secret": SECRET})
    assert (status, json.loads(answer), headers["Content-Type"]) == (202, {"taken": True}, "application/json")


async def test_several_events_of_one_delivery_are_kept(world: World) -> None:
    status, *_ = await world.okta_event((FIXTURES / "okta" / "several_events.json").read_bytes())
    assert status == 200
    assert await world.count("events") > 1
    assert await world.count("deliveries") == 1


async def test_the_handshake_is_answered_and_stores_nothing(world: World) -> None:
    challenge = {"X-Okta-Verification-Challenge": "abc123"}
    status, body, _ = await world.ask("GET", "/webhooks/okta-main", headers=challenge)
    assert (status, json.loads(body)) == (200, {"verification": "abc123"})
    assert await world.count("deliveries") == 0


async def test_a_handshake_without_its_challenge_is_malformed(world: World) -> None:
    status, body, _ = await world.ask("GET", "/webhooks/okta-main")
    assert (status, json.loads(body)["error"]) == (400, "malformed-delivery")


async def test_an_unknown_source_is_404(world: World) -> None:
    for name in ("nobody", "", "okta-main/x", "OKTA-MAIN"):
        status, body, _ = await world.post(name, leaver(), Authorization=SECRET)
        assert (status, json.loads(body)["error"]) == (404, "unknown-source"), name
    assert (await world.ask("GET", "/"))[0] == 404


async def test_a_wrong_method_is_405_and_says_which_are_right(world: World) -> None:
    for method in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        status, _, headers = await world.ask(method, "/webhooks/okta-main")
        assert (status, headers["Allow"]) == (405, "GET, POST")
    status, _, headers = await world.ask("GET", "/webhooks/plain")
    assert (status, headers["Allow"]) == (405, "POST")
    status, _, headers = await world.ask("POST", "/healthz")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


async def test_a_wrong_or_missing_or_doubled_secret_is_401_and_stores_nothing(world: World) -> None:
    async with ClientSession() as http:
        url = f"{world.receiver.url}/webhooks/okta-main"
        doubled = [("Authorization", SECRET), ("Authorization", "x")]
        for headers in ([], [("Authorization", "wrong")], [("Authorization", SECRET + "x")], doubled):
            async with http.post(url, data=leaver(), headers=headers) as answer:
                said = await answer.json()
                assert (answer.status, said["error"]) == (401, "bad-signature")
                assert set(said) == {"error", "message", "advice"}
    assert await world.count("deliveries") == 0


async def test_the_secret_is_checked_before_the_body_is_parsed(world: World) -> None:
    status, *_ = await world.post("okta-main", b"not json", Authorization="wrong")
    assert status == 401


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"not json", b'{"data": {"events": [7]}}', b"\xff\xfe"])
async def test_an_authentic_body_that_can_not_be_read_is_400(world: World, body: bytes) -> None:
    status, answer, _ = await world.okta_event(body)
    assert (status, json.loads(answer)["error"]) == (400, "malformed-delivery")
    assert await world.count("deliveries") == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [(StaleDelivery("too old"), 401), (UnknownTopic("not on the list"), 403), (MalformedDelivery("odd"), 400)],
)
async def test_a_source_chooses_its_refusal(world: World, error: Exception, status: int) -> None:
    world.plain.trouble = {"verify": error}
    assert await world.say("p1") == status


async def test_a_key_that_can_not_be_fetched_is_503_with_the_time_to_come_back(world: World) -> None:
    world.plain.trouble = {"verify": SourceUnavailable("certificate.example.com answered 500", retry_after=17)}
    status, body, headers = await world.post("plain", b"{}", **{"X-Secret": SECRET})
    assert (status, headers["Retry-After"], json.loads(body)["error"]) == (503, "17", "source-unavailable")


@pytest.mark.parametrize("step", ["verify", "parse"])
async def test_a_bug_in_a_source_is_our_fault_and_its_words_stay_inside(
    world: World, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.plain.trouble = {step: ValueError("canary-of-the-body")}
    with caplog.at_level(logging.DEBUG):
        status, body, headers = await world.post("plain", b"{}", **{"X-Secret": SECRET})
    assert (status, json.loads(body)["error"]) == (503, "fault")
    assert int(headers["Retry-After"]) >= 1
    assert b"canary" not in body
    assert "canary" not in caplog.text
    assert "ValueError at conftest.py:" in caplog.text
    world.plain.trouble = {}
    assert await world.say("p1") == 202


async def test_concurrent_deliveries_share_commits_and_pushes(world: World) -> None:
    answers = await asyncio.gather(*(world.okta_event() for _ in range(60)))
    assert {status for status, *_ in answers} == {200}
    assert await world.count("cases") == 60
    assert await world.metric("offboard_receiver_commit_deliveries_sum") == 60
    assert await world.metric("offboard_receiver_commit_deliveries_count") < 30
    assert world.pushes <= await world.metric("offboard_receiver_commit_deliveries_count")


async def test_no_secret_and_no_body_in_answers_or_logs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    heard = b""
    with caplog.at_level(logging.DEBUG, logger="offboard_worker"):
        for headers in ({"Authorization": SECRET}, {"Authorization": f"{SECRET}x"}, {"X-Odd": SECRET}):
            for body in (leaver(), b'{"canary-body": 1}', b"canary-body"):
                heard += (await world.post("okta-main", body, **headers))[1]
        heard += (await world.ask("GET", f"/webhooks/okta-main?token={SECRET}"))[1]
        heard += (await world.ask("POST", f"/webhooks/{SECRET}"))[1]
        async with world.http.get(f"{world.receiver.metrics_url}/metrics") as answer:
            heard += await answer.read()
    for canary in (SECRET, "canary-body"):
        assert canary.encode() not in heard
        assert canary not in caplog.text


async def test_the_access_log_is_json_with_the_outcome(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="offboard_worker.receiver"):
        await world.okta_event()
    lines = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    assert [(line["source"], line["method"], line["status"], line["outcome"]) for line in lines] == [
        ("okta-main", "POST", 200, "accepted")
    ]


async def test_headers_and_names_that_databases_dislike_do_not_save_a_leaver(world: World) -> None:
    body = leaver().replace(b"Robin Leaver", b"Robin\\u0000 Leaver")
    reader, writer = await asyncio.open_connection(*world.receiver.url.removeprefix("http://").split(":"))
    writer.write(
        b"POST /webhooks/okta-main HTTP/1.1\r\nHost: x\r\nX-Odd: caf\xe9\r\n"
        b"Authorization: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (SECRET.encode(), len(body)) + body
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    async with world.store.read() as conn:
        assert (
            await conn.exec_driver_sql("SELECT name FROM people")
        ).scalar_one() == "Robin\N{REPLACEMENT CHARACTER} Leaver"


async def test_metrics_count_what_was_answered_and_only_configured_names(world: World) -> None:
    await world.okta_event()
    await world.post("okta-main", leaver())
    await world.post(uuid.uuid4().hex, leaver())
    async with world.http.get(f"{world.receiver.metrics_url}/metrics") as answer:
        text = await answer.text()
    assert 'offboard_receiver_deliveries_total{outcome="accepted",source="okta-main"} 1.0' in text
    assert 'offboard_receiver_deliveries_total{outcome="bad-signature",source="okta-main"} 1.0' in text
    assert 'offboard_receiver_deliveries_total{outcome="unknown-source",source="unknown"} 1.0' in text
    assert 'offboard_receiver_events_total{effect="offboard",kind="account-disabled"} 1.0' in text
    assert (await world.ask("GET", "/metrics"))[0] == 404, "metrics have a listener of their own"


async def test_every_metric_is_documented(build: Build) -> None:
    world = await build()
    documented = (FIXTURES.parents[1] / "docs" / "metrics.md").read_text("utf-8")
    for family in world.receiver.metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in documented, name
