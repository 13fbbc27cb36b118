"""A secret is never shown by accident: not by any of the ways in which Python shows a value."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from dataclasses import dataclass

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from offboard_worker.secret import Secret

VALUE = "hunter2-hunter2"


class Held(BaseModel):
    secret: Secret


@dataclass
class Beside:
    secret: Secret


@pytest.mark.parametrize(
    "shown",
    [
        str(Secret(VALUE)),
        repr(Secret(VALUE)),
        f"{Secret(VALUE)}",
        "%s %r" % (Secret(VALUE), Secret(VALUE)),  # noqa: UP031 - one of the ways
        "{} {!r}".format(Secret(VALUE), [Secret(VALUE)]),  # noqa: UP032
        repr(Held(secret=Secret(VALUE))),
        repr(Beside(Secret(VALUE))),
        Held(secret=Secret(VALUE)).model_dump_json(),
        str(Held(secret=Secret(VALUE)).model_dump()),
        json.dumps(Held(secret=Secret(VALUE)).model_dump(mode="json"), ensure_ascii=False),
    ],
)
def test_it_is_not_shown(shown: str) -> None:
    assert VALUE not in shown
    assert "••••" in shown


def test_it_is_not_written_as_json() -> None:
    with pytest.raises(TypeError) as refused:
        json.dumps({"secret": Secret(VALUE)})
    assert VALUE not in str(refused.value)


def test_a_format_that_would_need_its_text_is_refused() -> None:
    with pytest.raises(TypeError):
        format(Secret(VALUE), ">20")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_never_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Secret(VALUE), protocol)


def test_it_is_not_copied_behind_our_back() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(Secret(VALUE))
    assert not hasattr(Secret(VALUE), "__dict__")


def test_a_traceback_with_local_variables_does_not_show_it() -> None:
    def fails(secret: Secret) -> None:
        raise RuntimeError(f"could not use {secret}")

    try:
        fails(Secret(VALUE))
    except RuntimeError as error:
        plain = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the process
        console.print_exception(show_locals=True)
        rich_text = console.export_text()
    assert "fails" in plain
    assert VALUE not in plain.replace(f"VALUE = '{VALUE}'", "")
    assert "secret = Secret(••••)" in rich_text


def test_a_log_record_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("here").warning("using %s and %r", Secret(VALUE), {"secret": Secret(VALUE)})
    assert VALUE not in caplog.text


def test_a_refused_value_is_not_shown() -> None:
    with pytest.raises(ValidationError, match=r"expected a non-empty text: the secret, \${ENVIRONMENT_VARIABLE}"):
        Held(secret="")


@pytest.mark.parametrize("value", [None, 3, ["x"], {}, b"x"])
def test_only_a_text_is_a_secret(value: object) -> None:
    with pytest.raises(ValidationError):
        Held(secret=value)


def test_only_reveal_gives_it() -> None:
    assert Secret(VALUE).reveal() == VALUE
    assert Held(secret=VALUE).secret.reveal() == VALUE


def test_secrets_are_compared_by_value() -> None:
    assert Secret("ä") == Secret("ä")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")
