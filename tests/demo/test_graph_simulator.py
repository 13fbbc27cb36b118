"""The simulated Graph behaves as Graph documents it, traps included. Its answers are held to Graph's own description."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientSession, web

from offboard_worker.demo.graph_directory import GLOBAL_ADMINISTRATOR
from offboard_worker.demo.graph_simulator import GraphSimulator
from tests.connectors.entra_world import graph_contract

pytestmark = pytest.mark.integration


@pytest.fixture
async def graph() -> AsyncIterator[GraphSimulator]:
    async with GraphSimulator(page_size=2) as started:
        yield started
        graph_contract().check_all(started.faults.calls)


class Client:
    """A plain client, as the source uses one."""

    def __init__(self, graph: GraphSimulator, session: ClientSession) -> None:
        self._graph = graph
        self._session = session
        self.token = ""

    async def sign_in(self, **changes: str) -> tuple[int, Any]:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._graph.client_id,
            "client_secret": self._graph.client_secret,
            "scope": "https://graph.microsoft.com/.default",
        } | changes
        url = f"{self._graph.url}/{self._graph.tenant_id}/oauth2/v2.0/token"
        async with self._session.post(url, data=form) as response:
            body = await response.json()
        self.token = body.get("access_token", self.token)
        return response.status, body

    async def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = path if path.startswith("http") else f"{self._graph.api}{path}"
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self._session.request(method, url, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, await response.json() if text else None


@pytest.fixture
async def client(graph: GraphSimulator) -> AsyncIterator[Client]:
    async with ClientSession() as session:
        made = Client(graph, session)
        assert (await made.sign_in())[0] == 200
        yield made


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "wrong"}, 401, "unauthorized_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"scope": "User.Read"}, 400, "invalid_scope"),
    ],
)
async def test_a_wrong_sign_in_is_refused_as_entra_does(
    client: Client, changes: dict[str, str], status: int, error: str
) -> None:
    answered, body = await client.sign_in(**changes)
    assert (answered, body["error"]) == (status, error)
    assert body["error_description"].startswith("AADSTS")


async def test_no_call_goes_through_without_a_living_token(graph: GraphSimulator, client: Client) -> None:
    graph.expire_tokens()
    status, body = await client("GET", "/users")
    assert (status, body["error"]["code"]) == (401, "InvalidAuthenticationToken")


async def test_a_call_needs_its_permission(graph: GraphSimulator, client: Client) -> None:
    ada = graph.directory.add_user("ada@example.com")
    graph.roles = ("User.Read.All",)
    await client.sign_in()
    assert (await client("GET", f"/users/{ada}"))[0] == 200
    for method, path in (("DELETE", f"/users/{ada}"), ("POST", f"/users/{ada}/revokeSignInSessions")):
        status, body = await client(method, path)
        assert (status, body["error"]["code"]) == (403, "Authorization_RequestDenied")
    assert ada in graph.directory.users


async def test_account_enabled_is_told_only_to_whom_selects_it(graph: GraphSimulator, client: Client) -> None:
    ada = graph.directory.add_user("ada@example.com")
    _, plain = await client("GET", f"/users/{ada}")
    assert "accountEnabled" not in plain
    _, listed = await client("GET", "/users")
    assert "accountEnabled" not in listed["value"][0]
    _, selected = await client("GET", f"/users/{ada}?$select=id,accountEnabled,userPrincipalName,mail")
    assert {key for key in selected if not key.startswith("@")} == {"id", "accountEnabled", "userPrincipalName", "mail"}
    assert selected["accountEnabled"] is True


async def test_a_soft_deleted_user_is_404_and_among_the_deleted_items(graph: GraphSimulator, client: Client) -> None:
    ada = graph.directory.add_user("ada@example.com")
    assert (await client("GET", f"/directory/deletedItems/{ada}"))[0] == 404
    assert (await client("DELETE", f"/users/{ada}"))[0] == 204
    status, body = await client("GET", f"/users/{ada}?$select=id,accountEnabled")
    assert (status, body["error"]["code"]) == (404, "Request_ResourceNotFound")
    status, item = await client("GET", f"/directory/deletedItems/{ada}")
    assert (status, item["id"]) == (200, ada)
    assert (await client("POST", f"/directory/deletedItems/{ada}/restore"))[0] == 200
    assert graph.directory.user("ada@example.com")["id"] == ada


async def test_leaving_a_group_without_ref_deletes_the_person(graph: GraphSimulator, client: Client) -> None:
    """By Microsoft's own documentation: whoever forgets /$ref must find out here."""
    ada, bob = graph.directory.add_user("ada@example.com"), graph.directory.add_user("bob@example.com")
    group = graph.directory.add_group("Engineering", members=[ada, bob])
    assert (await client("DELETE", f"/groups/{group}/members/{ada}/$ref"))[0] == 204
    assert ada in graph.directory.users
    assert graph.directory.members[group] == [bob]
    graph.directory.add_member(group, ada)
    url = f"/groups/{group}/members/{ada}"
    assert (await client("DELETE", url))[0] == 204
    assert ada in graph.directory.deleted
    graph.faults.calls[:] = [
        call for call in graph.faults.calls if call.path != f"/v1.0{url}"
    ]  # not in the description


