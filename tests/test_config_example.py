"""config.example.yaml is valid, and documents every key that anything can be told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from offboard_worker import plugins
from offboard_worker.config import Config, load, plugin_config

EXAMPLE = Path(__file__).resolve().parent.parent / "config.example.yaml"
REFERENCE = re.compile(r"\$\{([A-Z0-9_]+)\}|file:(/[^\s#]+)")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The example, with an environment and secret files of our own in place of those that it names."""
    folder = tmp_path_factory.mktemp("example")
    text = EXAMPLE.read_text("utf-8")
    for number, path in enumerate({match[2] for match in REFERENCE.finditer(text) if match[2]}):
        (folder / f"secret-{number}").write_text("redis://127.0.0.1:6379/0\n")
        text = text.replace(path, f"secret-{number}")
    (folder / "config.yaml").write_text(text)
    return load(folder / "config.yaml", {match[1]: "invented" for match in REFERENCE.finditer(text) if match[1]})


def models_of(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The settings models within a type, each with `*` for a level of names that people choose."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    elif origin is Annotated:
        yield from models_of(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from models_of(part)
    elif isinstance(origin, type) and issubclass(origin, Mapping | tuple | list):
        for part in get_args(annotation):
            yield from (("*", model) for _, model in models_of(part))


def keys_of(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if (field.description or "").startswith("Filled in from"):
            continue  # nobody writes it
        path = (*prefix, field.alias or name)
        yield path
        for level, inner in models_of(field.annotation):
            yield from keys_of(inner, (*path, level) if level else path)


def stands(written: Any, path: tuple[str, ...]) -> bool:
    """Say whether a key path occurs in the YAML; `*` is any name or item."""
    if not path:
        return True
    head, *rest = path
    if head == "*":
        inner = written.values() if isinstance(written, dict) else written
        return isinstance(written, dict | list) and any(stands(value, tuple(rest)) for value in inner)
    return isinstance(written, dict) and head in written and stands(written[head], tuple(rest))


def written() -> Any:
    return yaml.safe_load(EXAMPLE.read_text("utf-8"))


def test_the_example_is_valid(config: Config) -> None:
    assert config.sources
    assert config.connectors
    assert config.people["break-glass"].protected


@pytest.mark.parametrize("path", [".".join(path) for path in keys_of(Config)])
def test_every_key_is_in_the_example(path: str) -> None:
    assert stands(written(), tuple(path.split("."))), f"{path} is not explained in config.example.yaml"


def plugin_models() -> Iterator[tuple[str, str, type[BaseModel]]]:
    yield from (("sources", name, plugins.source_class(name).Config) for name in plugins.SOURCES)
    yield from (("connectors", name, plugins.connector_class(name).Config) for name in plugins.CONNECTORS)


@pytest.mark.parametrize(("section", "name", "model"), list(plugin_models()))
def test_every_source_and_connector_is_in_the_example_with_every_key(
    config: Config, section: str, name: str, model: type[BaseModel]
) -> None:
    instances = {key: raw for key, raw in written()[section].items() if raw["type"] == name}
    assert instances, f"config.example.yaml has no example of {section} of type {name}"
    for path in keys_of(model):
        assert any(stands(raw, path) for raw in instances.values()), f"{section}: {name}: {'.'.join(path)} is missing"
    for instance in instances:
        plugin_config(model, config, (section, instance), getattr(config, section)[instance])


def test_the_example_holds_no_secret_of_its_own() -> None:
    """A secret in it is a reference, so that nobody copies one that works."""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        key, _, value = line.strip().partition(": ")
        if (
            re.fullmatch(r".*(secret|password|token|client_state|api_key|external_id|access_key)", key)
            and key[0] != "#"
        ):
            assert REFERENCE.match(value), line


def test_the_example_names_invented_places_only() -> None:
    vendors = r"(microsoftonline|microsoft|amazonaws)\.com"
    hosts = re.findall(r"://(?:[^/@\s]*@)?([a-z0-9.-]+\.[a-z]+)", EXAMPLE.read_text("utf-8"))
    assert hosts
    for host in hosts:
        assert re.search(rf"(^|\.)example\.com$|(^|\.){vendors}$|^example\.okta\.com$", host), host


def test_a_key_that_is_not_explained_is_found() -> None:
    """The check of this file can fail."""

    class More(Config):
        invented: str = ""

    assert [path for path in keys_of(More) if not stands(written(), path)] == [("invented",)]
