"""The simulated world: an Okta organisation, an Entra tenant, an AWS account and an internal API, all on loopback.

The real SDKs talk to it; nothing in it knows offboard-worker. The demo, the end-to-end tests and the benchmarks live in it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import yaml
from aiohttp import web

from offboard_worker.demo.aws_simulator import AwsSimulator
from offboard_worker.demo.graph_simulator import GraphSimulator
from offboard_worker.demo.okta_simulator import OktaSimulator

ISSUER = "https://idp.example.com/oauth2/default"


@dataclass(slots=True)
class Inhabitant:
    """Somebody who works there: one person id of ours, and an account in each system."""

    person: str
    name: str
    email: str
    okta_id: str = ""
    entra_id: str = ""
    aws_name: str = ""


@dataclass
class InternalApi:
    """An upstream that checks its key, answers, and streams for ever."""

    key: str = field(default_factory=lambda: f"sk-upstream-{secrets.token_hex(12)}")
    url: str = ""
    calls: int = 0
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/ledger", self._ledger)
        app.router.add_get("/v1/ticks", self._ticks)
        app.router.add_post("/v1/upload", self._upload)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _admit(self, request: web.Request) -> None:
        self.calls += 1
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPForbidden(text="the upstream knows its own key only")

    async def _ledger(self, request: web.Request) -> web.Response:
        self._admit(request)
        return web.json_response({"entries": 42})

    async def _upload(self, request: web.Request) -> web.Response:
        self._admit(request)
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return web.json_response({"bytes": size})

    async def _ticks(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = 0
        while True:
            await response.write(f"data: {number}\n\n".encode())
            number += 1
            await asyncio.sleep(0.05)


class World:
    """`async with World() as world:` everything runs; `world.config()` is the configuration that connects to it."""

    def __init__(self) -> None:
        self.okta = OktaSimulator()
        self.graph = GraphSimulator()
        self.aws = AwsSimulator()
        self.api = InternalApi()
        self.hook_secret = secrets.token_urlsafe(24)
        self.client_state = secrets.token_urlsafe(24)
        self.aws_api_key = secrets.token_urlsafe(24)
        self.people: dict[str, Inhabitant] = {}
        self._resource = ""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.okta)
        await self._stack.enter_async_context(self.graph)
        await self._stack.enter_async_context(self.aws)
        await self.api.start()
        self._stack.push_async_callback(self.api.stop)
        self._resource = self.graph.directory.add_service_principal("Ledger")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def settle(self, person: str, first: str, last: str, *, rich: bool = True) -> Inhabitant:
        """Give somebody an account in every system, with credentials of every kind where `rich`."""
        who = Inhabitant(person, f"{first} {last}", f"{person}@example.com")
        okta = self.okta.add_user(
            who.email,
            first=first,
            last=last,
            sessions=2,
            grants=[("0oaDEMO", "okta.users.read")] if rich else [],
            refresh_tokens=["0oaDEMO"] if rich else [],
            api_tokens=[f"{person} nightly export"] if rich else [],
            roles=["ORG_ADMIN"] if rich else [],
        )
        directory = self.graph.directory
        entra = directory.add_user(who.email, name=who.name)
        directory.add_group(f"engineering {person}", members=[entra])
        if rich:
            client = directory.add_service_principal(f"{first}'s editor")
            directory.add_grant(entra, client, self._resource)
            directory.assign_app(entra, self._resource)
            directory.assign_role(entra)
        await self.aws.add_user(person, email=who.email, access_keys=2 if rich else 1, mfa=rich)
        who.okta_id, who.entra_id, who.aws_name = okta.id, entra, person
        self.people[person] = who
        return who

    def config(self, **changes: Any) -> dict[str, Any]:
        """The configuration of an installation in this world; `changes` replace whole sections."""
        graph = {
            "tenant_id": self.graph.tenant_id,
            "client_id": self.graph.client_id,
            "client_secret": self.graph.client_secret,
            "base_url": self.graph.api,
            "login_url": self.graph.url,
        }
        whole: dict[str, Any] = {
            "data_dir": "data",
            "receiver": {"listen": "127.0.0.1:0"},
            "proxy": {
                "listen": "127.0.0.1:0",
                "upstreams": {"ledger": {"url": self.api.url, "secret": f"Bearer {self.api.key}"}},
                "roles": {
                    "developer": {"rules": [{"upstream": "ledger", "methods": ["GET", "POST"], "paths": ["/v1/**"]}]}
                },
            },
            "sources": {
                "okta-main": {
                    "type": "okta",
                    "secret": self.hook_secret,
                    "system": "okta",
                    "issuers": [ISSUER],
                    "trust_email": True,
                },
                "entra-corp": {
                    "type": "entra",
                    "client_state": self.client_state,
                    "system": "entra",
                    "trust_email": True,
                    **graph,
                },
                "aws-org": {"type": "aws", "api_key": self.aws_api_key, "system": "aws"},
            },
            "connectors": {
                "okta": {"type": "okta", "base_url": self.okta.url, "api_token": self.okta.token},
                "entra": {"type": "entra", "match": "mail", **graph},
                "aws": {
                    "type": "aws_iam",
                    "endpoint_url": self.aws.url,
                    "access_key_id": self.aws.access_key_id,
                    "secret_access_key": self.aws.secret_access_key,
                    "match": {"tag": "email"},
                },
            },
            "people": {
                who.person: {"name": who.name, "emails": [who.email], "aliases": {"okta": who.okta_id}}
                for who in self.people.values()
            },
            "jobs": {"reconcile_every": "1s", "workers": 2},
        }
        return {**whole, **changes}

    def config_text(self, **changes: Any) -> str:
        return yaml.safe_dump(self.config(**changes), sort_keys=False)

    def okta_event(self, who: Inhabitant, event_type: str = "user.lifecycle.deactivate", **changes: Any) -> bytes:
        """An Okta event hook's body, in Okta's real shape."""
        published = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z"
        event = {
            "uuid": str(uuid.uuid4()),
            "published": published,
            "eventType": event_type,
            "version": "0",
            "displayMessage": "Deactivate Okta user",
            "severity": "INFO",
            "client": {"userAgent": {"rawUserAgent": "Mozilla/5.0"}, "ipAddress": "192.0.2.7"},
            "actor": {
                "id": "00uADMIN",
                "type": "User",
                "alternateId": "it@example.com",
                "displayName": "IT",
                "detailEntry": None,
            },
            "outcome": {"result": "SUCCESS", "reason": None},
            "target": [
                {
                    "id": who.okta_id,
                    "type": "User",
                    "alternateId": who.email,
                    "displayName": who.name,
                    "detailEntry": None,
                }
            ],
            "transaction": {"type": "WEB", "id": "", "detail": {}},
            **changes,
        }
        return json.dumps(
            {
                "eventType": "com.okta.event_hook",
                "eventTypeVersion": "1.0",
                "cloudEventsVersion": "0.1",
                "source": f"{self.okta.url}/api/v1/eventHooks/whoDEMO",
                "eventId": str(uuid.uuid4()),
                "data": {"events": [event]},
                "eventTime": published,
                "contentType": "application/json",
            }
        ).encode()

    async def still_open(self, who: Inhabitant) -> list[str]:
        """Ask the simulators themselves, not offboard-worker, through which doors somebody still gets in."""
        doors = []
        okta = self.okta.users[who.okta_id]
        if okta.status == "ACTIVE":
            doors.append("okta account")
        doors += [f"okta session {session}" for session in okta.sessions]
        for kind in ("grants", "refresh_tokens", "api_tokens", "roles"):
            doors += [f"okta {kind} {name}" for name in self.okta.of(who.okta_id, kind)]
        directory = self.graph.directory
        if who.entra_id not in directory.users:  # deleted
            return doors + await self._aws_doors(who)
        if directory.users[who.entra_id]["accountEnabled"]:
            doors.append("entra account")
        doors += [f"entra group {group['displayName']}" for group in directory.groups_of(who.entra_id)]
        doors += [f"entra app {a['id']}" for a in directory.app_assignments_of(who.entra_id)]
        doors += await self._aws_doors(who)
        return doors

    async def _aws_doors(self, who: Inhabitant) -> list[str]:
        state = await self.aws.state_of(who.aws_name)
        if state is None:
            return []
        doors = ["aws console password"] if state.password else []
        for kind in ("access_keys", "ssh_keys", "certificates", "service_credentials"):
            doors += [f"aws {kind} {name}" for name, how in getattr(state, kind).items() if how == "Active"]
        doors += [f"aws group {group}" for group in state.groups]
        if "offboard-worker-deny-all" not in state.inline:
            doors.append("aws permissions")
        return doors
