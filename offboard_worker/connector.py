"""The interface of a connector: one system in which credentials live (DESIGN section 5).

A connector finds, disables, deletes and reads back. It holds no retry, logging, audit or denylist code: the job that
runs it does those for all of them. Third parties register a class by the entry point group
`offboard_worker.connectors` and prove it with `offboard_worker.testing.ConnectorContract`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field

from offboard_worker.core.credential import Ability, Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.errors import AccessRefused, Retryable
from offboard_worker.secret import Secret as Secret  # what a connector's Config uses for its secrets

P = ParamSpec("P")
T = TypeVar("T")


class ConnectorConfig(BaseModel):
    """What every connector instance can be told. Each connector's own `Config` extends this; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    system: str | None = Field(
        default=None,
        description="The namespace of this system's person ids. The instance's own name by default; give a source and "
        "a connector of the same tenant the same one, so that ids learned by one serve the other.",
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=8, description="How many calls for one leaver may be in flight at once."
    )
    timeout: Annotated[float, Field(gt=0)] = Field(default=30.0, description="Seconds that one vendor call may take.")


C = TypeVar("C", bound=ConnectorConfig)


@dataclass(frozen=True, slots=True)
class Standing:
    """What `check` found: who we are to the vendor, and which permissions that `kinds` names are missing."""

    identity: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.missing


class Connector(ABC, Generic[C]):
    """One instance of one system. Build it with `open`; every verb may raise the ConnectorErrors of `errors`.

    `stages` orders the work: stages run one after another (what takes the most power away comes first), and what
    shares a stage runs side by side. Every kind in `kinds` is in exactly one stage.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # the system's name for people: "AWS IAM"
    Config: ClassVar[type[ConnectorConfig]]
    kinds: ClassVar[Mapping[CredentialKind, Ability]]
    stages: ClassVar[tuple[tuple[CredentialKind, ...], ...]]

    def __init__(self, instance: str, config: C) -> None:
        self.instance = instance
        self.config = config
        self.system = config.system or instance

    @classmethod
    @abstractmethod
    def open(cls, instance: str, config: C) -> AbstractAsyncContextManager[Self]:
        """Own the vendor's client for as long as the context lives. Touches no network before the first verb."""

    @classmethod
    def preload(cls) -> None:
        """Import the SDK. A worker calls this before it forks, so that no job pays for it."""

    @abstractmethod
    async def check(self) -> Standing:
        """Prove that our own credential works and say which permissions are missing. Changes nothing."""

    @abstractmethod
    async def identify(self, person: Person) -> tuple[str, ...]:
        """Return the person's exact ids in this system: recorded aliases, or a match by the configured attribute.

        Empty where the system doesn't know them. Never a likeness. What it returns is recorded for good.
        """

    @abstractmethod
    def inventory(self) -> AsyncIterator[Credential]:
        """Yield every credential in the system with its owner as the vendor knows it: all pages.

        Raises where anything couldn't be read: an inventory with a gap must never look complete.
        """

    @abstractmethod
    def find(self, person: Person) -> AsyncIterator[Credential]:
        """Yield every credential of one person, with its current state, by the fastest exact route.

        Yields all that could be read, then raises one error for what couldn't (see `foremost`): a leaver whose roles
        can't be listed must not keep an enabled account for that. What takes the most power away (permissions,
        account) comes first. `side_by_side` does this for lists that are read at once. The caller acts on what was
        yielded, and takes the list for whole only where nothing was raised.
        """

    @abstractmethod
    async def disable(self, credential: Credential) -> Outcome:
        """Take the credential's power away, reversibly where the vendor can. "Already gone" is an Outcome."""

    @abstractmethod
    async def delete(self, credential: Credential) -> Outcome:
        """Remove the credential for good."""

    @abstractmethod
    async def state(self, credential: Credential) -> CredentialState:
        """Read the credential back. UNKNOWN where the vendor offers no read-back."""

    @abstractmethod
    async def restore(self, credential: Credential) -> Outcome:
        """Undo `disable`. Raises NeedsHuman where it can't be undone."""


async def drained(read: AsyncIterator[T]) -> tuple[list[T], Exception | None]:
    """Return everything that a read yields, and the error that it ended with."""
    items: list[T] = []
    try:
        async for item in read:
            items.append(item)
    except Exception as error:  # raised again by whoever asked, once the other reads have been heard
        return items, error
    return items, None


async def side_by_side(*reads: AsyncIterator[T], unread: Exception | None = None) -> AsyncIterator[T]:
    """Run reads at once and yield all that they yield, in their order; then raise the foremost of their errors.

    What a read yielded before its error counts. `unread` is the error of an earlier read, raised like the others'.
    Nothing is left running behind, however this ends.
    """
    errors = [unread]
    tasks = [asyncio.create_task(drained(read)) for read in reads]
    try:
        for task in tasks:
            items, error = await task
            errors.append(error)
            for item in items:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first = foremost(*errors)
    if first is not None:
        raise first


def foremost(*errors: Exception | None) -> Exception | None:
    """Choose the one error to raise for several reads; None where none failed.

    A Retryable comes before all others, the one that asks for the longest wait first: it brings the job back by
    itself, and a permission that is missing is still missing then, while a pause would wait for a person though the
    busy list needs none. Then AccessRefused, then the rest, each in the order of the reads.
    """
    return min((error for error in errors if error is not None), key=_rank, default=None)


def _rank(error: Exception) -> tuple[int, float]:
    match error:
        case Retryable():
            return 0, -(error.retry_after or 0.0)
        case AccessRefused():
            return 1, 0.0
    return 2, 0.0


# One pool per event loop: a forked job gets its own, and never one whose threads stayed behind in the parent. The loop's
# default pool has six threads on two cores, fewer than the calls that `concurrency` lets fly.
_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = WeakKeyDictionary()


async def blocking(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one call of a blocking SDK in a thread: the one place where such SDKs meet the event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _threads:
        _threads[loop] = ThreadPoolExecutor(max_workers=64, thread_name_prefix="sdk")
    run = copy_context().run
    return await loop.run_in_executor(_threads[loop], lambda: run(call, *args, **kwargs))
