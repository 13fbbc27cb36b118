"""Every command says how it is used, what it did, and by its exit code how it ended: 0 done, 1 failed, 2 wrong usage or
configuration, 3 needs attention.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperOption
from typer.testing import CliRunner

from offboard_worker import config as configuration
from offboard_worker.app import App
from offboard_worker.cli import app
from offboard_worker.core.case import State
from offboard_worker.store import cases, credentials
from offboard_worker.store.database import Transaction
from tests.cli.conftest import Run

pytestmark = pytest.mark.integration


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


EVERY = list(commands(typer.main.get_command(app)))


def in_store(config: Path, work: Any) -> None:
    """Change the store behind the commands' backs."""

    async def whole() -> None:
        async with App(configuration.load(config)).open() as opened, opened.store.write() as tx:
            await work(tx)

    asyncio.run(whole())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    assert command.help, "says what it does"
    for option in command.params:
        if isinstance(option, TyperOption) and option.name not in ("help", "limit", "install_completion"):
            assert option.help or option.name in ("show_completion", "offline"), f"{option.name} has no help"


def test_the_commands_that_the_documentation_names_exist() -> None:
    groups = {path[0] for path in EVERY if path}
    expected = {"up", "receiver", "worker", "proxy", "scheduler", "demo", "check", "case", "token", "denylist", "audit"}
    assert expected <= groups
    assert {"open", "list", "show", "retry", "approve", "cancel", "attest"} <= {
        path[1] for path in EVERY if path[:1] == ("case",) and len(path) > 1
    }


# Wrong usage


def test_an_unknown_command_is_wrong_usage(run: Run) -> None:
    assert run("nonsense").code == 2
    assert run("case", "show").code == 2
    assert run("case", "open").code == 2


