"""Calls to AWS: one client per service, every list to its last page, and the one place where AWS's errors become ours.

botocore's own retries are off: the job that runs a connector does them for all. Error codes are those of
https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html and of each action's page.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from connectors.aws_iam.config import AwsIamConfig
from offboard_worker.connector import blocking
from offboard_worker.errors import AccessRefused, ConfigError, ConnectorError, Fatal, Retryable

if TYPE_CHECKING:
    from boto3 import Session

BUSY = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "PriorRequestNotComplete",
        "SlowDown",
        "EntityTemporarilyUnmodifiable",
        "EntityTemporarilyUnmodifiableException",
        "ConcurrentModification",
        "ConcurrentModificationException",
        "ServiceFailure",
        "ServiceFailureException",
        "ServiceUnavailable",
        "InternalFailure",
        "InternalError",
        "RequestTimeout",
    }
)
REFUSED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "NotAuthorized",
        "AuthFailure",
        "OptInRequired",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
    }
)
MISSING = frozenset({"NoSuchEntity", "NoSuchEntityException"})
LIMITED = frozenset({"LimitExceeded", "LimitExceededException"})
STUCK = frozenset({"DeleteConflict", "DeleteConflictException"})


class Missing(Fatal):
    """AWS knows no such entity: a result for most callers, never shown to a person."""


class Limited(Fatal):
    """A quota of the account or the user is used up."""


@dataclass(frozen=True, slots=True)
class Ourselves:
    """Who we are to AWS: the users and roles on which our own credential stands."""

    arn: str
    users: frozenset[str]
    roles: frozenset[str]


@lru_cache(maxsize=1)
def _models() -> Any:
    """The parsed service models, shared by every session: they are what makes the first client slow."""
    from botocore.loaders import create_loader

    return create_loader()


_making = threading.Lock()  # botocore: making clients is not thread-safe, using them is


def require_sdk() -> None:
    """Import the SDK. Raises ConfigError where the extra that brings it is not installed."""
    try:
        import boto3  # noqa: F401
    except ImportError as error:
        raise ConfigError("aws_iam needs boto3", advice="pip install 'offboard-worker[aws]'") from error


def preload() -> None:
    """Import the SDK and parse its models, so that processes forked from here share them. No network."""
    require_sdk()
    session = _session()
    for service in ("iam", "sts"):
        client = session.client(service, region_name="us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106
        client.close()


def _session(config: AwsIamConfig | None = None) -> Session:
    import boto3
    import botocore.session

    core = botocore.session.Session()
    core.register_component("data_loader", _models())
    key, secret, token = (
        (each.reveal() if each is not None else None)
        for each in ((config.access_key_id, config.secret_access_key, config.session_token) if config else (None,) * 3)
    )
    region = config.region if config else None
    return boto3.Session(
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        region_name=region,
        botocore_session=core,
    )


class Calls:
    """The clients of one open connector. Nothing is built, and no credential looked up, before the first call."""

    def __init__(self, instance: str, config: AwsIamConfig) -> None:
        self._instance = instance
        self._config = config
        self._clients: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(config.concurrency)
        self._ourselves: asyncio.Task[Ourselves] | None = None

    async def close(self) -> None:
        if self._ourselves is not None:
            self._ourselves.cancel()
        for client in self._clients.values():
            client.close()

    async def call(self, operation: str, *, service: str = "iam", **params: Any) -> dict[str, Any]:
        """Make one call (`operation` in boto3's spelling). Raises Missing, Limited and the ConnectorErrors."""
        async with self._slots:
            answer: dict[str, Any] = await blocking(self._call, service, operation, params)
        return answer

    async def pages(self, operation: str, key: str, **params: Any) -> list[dict[str, Any]]:
        """Return the whole of a list: follows Marker, since not every list has a paginator in boto3."""
        return [item async for item in self.stream(operation, key, **params)]

    async def stream(self, operation: str, key: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield a list's items page by page. Raises Retryable if the paging itself is broken."""
        marker: str | None = None
        while True:
            answer = await self.call(operation, **params, **({"Marker": marker} if marker else {}))
            if not isinstance(answer.get(key), list):
                raise self._broken(operation, f"it has no {key}")
            for item in answer[key]:
                yield item
            if not answer.get("IsTruncated"):
                return
            if not answer.get("Marker") or answer["Marker"] == marker:
                raise self._broken(operation, "it is truncated and doesn't say where to go on")
            marker = answer["Marker"]

    async def exists(self, operation: str, **params: Any) -> dict[str, Any] | None:
        """Make a `get_…` call; None where AWS knows no such entity."""
        try:
            return await self.call(operation, **params)
        except Missing:
            return None

    async def ourselves(self) -> Ourselves:
        """Say who we are, asked once per open connector. A failure is not remembered."""
        if self._ourselves is None or (self._ourselves.done() and self._ourselves.exception() is not None):
            self._ourselves = asyncio.create_task(self._ask_ourselves())
        return await asyncio.shield(self._ourselves)

    async def _ask_ourselves(self) -> Ourselves:
        arns = [(await self.call("get_caller_identity", service="sts"))["Arn"]]
        if self._config.role_arn:  # the credential that assumes the role carries us as well
            arns.append((await self.call("get_caller_identity", service="source-sts"))["Arn"])
        users = frozenset(arn.rpartition("/")[2] for arn in arns if ":user/" in arn)
        roles = frozenset(arn.split("/")[1] for arn in arns if ":assumed-role/" in arn)
        return Ourselves(arns[0], users, roles)

    def _call(self, service: str, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            answer: dict[str, Any] = getattr(self._client(service), operation)(**params)
        except ClientError as error:
            raise self._translated(operation, error) from None
        except BotoCoreError as error:
            raise self._unsent(operation, error) from None
        except (ResponseParserError, KeyError):  # KeyError: well-formed XML without the documented result
            # The parser's message quotes the body, so it is left behind.
            raise self._broken(operation, "it breaks off or isn't what IAM documents") from None
        return answer

    def _client(self, service: str) -> Any:
        with _making:
            if service not in self._clients:
                self._clients[service] = self._make(service)
            return self._clients[service]

    def _make(self, service: str) -> Any:
        from botocore.config import Config

        config = self._config
        settings = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=min(config.timeout, 5.0),
            read_timeout=config.timeout,
            max_pool_connections=config.concurrency + 2,
            user_agent_extra="offboard-worker",
        )
        session = _session(config)
        if config.role_arn and service != "source-sts":
            self._assume(session, settings)
        name = service.removeprefix("source-")
        make: Any = session.client  # the stubs want a literal name
        return make(name, region_name=config.region, endpoint_url=config.endpoint_url, config=settings)

    def _assume(self, session: Session, settings: Any) -> None:
        """Give the session the credentials of the configured role, fetched when the first call needs them."""
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

        core: Any = session._session
        config = self._config
        more = {"ExternalId": config.external_id.reveal()} if config.external_id else {}
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(
                core.create_client, region_name=config.region, endpoint_url=config.endpoint_url, config=settings
            ),
            source_credentials=core.get_credentials(),
            role_arn=config.role_arn or "",
            extra_args={"RoleSessionName": "offboard-worker", **more},
        )
        core._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")

    # --- the vendor's errors become ours ------------------------------------------------------------------------

    def _translated(self, operation: str, error: Any) -> ConnectorError:
        response = error.response
        code = str(response.get("Error", {}).get("Code", ""))
        meta = response.get("ResponseMetadata", {})
        status = int(meta.get("HTTPStatusCode", 0))
        # The first line alone: below it, SignatureDoesNotMatch quotes the request with its session token.
        said = str(response.get("Error", {}).get("Message", "")).partition("\n")[0]
        message = f"{operation}: AWS answered {status} {code}: {said}"
        if code in MISSING:
            return Missing(message, connector=self._instance, status=status)
        if code in BUSY or status == 429 or status >= 500:
            after = _seconds(meta.get("HTTPHeaders", {}).get("retry-after"))
            return Retryable(message, retry_after=after, connector=self._instance, status=status)
        if code in REFUSED or status == 401:
            return AccessRefused(message, connector=self._instance, status=status)
        if code in LIMITED:
            advice = "Make room under the quota that AWS names (Service Quotas, or unused policies), then retry."
            return Limited(message, advice=advice, connector=self._instance, status=status)
        if code in STUCK:
            advice = "Something is still attached to it; it is tried again once the other steps have removed that."
            return Retryable(message, retry_after=5.0, advice=advice, connector=self._instance, status=status)
        return Fatal(message, connector=self._instance, status=status)

    def _unsent(self, operation: str, error: Exception) -> ConnectorError:
        """Translate what botocore raises without an answer from AWS: no credential, no connection, a bad argument."""
        from botocore import exceptions as boto

        message = f"{operation}: {type(error).__name__}: {error}"
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            advice = "Set access_key_id and secret_access_key, or give the process a profile or an instance role."
            return AccessRefused(message, advice=advice, connector=self._instance)
        if isinstance(error, boto.UnauthorizedSSOTokenError | boto.SSOTokenLoadError | boto.TokenRetrievalError):
            return AccessRefused(message, connector=self._instance)
        if isinstance(error, boto.ParamValidationError | boto.DataNotFoundError):
            return Fatal(message, connector=self._instance)
        return Retryable(message, connector=self._instance)

    def _broken(self, operation: str, how: str) -> Retryable:
        return Retryable(f"{operation}: the answer is unusable: {how}", connector=self._instance)


def _seconds(header: str | None) -> float | None:
    """Read a Retry-After header; AWS sends whole seconds, when it sends one."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
