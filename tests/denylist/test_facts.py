"""What the denylist is keyed by, and how facts are written down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offboard_worker.denylist import facts as f
from offboard_worker.denylist.fact_table import FactTable
from offboard_worker.denylist.facts import Entry, Fact, FactKind, TokenIdentity, compact, first_killer, kills

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
pairs = st.sampled_from([FactKind.SUBJECT, FactKind.SESSION, FactKind.TOKEN])
MAKE = {FactKind.SUBJECT: f.subject_key, FactKind.SESSION: f.session_key, FactKind.TOKEN: f.token_key}
keys = st.sampled_from(
    [
        f.person_key("p-1"),
        f.subject_key("https://idp.example.com", "ann"),
        f.token_key("us", "j1"),
        f.email_key("a@example.com"),
    ]
)
some_facts = st.builds(
    Fact,
    key=keys,
    denied=st.booleans(),
    before=st.integers(-5, 2**40),
    expires_at=st.none() | st.integers(0, 2**40),
)


@given(pairs, text, text, pairs, text, text)
def test_two_different_identities_never_share_a_key(a: FactKind, x: str, y: str, b: FactKind, u: str, v: str) -> None:
    assert (MAKE[a](x, y) == MAKE[b](u, v)) == ((a, x, y) == (b, u, v))


@given(text, text)
def test_a_key_names_its_kind_whatever_its_parts_contain(first: str, second: str) -> None:
    assert f.kind_of(f.person_key(first)) is FactKind.PERSON
    assert f.kind_of(f.session_key(first, second)) is FactKind.SESSION


def test_an_address_is_one_key_in_any_case() -> None:
    assert f.email_key(" Ann@Example.com ") == f.email_key("ann@example.com")


@given(some_facts)
def test_a_fact_survives_the_wire(fact: Fact) -> None:
    assert Fact.from_wire(fact.key, fact.wire()) == fact


@given(st.integers(1, 2**53), st.lists(some_facts, max_size=5), st.floats(0, 2e9))
def test_an_entry_survives_the_wire(seq: int, facts: list[Fact], at: float) -> None:
    entry = Entry(seq, tuple(facts), at)
    assert Entry.from_wire(seq, entry.wire()) == entry


@pytest.mark.parametrize(
    ("fact", "identity", "dead"),
    [
        (Fact("sub|i|ann", True), TokenIdentity(("sub|i|ann",), 10), True),
        (Fact("sub|i|ann", False), TokenIdentity(("sub|i|ann",), 10), False),
        (Fact("sub|i|ann", False, before=10), TokenIdentity(("sub|i|ann",), 10), True),
        (Fact("sub|i|ann", False, before=10), TokenIdentity(("sub|i|ann",), 11), False),
        (Fact("sub|i|ann", False, before=10), TokenIdentity(("sub|i|ann",), None), True),
        (Fact("person|p", False, before=3), TokenIdentity((), None, "person|p", 2), True),
        (Fact("person|p", False, before=3), TokenIdentity((), None, "person|p", 3), False),
        (Fact("jti|i|j", True, expires_at=100), TokenIdentity(("jti|i|j",), 10), True),
        (Fact("jti|i|j", True, expires_at=50), TokenIdentity(("jti|i|j",), 10), False),
    ],
)
def test_what_makes_a_token_dead(fact: Fact, identity: TokenIdentity, dead: bool) -> None:
    assert kills(fact, identity, now=50.0) is dead
    assert (FactTable([fact]).killer(identity, 50.0) == fact) is dead


@given(st.lists(some_facts, max_size=8), st.integers(0, 2**40) | st.none(), st.floats(0, 2e12), st.integers(0, 9))
def test_the_table_in_memory_decides_as_the_plain_facts_do(
    facts: list[Fact], issued_at: int | None, now: float, generation: int
) -> None:
    plain = compact([Entry(1, tuple(facts), 0.0)], now=-1.0)
    table = FactTable(facts)
    identity = TokenIdentity(
        (f.subject_key("https://idp.example.com", "ann"), f.token_key("us", "j1")),
        issued_at,
        f.person_key("p-1"),
        generation,
    )
    assert {fact.key: fact for fact in table} == plain
    assert table.killer(identity, now) == first_killer(plain, identity, now)


def test_expired_tokens_leave_the_table_and_nothing_else_does() -> None:
    kept = [
        Fact(f.token_key("i", "new"), True, expires_at=200),
        Fact(f.person_key("p"), True),
        Fact("sub|i|s", True, 0, 5),
    ]
    table = FactTable([*kept, Fact(f.token_key("i", "old"), True, expires_at=100)])
    assert table.drop_expired(100.0) == 1
    assert list(table) == kept


def test_changes_name_what_is_new_different_or_gone() -> None:
    old = FactTable([Fact("person|a", True), Fact("person|b", True), Fact("person|c", False, 2)])
    new = FactTable([Fact("person|a", True), Fact("person|c", False, 3), Fact("person|d", True)])
    assert set(new.changes_from(old)) == {Fact("person|c", False, 3), Fact("person|d", True), Fact("person|b", False)}