def test_a_missing_configuration_says_so_without_a_traceback(run: Run, tmp_path: Path) -> None:
    said = run("case", "list", "--config", str(tmp_path / "none.yaml"))
    assert said.code == 2
    assert "none.yaml" in said.err
    assert "next" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("data_dir: x\nsorces: {}\n", 2, "sorces"),
        ("jobs:\n  workers: many\n", 2, "workers"),
        ("sources:\n  okta-main:\n    type: okta\n    secret: ${NOT_SET_ANYWHERE}\n", 4, "NOT_SET_ANYWHERE"),
        ("sources: [\n", 2, "YAML"),
    ],
)
def test_a_wrong_configuration_is_named_by_file_and_line(
    run: Run, tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    for command in (("case", "list"), ("check",), ("receiver",), ("worker",), ("proxy",), ("scheduler",)):
        said = run(*command, "--config", str(path))
        assert said.code == 2, command
        assert f"wrong.yaml:{line}" in said.err
        assert words in said.err
        assert "Traceback" not in said.err


def test_an_error_says_what_to_do_next(run: Run) -> None:
    said = run("case", "open", "nobody@example.com")
    assert said.code == 2
    assert "nobody has the exact id" in said.err
    assert "next" in said.err


# Cases


def test_a_case_from_its_opening_to_its_end(run: Run, config: Path) -> None:
    assert run("case", "list", "--json").json == []
    assert "No cases" in run("case", "list").out
    opened = run("case", "open", "ada@example.com", "--reason", "left", "--json")
    assert opened.code == 0
    case_id = opened.json["case"]
    (listed,) = run("case", "list", "--json").json
    assert listed["id"] == case_id
    assert (listed["person"], listed["name"], listed["state"], listed["reason"]) == (
        "ada",
        "Ada Leaver",
        "revoking",
        "left",
    )
    assert listed["refused_after_ms"] > 0
    assert run("case", "list", "--state", "closed", "--json").json == []
    shown = run("case", "show", case_id, "--json")
    assert shown.code == 0
    assert [target["connector"] for target in shown.json["targets"]] == ["proxy"]
    assert {"events", "targets", "credentials", "tasks", "summary"} <= set(shown.json)
    assert case_id in run("case", "show", case_id).out
    assert run("case", "open", "ada", "--json").json["case"] == case_id
    assert run("case", "retry", case_id, "--json").json == {"case": case_id, "connectors": ["proxy"]}
    cancelled = run("case", "cancel", case_id, "--reason", "a mistake", "--reinstate", "--json")
    assert cancelled.json == {"case": case_id, "state": "reinstated"}
    assert run("case", "cancel", case_id, "--reinstate").code == 2


def test_a_case_that_needs_attention_ends_with_3(run: Run, config: Path) -> None:
    case_id = run("case", "open", "ada", "--json").json["case"]

    async def stumble(tx: Transaction) -> None:
        await cases.set_case(tx, case_id, state=State.ATTENTION.value)
        await credentials.open_task(tx, case_id, "", "aws", "remove the last owner", "Name another one.")

    in_store(config, stumble)
    said = run("case", "show", case_id)
    assert said.code == 3
    assert "needs a person" in said.out
    assert run("case", "show", case_id, "--json").code == 3
    (task,) = run("case", "show", case_id, "--json").json["tasks"]
    attested = run("case", "attest", task["id"], "--note", "done by hand", "--json")
    assert attested.code == 0
    assert attested.json["case"] == case_id
    assert run("case", "attest", task["id"], "--note", "again").code == 2


def test_a_held_case_is_approved(run: Run, config: Path) -> None:
    case_id = run("case", "open", "ada", "--json").json["case"]
    assert run("case", "approve", case_id).code == 2

    async def hold(tx: Transaction) -> None:
        await cases.set_case(tx, case_id, state=State.HELD.value)

    in_store(config, hold)
    assert run("case", "show", case_id).code == 3
    assert run("case", "approve", case_id, "--json").json == {"case": case_id, "state": "revoking"}


@pytest.mark.parametrize("command", ["show", "retry", "approve", "cancel"])
def test_a_case_that_is_not_there_is_wrong_usage(run: Run, command: str) -> None:
    said = run("case", command, "c-none")
    assert said.code == 2
    assert "there is no case c-none" in said.err


def test_a_state_that_does_not_exist_is_answered_with_those_that_do(run: Run) -> None:
    said = run("case", "list", "--state", "lost")
    assert said.code == 2
    assert "attention" in said.err


def test_a_protected_person_is_refused_by_name(run: Run) -> None:
    said = run("case", "open", "root")
    assert said.code == 2
    assert "protected" in said.err


# Tokens and the denylist


def test_a_token_is_issued_listed_and_revoked(run: Run) -> None:
    issued = run("token", "issue", "--person", "ada", "--role", "developer", "--json").json
    assert issued["access_token"].count(".") == 2
    (listed,) = run("token", "list", "--json").json
    assert (listed["jti"], listed["person"], listed["roles"]) == (issued["jti"], "ada", ["developer"])
    assert issued["access_token"] not in run("token", "list").out
    assert run("token", "list", "--person", "bob", "--json").json == []
    assert run("token", "revoke", issued["jti"], "--json").json["jti"] == issued["jti"]
    (fact,) = run("denylist", "list", "--json").json
    assert fact["key"].endswith(issued["jti"])
    assert run("token", "revoke", "none").code == 2


def test_no_token_for_a_leaver_a_stranger_or_an_unknown_role(run: Run) -> None:
    assert run("token", "issue", "-p", "nobody", "-r", "developer").code == 2
    assert run("token", "issue", "-p", "ada", "-r", "emperor").code == 2
    run("case", "open", "ada")
    said = run("token", "issue", "-p", "ada", "-r", "developer")
    assert said.code == 2
    assert "has left" in said.err


def test_the_denylist_is_added_to_listed_and_lifted(run: Run) -> None:
    assert run("denylist", "list", "--json").json == []
    assert run("denylist", "add", "--person", "bob", "--reason", "for now", "--json").json["seq"] == 1
    assert run("denylist", "add", "--email", "Eve@Example.com", "--json").json["seq"] == 2
    facts = {fact["key"]: fact["denied"] for fact in run("denylist", "list", "--json").json}
    assert facts["person|bob"] is True
    assert facts["email|eve@example.com"] is True
    assert run("denylist", "lift", "--person", "bob", "--json").json["seq"] == 3
    log = run("denylist", "list", "--log", "--json").json
    assert [(entry["seq"], entry["effect"]) for entry in log] == [(1, "deny"), (2, "deny"), (3, "lift")]
    assert run("denylist", "push", "--json").json["seq"] == 3


def test_a_denial_must_say_of_whom(run: Run) -> None:
    assert run("denylist", "add").code == 2
    assert run("denylist", "add", "--subject", "x").code == 2
    assert run("denylist", "add", "--person", "nobody").code == 2


def test_a_leavers_denial_is_not_lifted_behind_their_cases_back(run: Run) -> None:
    run("case", "open", "ada")
    said = run("denylist", "lift", "--person", "ada")
    assert said.code == 2
    assert "--reinstate" in said.err


def test_a_redis_that_is_away_is_a_failure_and_no_traceback(run: Run, config: Path, settings: dict[str, Any]) -> None:
    import yaml

    config.write_text(yaml.safe_dump({**settings, "redis": {"url": "redis://127.0.0.1:1/0"}}))
    for command in (("denylist", "push"), ("token", "list"), ("check",)):
        said = run(*command)
        assert said.code == 1, command
        assert "Traceback" not in said.err + said.out


# Check


def test_check_says_of_each_thing_how_it_stands(run: Run) -> None:
    said = run("check", "--json")
    assert said.code == 0
    assert {row["what"]: row["state"] for row in said.json} == {
        "source okta-main": "done",
        "redis": "done",
        "store": "done",
        "connector proxy": "done",
    }
    assert run("check", "--offline", "--json").json[0]["what"] == "source okta-main"


# The audit


def test_an_export_verifies_with_a_public_key_alone(run: Run, config: Path, tmp_path: Path) -> None:
    run("case", "open", "ada")
    assert run("audit", "checkpoint", "--json").json["seq"] > 0
    live = run("audit", "verify", "--json").json
    assert live["intact"]
    export = tmp_path / "export.jsonl"
    assert run("audit", "export", "--output", str(export)).code == 0
    (public,) = (tmp_path / "data").rglob("*.pub.pem")
    config.unlink()
    said = run("audit", "verify", "--export", str(export), "--public-key", str(public), "--json")
    assert said.code == 0
    assert said.json == live
    assert "intact" in run("audit", "verify", "--export", str(export), "-k", str(public)).out


def test_without_the_public_key_a_signed_export_is_not_believed(run: Run, tmp_path: Path) -> None:
    export, _public = _exported(run, tmp_path)
    said = run("audit", "verify", "--export", str(export))
    assert said.code == 1
    assert "not trusted" in said.err


def _exported(run: Run, tmp_path: Path) -> tuple[Path, Path]:
    run("case", "open", "ada")
    run("audit", "checkpoint")
    export = tmp_path / "export.jsonl"
    run("audit", "export", "-o", str(export))
    (public,) = (tmp_path / "data").rglob("*.pub.pem")
    return export, public


def _change_first(lines: list[str]) -> list[str]:
    record = json.loads(lines[0])
    return [json.dumps({**record, "who": "somebody else"}), *lines[1:]]


TAMPERINGS: dict[str, Callable[[list[str]], list[str]]] = {
    "a record was changed": _change_first,
    "a record is missing": lambda lines: lines[1:],
    "two records were swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "the tail was cut": lambda lines: [lines[0], lines[-1]],
    "a line is no JSON": lambda lines: ["{", *lines],
    "a line is no record": lambda lines: ["{}", *lines],
    "a line is a number": lambda lines: ["7", *lines],
    "a record lost a field": lambda lines: [
        json.dumps({k: v for k, v in json.loads(lines[0]).items() if k != "who"}),
        *lines[1:],
    ],
    "a record gained a field": lambda lines: [json.dumps({**json.loads(lines[0]), "more": 1}), *lines[1:]],
    "a detail is a list": lambda lines: [json.dumps({**json.loads(lines[0]), "detail": [1]}), *lines[1:]],
    "a number is a text": lambda lines: [json.dumps({**json.loads(lines[0]), "seq": "1"}), *lines[1:]],
    "a signature is a number": lambda lines: [
        *lines[:-1],
        json.dumps({"checkpoint": {**json.loads(lines[-1])["checkpoint"], "signature": 7}}),
    ],
    "a signature is another": lambda lines: [
        *lines[:-1],
        lines[-1].replace('"signature": "', '"signature": "AAAA'),
    ],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_shows(run: Run, tmp_path: Path, name: str) -> None:
    export, public = _exported(run, tmp_path)
    lines = export.read_text().splitlines()
    export.write_text("\n".join(TAMPERINGS[name](lines)) + "\n")
    said = run("audit", "verify", "--export", str(export), "-k", str(public))
    assert said.code == 1, said.out
    assert "Traceback" not in said.err
    assert "error: " in said.err


def test_a_file_that_is_not_there_or_no_key_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    export, _public = _exported(run, tmp_path)
    assert run("audit", "verify", "--export", str(tmp_path / "none")).code == 2
    assert run("audit", "verify", "--export", str(export), "-k", str(export)).code == 2


def test_the_export_goes_to_stdout_by_default(run: Run) -> None:
    run("case", "open", "ada")
    lines = run("audit", "export").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
