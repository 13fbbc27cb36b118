"""Events in any order and from every source: the state that they leave is the true one."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest

from offboard_worker.demo.world import Inhabitant, World
from tests.e2e.conftest import KNOWN_TO_AWS, KNOWN_TO_IDENTITY_CENTER, Town
from tests.e2e.system import System, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
ACCEPTED = (200, 202, 204)


def okta_time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03d}Z"


async def test_events_out_of_order_and_late_duplicates_leave_the_true_state(system: System, town: Town) -> None:
    who = town.somebody()
    first = town.world.okta_event(who, "user.lifecycle.suspend")
    proof = {"Authorization": town.world.hook_secret}
    old = await system.token(who.person)
    assert await system.deliver("okta-main", first, proof) in ACCEPTED
    case = await system.verified(who)
    before_enable = time.time()
    assert await system.okta(who, "user.lifecycle.unsuspend") in ACCEPTED
    await system.settled(who.person, "reinstated")

    async def restored() -> bool:
        parts = (await system.case(who.person))["targets"]
        return all(part["state"] == "done" for part in parts) and "okta account" in await town.world.still_open(who)

    await until("what could be restored is", restored)
    new = await system.token(who.person)
    assert (await system.calls(new), await system.calls(old)) == ([200, 200], [401, 401])

    assert await system.deliver("okta-main", first, proof) in ACCEPTED  # a late duplicate
    late = okta_time(before_enable - 1)
    assert await system.okta(who, "user.lifecycle.deactivate", published=late) in ACCEPTED  # older than the enable
    assert (await system.calls(new), await system.calls(old)) == ([200, 200], [401, 401])
    assert (await system.case(who.person))["id"] == case["id"], "a late event opened another case"

    assert await system.okta(who, "user.lifecycle.suspend") in ACCEPTED
    assert await system.okta(who, "user.lifecycle.unsuspend", published=late) in ACCEPTED  # older than the suspension
    assert await system.calls(new) == [401, 401]
    again = await system.verified(who)
    assert again["id"] != case["id"]
    assert await system.calls(new) == [401, 401]


def notification(world: World, *users: str, state: str | None = None) -> str:
    items = [
        {
            "subscriptionId": "7f105c7d-0000-4000-8000-00000000bbbb",
            "subscriptionExpirationDateTime": "2036-12-15T09:00:00Z",
            "tenantId": world.graph.tenant_id,
            "clientState": world.client_state if state is None else state,
            "changeType": "updated",
            "resource": f"Users/{user}",
            "resourceData": {"@odata.type": "#Microsoft.Graph.User", "@odata.id": f"Users/{user}", "id": user},
        }
        for user in users
    ]
    return json.dumps({"value": items})


async def test_entra_says_that_users_changed_and_the_re_read_tells_who_left(system: System, town: Town) -> None:
    world, directory = town.world, town.world.graph.directory
    stays, disabled, deleted = (town.somebody() for _ in range(3))
    url = f"{system.inst.receiver}/webhooks/entra-corp"
    async with system.http.post(f"{url}?validationToken=Validation%3A+Testing+%26") as answer:
        assert (answer.status, await answer.text()) == (200, "Validation: Testing &")
        assert answer.content_type == "text/plain"
    assert await system.deliver("entra-corp", notification(world, disabled.entra_id, state="wrong"), {}) == 401

    token = await system.token(stays.person)
    assert await system.deliver("entra-corp", notification(world, stays.entra_id), {}) == 202
    directory.update_user(disabled.entra_id, {"accountEnabled": False})
    assert await system.deliver("entra-corp", notification(world, disabled.entra_id, stays.entra_id), {}) == 202
    directory.soft_delete(deleted.entra_id)
    assert await system.deliver("entra-corp", notification(world, deleted.entra_id), {}) == 202

    case = await system.verified(disabled)
    assert {event["kind"] for event in case["events"]} == {"account-disabled"}
    case = await system.verified(deleted)
    assert await system.case(stays.person) == {}
    assert await system.calls(token) == [200, 200]


def aws_event(source: str, event: str, **parameters: str) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    detail: dict[str, Any] = {
        "eventVersion": "1.10",
        "userIdentity": {"type": "IAMUser", "userName": "admin", "accountId": "123456789012"},
        "eventTime": now,
        "eventSource": f"{source}.amazonaws.com",
        "eventName": event,
        "awsRegion": "us-east-1",
        "requestParameters": parameters,
        "responseElements": None,
        "eventID": str(uuid.uuid4()),
        "eventType": "AwsApiCall",
        "recipientAccountId": "123456789012",
    }
    envelope = {"version": "0", "id": str(uuid.uuid4()), "detail-type": "AWS API Call via CloudTrail"}
    return json.dumps({**envelope, "source": f"aws.{source}", "time": now, "resources": [], "detail": detail})


async def test_eventbridge_tells_of_deleted_iam_users_and_disabled_identity_center_users(
    system: System, town: Town
) -> None:
    iam, center = town.named(KNOWN_TO_AWS), town.named(KNOWN_TO_IDENTITY_CENTER)
    proof = {"x-api-key": town.world.aws_api_key}
    tokens = [await system.token(who.person) for who in (iam, center)]
    body = aws_event("iam", "DeleteUser", userName=iam.aws_name)
    assert await system.deliver("aws-org", body, {"x-api-key": "wrong"}) == 401
    assert await system.deliver("aws-org", body, proof) in ACCEPTED
    body = aws_event("sso-directory", "DisableUser", userId=f"u-{center.person}", identityStoreId="d-1234567890")
    assert await system.deliver("aws-org", body, proof) in ACCEPTED
    for token in tokens:
        assert await system.calls(token) == [401, 401]
    assert await _kinds(system, iam) == {"account-purged"}
    assert await _kinds(system, center) == {"account-disabled"}


async def _kinds(system: System, who: Inhabitant) -> set[str]:
    return {event["kind"] for event in (await system.verified(who))["events"]}