async def test_a_list_comes_in_pages(graph: GraphSimulator, client: Client) -> None:
    for number in range(5):
        graph.directory.add_user(f"user-{number}@example.com")
    seen: list[str] = []
    pages, link = 0, "/users?$select=id,mail"
    while link:
        _, body = await client("GET", link)
        seen += [row["mail"] for row in body["value"]]
        pages, link = pages + 1, body.get("@odata.nextLink")
    assert pages == 3
    assert seen == [f"user-{number}@example.com" for number in range(5)]


async def test_a_filter_is_exact_and_an_unknown_one_is_refused(graph: GraphSimulator, client: Client) -> None:
    graph.directory.add_user("ada@example.com")
    _, body = await client("GET", "/users?$filter=mail eq 'ada@example.com'")
    assert len(body["value"]) == 1
    _, body = await client("GET", "/users?$filter=mail eq 'ada@example.co'")
    assert body["value"] == []
    status, body = await client("GET", "/users?$filter=startswith(mail,'ada')")
    assert (status, body["error"]["code"]) == (400, "Request_UnsupportedQuery")


async def test_the_last_global_administrator_stays(graph: GraphSimulator, client: Client) -> None:
    only = graph.directory.assign_role(graph.directory.add_user("ada@example.com"), GLOBAL_ADMINISTRATOR)
    status, body = await client("DELETE", f"/roleManagement/directory/roleAssignments/{only}")
    assert (status, body["error"]["code"]) == (400, "Request_BadRequest")


async def test_delta_tells_each_change_once_and_how_a_user_left(graph: GraphSimulator, client: Client) -> None:
    d = graph.directory
    users = [d.add_user(f"user-{number}@example.com") for number in range(3)]
    seen: list[Any] = []
    link, pages = "/users/delta()?$select=accountEnabled", 0
    while True:
        _, body = await client("GET", link)
        seen, pages = seen + body["value"], pages + 1
        if "@odata.deltaLink" in body:
            break
        link = body["@odata.nextLink"]
    assert ([row["id"] for row in seen], pages) == (users, 2)
    assert all(row["accountEnabled"] is True for row in seen)

    d.update_user(users[0], {"accountEnabled": False})
    d.soft_delete(users[1])
    d.soft_delete(users[2])
    d.purge(users[2])
    _, body = await client("GET", body["@odata.deltaLink"])
    changed = {row["id"]: row for row in body["value"]}
    _, rest = await client("GET", body["@odata.nextLink"])
    changed |= {row["id"]: row for row in rest["value"]}
    assert changed[users[0]]["accountEnabled"] is False
    assert changed[users[1]]["@removed"] == {"reason": "changed"}
    assert changed[users[2]]["@removed"] == {"reason": "deleted"}
    _, quiet = await client("GET", rest["@odata.deltaLink"])
    assert quiet["value"] == []
    status, body = await client("GET", "/users/delta()?$deltatoken=too-old")
    assert (status, body["error"]["code"]) == (410, "SyncStateNotFound")


