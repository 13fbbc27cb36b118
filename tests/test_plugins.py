"""Sources and connectors are found by type, imported late, and what is missing is said in a way that helps."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from offboard_worker import plugins
from offboard_worker.connector import Connector
from offboard_worker.errors import ConfigError


def register(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    def entry_points(*, group: str) -> EntryPoints:
        return EntryPoints(points).select(group=group)

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_a_built_in_connector_is_found_by_its_type() -> None:
    found = plugins.connector_class("aws_iam")
    assert issubclass(found, Connector)
    assert found.name == "aws_iam"


def test_every_built_in_is_among_the_types() -> None:
    assert {"aws_iam", "okta", "entra", "proxy_tokens"} <= set(plugins.connector_types())
    assert {"okta", "entra", "aws"} <= set(plugins.source_types())


def test_finding_a_connector_imports_no_sdk() -> None:
    program = (
        "import sys; from offboard_worker import plugins; plugins.connector_class('aws_iam');"
        "print([m for m in ('boto3', 'botocore', 'okta', 'msgraph') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_type_lists_what_there_is_and_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        plugins.connector_class("aws-iam")
    assert "aws_iam, entra, okta, proxy_tokens" in refused.value.message
    assert "Did you mean 'aws_iam'?" in refused.value.advice
    with pytest.raises(ConfigError, match="there is no source of type 'zzz'") as unlike:
        plugins.source_class("zzz")
    assert "Did you mean" not in unlike.value.advice
    assert plugins.SOURCE_GROUP in unlike.value.advice


def test_a_package_adds_a_connector_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, EntryPoint("widgets", "connectors.aws_iam:AwsIam", plugins.CONNECTOR_GROUP))
    assert "widgets" in plugins.connector_types()
    assert plugins.connector_class("widgets").__name__ == "AwsIam"
    assert "widgets" not in plugins.source_types()


def test_a_package_cannot_take_the_place_of_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, EntryPoint("aws_iam", "os:getcwd", plugins.CONNECTOR_GROUP))
    assert plugins.connector_class("aws_iam").name == "aws_iam"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("json:JSONDecoder", "which is no Connector"),
        ("json:Nothing", "json has no Nothing"),
        ("no_such_package.here:Thing", "'no_such_package' is not installed"),
    ],
)
def test_a_broken_entry_point_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    register(monkeypatch, EntryPoint("broken", value, plugins.CONNECTOR_GROUP))
    with pytest.raises(ConfigError, match=expected):
        plugins.connector_class("broken")


def test_a_missing_sdk_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")

    monkeypatch.setattr(plugins, "import_module", import_module)
    with pytest.raises(ConfigError) as refused:
        plugins.connector_class("aws_iam")
    assert refused.value.advice == "pip install 'offboard-worker[aws]'"
