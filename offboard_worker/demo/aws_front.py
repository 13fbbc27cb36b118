"""The WSGI front of the AWS simulator: what stands before moto.

Owns what moto lacks for us (service-specific credentials, SimulatePrincipalPolicy, paging of every list) and faults on
demand by action name. Keeps a log of calls. Must not know people or the connector. Answers follow the IAM Query API,
https://docs.aws.amazon.com/IAM/latest/APIReference/, down to its error bodies.
"""

from __future__ import annotations

import io
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

IAM = "https://iam.amazonaws.com/doc/2010-05-08/"
UNPAGED = frozenset({"SimulatePrincipalPolicy"})
SEEDING_AGENT = "offboard-simulator-seed"  # requests of the simulator itself: not logged, no faults

StartResponse = Callable[..., Any]
Headers = list[tuple[str, str]]


class FaultKind(StrEnum):
    ERROR = "error"  # the vendor says no
    HANG = "hang"  # no answer before the client gives up
    BREAK_OFF = "break-off"  # the action is done, and the answer stops in the middle
    LIE = "lie"  # 200, and nothing was done


@dataclass(slots=True)
class Fault:
    """One prepared misbehaviour for an action; `times` counts down, None is for ever."""

    kind: FaultKind
    times: int | None = 1
    code: str = ""
    status: int = 400
    seconds: float = 60.0
    headers: Headers = field(default_factory=list)
    message: str = "as the test asked"


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the front, in order of arrival."""

    action: str
    params: Mapping[str, str]
    at: datetime

    @property
    def user(self) -> str:
        return self.params.get("UserName", "")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Headers
    body: bytes


class UnknownEntity(Exception):
    """The front's own part of the API was asked for something that isn't there."""


def _xml(action: str, result: str = "") -> bytes:
    inner = f"<{action}Result>{result}</{action}Result>" if result else ""
    meta = f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata>"
    return f'<{action}Response xmlns="{IAM}">{inner}{meta}</{action}Response>'.encode()


def _answer(action: str, result: str = "") -> Reply:
    return Reply(200, [("Content-Type", "text/xml")], _xml(action, result))


def _error(code: str, message: str, status: int, headers: Headers | None = None) -> Reply:
    side = "Sender" if status < 500 else "Receiver"
    body = (
        f'<ErrorResponse xmlns="{IAM}"><Error><Type>{side}</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(message)}</Message></Error><RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>"
    )
    return Reply(status, [("Content-Type", "text/xml"), *(headers or [])], body.encode())


def page(action: str, body: bytes, start: int, size: int) -> bytes:
    """Cut a complete `List…` answer down to one page, with Marker and IsTruncated as IAM sends them."""
    root = ET.fromstring(body)  # noqa: S314 - moto's own answer, made in this process
    result = root.find(f"{{{IAM}}}{action}Result")
    if result is None:
        return body
    lists = [child for child in result if child.find(f"{{{IAM}}}member") is not None]
    members = [(parent, member) for parent in lists for member in parent]
    for index, (parent, member) in enumerate(members):
        if not start <= index < start + size:
            parent.remove(member)
    for name in ("IsTruncated", "Marker"):
        for old in result.findall(f"{{{IAM}}}{name}"):
            result.remove(old)
    more = start + size < len(members)
    ET.SubElement(result, f"{{{IAM}}}IsTruncated").text = "true" if more else "false"
    if more:
        ET.SubElement(result, f"{{{IAM}}}Marker").text = str(start + size)
    ET.register_namespace("", IAM)
    return ET.tostring(root)


class ServiceCredentials:
    """Service-specific credentials (CodeCommit, Keyspaces, Bedrock), which moto does not have."""

    def __init__(self, user_exists: Callable[[str], bool]) -> None:
        self._user_exists = user_exists
        self._of: dict[str, list[dict[str, str]]] = defaultdict(list)

    def of(self, user: str) -> list[dict[str, str]]:
        return self._of[user]

    def serve(self, action: str, params: Mapping[str, str]) -> Reply:
        """Answer one of the four calls. Raises UnknownEntity."""
        user = params.get("UserName", "")
        if not self._user_exists(user):
            raise UnknownEntity(f"The user with name {user} cannot be found.")
        match action:
            case "CreateServiceSpecificCredential":
                return self._create(user, params["ServiceName"])
            case "ListServiceSpecificCredentials":
                members = "".join(f"<member>{_fields(c, secret=False)}</member>" for c in self._of[user])
                return _answer(action, f"<ServiceSpecificCredentials>{members}</ServiceSpecificCredentials>")
            case "UpdateServiceSpecificCredential":
                self._one(user, params)["Status"] = params["Status"]
            case "DeleteServiceSpecificCredential":
                self._of[user].remove(self._one(user, params))
        return _answer(action)

    def _one(self, user: str, params: Mapping[str, str]) -> dict[str, str]:
        wanted = params.get("ServiceSpecificCredentialId", "")
        for credential in self._of[user]:
            if credential["ServiceSpecificCredentialId"] == wanted:
                return credential
        raise UnknownEntity(f"Service Specific Credential {wanted} does not exist")

    def _create(self, user: str, service: str) -> Reply:
        made = {
            "CreateDate": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ServiceName": service,
            "ServiceUserName": f"{user}-at-000000000000",
            "ServicePassword": uuid.uuid4().hex,
            "ServiceSpecificCredentialId": f"ACCA{uuid.uuid4().hex[:16].upper()}",
            "UserName": user,
            "Status": "Active",
        }
        self._of[user].append(made)
        inner = _fields(made, secret=True)
        return _answer(
            "CreateServiceSpecificCredential", f"<ServiceSpecificCredential>{inner}</ServiceSpecificCredential>"
        )


def _fields(credential: Mapping[str, str], *, secret: bool) -> str:
    shown = {k: v for k, v in credential.items() if secret or k != "ServicePassword"}
    return "".join(f"<{k}>{escape(v)}</{k}>" for k, v in shown.items())


class AwsFront:
    """The WSGI application: log, faults, our own calls, and moto for the rest."""

    def __init__(self, moto: Any, account_id: str, user_exists: Callable[[str], bool]) -> None:
        self._moto = moto
        self._account_id = account_id
        self._lock = threading.RLock()  # moto's state is not made for several threads
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._stopping = threading.Event()
        self.service_credentials = ServiceCredentials(user_exists)
        self.calls: list[Call] = []
        self.refused: set[str] = set()  # permissions ("iam:PutUserPolicy") that the caller lacks
        self.latency = 0.0  # seconds before every answer
        self.page_size = 100

    def add(self, action: str, fault: Fault) -> None:
        """Prepare a fault; "*" stands for every action. Faults of one action are used up in order."""
        with self._lock:
            self._faults[action].append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def prepared(self, action: str) -> int:
        """How many faults of an action are still waiting for their call."""
        with self._lock:
            return len(self._faults[action])

    def stop(self) -> None:
        """Let hanging requests go."""
        self._stopping.set()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        service, action, params = self._what(environ, body)
        if SEEDING_AGENT in environ.get("HTTP_USER_AGENT", ""):
            reply = self._serve(environ, body, service, action, params)
        else:
            reply = self._misbehave(environ, body, service, action, params)
        start_response(f"{reply.status} -", reply.headers)
        return [reply.body]

    @staticmethod
    def _what(environ: Mapping[str, Any], body: bytes) -> tuple[str, str, dict[str, str]]:
        """Say which service and action a request is for: Query protocol by form field, JSON protocol by header."""
        scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
        service = scope[3] if len(scope) > 3 else ""
        if target := environ.get("HTTP_X_AMZ_TARGET"):
            return service, target.rpartition(".")[2], {}
        params = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        return service, params.get("Action", ""), params

    def _misbehave(
        self, environ: dict[str, Any], body: bytes, service: str, action: str, params: dict[str, str]
    ) -> Reply:
        with self._lock:
            self.calls.append(Call(action, params, datetime.now(UTC)))
            fault = self._next_fault(action)
        if self.latency:
            time.sleep(self.latency)
        permission = f"{service}:{action}"
        if permission in self.refused:
            return _error("AccessDenied", f"User is not authorized to perform: {permission}", 403)
        match fault:
            case Fault(kind=FaultKind.ERROR):
                return _error(fault.code, fault.message, fault.status, fault.headers)
            case Fault(kind=FaultKind.LIE):
                return _answer(action)
            case Fault(kind=FaultKind.HANG):
                self._stopping.wait(fault.seconds)
                return _error("ServiceUnavailable", "nobody waited for this", 503)
        reply = self._serve(environ, body, service, action, params)
        if fault is not None:  # BREAK_OFF: the length of the whole, and half of it
            headers = [(k, v) for k, v in reply.headers if k.lower() != "content-length"]
            length = ("Content-Length", str(len(reply.body)))
            return Reply(reply.status, [*headers, length], reply.body[: len(reply.body) // 2])
        return reply

    def _next_fault(self, action: str) -> Fault | None:
        for name in (action, "*"):
            for fault in list(self._faults[name]):
                if fault.times is None:
                    return fault
                fault.times -= 1
                if fault.times == 0:
                    self._faults[name].remove(fault)
                return fault
        return None

    def _serve(self, environ: dict[str, Any], body: bytes, service: str, action: str, params: dict[str, str]) -> Reply:
        with self._lock:
            try:
                if action.endswith(("ServiceSpecificCredential", "ServiceSpecificCredentials")):
                    reply = self.service_credentials.serve(action, params)
                elif action == "SimulatePrincipalPolicy":
                    reply = self._simulate(params)
                else:
                    reply = self._ask_moto(environ, body, params)
            except UnknownEntity as missing:
                return _error("NoSuchEntity", str(missing), 404)
        paged = service == "iam" and (action.startswith("List") or action == "GetAccountAuthorizationDetails")
        if paged and reply.status == 200:
            size = min(self.page_size, int(params.get("MaxItems") or self.page_size))
            cut = page(action, reply.body, int(params.get("Marker") or 0), size)
            return Reply(200, [("Content-Type", "text/xml")], cut)
        return reply

    def _simulate(self, params: Mapping[str, str]) -> Reply:
        names = [value for key, value in params.items() if key.startswith("ActionNames.member.")]
        members = "".join(
            f"<member><EvalActionName>{escape(name)}</EvalActionName><EvalResourceName>*</EvalResourceName>"
            f"<EvalDecision>{'implicitDeny' if name in self.refused else 'allowed'}</EvalDecision></member>"
            for name in names
        )
        return _answer(
            "SimulatePrincipalPolicy",
            f"<IsTruncated>false</IsTruncated><EvaluationResults>{members}</EvaluationResults>",
        )

    def _ask_moto(self, environ: dict[str, Any], body: bytes, params: Mapping[str, str]) -> Reply:
        from werkzeug.test import run_wsgi_app

        if "Marker" in params or "MaxItems" in params:  # we page, moto gives everything
            body = urlencode({k: v for k, v in params.items() if k not in ("Marker", "MaxItems")}).encode()
        inner = dict(environ)
        inner["CONTENT_LENGTH"] = str(len(body))
        inner["wsgi.input"] = io.BytesIO(body)
        inner["HTTP_X_MOTO_ACCOUNT_ID"] = self._account_id
        chunks, status, headers = run_wsgi_app(self._moto, inner, buffered=True)
        return Reply(int(status.split()[0]), list(headers.items()), b"".join(chunks))
