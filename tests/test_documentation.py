"""What is declared is documented, and what is documented exists: links, commands, words, metrics, plugins."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from offboard_worker import plugins
from offboard_worker.cli import app
from offboard_worker.core.case import FINISHED, TRANSITIONS, State, TargetState
from offboard_worker.core.credential import CredentialKind, CredentialState, Strength
from offboard_worker.core.event import EventKind
from offboard_worker.proxy.observe import Metrics as ProxyMetrics
from offboard_worker.receiver.metrics import Metrics as ReceiverMetrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


@cache
def committed() -> tuple[Path, ...]:
    """Every file that is in the repository, or would be with the next commit."""
    said = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    found = (ROOT / name for name in said.stdout.decode().split("\0") if name)
    return tuple(path for path in found if path.is_file())


def section(name: str, heading: str) -> str:
    """The part of a page from a heading to the next of the same rank."""
    match = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text(name), re.MULTILINE | re.DOTALL)
    assert match, f"{name} has no section {heading!r}"
    return match[1]


def column(part: str) -> list[str]:
    """The code words in the first column of a section's tables."""
    return [word for row in re.findall(r"^\|([^|]*)\|", part, re.MULTILINE) for word in re.findall(r"`([^`]+)`", row)]


# --- links ------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    page = ROOT / name
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


# --- commands ---------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command that does something, by its full name."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                yield from walk(below, f"{path} {name}")
        else:
            yield path, command

    return dict(walk(typer.main.get_command(app), "offboard"))


COMMANDS = commands()


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_and_option_stands_on_the_command_lines_page(name: str) -> None:
    page = text("docs/cli.md")
    row = re.search(rf"^\| `{name}(?: [A-Z]+)?` \|.*$", page, re.MULTILINE)
    assert row, f"docs/cli.md has no row for {name}"
    as_other = re.search(r"as `([a-z]+)`", row[0])
    rows = row[0]
    if as_other:
        other = re.search(rf"^\| `offboard [a-z]+ {as_other[1]}` \|.*$", page, re.MULTILINE)
        assert other
        rows += other[0]
    common = {"--config", "-c", "--json"}
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)`", rows)) | common
    assert options(COMMANDS[name]) <= documented
    assert documented - common <= options(COMMANDS[name])


def test_each_command_has_help() -> None:
    assert [name for name, command in COMMANDS.items() if not command.help] == []


def snippets(page: str) -> Iterator[str]:
    """Everything in code marks that calls the program."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    for line in [*lines, *inline]:
        if match := re.search(r"(?:^|[\s/])(offboard [a-z].*)", line):
            yield match[1].partition(" #")[0]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_documentation_exist_with_their_options(name: str) -> None:
    wrong = []
    for snippet in snippets(text(name)):
        found = max((full for full in COMMANDS if f"{snippet} ".startswith(f"{full} ")), key=len, default=None)
        if found is None:
            group = snippet.split()[:2]
            if not any(full.split()[:2] == group and len(snippet.split()) == 2 for full in COMMANDS):
                wrong.append(snippet)
        elif unknown := set(re.findall(r"(?<=\s)--[a-z-]+", snippet)) - options(COMMANDS[found]) - {"--help"}:
            wrong.append(f"{snippet}: {', '.join(sorted(unknown))}")
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_in_the_documentation_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text(name), re.MULTILINE)) <= targets


def test_the_procfile_runs_commands_that_exist() -> None:
    processes = re.findall(r"^([a-z]+): (.+)$", text("Procfile"), re.MULTILINE)
    assert {name for name, _ in processes} == {"valkey", "scheduler", "worker", "proxy", "receiver", "dashboard"}
    for name, line in processes:
        assert f"exec offboard {name} --config " in line
        for command in re.findall(r"offboard [a-z]+", line):
            assert command in COMMANDS


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("Kinds of event", EventKind),
        ("Kinds of credential", CredentialKind),
        ("How strongly a result is known", Strength),
        ("States of a case", State),
        ("States of a target", TargetState),
    ],
)
def test_the_glossary_lists_exactly_what_the_code_declares(heading: str, values: Iterable[str]) -> None:
    assert sorted(column(section("docs/glossary.md", heading))) == sorted(str(value) for value in values)


def test_the_glossary_lists_the_states_of_a_credential() -> None:
    found = re.findall(r"`([^`]+)`", section("docs/glossary.md", "States of a credential"))
    assert found == [state.value for state in CredentialState]


def test_the_state_diagram_shows_each_transition_and_no_other() -> None:
    part = section("docs/glossary.md", "States of a case")
    drawn = set(re.findall(r"^  ([a-z]+) --> ([a-z]+): ([a-z]+)$", part, re.MULTILINE))
    assert drawn == {(before.value, after.value, step.value) for (before, step), after in TRANSITIONS.items()}
    assert set(re.findall(r"^  ([a-z]+) --> \[\*\]$", part, re.MULTILINE)) == {state.value for state in FINISHED}


# --- metrics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heading", "metrics"), [("Proxy", ProxyMetrics()), ("Receiver", ReceiverMetrics())])
def test_the_metrics_page_lists_each_metric_with_its_type_and_labels(heading: str, metrics: Any) -> None:
    declared = {}
    for one in vars(metrics).values():
        if hasattr(one, "_labelnames"):
            suffix = "_total" if one._type == "counter" else ""
            declared[f"{one._name}{suffix}"] = (one._type, tuple(one._labelnames))
    rows = re.findall(r"^\| `(offboard_\w+)` \| (\w+) \| ([^|]*)\|", section("docs/metrics.md", heading), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == declared


def test_metrics_named_elsewhere_are_on_the_metrics_page() -> None:
    known = set(re.findall(r"`(offboard_\w+)`", text("docs/metrics.md")))
    for name in NAMES:
        named = set(re.findall(r"`(offboard_(?:proxy|receiver|worker|scheduler)_\w+)`", text(name)))
        assert named <= known, name


# --- plugins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", sorted(plugins.CONNECTORS))
def test_each_connectors_page_names_its_kinds_and_keys(type_: str) -> None:
    page = text(f"docs/connectors/{type_}.md")
    connector = plugins.connector_class(type_)
    words = set(re.findall(r"`([^`\s]+)`", page)) | set(re.findall(r"^\s*([a-z_]+):", page, re.MULTILINE))
    assert {kind.value for kind in connector.kinds} <= words
    assert set(connector.Config.model_fields) <= words


@pytest.mark.parametrize("type_", sorted(plugins.SOURCES))
def test_each_sources_page_names_its_keys(type_: str) -> None:
    page = text(f"docs/sources/{type_}.md")
    words = set(re.findall(r"`([^`\s]+)`", page)) | set(re.findall(r"^\s*([a-z_]+):", page, re.MULTILINE))
    assert set(plugins.source_class(type_).Config.model_fields) <= words


@pytest.mark.parametrize("folder", ["connectors", "sources"])
def test_the_readme_leads_to_each_plugins_page(folder: str) -> None:
    pages = {f"docs/{folder}/{page.name}" for page in (ROOT / "docs" / folder).glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)]+)\)", text("README.md")))


