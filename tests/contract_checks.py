"""Checks recorded calls against a vendor's own OpenAPI document: what the real SDK sent, and what a simulator answered.

openapi-core validates both; it does not flag query names that the document doesn't know, so that is done here. Where a
document is known to be wrong, an `Exemption` says so with its reason: it is never silently loosened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse

from offboard_worker.demo.faults import Call

METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch"})


@dataclass(frozen=True, slots=True)
class Exemption:
    """One thing that a document says wrongly. `line` and `problem` are regular expressions, searched for."""

    line: str
    problem: str
    reason: str

    def covers(self, line: str, problem: str) -> bool:
        return bool(re.search(self.line, line) and re.search(self.problem, problem))


class VendorContract:
    """One vendor's contract, from one or more documents; an operation is looked for in their order."""

    def __init__(self, *spec_paths: Path, exemptions: Iterable[Exemption] = ()) -> None:
        self._documents = [_Document(json.loads(path.read_text())) for path in spec_paths]
        self._exemptions = tuple(exemptions)
        self.used: set[Exemption] = set()

    def check(self, call: Call) -> None:
        """Fail with everything that is wrong with one call. A made-up answer (a fault) is not held to the contract."""
        problems = [p for p in self.problems(call) if not self._exempt(call.line, p)]
        assert not problems, f"{call.line} breaks the vendor's contract:\n  " + "\n  ".join(problems)

    def check_all(self, calls: Iterable[Call]) -> int:
        """Check every call and return how many there were: a test should see that it is not none."""
        number = 0
        for number, call in enumerate(calls, start=1):  # noqa: B007 - the last number is the count
            self.check(call)
        return number

    def problems(self, call: Call) -> list[str]:
        """Everything that is wrong with one call, exempted or not."""
        for document in self._documents:
            operation = document.operation(call.method, call.path)
            if operation is not None:
                return document.problems(call, operation)
        return ["no such operation in the document"]

    def _exempt(self, line: str, problem: str) -> bool:
        for exemption in self._exemptions:
            if exemption.covers(line, problem):
                self.used.add(exemption)
                return True
        return False


class _Document:
    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw
        self._paths = [(_pattern(path), item) for path, item in raw["paths"].items()]
        # The log holds no credentials, so that the security schemes can't be checked.
        for item in raw["paths"].values():
            for method in METHODS & set(item):
                item[method].pop("security", None)
        raw.pop("security", None)
        raw.pop("servers", None)
        self._openapi = OpenAPI.from_dict(raw)

    def operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        """Return the operation with its path's parameters among its own; the most literal template wins."""
        matching = [(p, item) for p, item in self._paths if p.fullmatch(path) and method.lower() in item]
        if not matching:
            return None
        _, item = min(matching, key=lambda pair: pair[0].groups)
        own = item[method.lower()]
        return {**own, "parameters": [*item.get("parameters", ()), *own.get("parameters", ())]}

    def problems(self, call: Call, operation: Mapping[str, Any]) -> list[str]:
        known = {p["name"] for p in map(self._resolved, operation["parameters"]) if p["in"] == "query"}
        problems = [f"query: the document knows no {name!r}" for name, _ in call.query if name not in known]
        request = MockRequest(
            "http://vendor.example.com",
            call.method.lower(),
            call.path,
            args=_arguments(call),
            headers=dict(call.headers),
            data=call.body.encode() or None,
            content_type=call.headers.get("content-type", "application/json").partition(";")[0],
        )
        try:
            self._openapi.validate_request(request)
        except OpenAPIError as error:
            problems += _explain("request", error)
        if call.status and not call.faulty:
            problems += self._answer_problems(call, operation, request)
        return problems

    def _answer_problems(self, call: Call, operation: Mapping[str, Any], request: MockRequest) -> list[str]:
        documented = operation["responses"]
        declared = documented.get(str(call.status)) or documented.get(f"{call.status // 100}XX")
        declared = declared or documented.get("default")
        if declared is None:
            return [f"answer: the document knows no status {call.status}"]
        if call.status == 204 or not self._resolved(declared).get("content"):
            return [f"answer: {call.status} should have no body"] if call.answer else []
        response = MockResponse(
            call.answer.encode(),
            status_code=call.status,
            headers=dict(call.answer_headers),
            content_type=call.answer_headers.get("content-type", "").partition(";")[0],
        )
        try:
            self._openapi.validate_response(request, response)
        except OpenAPIError as error:
            return _explain("answer", error)
        return []

    def _resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            found: Any = self._raw
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            node = found
        return node


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]+\})", template)
    return re.compile("".join("([^/]+)" if part.startswith("{") else re.escape(part) for part in parts))


def _arguments(call: Call) -> dict[str, Any]:
    """The query as openapi-core's mock wants it: a repeated name becomes a list."""
    arguments: dict[str, Any] = {}
    for name, value in call.query:
        if name in arguments:
            before = arguments[name]
            arguments[name] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            arguments[name] = value
    return arguments


def _explain(part: str, error: BaseException) -> list[str]:
    """One problem for each thing that a schema finds wrong, else the whole chain of causes: the outermost says little."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        details = list(getattr(current, "schema_errors", ()))
        if details:
            return [f"{part} at {'/'.join(map(str, d.absolute_path)) or '.'}: {d.message[:300]}" for d in details]
        parts.append(f"{type(current).__name__}: {current}")
        current = current.__cause__
    return [f"{part}: {' ← '.join(parts)}"]
