"""Whatever is done to the audit shows: altering, removing, reordering, and cutting off its tail.

Canonical JSON is checked against the examples of RFC 8785.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from offboard_worker.core.chain import (
    GENESIS,
    AuditRecord,
    Checkpoint,
    canonical,
    digest,
    fingerprint,
    link,
    link_after,
    sign,
    verify_chain,
    verify_checkpoints,
)
from offboard_worker.errors import AuditBroken

AT = "2026-01-02T03:04:05.000000Z"
KEY = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"2" * 32)
TRUSTED = {fingerprint(KEY.public_key()): KEY.public_key()}


def chain(details: Sequence[Mapping[str, Any]]) -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for detail in details:
        records.append(link(records[-1] if records else None, AT, "case.opened", "okta", "c-1", detail))
    return records


def hashes(records: list[AuditRecord]) -> dict[int, str]:
    return {record.seq: record.hash for record in records}


values = st.text(max_size=8) | st.integers(-(2**53) + 1, 2**53 - 1) | st.booleans() | st.none()
details = st.dictionaries(st.text(max_size=6), values | st.lists(values, max_size=3), max_size=4)
chains = st.lists(details, min_size=1, max_size=8).map(chain)


@given(chains)
@settings(deadline=None, max_examples=25)
def test_an_untouched_chain_verifies(records: list[AuditRecord]) -> None:
    assert list(verify_chain(records)) == records
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert records[0].previous == GENESIS


FIELDS = ("seq", "at", "what", "who", "subject", "detail", "previous", "hash")


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_altering_any_field_of_any_record_is_found(data: st.DataObject) -> None:
    records = data.draw(chains)
    position = data.draw(st.integers(0, len(records) - 1))
    field = data.draw(st.sampled_from(FIELDS))
    old = getattr(records[position], field)
    match field:
        case "seq":
            new: Any = data.draw(st.integers(-5, 2**60).filter(lambda value: value != old))
        case "detail":
            new = data.draw(details.filter(lambda value: digest(value) != digest(old)))
        case _:
            new = data.draw(st.text(max_size=70).filter(lambda value: value != old))
    forged = [*records[:position], replace(records[position], **{field: new}), *records[position + 1 :]]
    with pytest.raises(AuditBroken):
        list(verify_chain(forged))


@given(chains.filter(lambda records: len(records) > 1), st.data())
@settings(deadline=None, max_examples=25)
def test_altering_a_record_and_sealing_it_anew_is_found_by_the_next(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(records) - 2))
    true = records[position]
    forged = link_after(true.seq - 1, true.previous, AT, true.what, "someone else", true.subject, true.detail)
    with pytest.raises(AuditBroken, match="doesn't follow"):
        list(verify_chain([*records[:position], forged, *records[position + 1 :]]))


@given(chains.filter(lambda records: len(records) > 1), st.data())
@settings(deadline=None, max_examples=25)
def test_removing_records_from_the_front_or_the_middle_is_found(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(records) - 2))
    end = data.draw(st.integers(start + 1, len(records) - 1))
    with pytest.raises(AuditBroken, match=f"record {start + 1} is missing"):
        list(verify_chain(records[:start] + records[end:]))


@given(chains.filter(lambda records: len(records) > 1), st.data())
@settings(deadline=None, max_examples=25)
def test_reordering_is_found(records: list[AuditRecord], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(records).filter(lambda order: list(order) != records))
    with pytest.raises(AuditBroken):
        list(verify_chain(shuffled))


@given(chains, st.data())
@settings(deadline=None, max_examples=25)
def test_a_tail_that_was_cut_off_is_shown_by_a_checkpoint_alone(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    mark = sign(records[-1].seq, records[-1].hash, AT, KEY)
    kept = records[: data.draw(st.integers(0, len(records) - 1))]
    assert list(verify_chain(kept)) == kept  # the chain alone can't tell
    with pytest.raises(AuditBroken, match="the tail was cut off"):
        verify_checkpoints([mark], hashes(kept), TRUSTED)


def test_a_history_that_was_rewritten_whole_is_shown_by_a_checkpoint() -> None:
    records = chain([{"n": 1}, {"n": 2}])
    mark = sign(2, records[1].hash, AT, KEY)
    forged = chain([{"n": 1}, {"n": 3}])
    assert list(verify_chain(forged)) == forged
    with pytest.raises(AuditBroken, match="was rewritten"):
        verify_checkpoints([mark], hashes(forged), TRUSTED)


def test_checkpoints_are_counted() -> None:
    records = chain([{"n": 1}, {"n": 2}])
    marks = [sign(record.seq, record.hash, AT, KEY) for record in records]
    assert verify_checkpoints(marks, hashes(records), TRUSTED) == 2


def test_a_checkpoint_of_an_unknown_key_is_not_believed() -> None:
    records = chain([{}])
    with pytest.raises(AuditBroken, match="not trusted") as refused:
        verify_checkpoints([sign(1, records[0].hash, AT, OTHER_KEY)], hashes(records), TRUSTED)
    assert "--public-key" in refused.value.advice


def test_a_checkpoint_that_only_claims_the_right_key_is_not_believed() -> None:
    records = chain([{}])
    forged = replace(sign(1, records[0].hash, AT, OTHER_KEY), key=fingerprint(KEY.public_key()))
    with pytest.raises(AuditBroken, match="false signature"):
        verify_checkpoints([forged], hashes(records), TRUSTED)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_altering_any_field_of_a_checkpoint_is_found(data: st.DataObject) -> None:
    records = chain([{}, {}])
    true = sign(2, records[1].hash, AT, KEY)
    field = data.draw(st.sampled_from(("seq", "hash", "at", "key", "signature")))
    old = getattr(true, field)
    texts = st.text(max_size=20) | st.just(f"{old} ")
    new = data.draw((st.integers(0, 2**60) if field == "seq" else texts).filter(lambda value: value != old))
    with pytest.raises(AuditBroken):
        verify_checkpoints([Checkpoint(**{**true.export(), field: new})], hashes(records), TRUSTED)


def test_a_checkpoint_is_a_plain_ed25519_signature_over_canonical_json() -> None:
    """What an auditor can check without our code."""
    mark = sign(7, "ab" * 32, AT, KEY)
    text = f'{{"at":"{AT}","hash":"{"ab" * 32}","key":"{mark.key}","seq":7}}'
    KEY.public_key().verify(base64.b64decode(mark.signature), text.encode())
    assert Checkpoint(**mark.export()) == mark


def test_a_record_survives_its_export() -> None:
    record = chain([{"person": "p-1"}])[0]
    assert AuditRecord(**record.export()) == record


def test_the_hash_is_sha256_over_the_canonical_json_of_the_content() -> None:
    record = chain([{"b": 1, "a": "ä"}])[0]
    text = (
        f'{{"at":"{AT}","detail":{{"a":"ä","b":1}},"previous":"{GENESIS}","seq":1,"subject":"c-1",'
        '"what":"case.opened","who":"okta"}'
    )
    assert record.hash == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        # RFC 8785 section 3.2.2
        (
            {
                "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
                "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
                "literals": [None, True, False],
            },
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
        ),
        # RFC 8785 section 3.2.3: sorted by UTF-16 code units
        (
            {
                "\u20ac": "Euro Sign",
                "\r": "Carriage Return",
                "\ufb33": "Hebrew Letter Dalet With Dagesh",
                "1": "One",
                "\U0001f600": "Emoji: Grinning Face",
                "\u0080": "Control",
                "\u00f6": "Latin Small Letter O With Diaeresis",
            },
            '{"\\r":"Carriage Return","1":"One","\u0080":"Control","ö":"Latin Small Letter O With Diaeresis",'
            '"€":"Euro Sign","😀":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}',
        ),
        # RFC 8785 appendix B
        ({"n": -0.0}, '{"n":0}'),
        ({"n": 5e-324}, '{"n":5e-324}'),
        ({"n": 1.7976931348623157e308}, '{"n":1.7976931348623157e+308}'),
        ({"n": 9007199254740992.0}, '{"n":9007199254740992}'),
        ({"n": 295147905179352830000.0}, '{"n":295147905179352830000}'),
        ({"n": 9.999999999999997e22}, '{"n":9.999999999999997e+22}'),
        ({"n": 1e23}, '{"n":1e+23}'),
        ({"n": 0.000001}, '{"n":0.000001}'),
        ({"n": 1.0e21}, '{"n":1e+21}'),
    ],
)
def test_the_canonical_json_is_that_of_rfc_8785(value: dict[str, Any], canonical: str) -> None:
    assert digest(value) == hashlib.sha256(canonical.encode()).hexdigest()


@given(st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)))
@settings(deadline=None, max_examples=60)
def test_our_quick_writer_writes_what_the_full_one_does(value: Any) -> None:
    assert canonical({"value": value}) == rfc8785.dumps({"value": value})
