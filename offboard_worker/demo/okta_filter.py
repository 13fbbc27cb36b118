"""The part of Okta's filter language that the simulator understands: `eq`, joined by `or` and `and`.

https://developer.okta.com/docs/api/#filter. Anything else is refused, so that no test passes by a filter that was
silently ignored. `search` compares values without regard to case, `filter` exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_TERM = re.compile(r'\s*([\w.]+)\s+eq\s+("(?:[^"\\]|\\.)*")\s*', re.IGNORECASE)
_JOIN = re.compile(r"(and|or)\b", re.IGNORECASE)


def matches(expression: str, item: Mapping[str, Any], *, fold_case: bool) -> bool:
    """Say whether an item satisfies the expression; `and` binds tighter. Raises ValueError on what isn't understood."""
    at, alternatives = 0, [True]
    while True:
        term = _TERM.match(expression, at)
        if term is None:
            raise ValueError(f"the simulator does not understand {expression[at:]!r}")
        alternatives[-1] &= _equal(_value(item, term[1]), json.loads(term[2]), fold_case)
        if term.end() == len(expression):
            return any(alternatives)
        join = _JOIN.match(expression, term.end())
        if join is None:
            raise ValueError(f"the simulator does not understand {expression[term.end() :]!r}")
        if join[1].lower() == "or":
            alternatives.append(True)
        at = join.end()


def _value(item: Mapping[str, Any], path: str) -> object:
    found: Any = item
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _equal(value: object, wanted: str, fold_case: bool) -> bool:
    if not isinstance(value, str):
        return False
    return value.casefold() == wanted.casefold() if fold_case else value == wanted
