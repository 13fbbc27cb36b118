"""One world and one installation for all tests of this folder that only need one that runs; starting one takes seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from offboard_worker.demo.world import Inhabitant, World
from tests.e2e.system import System

FIRST_NAMES = (
    "Ada",
    "Bea",
    "Cleo",
    "Dora",
    "Elsa",
    "Fay",
    "Gwen",
    "Hedy",
    "Ida",
    "Joan",
    "Kay",
    "Lena",
    "Mary",
    "Nell",
)
DASHBOARD_PASSWORD = "dashboard-canary-1"
KNOWN_TO_AWS, KNOWN_TO_IDENTITY_CENTER = "nell-4", "mary-4"
"""People whose ids there are configured: an event that carries nothing else finds them."""


class Town:
    """A world with people in it, given out one by one."""

    def __init__(self, world: World, people: dict[bool, list[Inhabitant]], neighbour: Inhabitant) -> None:
        self.world = world
        self._people = people
        self.neighbour = neighbour  # nothing of theirs may ever change
        self._before: list[str] = []

    def somebody(self, *, rich: bool = False) -> Inhabitant:
        """Somebody whom no other test touches; `rich` in credentials of every kind."""
        return self._people[rich].pop(0)

    def named(self, person: str) -> Inhabitant:
        """One of the people of the constants above."""
        found = self.world.people[person]
        self._people[False].remove(found)
        return found

    async def look(self) -> None:
        self._before = await self.world.still_open(self.neighbour)

    async def neighbour_is_untouched(self) -> bool:
        return await self.world.still_open(self.neighbour) == self._before


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def town() -> AsyncIterator[Town]:
    async with World() as world:
        neighbour = await world.settle("grace", "Grace", "Stays")
        people = {
            rich: [
                await world.settle(f"{first.lower()}-{n}", first, "Leaver", rich=rich)
                for n in numbers
                for first in FIRST_NAMES
            ]
            for rich, numbers in ((True, (1,)), (False, (2, 3, 4)))
        }
        found = Town(world, people, neighbour)
        await found.look()
        yield found


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def system(town: Town, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    folder = tmp_path_factory.mktemp("installation")
    dashboard = {"listen": "127.0.0.1:0", "password": DASHBOARD_PASSWORD}
    people = town.world.config()["people"]
    people[KNOWN_TO_AWS]["aliases"]["aws"] = KNOWN_TO_AWS
    people[KNOWN_TO_IDENTITY_CENTER]["aliases"]["aws-org:identity-store"] = f"u-{KNOWN_TO_IDENTITY_CENTER}"
    async with System.running(town.world, folder, dashboard=dashboard, people=people) as running:
        yield running
        assert await town.neighbour_is_untouched(), "something of a person who stays was changed"


@pytest.fixture(autouse=True)
def quiet_vendors(request: pytest.FixtureRequest) -> Iterator[None]:
    """End every prepared fault with its test."""
    yield
    if "town" in request.fixturenames:
        world = request.getfixturevalue("town").world
        world.okta.faults.clear()
        world.graph.faults.clear()
        world.aws.behave()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "installation"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The canaries are looked for last, when every kind of trouble has had its chance to show them."""
    items.sort(key=lambda item: item.path.name == "test_secrets.py" and item.path.parent.name == "e2e")
