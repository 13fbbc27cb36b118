"""The organisation in which the Okta connector is tested, and how its simulator is asked what is still alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from connectors.okta import Okta, OktaConfig
from offboard_worker.core.credential import Credential, CredentialKind
from offboard_worker.core.person import Person
from offboard_worker.demo.okta_records import User
from offboard_worker.demo.okta_simulator import OktaSimulator
from offboard_worker.secret import Secret
from offboard_worker.testing import Key, found
from tests.contract_checks import Exemption

SYSTEM = "okta-main"
SUSPEND = "POST /api/v1/users/*/lifecycle/suspend"
EXEMPTIONS = (
    Exemption(
        r"/api-tokens",
        r"at (0/|\d+/)?tokenWindow: 'P30D'",
        "The document's pattern has (?:$) where (?!$) is meant: it matches no duration. Okta's own example is P30D.",
    ),
    Exemption(
        r"", r"knows no status 401", "Okta answers any call with a bad token by 401 E0000011, documented once only"
    ),
    Exemption(
        r"/api-tokens$|/clients$",
        r"knows no 'after'",
        "The list is not documented to page; the simulator pages it all the same, so that its `next` link is followed.",
    ),
)


def config(okta: OktaSimulator, **settings: Any) -> OktaConfig:
    return OktaConfig(base_url=okta.url, api_token=Secret(okta.token), **{"timeout": 5.0, **settings})


def person(user: User) -> Person:
    return Person(f"p-{user.first}", aliases={SYSTEM: (user.id,)}, emails=(user.email,))


def account(user: User) -> Credential:
    return Credential(SYSTEM, CredentialKind.ACCOUNT, user.id, user.id)


async def held(connector: Okta, user: User, kind: CredentialKind) -> list[Credential]:
    return [c for c in await found(connector, person(user)) if c.kind is kind]


def living(okta: OktaSimulator, user_id: str) -> Iterator[Key]:
    user = okta.users.get(user_id)
    if user is not None and user.status not in ("SUSPENDED", "DEPROVISIONED"):
        yield CredentialKind.ACCOUNT, user_id
    if user is not None and user.sessions:
        yield CredentialKind.SESSION, user_id
    for kind, held in (
        (CredentialKind.OAUTH_GRANT, "grants"),
        (CredentialKind.OAUTH_GRANT, "refresh_tokens"),
        (CredentialKind.API_TOKEN, "api_tokens"),
        (CredentialKind.ROLE, "roles"),
    ):
        for item in okta.of(user_id, held):
            yield kind, item
