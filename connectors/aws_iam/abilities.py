"""What the connector can do to each kind, which rights it needs, and what outlasts it. Pure data.

The durations are AWS's: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html (36 h),
https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency (seconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from offboard_worker.core.credential import Ability, CredentialKind

SPREAD = timedelta(seconds=10)  # IAM is eventually consistent: a change reaches every region within seconds
SPREAD_NOTE = "IAM takes some seconds to carry a change to every region"

RIGHTS: Mapping[CredentialKind, tuple[str, ...]] = {
    CredentialKind.PERMISSIONS: (
        "iam:GetUser",
        "iam:GetUserPolicy",
        "iam:PutUserPolicy",
        "iam:DeleteUserPolicy",
        "iam:ListAttachedUserPolicies",
        "iam:AttachUserPolicy",
        "iam:DetachUserPolicy",
    ),
    CredentialKind.PASSWORD: ("iam:GetLoginProfile", "iam:DeleteLoginProfile"),
    CredentialKind.ACCESS_KEY: (
        "iam:ListAccessKeys",
        "iam:UpdateAccessKey",
        "iam:DeleteAccessKey",
        "iam:GetAccessKeyLastUsed",
    ),
    CredentialKind.SSH_KEY: ("iam:ListSSHPublicKeys", "iam:UpdateSSHPublicKey", "iam:DeleteSSHPublicKey"),
    CredentialKind.SERVICE_CREDENTIAL: (
        "iam:ListServiceSpecificCredentials",
        "iam:UpdateServiceSpecificCredential",
        "iam:DeleteServiceSpecificCredential",
    ),
    CredentialKind.CERTIFICATE: (
        "iam:ListSigningCertificates",
        "iam:UpdateSigningCertificate",
        "iam:DeleteSigningCertificate",
    ),
    CredentialKind.GROUP_MEMBERSHIP: (
        "iam:ListGroupsForUser",
        "iam:RemoveUserFromGroup",
        "iam:AddUserToGroup",
    ),
    CredentialKind.POLICY: ("iam:ListUserPolicies", "iam:ListAttachedUserPolicies"),
    CredentialKind.SESSION: ("iam:GetUserPolicy", "iam:PutUserPolicy"),
    CredentialKind.MFA_DEVICE: (
        "iam:ListMFADevices",
        "iam:ListVirtualMFADevices",
        "iam:DeactivateMFADevice",
        "iam:DeleteVirtualMFADevice",
    ),
}
ALWAYS = ("iam:GetAccountAuthorizationDetails", "iam:ListUsers")
FOR_ROLES = ("iam:GetRole", "iam:GetRolePolicy", "iam:PutRolePolicy")


def _ability(
    kind: CredentialKind,
    *,
    reversible: bool = True,
    deletable: bool = True,
    residual: timedelta = SPREAD,
    note: str = SPREAD_NOTE,
) -> Ability:
    rights = ", ".join(RIGHTS[kind])
    return Ability(reversible, True, rights, deletable=deletable, residual=residual, residual_note=note)


KINDS: Mapping[CredentialKind, Ability] = {
    CredentialKind.PERMISSIONS: _ability(CredentialKind.PERMISSIONS, deletable=False),
    CredentialKind.PASSWORD: _ability(CredentialKind.PASSWORD, reversible=False),
    CredentialKind.ACCESS_KEY: _ability(CredentialKind.ACCESS_KEY),
    CredentialKind.SSH_KEY: _ability(CredentialKind.SSH_KEY),
    CredentialKind.SERVICE_CREDENTIAL: _ability(CredentialKind.SERVICE_CREDENTIAL),
    CredentialKind.CERTIFICATE: _ability(CredentialKind.CERTIFICATE),
    CredentialKind.GROUP_MEMBERSHIP: _ability(CredentialKind.GROUP_MEMBERSHIP),
    CredentialKind.POLICY: _ability(CredentialKind.POLICY),
    CredentialKind.SESSION: _ability(
        CredentialKind.SESSION,
        reversible=False,
        deletable=False,
        residual=timedelta(hours=36),
        note="STS sessions already issued can't be ended. The user's own (up to 36 h) have no power while the deny-all "
        "policy stands: keep it that long. Sessions of roles (up to 12 h) keep the role's permissions, except roles "
        "that revoke_role_sessions names",
    ),
    CredentialKind.MFA_DEVICE: _ability(
        CredentialKind.MFA_DEVICE, reversible=False, residual=timedelta(0), note="an MFA device alone opens nothing"
    ),
}

# The permissions go first and alone. MFA devices go last: they take no power away, and the password must be gone first.
STAGES: tuple[tuple[CredentialKind, ...], ...] = (
    (CredentialKind.PERMISSIONS,),
    (
        CredentialKind.PASSWORD,
        CredentialKind.ACCESS_KEY,
        CredentialKind.SESSION,
        CredentialKind.SSH_KEY,
        CredentialKind.SERVICE_CREDENTIAL,
        CredentialKind.CERTIFICATE,
        CredentialKind.GROUP_MEMBERSHIP,
        CredentialKind.POLICY,
    ),
    (CredentialKind.MFA_DEVICE,),
)
