"""The one place where seconds of retry live: tenacity, inside the job. Minutes are the queue's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from offboard_worker.config import JobSettings
from offboard_worker.errors import ConnectorError, Fatal, Retryable

T = TypeVar("T")


@dataclass(slots=True)
class Attempts:
    """Counts the tries of one action, for its evidence."""

    count: int = 0


class Persistence:
    """Tries a vendor call again while that makes sense within seconds.

    A vendor that asks to be left alone for longer than `max_wait` is not pestered: the Retryable goes up at once, and
    the queue waits the minutes.
    """

    def __init__(self, settings: JobSettings, call_timeout: float) -> None:
        self._attempts = settings.attempts
        self._max_wait = settings.max_wait.total_seconds()
        self._timeout = call_timeout

    async def __call__(
        self, call: Callable[[], Awaitable[T]], what: str, connector: str, attempts: Attempts | None = None
    ) -> T:
        """Run `call`. Raises the ConnectorErrors; any other exception is a connector's bug and becomes Fatal."""
        result: T
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=retry_if_exception(self._worth_another_try),
            reraise=True,
        ):
            with attempt:
                if attempts is not None:
                    attempts.count += 1
                result = await self._once(call, what, connector)
        return result

    async def _once(self, call: Callable[[], Awaitable[T]], what: str, connector: str) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await call()
        except TimeoutError:
            raise Retryable(f"{what}: no answer within {self._timeout:g} s", connector=connector) from None
        except ConnectorError:
            raise
        except Exception as error:
            # The text of a foreign exception may hold anything, a token too: only its type goes on.
            raise Fatal(
                f"{what}: the connector failed with {type(error).__name__}",
                advice="This is a bug in the connector: report it with the worker's log.",
                connector=connector,
            ) from error

    def _worth_another_try(self, error: BaseException) -> bool:
        return isinstance(error, Retryable) and (error.retry_after or 0) <= self._max_wait

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, Retryable) and error.retry_after else 0.0
        return max(asked, min(self._max_wait, wait_random_exponential(multiplier=0.25, max=self._max_wait)(state)))
