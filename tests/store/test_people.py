"""People are known by exact names alone."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from offboard_worker.config import PersonSettings
from offboard_worker.core.person import PersonState
from offboard_worker.store.database import Store
from offboard_worker.store.people import Directory, Standing, configured, search
from offboard_worker.store.schema import aliases, people

OKTA = "okta"


@pytest.fixture
async def ada(store: Store) -> str:
    async with store.write() as tx:
        directory = Directory()
        known = directory.add("Ada Löwe", "p-ada")
        directory.learn(known, OKTA, "00u1", "test")
        directory.learn(known, OKTA, "ada.login", "test", login=True)
        directory.learn(known, "aws", "AdaL", "test")
        directory.learn_email(known, "Ada@Example.com")
        known.standings["okta-main"] = Standing(True, 5.5)
        known.state = PersonState.DEPARTED
        known.generation = 3
        await directory.save(tx)
    return "p-ada"


async def test_a_person_is_read_back_whole(store: Store, ada: str) -> None:
    async with store.read() as conn:
        known = (await Directory.of_ids(conn, [ada])).by_id[ada]
    person = known.person()
    assert person.aliases == {OKTA: ("00u1", "ada.login"), "aws": ("AdaL",)}
    assert person.emails == ("ada@example.com",)
    assert (person.state, person.generation, person.name) == (PersonState.DEPARTED, 3, "Ada Löwe")
    assert known.standings == {"okta-main": Standing(True, 5.5)}
    assert known.gone


@pytest.mark.parametrize("name", ["p-ada", "00u1", "ada.login", "AdaL", "ada@example.com", " ADA@example.com "])
async def test_a_search_finds_exact_names(store: Store, ada: str, name: str) -> None:
    async with store.read() as conn:
        assert [person.id for person in await search(conn, name)] == [ada]


@pytest.mark.parametrize(
    "name",
    ["ada", "Ada Löwe", "adal", "p-ad", "00u", "%", "ada%", "_da.login", "ada@example.org", "ada@example.co", ""],
)
async def test_a_search_never_finds_a_likeness(store: Store, ada: str, name: str) -> None:
    async with store.read() as conn:
        assert await search(conn, name) == []


async def test_a_login_given_to_another_id_is_another_person(store: Store, ada: str) -> None:
    async with store.read() as conn:
        names = [(OKTA, "00u2"), (OKTA, "ada.login")]
        directory = await Directory.of_names(conn, names, ["ada@example.com"])
    assert directory.find(names) is None
    assert directory.find(names, ["ada@example.com"]) is None  # the address came along with the login


async def test_a_login_that_comes_without_an_id_is_whose_it_is(store: Store, ada: str) -> None:
    async with store.read() as conn:
        names = [(OKTA, "unknown"), (OKTA, "ada.login")]
        directory = await Directory.of_names(conn, names, [])
    found = directory.find(names, has_id=False)
    assert found is not None
    assert found.id == ada


async def test_an_address_identifies_only_where_it_is_trusted_and_unique(store: Store, ada: str) -> None:
    names = [("entra", "guid-1")]
    async with store.write() as tx:
        directory = await Directory.of_names(tx.conn, names, ["ada@example.com"])
        assert directory.find(names) is None
        found = directory.find(names, ["ADA@example.com"])
        assert found is not None
        assert found.id == ada
        other = directory.add("Another", "p-other")
        directory.learn_email(other, "ada@example.com")
        await directory.save(tx)
        assert directory.find(names, ["ada@example.com"]) is None  # two people have it: nobody is guessed


async def test_a_name_that_is_somebodys_is_never_taken_away(store: Store, ada: str) -> None:
    async with store.write() as tx:
        directory = await Directory.of_names(tx.conn, [("aws", "AdaL")], [])
        other = directory.add("Another", "p-other")
        assert directory.learn(other, "aws", "AdaL", "test") is False
        assert directory.learn(other, "aws", "AdaL2", "test") is True
        assert directory.learn(other, "aws", "AdaL2", "test") is False
        await directory.save(tx)
    async with store.read() as conn:
        owners = {row.alias: row.person_id for row in await conn.execute(select(aliases)) if row.system == "aws"}
    assert owners == {"AdaL": ada, "AdaL2": "p-other"}


async def test_many_names_are_looked_up_at_once(store: Store, ada: str) -> None:
    async with store.read() as conn:
        names = [(OKTA, f"00u{n}") for n in range(3000)]
        directory = await Directory.of_names(conn, names, [f"{n}@example.com" for n in range(3000)])
    assert list(directory.by_id) == [ada]


@pytest.mark.parametrize("alias", ["O'Brien", 'a"b', "a\\b", "a,b", "[1]", "日本", "a b", "1", "null", "ä" * 100])
async def test_odd_names_are_found_exactly(store: Store, alias: str) -> None:
    async with store.write() as tx:
        directory = Directory()
        directory.learn(directory.add("Odd", "p-odd"), OKTA, alias, "test")
        await directory.save(tx)
    async with store.read() as conn:
        assert [p.id for p in await search(conn, alias)] == ["p-odd"]
        assert list((await Directory.of_names(conn, [(OKTA, alias)], [])).by_id) == ["p-odd"]
        assert not (await Directory.of_names(conn, [(OKTA, f"{alias}x"), ("aws", alias)], [])).by_id


async def test_configured_people_are_added_once_and_updated(store: Store) -> None:
    settings = {"cto": PersonSettings(name="Cleo", protected=True, aliases={OKTA: ("00u7", "00u8")})}
    async with store.write() as tx:
        assert await configured(tx, settings) == 1
    changed = {"cto": PersonSettings(emails=("cleo@example.com",), protected=False, aliases={OKTA: "00u9"})}
    async with store.write() as tx:
        assert await configured(tx, changed) == 0
    async with store.read() as conn:
        person = (await Directory.of_ids(conn, ["cto"])).by_id["cto"].person()
    assert (person.name, person.protected, person.emails) == ("Cleo", False, ("cleo@example.com",))
    assert sorted(person.aliases[OKTA]) == ["00u7", "00u8", "00u9"]


async def test_protection_holds_for_somebody_whom_a_source_named_first(store: Store, ada: str) -> None:
    """The configuration calls them by another word, but the exact id says who is meant."""
    async with store.write() as tx:
        await configured(tx, {"break-glass": PersonSettings(protected=True, aliases={OKTA: "00u1"})})
    async with store.read() as conn:
        protected = {row.id for row in await conn.execute(select(people)) if row.protected}
    assert protected == {ada, "break-glass"}
