"""What the tests of the AWS connector share: Ada, her world, and how a deny-all looks."""

from __future__ import annotations

from typing import Any

from connectors.aws_iam import AwsIam, AwsIamConfig
from offboard_worker.core.credential import Credential, CredentialKind
from offboard_worker.core.person import Person
from offboard_worker.demo.aws_simulator import AwsSimulator, UserState

ADA = Person("p1", "Ada", {"aws": ("ada",)}, ("ada@example.com",))
DENY = "offboard-worker-deny-all"
REVOKE = "offboard-worker-revoke-older-sessions"


def config_for(aws: AwsSimulator, **more: Any) -> AwsIamConfig:
    """A configuration that reaches the simulator as its user `offboard-worker`."""
    settings = {
        "type": "aws_iam",
        "endpoint_url": aws.url,
        "access_key_id": aws.access_key_id,
        "secret_access_key": aws.secret_access_key,
        "timeout": 5.0,
        **more,
    }
    return AwsIamConfig.model_validate(settings)


def deny_all_in(state: UserState) -> bool:
    """Say whether the user's inline policies deny everything, read from the document itself."""
    document = state.inline.get(DENY)
    if document is None:
        return False
    (statement,) = document["Statement"]
    denies = {key: value for key, value in statement.items() if key != "Sid"}
    return bool(denies == {"Effect": "Deny", "Action": "*", "Resource": "*"})


async def held(iam: AwsIam, person: Person = ADA) -> dict[CredentialKind, Credential]:
    return {credential.kind: credential async for credential in iam.find(person)}


async def state_of(aws: AwsSimulator, name: str = "ada") -> UserState:
    state = await aws.state_of(name)
    assert state is not None
    return state