class Receiver:
    """A notification endpoint that passes the handshake, unless told to be silent."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.silent = False
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if "validationToken" in request.query:
            return web.Response(text="" if self.silent else request.query["validationToken"])
        self.got.append(await request.json())
        return web.Response(status=202)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks/entra", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/entra"
    yield made
    await runner.cleanup()


def subscription(url: str, minutes: int = 41_700) -> dict[str, str]:
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    return {
        "@odata.type": "#microsoft.graph.subscription",
        "changeType": "updated,deleted",
        "notificationUrl": url,
        "lifecycleNotificationUrl": url,
        "resource": "/users",
        "clientState": "our-client-state",
        "expirationDateTime": until.isoformat().replace("+00:00", "Z"),
    }


async def test_a_subscription_is_made_after_the_handshake_renewed_and_used(
    graph: GraphSimulator, client: Client, receiver: Receiver
) -> None:
    status, made = await client("POST", "/subscriptions", subscription(receiver.url, minutes=60))
    assert (status, made["clientState"]) == (201, "our-client-state")
    longer = {"@odata.type": made["@odata.type"], "expirationDateTime": subscription("x")["expirationDateTime"]}
    status, renewed = await client("PATCH", f"/subscriptions/{made['id']}", longer)
    assert (status, renewed["expirationDateTime"]) == (200, longer["expirationDateTime"])
    assert renewed["clientState"] is None

    ada = graph.directory.add_user("ada@example.com")
    assert await graph.subscriptions.notify(ada) == [202]
    notification = receiver.got[0]["value"][0]
    assert notification["resourceData"]["id"] == ada
    assert (notification["clientState"], notification["subscriptionId"]) == ("our-client-state", made["id"])
    assert await graph.subscriptions.lifecycle(made["id"], "reauthorizationRequired") == 202
    assert receiver.got[1]["value"][0]["lifecycleEvent"] == "reauthorizationRequired"
    assert (await client("POST", f"/subscriptions/{made['id']}/reauthorize"))[0] == 204

    assert (await client("DELETE", f"/subscriptions/{made['id']}"))[0] == 204
    status, body = await client("PATCH", f"/subscriptions/{made['id']}", longer)
    assert (status, body["error"]["code"]) == (404, "ResourceNotFound")


async def test_a_subscription_is_refused_without_the_handshake_or_too_far_ahead(
    graph: GraphSimulator, client: Client, receiver: Receiver
) -> None:
    status, body = await client("POST", "/subscriptions", subscription(receiver.url, minutes=41_800))
    assert (status, body["error"]["code"]) == (400, "InvalidRequest")
    receiver.silent = True
    status, body = await client("POST", "/subscriptions", subscription(receiver.url))
    assert (status, body["error"]["code"]) == (400, "ValidationError")
    assert not graph.directory.subscriptions


async def test_throttling_and_lies_are_on_demand(graph: GraphSimulator, client: Client) -> None:
    ada = graph.directory.add_user("ada@example.com")
    graph.throttle("GET /v1.0/users", "0.5")
    assert (await client("GET", "/users"))[0] == 429
    assert graph.faults.calls[-1].answer_headers["retry-after"] == "0.5"
    assert (await client("GET", "/users"))[0] == 200
    graph.faults.lie("PATCH /v1.0/users/*")
    body = {"@odata.type": "#microsoft.graph.user", "accountEnabled": False}
    assert (await client("PATCH", f"/users/{ada}", body))[0] == 204
    assert graph.directory.users[ada]["accountEnabled"] is True
    graph.faults.clear()
    await client("PATCH", f"/users/{ada}", body)
    assert graph.directory.users[ada]["accountEnabled"] is False


async def test_an_unknown_path_is_an_error_in_graphs_shape(graph: GraphSimulator, client: Client) -> None:
    status, body = await client("GET", "/nonsense")
    assert (status, body["error"]["code"]) == (400, "BadRequest")
    graph.faults.calls.pop()  # no operation of the description
