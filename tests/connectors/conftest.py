"""Fixtures of the connectors' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from connectors.aws_iam import AwsIam
from offboard_worker.demo.aws_simulator import AwsSimulator
from tests.connectors.aws_world import config_for


@pytest.fixture
async def aws() -> AsyncIterator[AwsSimulator]:
    async with AwsSimulator() as aws:
        await aws.add_user("ada", email="ada@example.com")
        yield aws


@pytest.fixture
async def iam(aws: AwsSimulator) -> AsyncIterator[AwsIam]:
    async with AwsIam.open("aws", config_for(aws)) as iam:
        yield iam
