"""What an `aws_iam` instance can be told. Knows no SDK."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from offboard_worker.connector import ConnectorConfig, Secret

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

# Spelt out: \w is all of Unicode here, and costs each process that reads a configuration 12 MB.
PolicyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@-]{1,128}$")]


class Match(BaseModel):
    """Which attribute of an IAM user says whose it is. Exact comparison, never a likeness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tag: str | None = Field(default=None, description="The user's tag of this name; the user name itself where unset.")
    of: str | None = Field(
        default=None,
        description="Compare with the person's ids in this namespace (a source's `system`); with their e-mail "
        "addresses where unset.",
    )


class AwsIamConfig(ConnectorConfig):
    """One AWS account."""

    region: str = Field(
        default="us-east-1", description="Chooses partition and STS endpoint; IAM itself has no regions."
    )
    endpoint_url: str | None = Field(
        default=None, description="Another endpoint for IAM and STS (a VPC endpoint, a simulator)."
    )
    access_key_id: Secret | None = Field(
        default=None, description="Our own key; without it, the SDK's default chain (environment, profile, instance)."
    )
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    role_arn: str | None = Field(default=None, description="A role to assume in the account, by the credential above.")
    external_id: Secret | None = Field(default=None, description="The external id that the role's trust policy asks.")
    match: Literal["username", "none"] | Match = Field(
        default="none",
        description="Whose a user is, beside recorded aliases: `username` is an e-mail address of the person, "
        "{tag: NAME} is a tag that holds one, {tag: NAME, of: SYSTEM} holds their id there; `none` for aliases alone.",
    )
    deny_policy_name: PolicyName = Field(
        default="offboard-worker-deny-all", description="The inline policy by which a leaver's permissions are cut."
    )
    revoke_policy_name: PolicyName = Field(
        default="offboard-worker-revoke-older-sessions",
        description="The inline policy that strips sessions issued before a moment, on roles and restored users.",
    )
    revoke_role_sessions: tuple[str, ...] = Field(
        default=(),
        description="Roles whose running sessions are stripped of power when somebody leaves. Hits everybody who uses "
        "the role: they have to assume it again.",
    )

    @field_validator("endpoint_url")
    @classmethod
    def _encrypted_or_loopback(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
            return value
        raise ValueError("expected an https URL (plain http is allowed to loopback only)")

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key belong together: set both, or neither")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        return self

    @model_validator(mode="after")
    def _two_policies(self) -> Self:
        if self.deny_policy_name == self.revoke_policy_name:
            raise ValueError("deny_policy_name and revoke_policy_name must differ")
        return self

    @property
    def attribute(self) -> Match | None:
        """The attribute to match by, or None for aliases alone."""
        if self.match == "none":
            return None
        return Match() if self.match == "username" else self.match
