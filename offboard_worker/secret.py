"""A secret that can't be printed by accident, and the references by which a configuration names one.

`${NAME}` is an environment variable, `file:PATH` the content of a file without its last newline. Anything else is the
secret itself. A Secret shows `••••` in str, repr, logs, JSON and tracebacks; only `reveal()` gives the value.
"""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

EXPECTED = "expected a non-empty text: the secret, ${ENVIRONMENT_VARIABLE} or file:PATH"


class Secret:
    """A value that only `reveal()` gives. Equality is by value, in constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(••••)"

    def __str__(self) -> str:
        return "••••"

    def __eq__(self, other: object) -> bool:
        from hmac import compare_digest

        return isinstance(other, Secret) and compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is never pickled: pass ids, not secrets")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str),
            json_schema_input_schema=core_schema.str_schema(),
        )

    @classmethod
    def _validate(cls, value: object) -> Secret:
        if isinstance(value, Secret):
            return value
        if isinstance(value, str) and value:
            return cls(value)
        raise ValueError(EXPECTED)
