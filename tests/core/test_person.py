"""Two names are one person only where they are recorded so."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offboard_worker.core.person import Person, normal_email


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("  ada@example.com\n", "ada@example.com"),
        ("ÄDA@example.com", "äda@example.com"),
        ("", ""),
    ],
)
def test_addresses_are_compared_trimmed_and_in_lower_case(written: str, compared: str) -> None:
    assert normal_email(written) == compared


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("straße@example.com", "strasse@example.com"),
        ("ada.l@example.com", "adal@example.com"),
        ("ada+x@example.com", "ada@example.com"),
        ("ada@example.com", "ada@example.org"),
    ],
)
def test_a_likeness_is_not_the_same_address(one: str, other: str) -> None:
    assert normal_email(one) != normal_email(other)


@given(st.text(st.characters(codec="ascii")))
def test_normalising_twice_changes_nothing(address: str) -> None:
    assert normal_email(normal_email(address)) == normal_email(address)


def test_the_primary_id_comes_first() -> None:
    ada = Person("p-1", aliases={"okta": ("00u1", "ada@example.com")})
    assert ada.alias("okta") == "00u1"
    assert ada.alias("entra") is None


def test_a_person_is_frozen() -> None:
    ada = Person("p-1")
    with pytest.raises(FrozenInstanceError):
        ada.name = "Ada"  # type: ignore[misc]
