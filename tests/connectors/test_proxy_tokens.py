"""The built-in connector of our own proxy's tokens, on a real store and a real Valkey."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from connectors.proxy_tokens import ProxyTokens, ProxyTokensConfig
from offboard_worker.core.credential import Action, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Fact, RedisNames, person_key
from offboard_worker.denylist.issued import IssuedTokens
from offboard_worker.denylist.projection import Projection
from offboard_worker.errors import NeedsHuman, Retryable
from offboard_worker.secret import Secret
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog
from offboard_worker.testing import ConnectorContract, CredentialsAlive, Key, found

pytestmark = pytest.mark.integration
ISSUER = "https://proxy.example.com"
ADA, BOB, NOBODY = Person("ada", "Ada"), Person("bob", "Bob"), Person("ad", "Ada")


class World:
    """One store, one Redis, and the tokens that were issued."""

    def __init__(self, store: Store, valkey: EmbeddedValkey, url: str) -> None:
        self.store = store
        self.redis = open_client(valkey.url, 2.0)
        self.issued = IssuedTokens(self.redis, RedisNames())
        self.projection = Projection(self.redis, StoredLog(store), RedisNames())
        self.config = ProxyTokensConfig(type="proxy_tokens", redis_url=Secret(valkey.url), store_url=Secret(url))

    async def issue(self, person: str, jti: str, *, lifetime: int = 3600, generation: int = 0) -> None:
        now = int(time.time())
        await self.issued.record(
            {
                "sub": person,
                "jti": jti,
                "iss": ISSUER,
                "roles": ["developer"],
                "gen": generation,
                "iat": now,
                "exp": now + lifetime,
            }
        )

    async def denied(self) -> set[str]:
        return {fact.key for fact in (await StoredLog(self.store).facts())[1] if fact.denied}

    async def refuse(self, person: str, generation: int) -> None:
        """What containment does: everything of an older generation is dead."""
        async with self.store.write() as tx:
            tx.append_denial("deny", [Fact(person_key(person), True, generation)], who="test", reason="left")
        await self.projection.push()


@pytest.fixture
async def world(sqlite_template: Path, tmp_path: Path, valkey: EmbeddedValkey) -> AsyncIterator[World]:
    path = shutil.copy(sqlite_template, tmp_path / "offboard.db")
    store = await Store.open(f"sqlite:///{path}")
    world = World(store, valkey, f"sqlite:///{path}")
    await world.projection.push()
    for person, jti in (("ada", "t1"), ("ada", "t2"), ("bob", "t3")):
        await world.issue(person, jti)
    yield world
    await world.redis.aclose()
    await store.close()


@pytest.fixture
async def connector(world: World) -> AsyncIterator[ProxyTokens]:
    async with ProxyTokens.open("proxy", world.config) as connector:
        yield connector


class TestProxyTokens(ConnectorContract):
    """Deleting a token is refusing it: it can't be taken back, so that it never reads back as gone before it expires."""

    test_a_deleted_credential_reads_back_as_gone = None  # type: ignore[assignment]

    async def test_construction_touches_no_network(self) -> None:  # type: ignore[override]
        """It opens the store, a file of ours; no vendor is called: there is none."""

    @pytest.fixture
    def connector(self, connector: ProxyTokens) -> ProxyTokens:
        return connector

    @pytest.fixture
    def leaver(self) -> Person:
        return ADA

    @pytest.fixture
    def bystander(self) -> Person:
        return BOB

    @pytest.fixture
    def stranger(self) -> Person:
        return NOBODY

    @pytest.fixture
    def credentials_alive(self, world: World) -> CredentialsAlive:
        async def alive(person: Person) -> frozenset[Key]:
            denied = await world.denied()
            if person_key(person.id) in denied:
                return frozenset()
            tokens = await world.issued.list(person.id, now=time.time())
            return frozenset(
                (CredentialKind.API_TOKEN, t.jti)
                for t in tokens
                if not any(key.endswith(f"|{t.jti}") for key in denied)
            )

        return alive


async def test_a_refused_token_is_denied_in_the_store_and_in_redis(world: World, connector: ProxyTokens) -> None:
    first, second = await found(connector, ADA)
    assert await connector.disable(first) is Outcome.DONE
    assert await connector.state(first) is CredentialState.DISABLED
    assert await connector.state(second) is CredentialState.ACTIVE
    assert len(await world.denied()) == 1
    assert (await world.projection.status()).seq == 1


async def test_a_leavers_tokens_are_dead_already_and_need_no_entries_of_their_own(
    world: World, connector: ProxyTokens
) -> None:
    await world.refuse("ada", 1)
    for token in await found(connector, ADA):
        assert token.state is CredentialState.DISABLED
        assert await connector.disable(token) is Outcome.ALREADY
    assert (await world.projection.status()).seq == 1
    (bobs,) = await found(connector, BOB)
    assert bobs.state is CredentialState.ACTIVE


async def test_a_token_that_was_issued_after_a_reinstatement_is_alive(world: World, connector: ProxyTokens) -> None:
    async with world.store.write() as tx:
        tx.append_denial("lift", [Fact(person_key("ada"), False, 2)], who="test", reason="back")
    await world.projection.push()
    await world.issue("ada", "new", generation=2)
    states = {token.id: token.state for token in await found(connector, ADA)}
    assert states == {"t1": CredentialState.DISABLED, "t2": CredentialState.DISABLED, "new": CredentialState.ACTIVE}


async def test_an_expired_token_is_gone(world: World, connector: ProxyTokens) -> None:
    await world.issue("ada", "short", lifetime=1)
    (token,) = [token for token in await found(connector, ADA) if token.id == "short"]
    later = SimpleNamespace(clock=lambda: time.time() + 2)
    connector._store = later  # type: ignore[assignment]
    assert await connector.state(token) is CredentialState.GONE


async def test_a_flushed_redis_is_filled_again_before_a_token_is_believed_dead(
    world: World, connector: ProxyTokens
) -> None:
    (token, _) = await found(connector, ADA)
    await connector.disable(token)
    await world.redis.flushall()
    assert await connector.state(token) is CredentialState.ACTIVE  # nobody can tell: nothing is believed
    assert await connector.disable(token) is Outcome.DONE
    assert await connector.state(token) is CredentialState.DISABLED


async def test_a_dead_token_is_never_brought_back(world: World, connector: ProxyTokens) -> None:
    (token, _) = await found(connector, ADA)
    await connector.disable(token)
    with pytest.raises(NeedsHuman) as asked:
        await connector.restore(token)
    assert "offboard token issue" in asked.value.advice
    assert Action.RESTORE.value == "restore"


async def test_a_redis_that_is_away_is_tried_again_later(world: World) -> None:
    config = world.config.model_copy(update={"redis_url": Secret("redis://127.0.0.1:1/0")})
    async with ProxyTokens.open("proxy", config) as connector:
        with pytest.raises(Retryable):
            await connector.check()
        with pytest.raises(Retryable):
            await found(connector, ADA)
