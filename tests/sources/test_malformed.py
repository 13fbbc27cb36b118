"""Whatever arrives, parsing says MalformedDelivery or something sensible, and never raises anything else."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offboard_worker.core.event import IdentityEvent, Ignored
from offboard_worker.errors import DeliveryError, MalformedDelivery
from offboard_worker.sources.source import Chore, Learned, Source
from tests.sources.deliveries import NOW, TOPIC, aws, delivery, entra, fixture, okta

SOURCES: dict[str, Source[Any]] = {"okta": okta(), "entra": entra(), "aws": aws()}
WHOLE = {
    "okta": [json.loads(fixture("okta/several_events"))],
    "entra": [json.loads(fixture("entra/user_updated_twice")), json.loads(fixture("entra/lifecycle"))],
    "aws": [
        json.loads(fixture("aws/iam_delete_user")),
        json.loads(fixture("aws/assignments_deleted")),
        {
            "Type": "Notification",
            "TopicArn": TOPIC,
            "MessageId": "m",
            "Message": fixture("aws/scim_create_user").decode(),
        },
    ],
}
BODIES = {
    "empty": b"",
    "space": b"  ",
    "not JSON": b"<html>",
    "half": b'{"value": [',
    "null": b"null",
    "number": b"5",
    "text": b'"text"',
    "empty list": b"[]",
    "list of numbers": b"[1, 2]",
    "no members": b"{}",
    "invalid UTF-8": b'{"value": "\xff\xfe"}',
    "UTF-16": '{"value": []}'.encode("utf-16"),
    "NUL": b"\x00" * 100,
    "lone surrogate": b'{"data": {"events": [{"uuid": "\\ud800", "eventType": 5}]}}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"value":' * 100_000,
    "closed deep list": b"[" * 50_000 + b"]" * 50_000,
    "long number": b'{"value": ' + b"9" * 100_000 + b"}",
    "wrong members": b'{"value": 5, "data": 5, "detail": 5, "Records": 5}',
    "huge list": b'{"value": [' + b"0," * 400_000 + b'0], "Records": [' + b"0," * 100_000 + b"0]}",
    "huge events": b'{"data": {"events": [' + b"0," * 400_000 + b"0]}}",
}


@pytest.mark.parametrize("name", sorted(SOURCES))
@pytest.mark.parametrize("what", sorted(BODIES))
async def test_a_malformed_body_is_refused_as_malformed(name: str, what: str) -> None:
    with pytest.raises(MalformedDelivery) as caught:
        list(SOURCES[name].parse(delivery(BODIES[what])))
    assert len(caught.value.message) < 500
    if name == "entra":  # its proof is in the body
        with pytest.raises(DeliveryError):
            await SOURCES[name].verify(delivery(BODIES[what]), NOW)


@pytest.mark.parametrize("what", sorted(BODIES))
async def test_a_malformed_sns_message_is_refused_before_anything_is_fetched(what: str) -> None:
    with pytest.raises(DeliveryError):
        await aws().verify(delivery(BODIES[what], headers={"x-amz-sns-message-type": "Notification"}), NOW)


def test_the_content_of_a_refused_body_is_not_repeated() -> None:
    """A clientState in the wrong place must not reach a log."""
    with pytest.raises(MalformedDelivery) as caught:
        list(entra().parse(delivery({"value": [{"clientState": {"s3cr3t": "s3cr3t"}, "changeType": ["s3cr3t"]}]})))
    assert "s3cr3t" not in caught.value.message + caught.value.advice


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [p for key, inner in value.items() for p in places(inner, (*path, key))]
    elif isinstance(value, list):
        found += [p for number, inner in enumerate(value) for p in places(inner, (*path, number))]
    return found


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    body = copy.deepcopy(body)
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return body


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_payload_with_anything_in_any_place_parses_or_is_malformed(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SOURCES)))
    body = data.draw(st.sampled_from(WHOLE[name]))
    body = replaced(body, data.draw(st.sampled_from(places(body))), data.draw(JSON))
    with contextlib.suppress(MalformedDelivery):
        for statement in SOURCES[name].parse(delivery(json.dumps(body).encode("utf-8", "surrogatepass"))):
            assert isinstance(statement, IdentityEvent | Ignored | Learned | Chore)
            assert statement.key
            if isinstance(statement, IdentityEvent):
                assert statement.subject.id or statement.subject.emails
                assert statement.occurred_at.tzinfo is not None


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(SOURCES)), body=st.binary(max_size=200))
def test_any_bytes_parse_or_are_malformed(name: str, body: bytes) -> None:
    with contextlib.suppress(MalformedDelivery):
        list(SOURCES[name].parse(delivery(body)))
