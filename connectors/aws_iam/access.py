"""Whether our own credential works, and which rights it lacks. Changes nothing.

IAM's policy simulator answers for every right by name, with boundaries and organisation policies counted in; where we
may not ask it, reads are tried for real and the rights to write remain unproven, which is said.
https://docs.aws.amazon.com/IAM/latest/APIReference/API_SimulatePrincipalPolicy.html
"""

from __future__ import annotations

from typing import Any

from connectors.aws_iam import abilities
from connectors.aws_iam.calls import Calls, Missing
from connectors.aws_iam.config import AwsIamConfig
from offboard_worker.connector import Standing
from offboard_worker.errors import AccessRefused, Fatal

# One harmless call for each right to read; a user who isn't there is the answer that proves the right.
NOBODY = "offboard-worker-check-nobody"
READS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("iam:ListUsers", "list_users", {"MaxItems": 1}),
    ("iam:GetAccountAuthorizationDetails", "get_account_authorization_details", {"Filter": ["User"], "MaxItems": 1}),
    ("iam:GetUser", "get_user", {"UserName": NOBODY}),
    ("iam:GetUserPolicy", "get_user_policy", {"UserName": NOBODY, "PolicyName": NOBODY}),
    ("iam:GetLoginProfile", "get_login_profile", {"UserName": NOBODY}),
    ("iam:ListAccessKeys", "list_access_keys", {"UserName": NOBODY}),
    ("iam:ListSSHPublicKeys", "list_ssh_public_keys", {"UserName": NOBODY}),
    ("iam:ListServiceSpecificCredentials", "list_service_specific_credentials", {"UserName": NOBODY}),
    ("iam:ListSigningCertificates", "list_signing_certificates", {"UserName": NOBODY}),
    ("iam:ListMFADevices", "list_mfa_devices", {"UserName": NOBODY}),
    ("iam:ListVirtualMFADevices", "list_virtual_mfa_devices", {"MaxItems": 1}),
    ("iam:ListGroupsForUser", "list_groups_for_user", {"UserName": NOBODY}),
    ("iam:ListAttachedUserPolicies", "list_attached_user_policies", {"UserName": NOBODY}),
    ("iam:ListUserPolicies", "list_user_policies", {"UserName": NOBODY}),
)


def needed(config: AwsIamConfig) -> tuple[str, ...]:
    """Every right that this configuration uses, once."""
    rights = [right for each in abilities.RIGHTS.values() for right in each]
    roles = abilities.FOR_ROLES if config.revoke_role_sessions else ()
    return tuple(dict.fromkeys([*rights, *abilities.ALWAYS, *roles]))


async def standing(config: AwsIamConfig, calls: Calls) -> Standing:
    """Say who we are and what we lack. Raises AccessRefused where our credential itself is bad."""
    ourselves = await calls.ourselves()
    notes = []
    if ourselves.arn.endswith(":root"):
        notes.append("this is the account's root user: use a user or role with the documented policy instead")
    for role in config.revoke_role_sessions:
        if role in ourselves.roles:
            notes.append(f"revoke_role_sessions names {role}, our own role: cutting it is left to a person")
    try:
        missing = await _simulated(config, calls, await _principal(calls, ourselves.arn))
    except (AccessRefused, Fatal) as refused:
        notes.append(
            f"the policy simulator could not be asked ({refused}): grant iam:SimulatePrincipalPolicy and iam:GetRole "
            "to have the rights to write checked as well"
        )
        missing = await _tried(calls)
    return Standing(ourselves.arn, missing, tuple(notes))


async def _principal(calls: Calls, arn: str) -> str:
    """Return the ARN by which the simulator knows us: a role's session stands for the role, whose path STS leaves out."""
    if ":assumed-role/" not in arn:
        return arn
    role = await calls.call("get_role", RoleName=arn.split("/")[1])
    return str(role["Role"]["Arn"])


async def _simulated(config: AwsIamConfig, calls: Calls, principal: str) -> tuple[str, ...]:
    results = calls.stream(
        "simulate_principal_policy", "EvaluationResults", PolicySourceArn=principal, ActionNames=list(needed(config))
    )
    return tuple([each["EvalActionName"] async for each in results if each["EvalDecision"] != "allowed"])


async def _tried(calls: Calls) -> tuple[str, ...]:
    missing = []
    for right, operation, params in READS:
        try:
            await calls.call(operation, **params)
        except Missing:
            continue
        except AccessRefused:
            missing.append(right)
    return tuple(missing)
