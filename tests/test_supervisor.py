"""How `offboard up` starts a child again."""

from __future__ import annotations

import pytest

from offboard_worker.supervisor import Child


@pytest.mark.parametrize(
    ("arguments", "said", "command"),
    [
        (("worker",), {"component": "worker"}, ("worker",)),
        (
            ("receiver",),
            {"component": "receiver", "receiver": "http://127.0.0.1:4711", "metrics": "http://127.0.0.1:4712"},
            ("receiver", "--listen", "127.0.0.1:4711", "--metrics", "127.0.0.1:4712"),
        ),
        (
            ("proxy", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
            {"component": "proxy", "proxy": "http://[::1]:4711", "metrics": "http://127.0.0.1:4712"},
            ("proxy", "--listen", "[::1]:4711", "--metrics", "127.0.0.1:4712"),
        ),
        (("dashboard",), {"url": "http://127.0.0.1:4713"}, ("dashboard", "--listen", "127.0.0.1:4713")),
    ],
)
def test_a_child_that_died_gets_the_address_that_it_had(
    arguments: tuple[str, ...], said: dict[str, str], command: tuple[str, ...]
) -> None:
    child = Child(arguments[0], arguments)
    assert child.command() == arguments
    child.said = said
    assert child.command() == command
