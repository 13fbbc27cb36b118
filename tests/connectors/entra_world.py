"""One simulated tenant with a leaver who holds everything, and somebody beside them who stays."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from connectors.entra import Entra, EntraConfig
from offboard_worker.core.credential import Credential, CredentialKind
from offboard_worker.core.person import Person
from offboard_worker.demo.faults import Call
from offboard_worker.demo.graph_simulator import GraphSimulator
from tests.contract_checks import Exemption, VendorContract
from tests.shared_material import shared

SYSTEM = "entra-corp"

EXEMPTIONS = (
    Exemption(
        r"^POST /[0-9a-f-]+/oauth2/v2\.0/token$", "no such operation", "the token endpoint is Entra ID's, not Graph's"
    ),
    Exemption(
        r"^GET ", r"knows no '\$(skiptoken|deltatoken)'", "opaque paging tokens: Graph puts them into its own links"
    ),
    Exemption(
        r"^GET /v1\.0/users/delta\(\)$",
        r"^answer.* at \.: '@odata.type' is a required property$",
        "Graph's delta answers carry no type of their own, only their items do",
    ),
    Exemption(
        r"^POST /v1\.0/(groups/[^/]+/members/\$ref|users/[^/]+/appRoleAssignments|oauth2PermissionGrants|"
        r"roleManagement/directory/roleAssignments|subscriptions/[^/]+/reauthorize)$",
        "no such operation",
        "giving back is documented by Graph, but was not cut out into ../shared/specs",
    ),
)


@cache
def graph_contract() -> VendorContract:
    """Graph's own description, in its two parts."""
    return VendorContract(shared("specs/msgraph.json"), shared("specs/graph-extra.json"), exemptions=EXEMPTIONS)


@dataclass
class World:
    """The tenant. Ids are the simulator's; `group` and `wiki` are shared by both people."""

    graph: GraphSimulator
    ada: str
    bob: str
    group: str
    wiki: str
    build: str  # an application of the leaver's
    leaver: Person
    bystander: Person

    @property
    def calls(self) -> list[Call]:
        return self.graph.faults.calls

    def config(self, **changes: Any) -> EntraConfig:
        values: dict[str, Any] = {
            "type": "entra",
            "system": SYSTEM,
            "tenant_id": self.graph.tenant_id,
            "client_id": self.graph.client_id,
            "client_secret": self.graph.client_secret,
            "base_url": self.graph.api,
            "login_url": self.graph.url,
            "match": "mail",
            "remove_app_secrets": True,
            "timeout": 5.0,
        }
        return EntraConfig.model_validate(values | changes)

    @asynccontextmanager
    async def connector(self, **changes: Any) -> AsyncIterator[Entra]:
        async with Entra.open("entra", self.config(**changes)) as opened:
            yield opened

    def alive(self, user: str) -> set[tuple[CredentialKind, str]]:
        """What still lets a user in, read from the directory itself."""
        d = self.graph.directory
        there = user in d.users
        found = {(CredentialKind.ACCOUNT, user)} if there and d.users[user]["accountEnabled"] else set()
        tables: Iterable[tuple[CredentialKind, Mapping[str, Any]]] = (
            (CredentialKind.ROLE, d.role_assignments),
            (CredentialKind.OAUTH_GRANT, d.grants),
            (CredentialKind.APP_ASSIGNMENT, d.app_assignments),
        )
        for kind, table in tables:
            found |= {(kind, key) for key, row in table.items() if there and row["principalId"] == user}
        found |= {(CredentialKind.GROUP_MEMBERSHIP, g) for g, members in d.members.items() if there and user in members}
        for app, owners in d.owners.items():
            row = d.applications.get(app) or d.service_principals[app]
            if user in owners:
                found |= {(CredentialKind.APP_SECRET, secret["keyId"]) for secret in row["passwordCredentials"]}
        return found


@asynccontextmanager
async def world(*, page_size: int = 2) -> AsyncIterator[World]:
    """Build the tenant, and hold everything that went over the wire to Graph's own description afterwards.

    Pages are tiny, so that every list takes several.
    """
    contract = graph_contract()
    async with GraphSimulator(page_size=page_size) as graph:
        d = graph.directory
        ada = d.add_user("ada.lovelace@example.com", name="Ada Lovelace")
        bob = d.add_user("bob@example.com", name="Bob")
        for number in range(3):
            d.add_user(f"colleague-{number}@example.com")
        group = d.add_group("Engineering", members=[ada, bob])
        for number in range(4):
            d.add_group(f"Project {number}", members=[ada] if number else [ada, bob])
        wiki, mail = d.add_service_principal("Wiki"), d.add_service_principal("Mail")
        for user in (ada, bob):
            d.add_grant(user, wiki, mail, "Mail.Read offline_access")
            d.assign_app(user, wiki)
            d.assign_role(user)
        d.assign_app(group, mail)  # the group's, so both people's: nobody's own
        build = d.add_application("build robot", owners=[ada], secrets=2)
        d.add_application("bob's robot", owners=[bob])
        d.add_service_principal("deploy robot", owners=[ada], secrets=1)
        leaver = Person("person-1", "Ada Lovelace", emails=("Ada.Lovelace@example.com",))
        bystander = Person("person-2", "Bob", aliases={SYSTEM: (bob,)})
        yield World(graph, ada, bob, group, wiki, build, leaver, bystander)
        for call in graph.faults.calls:
            if _is_new(call):
                contract.check(call)


_CHECKED: set[str] = set()


def _is_new(call: Call) -> bool:
    """Say whether no test has checked a call before that differs in nothing but ids, times and the port."""
    shape = repr((call.line, call.query, call.body, call.status, call.answer, call.faulty))
    shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|127\.0\.0\.1:\d+|\d{4}-\d\d-\d\dT[\d:.]+", "", shape)
    new = shape not in _CHECKED
    _CHECKED.add(shape)
    return new


async def found(connector: Entra, person: Person) -> dict[CredentialKind, list[Credential]]:
    """What `find` yields, by kind."""
    by_kind: dict[CredentialKind, list[Credential]] = {}
    async for credential in connector.find(person):
        by_kind.setdefault(credential.kind, []).append(credential)
    return by_kind


async def one(connector: Entra, person: Person, kind: CredentialKind) -> Credential:
    """The first credential of a kind that `find` yields."""
    return (await found(connector, person))[kind][0]
