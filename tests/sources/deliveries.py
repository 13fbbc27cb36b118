"""Builds the sources under test and the deliveries that they get."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offboard_worker.secret import Secret
from offboard_worker.sources.aws import AwsConfig, AwsEvents
from offboard_worker.sources.entra import EntraConfig, EntraNotifications
from offboard_worker.sources.okta import OktaConfig, OktaHook
from offboard_worker.sources.source import Delivery

FIXTURES = Path(__file__).parents[1] / "fixtures"
NOW = datetime(2026, 11, 20, 9, 16, tzinfo=UTC)
TENANT = "72f988bf-0000-4000-8000-2d7cd011db47"
TOPIC = "arn:aws:sns:us-east-1:123456789012:leavers"


def fixture(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def delivery(
    body: object = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    at: datetime = NOW,
) -> Delivery:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Delivery("any", method, {k.lower(): v for k, v in (headers or {}).items()}, query or {}, raw, at)


def okta(**settings: Any) -> OktaHook:
    return OktaHook("okta-main", OktaConfig(type="okta", secret=Secret("hook-secret"), **settings))


def entra(**settings: Any) -> EntraNotifications:
    defaults: dict[str, Any] = {
        "tenant_id": TENANT,
        "client_id": "0b5e1d4e-0000-4000-8000-5e1f5e1f5e1f",
        "client_secret": Secret("graph-simulator-secret"),
        "client_state": Secret("not-a-secret-state"),
    }
    return EntraNotifications("entra-corp", EntraConfig(type="entra", **{**defaults, **settings}))


def aws(**settings: Any) -> AwsEvents:
    defaults: dict[str, Any] = {"api_key": Secret("bridge-key"), "topics": frozenset({TOPIC})}
    return AwsEvents("aws-org", AwsConfig(type="aws", **{**defaults, **settings}))
