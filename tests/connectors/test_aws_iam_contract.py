"""AWS IAM keeps the contract of every connector, against the simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from connectors.aws_iam import AwsIam, AwsIamConfig
from offboard_worker.core.credential import CredentialKind
from offboard_worker.core.person import Person
from offboard_worker.demo.aws_simulator import AwsSimulator, SeededUser
from offboard_worker.testing import ConnectorContract, CredentialsAlive, Key
from tests.connectors.aws_world import config_for, deny_all_in

pytestmark = pytest.mark.integration

ADA = Person("p1", "Ada", {"aws": ("ada",)}, ("ada@example.com",))
BOB = Person("p2", "Bob", {"aws": ("bob",)}, ("bob@example.com",))
NOBODY = Person("p3", "Ada", {}, ("ada@example.org",))


class TestAwsIam(ConnectorContract):
    @pytest.fixture
    async def aws(self) -> AsyncIterator[AwsSimulator]:
        async with AwsSimulator() as aws:
            await aws.add_role("deployer")
            yield aws

    @pytest.fixture(autouse=True)
    async def users(self, aws: AwsSimulator) -> dict[str, SeededUser]:
        ada = await aws.add_user("ada", email="ada@example.com", access_keys=2, groups=("developers", "operators"))
        bob = await aws.add_user("bob", email="bob@example.com")
        return {"ada": ada, "bob": bob}

    @pytest.fixture
    async def connector(self, aws: AwsSimulator) -> AsyncIterator[AwsIam]:
        config: AwsIamConfig = config_for(aws, match={"tag": "email"}, revoke_role_sessions=("deployer",))
        async with AwsIam.open("aws", config) as connector:
            yield connector

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
    def credentials_alive(self, aws: AwsSimulator, users: dict[str, SeededUser]) -> CredentialsAlive:
        async def alive(person: Person) -> frozenset[Key]:
            name = person.aliases["aws"][0]
            state = await aws.state_of(name)
            assert state is not None
            kind = CredentialKind
            keys: set[Key] = set()
            for which, held in (
                (kind.ACCESS_KEY, state.access_keys),
                (kind.SSH_KEY, state.ssh_keys),
                (kind.CERTIFICATE, state.certificates),
                (kind.SERVICE_CREDENTIAL, state.service_credentials),
            ):
                keys |= {(which, id_) for id_, status in held.items() if status == "Active"}
            keys |= {(kind.MFA_DEVICE, serial) for serial in state.mfa_devices}
            keys |= {(kind.GROUP_MEMBERSHIP, group) for group in state.groups}
            keys |= {(kind.POLICY, arn) for arn in state.attached}
            keys |= {(kind.POLICY, policy) for policy in state.inline if not policy.startswith("offboard-worker-")}
            if state.password:
                keys.add((kind.PASSWORD, users[name].id))
            if not deny_all_in(state):
                keys |= {(kind.PERMISSIONS, users[name].id), (kind.SESSION, users[name].id)}
            return frozenset(keys)

        return alive
