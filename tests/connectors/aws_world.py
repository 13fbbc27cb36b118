"""What the tests of the AWS connector share: its configuration for a simulator, and how a deny-all looks."""

from __future__ import annotations

from typing import Any

from connectors.aws_iam import AwsIamConfig
from offboard_worker.demo.aws_simulator import AwsSimulator, UserState

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