def test_each_decision_record_is_on_the_list() -> None:
    records = {page.name for page in (ROOT / "docs" / "decisions").glob("0*.md")}
    assert set(re.findall(r"\]\((0[^)]+)\)", text("docs/decisions/README.md"))) == records


# --- what must not be there -------------------------------------------------------------------------------------

# Put together here, so that this file doesn't name them itself.
INDEX_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs"), ("crates", "io"), ("proxy", "golang"),
        ("repo1", "maven"), ("deb", "debian", "org"), ("anaconda", "org"),
    )
]  # fmt: skip


def test_the_lock_names_packages_and_hashes_and_no_place() -> None:
    lock = text("requirements.lock")
    assert "://" not in lock
    assert not re.search(r"^\s*-(-?)(?!-?hash)", lock, re.MULTILINE)
    pinned = re.findall(r"^[a-z0-9][\w.-]*(?:\[[\w,-]+\])?==\S+", lock, re.MULTILINE)
    assert len(pinned) > 100
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert re.search(r"^uv==", lock, re.MULTILINE), "make installs uv from the lock"


def test_no_file_names_the_host_of_a_package_index() -> None:
    guilty = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in committed()
        for host in INDEX_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert not guilty


SECRET_SHAPES = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
    "an AWS key id": rb"\b(?:AKIA|ASIA)(?![A-Z0-9]*EXAMPLE)[A-Z2-7]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "a Slack token": rb"\bxox[abps]-[0-9]{10,}-[A-Za-z0-9-]{10,}",
    "an API key": rb"\bsk-(?:live|proj|ant)-[A-Za-z0-9_-]{24,}",
}


@pytest.mark.parametrize("what", sorted(SECRET_SHAPES))
def test_no_file_holds_what_looks_like_a_real_secret(what: str) -> None:
    shape = re.compile(SECRET_SHAPES[what])
    recording = ROOT / "docs" / "demo.svg"  # shows ids that the simulated AWS invented
    found = [path for path in committed() if path != recording and shape.search(path.read_bytes())]
    assert not [str(path.relative_to(ROOT)) for path in found]


def test_the_changelog_has_a_place_for_what_is_unreleased() -> None:
    assert section("CHANGELOG.md", "[Unreleased]").strip()
