"""The configuration: YAML → typed settings. config.example.yaml explains every key.

A text value may be `${NAME}` (environment variable) or `file:PATH` (a file's content without its last newline; a
relative path counts from the configuration's folder). Unknown keys are refused. Errors name the file, the line, the
key, what was found and what was expected. This file opens no connection and imports no plugin: the settings of one
source or connector are validated by its own `Config`, through the `plugin_config` that the caller passes in.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from offboard_worker.config_text import Lines, explain, read_yaml, refer, why_unreadable
from offboard_worker.errors import ConfigError
from offboard_worker.secret import Secret

M = TypeVar("M", bound=BaseModel)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_LONGEST = 100 * 366 * 86400  # seconds
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    seconds = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNIT_SECONDS[match[2]]
    if 0 <= seconds <= _LONGEST:
        return timedelta(seconds=seconds)
    raise ValueError("expected a duration such as 500ms, 30s, 15m, 12h or 30d")


def _written(value: timedelta) -> str:
    return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(_written, return_type=str)]


def _stale_policy(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if value == "refuse":
        return timedelta(0)
    if isinstance(value, str) and (match := re.fullmatch(r"allow_for\((.+)\)", value.strip())):
        return _duration(match[1])
    raise ValueError("expected refuse, or allow_for(DURATION) such as allow_for(30s)")


StalePolicy = Annotated[timedelta, BeforeValidator(_stale_policy)]


def _listen(value: object) -> str:
    if (
        isinstance(value, str)
        and re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s/]+):\d{1,5}", value)
        and int(value.rpartition(":")[2]) <= 65535
    ):
        return value
    raise ValueError("expected an address such as 127.0.0.1:8080 (port 0 takes a free one)")


Listen = Annotated[str, BeforeValidator(_listen)]


def split_listen(address: str) -> tuple[str, int]:
    """Return host and port of a `listen` value."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReceiverSettings(Settings):
    listen: Listen = "127.0.0.1:8080"
    metrics: Listen = "127.0.0.1:0"
    max_body: Annotated[int, Field(ge=1024)] = 1024 * 1024
    head_timeout: Duration = Field(
        default=timedelta(seconds=10), description="How long a sender may take to send one request's head."
    )
    body_timeout: Duration = Field(default=timedelta(seconds=15), description="How long its body may take.")
    keepalive: Duration = Field(default=timedelta(seconds=75), description="How long an idle connection is kept.")
    push_wait: Duration = Field(
        default=timedelta(milliseconds=500),
        description="How long an answer waits for Redis to take the denial; after that the reconciler pushes it.",
    )
    drain: Duration = Field(
        default=timedelta(seconds=6), description="How long SIGTERM waits for deliveries that are being received."
    )
    durability: Literal["full", "off"] = Field(
        default="full", description="`off` exists for the benchmark alone: a crash then loses what was answered."
    )


class RedisSettings(Settings):
    url: Secret | None = Field(default=None, description="redis://, rediss://, unix:// or redis+sentinel://h1,h2/name")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "offboard"
    wait_replicas: Annotated[int, Field(ge=0)] = 0


class StoreSettings(Settings):
    url: Secret | None = Field(default=None, description="A SQLAlchemy URL; SQLite below data_dir by default.")


class UpstreamSettings(Settings):
    url: str
    header: str = "Authorization"
    secret: Secret | None = Field(default=None, description="The header's whole value, e.g. `Bearer sk-…`.")
    timeout: Duration = Field(
        default=timedelta(seconds=30), description="From the last byte of the request to the head of the answer."
    )
    connect_timeout: Duration = timedelta(seconds=5)
    idle_timeout: Duration = Field(
        default=timedelta(minutes=15), description="A streaming answer that is silent for this long is given up."
    )

    @model_validator(mode="after")
    def _plain_http_is_for_loopback(self) -> UpstreamSettings:
        match = re.match(r"(https?)://([^/?#@\s]+)(/[^?#\s]*)?$", self.url)
        if not match:
            raise ValueError("url: expected http(s)://host[:port][/path] without a query")
        if match[1] == "http" and self.secret is not None and not is_loopback(re.sub(r":\d+$", "", match[2])):
            raise ValueError("url: a secret is injected, so expected https:// (plain http is for loopback alone)")
        return self


class RuleSettings(Settings):
    upstream: str
    methods: tuple[str, ...] = ("GET",)
    paths: tuple[str, ...] = Field(
        description="Patterns over the exact bytes: `/v1/x`, `/v1/*` (one segment), `/v1/**`"
    )
    unsafe_paths: bool = Field(
        default=False,
        description="Also allow %2f, %5c, dot segments, //, ; and \\ : the upstream must not decode them.",
    )
    stale_policy: StalePolicy = Field(
        default=timedelta(0),
        description="`refuse`, or `allow_for(30s)`: how long this route may be served after the lease ran out. An "
        "exception for what must not stop; whoever was revoked in that time passes too, and each such request is logged.",
    )


