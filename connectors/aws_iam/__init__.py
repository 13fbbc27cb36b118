"""AWS IAM users: everything by which one gets into an AWS account, cut in the order in which it takes power away.

https://docs.aws.amazon.com/IAM/latest/APIReference/ and
https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_revoke-sessions.html

No call can end: an STS session that was already issued (GetSessionToken up to 36 h, role sessions up to 12 h). The
user's own sessions lose their power with the deny-all policy; sessions of a role lose it only where
`revoke_role_sessions` names the role, and then for everybody who uses it. See docs/connectors/aws_iam.md.
"""

from __future__ import annotations

from connectors.aws_iam.config import AwsIamConfig as AwsIamConfig
from connectors.aws_iam.connector import AwsIam as AwsIam
