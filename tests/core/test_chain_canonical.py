"""The quick way of writing canonical JSON gives the same bytes as the full implementation of RFC 8785."""

from __future__ import annotations

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from offboard_worker.core.chain import AuditRecord, canonical, digest, link_after

TEXT = st.text(st.characters(codec="utf-8"))
WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
VALUES = st.recursive(
    TEXT | WHOLE | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=12,
)


@given(VALUES)
def test_it_is_what_the_rfc_says(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", ["\ud800", {"a": "\udfff"}, {"\ud800": 1}, 2**53, float("nan"), {1: 2}, b"x"])
def test_what_the_rfc_refuses_is_refused(value: Any) -> None:
    with pytest.raises((rfc8785.CanonicalizationError, UnicodeEncodeError)):
        rfc8785.dumps(value)
    with pytest.raises((rfc8785.CanonicalizationError, UnicodeEncodeError)):
        canonical(value)


@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, VALUES, max_size=5))
def test_a_record_is_sealed_over_its_whole_content(what: str, who: str, subject: str, detail: dict[str, Any]) -> None:
    record: AuditRecord = link_after(41, "a" * 64, "2026-11-24T10:00:00.000000Z", what, who, subject, detail)
    assert record.hash == digest(record.content())
