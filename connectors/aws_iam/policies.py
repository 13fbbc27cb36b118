"""The policy documents that we write, and how we recognise them. Pure: no SDK, no clock.

The deny-all carries the moment of the cut in its Sid, so that "were this role's sessions cut after the leaver was?"
can be answered from AWS alone. The session policy is the one that the AWS console writes ("Revoke active sessions").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

VERSION = "2012-10-17"
_SID = re.compile(r"OffboardDenyAll(\d{8}T\d{6})Z")
_MOMENT = "%Y%m%dT%H%M%S"


def deny_all(at: datetime) -> str:
    """Deny every action on everything. An explicit deny beats whatever else allows, resource policies included."""
    sid = f"OffboardDenyAll{at.astimezone(UTC).strftime(_MOMENT)}Z"
    return _document({"Sid": sid, "Effect": "Deny", "Action": "*", "Resource": "*"})


def denied_since(document: object) -> datetime | None:
    """Return when a deny-all of ours was made, or None for any other document: narrowed, conditioned, or by hand."""
    statement = _only_statement(document)
    sid = _SID.fullmatch(str(statement.get("Sid", "")))
    rest = {key: value for key, value in statement.items() if key != "Sid"}
    if sid is None or rest != {"Effect": "Deny", "Action": "*", "Resource": "*"}:
        return None
    return datetime.strptime(sid[1], _MOMENT).replace(tzinfo=UTC)


def revoke_older_sessions(before: datetime) -> str:
    """Deny everything to sessions issued before a moment. Long-term keys carry no such time and are not hit."""
    moment = before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"DateLessThan": {"aws:TokenIssueTime": moment}}
    return _document({"Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": condition})


def revoked_before(document: object) -> datetime | None:
    """Return the moment before which sessions are dead, or None if the document doesn't do that to all of them."""
    statement = _only_statement(document)
    rest = {key: value for key, value in statement.items() if key not in ("Sid", "Condition")}
    if rest != {"Effect": "Deny", "Action": ["*"], "Resource": ["*"]}:
        return None
    try:
        operators: Mapping[str, Mapping[str, str]] = statement["Condition"]
        if set(operators) != {"DateLessThan"} or set(operators["DateLessThan"]) != {"aws:TokenIssueTime"}:
            return None
        return datetime.fromisoformat(operators["DateLessThan"]["aws:TokenIssueTime"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None


def _document(statement: Mapping[str, Any]) -> str:
    return json.dumps({"Version": VERSION, "Statement": [statement]}, separators=(",", ":"))


def _only_statement(document: object) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        return {}
    statements = document.get("Statement")
    if isinstance(statements, Mapping):
        statements = [statements]
    if not isinstance(statements, list) or len(statements) != 1 or not isinstance(statements[0], Mapping):
        return {}
    return statements[0]
