"""OData's query options as Graph's directory objects understand them: $filter, $select, $top, paging.

https://learn.microsoft.com/graph/query-parameters. Knows rows of JSON and query parameters, no state.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping

from yarl import URL

from offboard_worker.demo.graph_directory import Json, bad_request

EQUALS = re.compile(r"^\s*(\w+)\s+eq\s+'((?:[^']|'')*)'\s*$")

# What `GET /users` and `GET /users/{id}` answer without $select: accountEnabled is not among them.
USER_DEFAULTS = (
    "businessPhones",
    "displayName",
    "givenName",
    "id",
    "jobTitle",
    "mail",
    "mobilePhone",
    "officeLocation",
    "preferredLanguage",
    "surname",
    "userPrincipalName",
)


def projected(row: Json, select: str | None) -> Json:
    """Return what $select leaves of an object; the type and the id are always told."""
    is_user = row.get("@odata.type") == "#microsoft.graph.user"
    if select:
        names: Iterable[str] = (*select.split(","), "id")
    elif is_user:
        names = USER_DEFAULTS
    else:
        return dict(row)
    kept = {name: row.get(name, [] if name == "businessPhones" else None) for name in names}
    return {"@odata.type": row["@odata.type"], **kept}


def filtered(rows: Iterable[Json], expression: str | None) -> list[Json]:
    """Return the rows that a filter of `name eq 'value'` clauses, joined by `and`, lets through."""
    found = list(rows)
    for clause in re.split(r"\s+and\s+", expression) if expression else ():
        match = EQUALS.match(clause)
        if match is None:
            raise bad_request(f"Invalid filter clause: {clause}", "Request_UnsupportedQuery")
        name, value = match[1], match[2].replace("''", "'")
        found = [row for row in found if str(row.get(name) or "").casefold() == value.casefold()]
    return found


def page(rows: list[Json], url: URL, query: Mapping[str, str], page_size: int, context: str) -> Json:
    """Return one page of a collection, with @odata.nextLink where more follows."""
    size = page_size
    if "$top" in query:
        top = int(query["$top"]) if query["$top"].isdigit() else 0
        if not 0 < top <= 999:
            raise bad_request(
                "Invalid page size specified: must be between 1 and 999 inclusive.", "Request_UnsupportedQuery"
            )
        size = min(top, page_size)
    start = _offset(query.get("$skiptoken"))
    answer: Json = {"@odata.context": context, "value": rows[start : start + size]}
    if start + size < len(rows):
        token = urlsafe_b64encode(f"offset:{start + size}".encode()).decode()
        answer["@odata.nextLink"] = str(url.update_query({"$skiptoken": token}))
    return answer


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(urlsafe_b64decode(token).decode().removeprefix("offset:"))
    except ValueError:
        raise bad_request("The skip token is not valid.", "Directory_ExpiredPageToken") from None