class RoleSettings(Settings):
    rules: tuple[RuleSettings, ...] = ()


TOKEN_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class IssuerSettings(Settings):
    """An identity provider whose access tokens the proxy accepts directly."""

    issuer: str
    jwks_url: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA", "PS256")
    types: tuple[str, ...] = ("at+jwt", "application/at+jwt")
    leeway: Duration = timedelta(seconds=30)
    subject_claim: str = Field(default="sub", description="The claim that holds the source's id or login.")
    email_claim: str | None = "email"
    roles_claim: str = "groups"
    roles: Mapping[str, tuple[str, ...]] = Field(default_factory=dict, description="claim value → our roles")
    jwks_max_age: Duration = Field(default=timedelta(minutes=5), description="When the key set is fetched again.")
    jwks_stale: Duration = Field(
        default=timedelta(hours=24), description="How long the last key set is believed while it can't be fetched."
    )

    @model_validator(mode="after")
    def _only_public_key_algorithms(self) -> IssuerSettings:
        bad = [name for name in self.algorithms if name not in TOKEN_ALGORITHMS]
        if bad or not self.algorithms:
            raise ValueError(f"algorithms: found {bad}, expected some of {', '.join(TOKEN_ALGORITHMS)}")
        if not self.audience:
            raise ValueError("audience: expected at least one: a token for another service must not open this one")
        return self


class ProxySettings(Settings):
    listen: Listen = "127.0.0.1:8081"
    metrics: Listen = "127.0.0.1:0"
    issuer: str = "https://offboard-worker.invalid"
    audience: str = "offboard-proxy"
    token_lifetime: Duration = timedelta(hours=8)
    signing_keys: Path | None = Field(default=None, description="Folder of Ed25519 keys; below data_dir by default.")
    lease: Duration = timedelta(seconds=2)
    heartbeat: Duration = timedelta(milliseconds=250)
    issuers: Mapping[str, IssuerSettings] = Field(default_factory=dict)
    upstreams: Mapping[str, UpstreamSettings] = Field(default_factory=dict)
    roles: Mapping[str, RoleSettings] = Field(default_factory=dict)
    max_header: Annotated[int, Field(ge=1024)] = 16 * 1024
    head_timeout: Duration = Field(
        default=timedelta(seconds=10), description="How long a client may take to send one request's head."
    )
    keepalive: Duration = Field(default=timedelta(seconds=75), description="How long an idle connection is kept.")
    token_cache: Annotated[int, Field(ge=1)] = Field(default=20_000, description="Verified tokens remembered.")
    streams_outlive_tokens: bool = Field(
        default=False, description="Let a stream that is open when its token expires go on until it ends by itself."
    )
    drain: Duration = Field(default=timedelta(seconds=5), description="How long SIGTERM waits for requests in flight.")

    @model_validator(mode="after")
    def _a_lease_outlives_its_heartbeat(self) -> ProxySettings:
        if not timedelta(0) < self.heartbeat < self.lease:
            raise ValueError("heartbeat: expected more than 0 and less than lease, or no request would ever pass")
        return self

    @model_validator(mode="after")
    def _rules_name_upstreams_that_exist(self) -> ProxySettings:
        for role, settings in self.roles.items():
            for rule in settings.rules:
                if rule.upstream not in self.upstreams:
                    known = ", ".join(sorted(self.upstreams)) or "none"
                    raise ValueError(f"roles.{role} names upstream {rule.upstream!r}; configured: {known}")
        return self


class GuardSettings(Settings):
    max_leavers: Annotated[int, Field(ge=1)] = 25
    window: Duration = timedelta(hours=1)


RevokeOn = Literal[
    "account-disabled", "account-suspended", "account-purged", "session-revoked", "credential-compromise"
]
"""The kinds of event that may end somebody's access for good. A misspelt one must not pass: nobody would be revoked."""


class PolicySettings(Settings):
    """What an event leads to. Issue by issue this grows; today it is the same for everybody."""

    revoke_on: tuple[RevokeOn, ...] = ("account-disabled", "account-suspended", "account-purged")
    approval: bool = Field(default=False, description="Every case waits for `offboard case approve` once contained.")
    reinstate_on_enable: bool = True
    delete_after: Duration | None = Field(default=None, description="Delete disabled credentials after this long.")
    close_after: Duration = Field(default=timedelta(days=1), description="A verified case closes by itself after this.")
    issued_before_skew: Duration = Field(
        default=timedelta(seconds=5), description="Tokens issued this long after a revocation still count as before it."
    )


class PersonSettings(Settings):
    name: str = ""
    emails: tuple[str, ...] = ()
    aliases: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    protected: bool = False


