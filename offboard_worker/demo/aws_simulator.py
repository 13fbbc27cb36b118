"""AWS for the demo and the tests: moto behind a front that pages, logs and misbehaves on demand.

Owns the server's life, seeding and inspection; the wire is `aws_front`'s. Each simulator is an account of its own, so
several can live in one process. moto does not enforce policies and lets Inactive keys work: assert on documents.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Self

from offboard_worker.demo.aws_front import SEEDING_AGENT, AwsFront, Call, Fault, FaultKind

REGION = "us-east-1"
IDENTITY_STORE = "d-9067642ac7"
READ_ONLY = "arn:aws:iam::aws:policy/ReadOnlyAccess"
S3_READ = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:Get*", "Resource": "*"}]}
)
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


@dataclass(frozen=True, slots=True)
class SeededUser:
    """What was made for a user, by exact id."""

    name: str
    id: str
    arn: str
    access_keys: tuple[str, ...] = ()
    ssh_keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    service_credentials: tuple[str, ...] = ()
    mfa_devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserState:
    """Everything that a user has now; two equal states mean that nothing was touched."""

    password: bool
    access_keys: Mapping[str, str]
    ssh_keys: Mapping[str, str]
    certificates: Mapping[str, str]
    service_credentials: Mapping[str, str]
    mfa_devices: frozenset[str]
    groups: frozenset[str]
    attached: frozenset[str]
    inline: Mapping[str, Any]


_LOAD_POLICIES = "MOTO_IAM_LOAD_MANAGED_POLICIES"


@lru_cache(maxsize=1)
def _moto() -> Any:
    """moto's server application: it is slow to make, holds no state, and tells accounts apart by a header."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


@lru_cache(maxsize=1)
def _session() -> Any:
    """The SDK's session for seeding: shared, because parsing the service models takes most of a client's making."""
    import boto3

    return boto3.Session("seed", "seed", region_name=REGION)


