"""Our own proxy's access tokens (DESIGN section 6): what the proxy issued and has not expired.

A leaver's tokens die with their generation at containment, before any job runs. This connector proves it token by
token: it denies each by (iss, jti) in the store's denial log, pushes, and reads back from Redis, where every proxy
replica gets its facts, that the token is refused. Can't be ended by any call: nothing; a replica without a fresh copy
of these facts serves nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import RedisError

from offboard_worker.connector import Connector, ConnectorConfig, Secret, Standing
from offboard_worker.core.credential import Ability, Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.facts import Fact, RedisNames, TokenIdentity, first_killer, person_key, token_key
from offboard_worker.denylist.issued import IssuedToken, IssuedTokens
from offboard_worker.denylist.projection import Projection
from offboard_worker.errors import DenylistUnavailable, NeedsHuman, Retryable, StoreUnavailable
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog, deny_token


class ProxyTokensConfig(ConnectorConfig):
    """The composition root fills these in from `redis:` and `store:`; they need not be written."""

    redis_url: Secret = Field(default=Secret(""), description="Filled in from redis:")
    redis_prefix: str = Field(default="offboard", description="Filled in from redis.prefix")
    store_url: Secret = Field(default=Secret(""), description="Filled in from store:")


class ProxyTokens(Connector[ProxyTokensConfig]):
    """The tokens that our own proxy issued to one person."""

    name: ClassVar[str] = "proxy_tokens"
    title: ClassVar[str] = "API access proxy"
    Config: ClassVar[type[ConnectorConfig]] = ProxyTokensConfig
    kinds: ClassVar[Mapping[CredentialKind, Ability]] = {
        CredentialKind.API_TOKEN: Ability(
            reversible=False,
            read_back=True,
            permission="write access to redis: and store:",
            residual=timedelta(seconds=2),
            residual_note="a replica that has lost Redis may serve until its lease runs out",
        ),
    }
    stages: ClassVar[tuple[tuple[CredentialKind, ...], ...]] = ((CredentialKind.API_TOKEN,),)

    def __init__(self, instance: str, config: ProxyTokensConfig, redis: Redis, store: Store) -> None:
        super().__init__(instance, config)
        self._redis = redis
        self._store = store
        self._names = RedisNames(config.redis_prefix)
        self._issued = IssuedTokens(redis, self._names)
        self._projection = Projection(redis, StoredLog(store), self._names)

    @classmethod
    @asynccontextmanager
    async def open(cls, instance: str, config: ProxyTokensConfig) -> AsyncIterator[Self]:
        redis = open_client(config.redis_url.reveal(), 2.0)
        store = await Store.open(config.store_url.reveal())
        try:
            yield cls(instance, config, redis, store)
        finally:
            await redis.aclose()
            await store.close()

    async def check(self) -> Standing:
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise Retryable(f"Redis doesn't answer: {type(error).__name__}", connector=self.instance) from error
        return Standing(identity="this installation")

    async def identify(self, person: Person) -> tuple[str, ...]:
        return (person.id,)  # the proxy's tokens carry our own person ids

    async def inventory(self) -> AsyncIterator[Credential]:
        for token in await self._list(None):
            yield await self._credential(token)

    async def find(self, person: Person) -> AsyncIterator[Credential]:
        for token in await self._list(person.id):
            yield await self._credential(token)

    async def disable(self, credential: Credential) -> Outcome:
        """Deny the token by (iss, jti) until it expires, and push."""
        if await self.state(credential) is not CredentialState.ACTIVE:
            return Outcome.ALREADY  # dead with its owner's generation, as every leaver's token is
        iss, expires = credential.snapshot["iss"], int(credential.snapshot["exp"])
        try:
            async with self._store.write() as tx:
                tx.append_denial(
                    "deny",
                    [deny_token(iss, credential.id, expires)],
                    who=f"connector:{self.instance}",
                    reason="a leaver's token",
                    person_id=credential.owner,
                )
            await self._projection.push()
        except (DenylistUnavailable, StoreUnavailable) as error:
            raise Retryable(error.message, advice=error.advice, connector=self.instance) from error
        return Outcome.DONE

    async def delete(self, credential: Credential) -> Outcome:
        return await self.disable(credential)  # a token can't be taken back, only refused until it has expired

    async def state(self, credential: Credential) -> CredentialState:
        """Ask the facts that every replica holds whether they refuse the token."""
        if "exp" not in credential.snapshot or int(credential.snapshot["exp"]) <= self._store.clock():
            return CredentialState.GONE  # expired, or never issued: no proxy admits it
        identity = _identity(credential)
        facts = await self._facts(*identity.all_keys())
        refused = first_killer(facts, identity, self._store.clock())
        return CredentialState.ACTIVE if refused is None else CredentialState.DISABLED

    async def restore(self, credential: Credential) -> Outcome:
        raise NeedsHuman(
            f"token {credential.id} stays dead: a denied token is never un-denied",
            advice="Issue a new one with `offboard token issue`.",
            connector=self.instance,
            credential=credential.ref,
        )

    async def _list(self, person_id: str | None) -> list[IssuedToken]:
        try:
            return await self._issued.list(person_id, now=self._store.clock())
        except (RedisError, OSError) as error:
            raise Retryable(f"Redis doesn't answer: {type(error).__name__}", connector=self.instance) from error

    async def _facts(self, *keys: str) -> dict[str, Fact]:
        try:
            values = await self._redis.hmget(self._names.facts, list(keys))
        except (RedisError, OSError) as error:
            raise Retryable(f"Redis doesn't answer: {type(error).__name__}", connector=self.instance) from error
        return {
            key: Fact.from_wire(key, value if isinstance(value, str) else value.decode())
            for key, value in zip(keys, values, strict=True)
            if value is not None
        }

    async def _credential(self, token: IssuedToken) -> Credential:
        credential = Credential(
            connector=self.instance,
            kind=CredentialKind.API_TOKEN,
            id=token.jti,
            owner=token.person,
            label=f"access token with roles {', '.join(token.roles) or 'none'}",
            created_at=datetime.fromtimestamp(token.issued_at, UTC),
            expires_at=datetime.fromtimestamp(token.expires_at, UTC),
            snapshot={"iss": token.issuer, "exp": str(token.expires_at), "gen": str(token.generation)},
        )
        state = await self.state(credential)
        return Credential(
            **{name: getattr(credential, name) for name in credential.__slots__ if name != "state"}, state=state
        )


def _identity(credential: Credential) -> TokenIdentity:
    created = credential.created_at
    return TokenIdentity(
        keys=(token_key(credential.snapshot["iss"], credential.id),),
        issued_at=int(created.timestamp()) if created else None,
        person=person_key(credential.owner),
        generation=int(credential.snapshot["gen"]),
    )
