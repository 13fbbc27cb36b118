"""Finds sources and connectors by their `type`: the built-in ones by a table, others by entry point.

Nothing is imported before it is asked for, so that no process pays for what its configuration doesn't name. It must not
know what any of them does. Entry points: https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from offboard_worker.connector import Connector
from offboard_worker.errors import ConfigError
from offboard_worker.sources.source import Source

CONNECTOR_GROUP = "offboard_worker.connectors"
SOURCE_GROUP = "offboard_worker.sources"

CONNECTORS: Mapping[str, str] = {
    "aws_iam": "connectors.aws_iam:AwsIam",
    "entra": "connectors.entra:Entra",
    "okta": "connectors.okta:Okta",
    "proxy_tokens": "connectors.proxy_tokens:ProxyTokens",
}
SOURCES: Mapping[str, str] = {
    "aws": "offboard_worker.sources.aws:AwsEvents",
    "entra": "offboard_worker.sources.entra:EntraNotifications",
    "okta": "offboard_worker.sources.okta:OktaHook",
}
# Which of our extras brings a module that may be missing, by the module's first name.
EXTRAS: Mapping[str, str] = {
    "azure": "entra",
    "boto3": "aws",
    "botocore": "aws",
    "kiota_abstractions": "entra",
    "msgraph": "entra",
    "okta": "okta",
}


def connector_types() -> tuple[str, ...]:
    """Every `type` that a connector may have, sorted."""
    return tuple(sorted({*CONNECTORS, *_registered(CONNECTOR_GROUP)}))


def source_types() -> tuple[str, ...]:
    """Every `type` that a source may have, sorted."""
    return tuple(sorted({*SOURCES, *_registered(SOURCE_GROUP)}))


def connector_class(type_: str) -> type[Connector[Any]]:
    """Import the connector of a type. Raises ConfigError if there is none, or if it can't be imported."""
    return _find("connector", type_, CONNECTORS, CONNECTOR_GROUP, Connector)


def source_class(type_: str) -> type[Source[Any]]:
    """Import the source of a type. Raises ConfigError if there is none, or if it can't be imported."""
    return _find("source", type_, SOURCES, SOURCE_GROUP, Source)


def missing_extra(error: ImportError) -> ConfigError:
    """Say which extra to install for an SDK that isn't there: for SDKs that are imported when a plugin is opened."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    advice = f"pip install 'offboard-worker[{extra}]'" if extra else f"Install the package that brings {module!r}."
    return ConfigError(f"the Python module {error.name!r} is not installed", advice=advice)


def _registered(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _find(what: str, type_: str, built_in: Mapping[str, str], group: str, base: type[Any]) -> type[Any]:
    registered = _registered(group)
    # A built-in name always means the built-in: no package may take its place by being installed.
    reference = built_in.get(type_) or (registered[type_].value if type_ in registered else None)
    if reference is None:
        raise _unknown(what, type_, sorted({*built_in, *registered}))
    module, _, name = reference.partition(":")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        if error.name is not None and module.startswith(error.name) and type_ not in registered:
            message = f"the {what} {type_!r} is not part of this installation ({reference})"
            raise ConfigError(message, advice="Reinstall offboard-worker.") from error
        raise missing_extra(error) from error
    except AttributeError as error:
        message = f"the {what} {type_!r} is registered as {reference}, and {module} has no {name}"
        raise ConfigError(message, advice=f"Mend the entry point of the package that brings {type_!r}.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        message = f"the {what} {type_!r} is registered as {reference}, which is no {base.__name__}"
        raise ConfigError(message, advice=f"Mend the entry point of the package that brings {type_!r}.")
    return found


def _unknown(what: str, type_: str, there: list[str]) -> ConfigError:
    near = get_close_matches(type_, there, n=1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    message = f"there is no {what} of type {type_!r}; there are {', '.join(there)}"
    return ConfigError(message, advice=f"{meant}Others come with packages that register in {group_of(what)}.")


def group_of(what: str) -> str:
    """The entry point group in which packages register a `connector` or a `source`."""
    return CONNECTOR_GROUP if what == "connector" else SOURCE_GROUP