@lru_cache(maxsize=1)
def _certificate() -> str:
    """A self-signed certificate in PEM, as UploadSigningCertificate wants it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signing.example.com")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=30))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _ssh_key(owner: str) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    public = ed25519.Ed25519PrivateKey.generate().public_key()
    raw = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{raw.decode()} {owner}"


class AwsSimulator:
    """One invented AWS account at `url`, with a user `offboard-worker` whose key is ours."""

    own_user = "offboard-worker"

    def __init__(self, account_id: str | None = None) -> None:
        self.account_id = account_id or str(secrets.randbelow(9 * 10**11) + 10**11)
        self.url = ""
        self.access_key_id = ""
        self.secret_access_key = ""
        self._front: AwsFront | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._clients: dict[str, Any] = {}

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen on a free port of 127.0.0.1 in a thread of its own."""
        self._make_account()
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from werkzeug.serving import make_server

        class Quiet(MotoRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                """The call log says it better."""

        self._front = AwsFront(_moto(), self.account_id, lambda name: name in self._backend().users)
        self._server = make_server("127.0.0.1", 0, self._front, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self._create_own_user()
        return self

    def _make_account(self) -> None:
        """Make the account with AWS's own policies in it.

        moto reads the variable whenever it makes an account's backend. Left set, a request with an unknown key, for which
        moto makes those of every partition of every account in the process, would load them each time: minutes.
        """
        before = os.environ.get(_LOAD_POLICIES)
        os.environ[_LOAD_POLICIES] = "true"
        try:
            self._backend()
        finally:
            if before is None:
                del os.environ[_LOAD_POLICIES]
            else:
                os.environ[_LOAD_POLICIES] = before

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self.front.stop()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        for client in self._clients.values():
            client.close()
        self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    # --- the wire ----------------------------------------------------------------------------------------------

    @property
    def front(self) -> AwsFront:
        if self._front is None:
            raise RuntimeError("the simulator is not started")
        return self._front

    @property
    def calls(self) -> Sequence[Call]:
        """Every request since the start or `forget_calls`, in order; seeding and inspection are not in it."""
        return tuple(self.front.calls)

    def actions(self) -> list[str]:
        return [call.action for call in self.calls]

    def forget_calls(self) -> None:
        self.front.calls.clear()

    def set_latency(self, seconds: float) -> None:
        self.front.latency = seconds

    def set_page_size(self, members: int) -> None:
        self.front.page_size = members

    def throttle(self, action: str, *, code: str = "Throttling", times: int | None = 1) -> None:
        """Throttling is a 400 in IAM; RequestLimitExceeded comes with `fail(…, status=429)`."""
        self.front.add(action, Fault(FaultKind.ERROR, times, code, 400))

    def fail(
        self,
        action: str,
        code: str = "ServiceFailure",
        status: int = 500,
        *,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
        message: str = "as the test asked",
    ) -> None:
        """Answer with an error of IAM's form."""
        sent = list((headers or {}).items())
        self.front.add(action, Fault(FaultKind.ERROR, times, code, status, headers=sent, message=message))

    def unmodifiable(self, action: str, *, times: int | None = 1) -> None:
        """Answer that the entity is being changed by someone else just now."""
        self.fail(action, "EntityTemporarilyUnmodifiable", 409, times=times)

    def hang(self, action: str, *, times: int | None = 1, seconds: float = 60.0) -> None:
        self.front.add(action, Fault(FaultKind.HANG, times, seconds=seconds))

    def break_off(self, action: str, *, times: int | None = 1) -> None:
        """Do the action and send half of the answer."""
        self.front.add(action, Fault(FaultKind.BREAK_OFF, times))

    def lie(self, action: str, *, times: int | None = None) -> None:
        """Answer 200 and do nothing."""
        self.front.add(action, Fault(FaultKind.LIE, times))

    def refuse(self, *permissions: str) -> None:
        """Take permissions ("iam:PutUserPolicy") from the caller."""
        self.front.refused.update(permissions)

    def behave(self) -> None:
        """End every fault, refusal and delay."""
        self.front.clear()
        self.front.refused.clear()
        self.front.latency = 0.0

    # --- seeding ------------------------------------------------------------------------------------------------

    def client(self, service: str) -> Any:
        """A boto3 client that seeds and inspects: its calls are neither logged nor disturbed."""
        if service not in self._clients:
            from botocore.config import Config

            config = Config(user_agent_extra=SEEDING_AGENT, retries={"total_max_attempts": 1})
            self._clients[service] = _session().client(service, endpoint_url=self.url, config=config)
        return self._clients[service]

    def _backend(self) -> Any:
        from moto.iam.models import iam_backends

        return iam_backends[self.account_id]["aws"]

    def _create_own_user(self) -> None:
        self._create_user(self.own_user, {})
        key = self.client("iam").create_access_key(UserName=self.own_user)["AccessKey"]
        self.access_key_id, self.secret_access_key = key["AccessKeyId"], key["SecretAccessKey"]

    def _create_user(self, name: str, tags: Mapping[str, str]) -> tuple[str, str]:
        listed = [{"Key": k, "Value": v} for k, v in tags.items()]
        made = self.client("iam").create_user(UserName=name, Tags=listed)["User"]
        user_id = f"AIDA{secrets.token_hex(9).upper()[:17]}"  # moto's ids don't look like AWS's
        self._backend().users[name].id = user_id
        return user_id, made["Arn"]

    async def add_user(self, name: str, **kwargs: Any) -> SeededUser:
        """Make a user that has one of everything; see `seed_user` for what can be chosen."""
        return await asyncio.to_thread(self.seed_user, name, **kwargs)

    def seed_user(
        self,
        name: str,
        *,
        email: str | None = None,
        tags: Mapping[str, str] | None = None,
        password: bool = True,
        access_keys: int = 1,
        mfa: bool = True,
        ssh_keys: int = 1,
        service_credentials: Sequence[str] = ("codecommit.amazonaws.com",),
        certificates: int = 1,
        groups: Sequence[str] = ("developers",),
        attached: Sequence[str] = (READ_ONLY,),
        inline: Mapping[str, str] | None = None,
    ) -> SeededUser:
        """Make a user with what is named; `email` becomes the tag `email`. Blocks: `add_user` doesn't."""
        iam = self.client("iam")
        user_id, arn = self._create_user(name, {**({"email": email} if email else {}), **(tags or {})})
        if password:
            iam.create_login_profile(UserName=name, Password=secrets.token_urlsafe(24))
        keys = tuple(iam.create_access_key(UserName=name)["AccessKey"]["AccessKeyId"] for _ in range(access_keys))
        ssh = tuple(
            iam.upload_ssh_public_key(UserName=name, SSHPublicKeyBody=_ssh_key(name))["SSHPublicKey"]["SSHPublicKeyId"]
            for _ in range(ssh_keys)
        )
        signing = tuple(
            iam.upload_signing_certificate(UserName=name, CertificateBody=_certificate())["Certificate"][
                "CertificateId"
            ]
            for _ in range(certificates)
        )
        service = tuple(
            iam.create_service_specific_credential(UserName=name, ServiceName=each)["ServiceSpecificCredential"][
                "ServiceSpecificCredentialId"
            ]
            for each in service_credentials
        )
        serials = (self._seed_mfa(name),) if mfa else ()
        for group in groups:
            self._seed_group(group)
            iam.add_user_to_group(GroupName=group, UserName=name)
        for policy in attached:
            iam.attach_user_policy(UserName=name, PolicyArn=policy)
        for policy, document in (inline if inline is not None else {"read-buckets": S3_READ}).items():
            iam.put_user_policy(UserName=name, PolicyName=policy, PolicyDocument=document)
        return SeededUser(name, user_id, arn, keys, ssh, signing, service, serials, tuple(groups))

    def _seed_mfa(self, name: str) -> str:
        iam = self.client("iam")
        serial: str = iam.create_virtual_mfa_device(VirtualMFADeviceName=name)["VirtualMFADevice"]["SerialNumber"]
        codes = {"AuthenticationCode1": "123456", "AuthenticationCode2": "654321"}
        iam.enable_mfa_device(UserName=name, SerialNumber=serial, **codes)
        return serial

    def _seed_group(self, name: str) -> None:
        if name not in self._backend().groups:
            self.client("iam").create_group(GroupName=name)

    async def add_role(self, name: str) -> str:
        """Make a role and return its ARN."""
        made = await asyncio.to_thread(
            self.client("iam").create_role, RoleName=name, AssumeRolePolicyDocument=TRUST, MaxSessionDuration=43200
        )
        return str(made["Role"]["Arn"])

    async def remove_user(self, name: str) -> None:
        """Forget a user at once, whatever they still have (IAM itself would refuse)."""
        del self._backend().users[name]

    async def add_identity_center_user(self, user_name: str, email: str) -> str:
        """Make a user of IAM Identity Center in the store IDENTITY_STORE and return their id."""
        made = await asyncio.to_thread(
            self.client("identitystore").create_user,
            IdentityStoreId=IDENTITY_STORE,
            UserName=user_name,
            DisplayName=user_name,
            Name={"GivenName": user_name, "FamilyName": "Example"},
            Emails=[{"Value": email, "Type": "work", "Primary": True}],
        )
        return str(made["UserId"])

    # --- inspection ---------------------------------------------------------------------------------------------

    async def state_of(self, name: str) -> UserState | None:
        """Say what a user has now, or None where there is no such user."""
        return await asyncio.to_thread(self._state_of, name)

    def _state_of(self, name: str) -> UserState | None:
        user = self._backend().users.get(name)
        if user is None:
            return None
        groups = self._backend().get_groups_for_user(name)
        service = self.front.service_credentials.of(name)
        return UserState(
            password=bool(user.password),
            access_keys={key.access_key_id: key.status for key in user.access_keys},
            ssh_keys={key.ssh_public_key_id: key.status for key in user.ssh_public_keys},
            certificates={each.id: each.status for each in user.signing_certificates.values()},
            service_credentials={each["ServiceSpecificCredentialId"]: each["Status"] for each in service},
            mfa_devices=frozenset(user.mfa_devices),
            groups=frozenset(group.name for group in groups),
            attached=frozenset(user.managed_policies),
            inline={policy: json.loads(document) for policy, document in user.policies.items()},
        )

    async def role_policies(self, role: str) -> Mapping[str, Any]:
        """The inline policies of a role, by name."""
        found = self._backend().get_role(role).policies
        return {name: json.loads(document) for name, document in found.items()}
