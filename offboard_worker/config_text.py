"""A configuration file as text: YAML whose lines are known, references resolved, and errors that point at the line.

Knows no setting: what the keys mean is config.py's. No value that a secret may stand in is ever shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from offboard_worker.errors import ConfigError
from offboard_worker.secret import EXPECTED


class Lines:
    """Finds the line of a key path in the composed YAML, and what is written there."""

    def __init__(self, name: str, root: yaml.Node | None) -> None:
        self.name = name
        self._root = root

    def where(self, path: tuple[str | int, ...]) -> str:
        line = self._find(path)[0]
        return self.name if line is None else f"{self.name}:{line}"

    def reference(self, path: tuple[str | int, ...]) -> str | None:
        """The text at a path as it is written, if it is a reference to a value that stands elsewhere."""
        node = self._find(path)[1]
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        return text if text.startswith("file:") or _ENVIRONMENT.search(text) else None

    def _find(self, path: tuple[str | int, ...]) -> tuple[int | None, yaml.Node | None]:
        node, line = self._root, None
        for part in path:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line, node


def read_yaml(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    """Read YAML in which no key stands twice. Raises ConfigError with the line."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = _construct(root) if root is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        # `password: !x` or `*x` is a tag or an alias to YAML: its name may be the secret, so that it isn't told.
        problem = re.sub(r"(alias|tag|anchor|handle) '[^']*'", r"\1", getattr(error, "problem", None) or str(error))
        raise ConfigError(
            f"{where} is not YAML: {problem}", advice="Check the indentation and quotes at that line."
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: expected keys such as sources: and proxy:, found {type(raw).__name__}")
    return raw, Lines(name, root)


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or type(error).__name__


class _Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent overwrite."""


def _construct(root: yaml.Node) -> Any:
    _refuse_twice(root, ())
    loader = _Strict("")
    try:
        return loader.construct_document(root)
    except (ValueError, OverflowError):  # 2026-13-45 is a date to YAML
        problem = "a date or a number that doesn't exist: put quotes around it if it is a text"
        raise yaml.MarkedYAMLError(problem=problem) from None
    finally:
        loader.dispose()


def _refuse_twice(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    if node in above:
        raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is not a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
            _refuse_twice(value, above)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(value, above)


_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def refer(value: Any, path: tuple[str | int, ...], lines: Lines, folder: Path, environ: Mapping[str, str]) -> Any:
    """Return a copy with every `${NAME}` and `file:PATH` replaced, once: what comes from there is no reference."""
    if isinstance(value, dict):
        return {key: refer(item, (*path, key), lines, folder, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [refer(item, (*path, index), lines, folder, environ) for index, item in enumerate(value)]
    return _resolve(value, path, lines, folder, environ) if isinstance(value, str) else value


def _resolve(value: str, path: tuple[str | int, ...], lines: Lines, folder: Path, environ: Mapping[str, str]) -> str:
    if value.startswith("file:"):
        file = folder / value[len("file:") :]
        try:
            return file.read_text("utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            expected = f"a readable file with the value ({why_unreadable(error)})"
            raise _problem(lines, path, "is not set", value, expected) from None
    for name in _ENVIRONMENT.findall(value):
        if name not in environ:
            raise _problem(
                lines,
                path,
                "is not set",
                f"{value if len(value) < 80 else '${' + name + '}'}, and the environment has no {name}",
                f"the environment variable {name}, or file:PATH, or the value itself",
            )
    return _ENVIRONMENT.sub(lambda match: environ[match[1]], value)


def _problem(lines: Lines, path: tuple[str | int, ...], what: str, found: str, expected: str) -> ConfigError:
    dotted = ".".join(str(part) for part in path)
    return ConfigError(f"{lines.where(path)}: {dotted} {what}\n  found     {found}\n  expected  {expected}")


_SENSITIVE = re.compile(r"(secret|password|token|key|key_id|client_state|external_id|username)$", re.IGNORECASE)


def _shown(value: object, path: tuple[str | int, ...], message: str) -> str:
    """What was found, for an error: never a secret's value."""
    if isinstance(value, dict):
        return f"keys {', '.join(map(str, value))}" if value else "no keys"
    if isinstance(value, list | tuple):
        return "a list"
    named = [part for part in path if isinstance(part, str)]
    if value is not None and (EXPECTED in message or (named and _SENSITIVE.search(named[-1]))):
        return f"a text of {len(value)} characters" if isinstance(value, str) else f"a value of type {_kind(value)}"
    # A user and a password may stand in a URL, and a key in its query.
    return re.sub(r"(?<=//)[^/\s@]*@|[?#][^\s']*", "••••", repr(value)) if "//" in str(value) else repr(value)


def _kind(value: object) -> str:
    return {"int": "number", "float": "number", "bool": "true or false"}.get(type(value).__name__, type(value).__name__)


def explain(error: ValidationError, prefix: tuple[str, ...], lines: Lines) -> ConfigError:
    """Turn pydantic's report into ours: one block per problem, never showing the value of a secret."""
    blocks: list[str] = []
    for problem in error.errors(include_url=False):
        path = (*prefix, *problem["loc"])
        dotted = ".".join(str(part) for part in path)
        found = lines.reference(path) or _shown(problem["input"], path, problem["msg"])
        match problem["type"]:
            case "extra_forbidden":  # the value isn't shown: a secret may stand beside a misspelt key
                what, found = "is not a key that exists here", str(path[-1])
                expected = "one of the keys in config.example.yaml"
            case "missing":
                what, found, expected = "is not set", "nothing", f"a value for {path[-1]}"
            case _:
                what, expected = "can't be used", problem["msg"].removeprefix("Value error, ").removeprefix("expected ")
        blocks.append(f"{lines.where(path)}: {dotted} {what}\n  found     {found}\n  expected  {expected}")
    return ConfigError("\n".join(blocks))
