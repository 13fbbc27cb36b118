"""Change notifications and delta of the simulated Graph: how its tenant tells that somebody changed.

https://learn.microsoft.com/graph/change-notifications-delivery-webhooks and .../api/user-delta. Like the real one, it
proves the notification URL with a validation token before a subscription is made, allows users' subscriptions
41,760 minutes at most, and says `updated` for a soft delete.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from yarl import URL

from offboard_worker.demo.graph_directory import Directory, GraphError, Json, bad_request, missing, new_id
from offboard_worker.demo.graph_query import projected

LONGEST = timedelta(minutes=41_760)
WRITABLE = frozenset({"expirationDateTime", "notificationUrl"})


class Subscriptions:
    """The /subscriptions API, and the notifications that it leads to. `validating` turns the handshake off."""

    def __init__(self, directory: Directory, tenant_id: str) -> None:
        self._directory = directory
        self._tenant_id = tenant_id
        self.validating = True

    def add_routes(self, router: web.UrlDispatcher) -> None:
        base = "/v1.0/subscriptions"
        router.add_get(base, self._list)
        router.add_post(base, self._create)
        router.add_get(f"{base}/{{id}}", self._show)
        router.add_patch(f"{base}/{{id}}", self._renew)
        router.add_delete(f"{base}/{{id}}", self._delete)
        router.add_post(f"{base}/{{id}}/reauthorize", self._reauthorize)

    def _row(self, request: web.Request) -> Json:
        row = self._directory.subscriptions.get(request.match_info["id"])
        if row is None:
            raise GraphError(404, "ResourceNotFound", "The object was not found.")
        return row

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"value": [_shown(row) for row in self._directory.subscriptions.values()]})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(_shown(self._row(request)))

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        for name in ("changeType", "notificationUrl", "resource", "expirationDateTime"):
            if not body.get(name):
                raise bad_request(f"{name} is required.", "InvalidRequest")
        if len(body.get("clientState") or "") > 128:
            raise bad_request("clientState must be at most 128 characters.", "InvalidRequest")
        _check_expiry(body["expirationDateTime"])
        await self._handshake(body["notificationUrl"])
        if body.get("lifecycleNotificationUrl"):
            await self._handshake(body["lifecycleNotificationUrl"])
        row = {
            "lifecycleNotificationUrl": None,
            "clientState": None,
            **{key: value for key, value in body.items() if not key.startswith("@")},
            "@odata.type": "#microsoft.graph.subscription",
            "id": new_id(),
            "applicationId": None,
            "creatorId": None,
            "latestSupportedTlsVersion": "v1_2",
        }
        self._directory.subscriptions[row["id"]] = row
        return web.json_response(row, status=201)

    async def _renew(self, request: web.Request) -> web.Response:
        row, body = self._row(request), await request.json()
        refused = {name for name in body if not name.startswith("@")} - WRITABLE
        if refused:
            raise bad_request(f"{', '.join(sorted(refused))} can't be changed.", "InvalidRequest")
        if "expirationDateTime" in body:
            _check_expiry(body["expirationDateTime"])
        row.update({name: body[name] for name in WRITABLE & body.keys()})
        return web.json_response(_shown(row))

    async def _delete(self, request: web.Request) -> web.Response:
        del self._directory.subscriptions[self._row(request)["id"]]
        return web.Response(status=204)

    async def _reauthorize(self, request: web.Request) -> web.Response:
        self._row(request)
        return web.Response(status=204)

    async def _handshake(self, notification_url: str) -> None:
        """Prove that the receiver wants this: it must echo the decoded token as plain text within 10 s."""
        if not self.validating:
            return
        token = f"Validation: Testing client application reachability for subscription Request-Id: {uuid4()}"
        url = URL(notification_url).update_query({"validationToken": token})
        try:
            async with (
                ClientSession(timeout=ClientTimeout(total=10)) as session,
                session.post(url, headers={"Content-Type": "text/plain; charset=utf-8"}) as response,
            ):
                echoed = response.status == 200 and await response.text() == token
        except (ClientError, TimeoutError):
            echoed = False
        if not echoed:
            raise bad_request("Subscription validation request failed.", "ValidationError")

    async def notify(self, user_id: str, change: str = "updated") -> list[int]:
        """Send what Graph would send about one user, and return the status of each answer."""
        statuses = []
        async with ClientSession(timeout=ClientTimeout(total=10)) as session:
            for row in list(self._directory.subscriptions.values()):
                if change in row["changeType"].split(","):
                    async with session.post(
                        row["notificationUrl"], json={"value": [self._notification(row, user_id, change)]}
                    ) as response:
                        statuses.append(response.status)
        return statuses

    async def lifecycle(self, subscription_id: str, event: str) -> int:
        """Send a lifecycle notification (reauthorizationRequired, subscriptionRemoved, missed) and return the status."""
        row = self._directory.subscriptions.get(subscription_id)
        if row is None:
            raise missing(subscription_id)
        body = {
            "subscriptionId": row["id"],
            "subscriptionExpirationDateTime": row["expirationDateTime"],
            "tenantId": self._tenant_id,
            "clientState": row["clientState"],
            "lifecycleEvent": event,
        }
        url = row["lifecycleNotificationUrl"] or row["notificationUrl"]
        async with (
            ClientSession(timeout=ClientTimeout(total=10)) as session,
            session.post(url, json={"value": [body]}) as response,
        ):
            return response.status

    def _notification(self, row: Json, user_id: str, change: str) -> Json:
        return {
            "changeType": change,
            "clientState": row["clientState"],
            "resource": f"Users/{user_id}",
            "resourceData": {
                "@odata.type": "#Microsoft.Graph.User",
                "@odata.id": f"Users/{user_id}",
                "id": user_id,
                "organizationId": self._tenant_id,
            },
            "subscriptionExpirationDateTime": row["expirationDateTime"],
            "subscriptionId": row["id"],
            "tenantId": self._tenant_id,
        }


def _shown(row: Json) -> Json:
    """A subscription as it is read back: the client state is a secret and told only to whom made it."""
    return {**row, "clientState": None}


def _check_expiry(value: str) -> None:
    try:
        expiry = datetime.fromisoformat(value)
    except ValueError:
        raise bad_request("expirationDateTime is not a date and time.", "InvalidRequest") from None
    left = expiry - datetime.now(UTC)
    if not timedelta(0) < left <= LONGEST:
        raise bad_request("Subscription expiration can only be 41760 minutes in the future.", "InvalidRequest")


def delta(directory: Directory, url: URL, query: Mapping[str, str], page_size: int) -> Json:
    """Answer one page of /users/delta. The last page of a round carries @odata.deltaLink.

    A token says "<since>:<until>:<offset>" in counts of changes; a round that begins without one lists everybody.
    """
    since, until, offset = _delta_position(directory, query)
    select = query.get("$select")
    rows = _changed(directory, since, until, select)
    answer: dict[str, Any] = {"@odata.context": "#users", "value": rows[offset : offset + page_size]}
    plain = url.with_query({"$select": select} if select else {})
    if offset + page_size < len(rows):
        token = f"{since}:{until}:{offset + page_size}"
        answer["@odata.nextLink"] = str(plain.update_query({"$skiptoken": token}))
    else:
        answer["@odata.deltaLink"] = str(plain.update_query({"$deltatoken": f"{until}"}))
    return answer


def _delta_position(directory: Directory, query: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (since, until, offset); since -1 means from the beginning."""
    latest = len(directory.changes)
    try:
        if "$skiptoken" in query:
            since, until, offset = (int(part) for part in query["$skiptoken"].split(":"))
            return since, until, offset
        token = query.get("$deltatoken")
        if token is None:
            return -1, latest, 0
        return (latest if token == "latest" else int(token)), latest, 0
    except ValueError:
        message = "The delta token is not found: begin again with a full round."
        raise GraphError(410, "SyncStateNotFound", message) from None


def _changed(directory: Directory, since: int, until: int, select: str | None) -> list[Json]:
    if since < 0:
        return [projected(user, select) for user in directory.users.values()]
    rows = []
    for user_id in dict.fromkeys(change.user for change in directory.changes[since:until]):
        if user_id in directory.users:
            rows.append(projected(directory.users[user_id], select))
        else:
            reason = "changed" if user_id in directory.deleted else "deleted"
            rows.append({"@odata.type": "#microsoft.graph.user", "id": user_id, "@removed": {"reason": reason}})
    return rows