class JobSettings(Settings):
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    timeout: Duration = timedelta(minutes=15)
    retry_intervals: tuple[Duration, ...] = tuple(timedelta(minutes=m) for m in (1, 5, 15, 60))
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(default=4, description="Tries within a job, seconds apart.")
    max_wait: Duration = Field(default=timedelta(seconds=10), description="The longest wait between those tries.")
    reconcile_every: Duration = timedelta(seconds=5)
    push_every: Duration = timedelta(seconds=1)


class DashboardSettings(Settings):
    listen: Listen = "127.0.0.1:9181"
    username: str = "ops"
    password: Secret | None = None


class AuditSettings(Settings):
    signing_key: Path | None = Field(default=None, description="Ed25519 private key (PEM); below data_dir by default.")
    checkpoint_every: Duration = timedelta(minutes=5)
    checkpoints: Path | None = Field(
        default=None, description="A folder off this box where signed checkpoints also go."
    )


class Config(Settings):
    """The whole file. `sources` and `connectors` stay raw here: their plugins validate them."""

    data_dir: Path = Path("data")
    store: StoreSettings = StoreSettings()
    redis: RedisSettings = RedisSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    proxy: ProxySettings = ProxySettings()
    sources: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    connectors: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    guards: GuardSettings = GuardSettings()
    policy: PolicySettings = PolicySettings()
    people: Mapping[str, PersonSettings] = Field(default_factory=dict)
    jobs: JobSettings = JobSettings()
    dashboard: DashboardSettings = DashboardSettings()
    audit: AuditSettings = AuditSettings()
    _lines: Lines = PrivateAttr(default_factory=lambda: Lines("configuration", None))

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        """`store: URL` and `redis: URL` are short for `{url: URL}`; a section with nothing in it is as if left out."""
        if isinstance(raw, dict):
            raw = {key: value for key, value in raw.items() if value is not None}
            for key in ("store", "redis"):
                if isinstance(raw.get(key), str):
                    raw = {**raw, key: {"url": raw[key]}}
        return raw

    @property
    def store_url(self) -> str:
        """The SQLAlchemy URL of the store: what `store:` says, else SQLite below data_dir."""
        return self.store.url.reveal() if self.store.url is not None else f"sqlite:///{self.data_dir / 'store.db'}"

    @property
    def embedded_redis(self) -> Path:
        """The file in which `offboard up` leaves the URL of the Valkey that it runs."""
        return self.data_dir / "valkey" / "url"

    @property
    def redis_url(self) -> str:
        """The URL of Redis. Raises ConfigError where none is set and none is embedded now."""
        if self.redis.url is not None:
            return self.redis.url.reveal()
        try:
            return self.embedded_redis.read_text("utf-8").strip()
        except OSError:
            raise ConfigError(
                "redis: is not set, and no embedded Valkey runs",
                advice="Set redis: to a URL, or run `offboard up` or `offboard valkey`, which run one.",
            ) from None

    @property
    def signing_keys(self) -> Path:
        """The folder of the keys that sign the proxy's own tokens."""
        return self.proxy.signing_keys or self.data_dir / "signing-keys"

    @property
    def audit_key(self) -> Path:
        """The key that signs audit checkpoints."""
        return self.audit.signing_key or self.data_dir / "audit" / "signing-key.pem"


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read one configuration file. Raises ConfigError with file, line, key, what was found and what was expected."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read: {why_unreadable(error)}",
            advice="Copy config.example.yaml to config.yaml and adapt it, or name another file with --config.",
        ) from error
    return loads(text, str(path), path.parent, os.environ if environ is None else environ)


def loads(text: str, name: str, folder: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration from text; `folder` is what relative `file:` references and paths count from."""
    raw, lines = read_yaml(text, name)
    raw = refer(raw, (), lines, folder, environ)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise explain(error, (), lines) from None
    config = _at(config, folder.resolve())
    config._lines = lines
    return config


def _at(config: Config, folder: Path) -> Config:
    """Let every relative path of a configuration count from its folder."""
    keys, audit = config.proxy.signing_keys, config.audit
    proxy = config.proxy.model_copy(update={"signing_keys": keys and folder / keys})
    away = {"signing_key": audit.signing_key, "checkpoints": audit.checkpoints}
    return config.model_copy(
        update={
            "data_dir": folder / config.data_dir,
            "proxy": proxy,
            "audit": audit.model_copy(update={name: path and folder / path for name, path in away.items()}),
        }
    )


def plugin_config(model: type[M], config: Config, path: tuple[str, ...], raw: Mapping[str, Any]) -> M:
    """Validate one source's or connector's settings by its own model. Raises ConfigError as `load` does."""
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        raise explain(error, path, config._lines) from None
