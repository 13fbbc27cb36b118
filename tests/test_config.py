"""The configuration says what is wrong with it: where, which key, what was found, what was expected; never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field

from offboard_worker import config as configuration
from offboard_worker.config import Config, ProxySettings, is_loopback, plugin_config, split_listen
from offboard_worker.errors import ConfigError
from offboard_worker.secret import Secret


def loads(text: str, environ: Mapping[str, str] | None = None, folder: Path = Path("/etc/offboard")) -> Config:
    return configuration.loads(text, "config.yaml", folder, environ or {})


def refused(text: str, environ: Mapping[str, str] | None = None, folder: Path = Path("/etc/offboard")) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loads(text, environ, folder)
    assert caught.value.advice
    return caught.value


class Hook(BaseModel):
    """The settings of an invented source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    secret: Secret
    retries: Annotated[int, Field(ge=0)] = 3
    base_url: str = ""


def plugin(text: str) -> Hook:
    config = loads(text)
    return plugin_config(Hook, config, ("sources", "okta-main"), config.sources["okta-main"])


# --- references


def test_an_environment_variable_that_is_not_set_is_named_with_its_line() -> None:
    text = "sources:\n  okta-main:\n    type: okta\n    secret: ${OKTA_HOOK_SECRET}\n"
    assert refused(text).message == (
        "config.yaml:4: sources.okta-main.secret is not set\n"
        "  found     ${OKTA_HOOK_SECRET}, and the environment has no OKTA_HOOK_SECRET\n"
        "  expected  the environment variable OKTA_HOOK_SECRET, or file:PATH, or the value itself"
    )


def test_a_file_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    assert refused("redis:\n  url: file:redis-url\n", folder=tmp_path).message == (
        "config.yaml:2: redis.url is not set\n"
        "  found     file:redis-url\n"
        "  expected  a readable file with the value (No such file or directory)"
    )


def test_a_file_that_is_not_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfehunter2")
    message = refused("redis: file:key\n", folder=tmp_path).message
    assert "it is not UTF-8 text" in message
    assert "hunter2" not in message


def test_references_are_replaced_wherever_a_text_stands(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://db.example.com/offboard\n")
    config = loads(
        "store: file:dsn\n"
        "receiver: {listen: '${HOST}:80'}\n"
        "sources: {a: {type: x, topics: ['${ONE}', 'arn:${TWO}:${TWO}']}}\n",
        {"HOST": "127.0.0.1", "ONE": "1", "TWO": "2"},
        tmp_path,
    )
    assert config.store.url == Secret("postgresql://db.example.com/offboard")
    assert config.receiver.listen == "127.0.0.1:80"
    assert config.sources["a"]["topics"] == ["1", "arn:2:2"]


@pytest.mark.parametrize(
    ("written", "value"), [("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), ("x", "x"), (" x ", " x ")]
)
def test_a_file_loses_its_last_newline_and_nothing_else(tmp_path: Path, written: str, value: str) -> None:
    (tmp_path / "secret").write_bytes(written.encode())
    assert loads("redis: file:secret\n", folder=tmp_path).redis.url == Secret(value)


def test_what_a_reference_gives_is_not_a_reference_itself(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("${NOT_ME}")
    assert loads("redis: file:secret\n", folder=tmp_path).redis.url == Secret("${NOT_ME}")
    shared = "sources:\n  a: &a {type: x, secret: '${S}'}\n  b: *a\n"
    assert loads(shared, {"S": "file:/etc/${X}"}).sources["b"]["secret"] == "file:/etc/${X}"


def test_a_dollar_without_braces_is_just_a_dollar() -> None:
    assert loads("redis: 'redis://:pa$$word@localhost'\n").redis.url == Secret("redis://:pa$$word@localhost")


# --- wrong keys and values


def test_an_unknown_key_is_refused_and_its_value_is_not_shown() -> None:
    assert refused("proxy:\n  lisen: 127.0.0.1:1\n").message == (
        "config.yaml:2: proxy.lisen is not a key that exists here\n"
        "  found     lisen\n"
        "  expected  one of the keys in config.example.yaml"
    )
    assert "hunter2" not in refused("dashboard:\n  pasword: hunter2\n").message


def test_a_wrong_type_is_named_with_what_was_found() -> None:
    assert refused("jobs:\n  workers: many\n").message == (
        "config.yaml:2: jobs.workers can't be used\n"
        "  found     'many'\n"
        "  expected  Input should be a valid integer, unable to parse string as an integer"
    )


def test_every_problem_is_told_at_once() -> None:
    message = refused("jobs:\n  workers: 0\nguards:\n  window: soon\nfoo: 1\n").message
    assert [line.partition(" ")[0] for line in message.splitlines() if not line.startswith(" ")] == [
        "config.yaml:4:",
        "config.yaml:2:",
        "config.yaml:5:",
    ]


def test_a_value_that_is_missing_is_named_with_its_parents_line() -> None:
    text = "proxy:\n  upstreams:\n    llm:\n      header: X-Key\n"
    assert refused(text).message == (
        "config.yaml:3: proxy.upstreams.llm.url is not set\n  found     nothing\n  expected  a value for url"
    )


def test_an_item_of_a_list_is_found_by_its_line() -> None:
    text = "policy:\n  revoke_on:\n    - account-disabled\n    - account-disable\n"
    message = refused(text).message
    assert message.startswith("config.yaml:4: policy.revoke_on.1 can't be used\n  found     'account-disable'")
    assert "'account-purged'" in message


def test_a_wrong_value_from_the_environment_is_shown_as_it_is_written() -> None:
    message = refused("jobs:\n  workers: ${N}\n", {"N": "hunter2"}).message
    assert "found     ${N}" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "text",
    [
        "sources: {okta-main: {type: okta, secret: [hunter2]}}",
        "sources: {okta-main: {type: okta, secret: x, secert: hunter2}}",
        "sources: {okta-main: {type: okta, secret: x, base_url: [hunter2]}}",
    ],
)
def test_an_error_in_a_plugins_settings_never_shows_a_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin(text)
    assert "hunter2" not in caught.value.message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_secret_that_yaml_reads_as_a_number_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        plugin("sources: {okta-main: {type: okta, secret: 31337}}")
    assert "31337" not in caught.value.message
    assert "found     a value of type number" in caught.value.message


def test_the_user_and_query_of_a_url_are_not_shown() -> None:
    text = "proxy: {upstreams: {llm: {url: ['https://u:hunter2@llm.example.com/?key=hunter2']}}}"
    assert "hunter2" not in refused(text).message
    url = "proxy: {issuers: {corp: {issuer: x, jwks_url: u, audience: 'https://u:hunter2@x.example.com?key=hunter2'}}}"
    message = refused(url).message
    assert "hunter2" not in message
    assert "x.example.com" in message


@pytest.mark.parametrize("text", ["password: !hunter2", "password: *hunter2", "dashboard: {password: !hunter2 x}"])
def test_a_secret_that_yaml_takes_for_a_tag_or_an_alias_is_not_shown(text: str) -> None:
    message = refused(text).message
    assert message.startswith("config.yaml:1 is not YAML:")
    assert "hunter2" not in message


def test_a_plugins_settings_are_validated_by_its_own_model() -> None:
    hook = plugin("sources: {okta-main: {type: okta, secret: s, retries: 5}}")
    assert (hook.secret, hook.retries) == (Secret("s"), 5)


def test_an_error_in_a_plugins_settings_names_its_line_and_key() -> None:
    with pytest.raises(ConfigError) as caught:
        plugin("sources:\n  okta-main:\n    type: okta\n    secret: s\n    retries: -1\n")
    assert caught.value.message == (
        "config.yaml:5: sources.okta-main.retries can't be used\n"
        "  found     -1\n"
        "  expected  Input should be greater than or equal to 0"
    )
    with pytest.raises(ConfigError, match=r"config\.yaml:2: sources\.okta-main\.secret is not set"):
        plugin("sources:\n  okta-main:\n    type: okta\n")


# --- YAML


def test_a_key_that_stands_twice_is_refused() -> None:
    message = refused("proxy:\n  lease: 1s\n  lease: 3s\n").message
    assert message == "config.yaml:3 is not YAML: the key 'lease' stands twice"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("proxy:\n\tlease: 1s\n", "config.yaml:2 is not YAML"),
        ("proxy: [\n", "config.yaml:2 is not YAML"),
        ("a: 1\n---\nb: 2\n", "config.yaml:2 is not YAML"),
        ("? [a, b]\n: c\n", "config.yaml:1 is not YAML: a key that is not a word"),
        ("a: &a [*a]\n", "config.yaml:1 is not YAML: an alias that contains itself"),
        ("data_dir: 2026-13-45\n", "config.yaml is not YAML: a date or a number"),
        ("- a\n- b\n", "config.yaml: expected keys such as sources: and proxy:, found list"),
        ("hello", "config.yaml: expected keys such as sources: and proxy:, found str"),
        ("a: \x00\n", "config.yaml is not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "config.yaml:1 is not YAML"),
    ],
)
def test_what_is_not_our_yaml_is_refused_with_its_line(text: str, where: str) -> None:
    assert refused(text).message.startswith(where)


def test_an_empty_file_is_the_defaults() -> None:
    assert loads("").receiver == Config().receiver


def test_a_section_with_nothing_in_it_is_as_if_left_out() -> None:
    assert loads("sources:\nproxy:\n  # listen: 127.0.0.1:1\n").proxy == Config().proxy


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory") as caught:
        configuration.load(tmp_path / "config.yaml")
    assert "config.example.yaml" in caught.value.advice


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes("data_dir: ä".encode("latin-1"))
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        configuration.load(tmp_path / "config.yaml")


def test_load_takes_the_environment_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFBOARD_TEST_URL", "redis://redis.example.com")
    (tmp_path / "config.yaml").write_text("redis: ${OFFBOARD_TEST_URL}\n")
    assert configuration.load(tmp_path / "config.yaml").redis.url == Secret("redis://redis.example.com")


# --- forms


def test_store_and_redis_have_a_short_form() -> None:
    config = loads("store: sqlite:///x.db\nredis: redis://localhost\n")
    assert config.store.url == Secret("sqlite:///x.db")
    assert config.redis.url == Secret("redis://localhost")
    assert loads("store: {url: sqlite:///x.db}\n").store == config.store


def test_an_error_in_a_short_form_names_its_line() -> None:
    assert refused("data_dir: x\nredis: ''\n").message.startswith("config.yaml:2: redis.url can't be used")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("1.5h", 5400), ("10", None), (7, 7)],
)
def test_durations(written: str | int, seconds: float | None) -> None:
    text = f"guards: {{window: {written!r}}}"
    if seconds is None:
        assert "expected  a duration such as 500ms, 30s, 15m, 12h or 30d" in refused(text).message
    else:
        assert loads(text).guards.window == timedelta(seconds=seconds)


@pytest.mark.parametrize("written", ["-1s", -1, "soon", "1 week", ".inf", ".nan", "99999999999d", "true", "[]"])
def test_what_is_no_duration_is_refused(written: str | int) -> None:
    assert "guards.window can't be used" in refused(f"guards: {{window: {written}}}").message


@pytest.mark.parametrize("written", ["500ms", "30d", "1.5h", "1234567s"])
def test_a_duration_that_was_written_out_can_be_read_again(written: str) -> None:
    window = loads(f"guards: {{window: {written}}}").guards
    assert type(window).model_validate(window.model_dump(mode="json")) == window


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:65535", "::1", 65535),
        ("localhost:1", "localhost", 1),
    ],
)
def test_listen_addresses(address: str, host: str, port: int) -> None:
    assert split_listen(loads(f"receiver: {{listen: '{address}'}}").receiver.listen) == (host, port)


@pytest.mark.parametrize("address", ["8080", ":8080", "localhost", "a:b", "h:65536", "::1:80", "http://h:80", "h:80/x"])
def test_what_is_no_listen_address_is_refused(address: str) -> None:
    message = refused(f"receiver: {{listen: '{address}'}}").message
    assert "expected  an address such as 127.0.0.1:8080" in message


def test_relative_paths_count_from_the_configurations_folder(tmp_path: Path) -> None:
    config = loads(
        "data_dir: state\nproxy: {signing_keys: keys}\naudit: {signing_key: audit.pem, checkpoints: /mnt/away}\n",
        folder=tmp_path,
    )
    assert config.data_dir == tmp_path / "state"
    assert config.proxy.signing_keys == tmp_path / "keys"
    assert config.audit.signing_key == tmp_path / "audit.pem"
    assert config.audit.checkpoints == Path("/mnt/away")
    assert loads("data_dir: /var/lib/offboard").data_dir == Path("/var/lib/offboard")
    assert loads("", folder=tmp_path).data_dir == tmp_path / "data"


@pytest.mark.parametrize(("written", "seconds"), [("refuse", 0), ("allow_for(30s)", 30), ("allow_for( 1.5m )", None)])
def test_a_stale_policy_is_refuse_or_allow_for(written: str, seconds: float | None) -> None:
    text = f"proxy: {{upstreams: {{u: {{url: 'https://u.example.com'}}}}, roles: {{r: {{rules: [{{upstream: u, paths: [/], stale_policy: '{written}'}}]}}}}}}"
    expected = timedelta(seconds=90 if seconds is None else seconds)
    assert loads(text).proxy.roles["r"].rules[0].stale_policy == expected


@pytest.mark.parametrize("written", ["allow", "30s", "allow_for()", "allow_for(-1s)", "allow_for(forever)"])
def test_what_is_no_stale_policy_is_refused(written: str) -> None:
    text = f"proxy: {{upstreams: {{u: {{url: 'https://u.example.com'}}}}, roles: {{r: {{rules: [{{upstream: u, paths: [/], stale_policy: '{written}'}}]}}}}}}"
    assert "stale_policy can't be used" in refused(text).message


# --- what belongs together


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("proxy: {lease: 1s, heartbeat: 1s}", "heartbeat: expected more than 0 and less than lease"),
        ("proxy: {heartbeat: 0s}", "heartbeat: expected more than 0"),
        (
            "proxy: {roles: {dev: {rules: [{upstream: llm, paths: [/]}]}}}",
            "roles.dev names upstream 'llm'; configured: none",
        ),
        (
            "proxy: {upstreams: {llm: {url: 'http://llm.example.com', secret: s}}}",
            "a secret is injected, so expected https",
        ),
        ("proxy: {upstreams: {llm: {url: 'https://llm.example.com/?q=1'}}}", "without a query"),
        (
            "proxy: {issuers: {c: {issuer: x, jwks_url: y, audience: [a], algorithms: [HS256]}}}",
            "expected some of RS256",
        ),
        (
            "proxy: {issuers: {c: {issuer: x, jwks_url: y, audience: [a], algorithms: [none]}}}",
            "expected some of RS256",
        ),
        ("proxy: {issuers: {c: {issuer: x, jwks_url: y, audience: []}}}", "audience: expected at least one"),
        ("policy: {revoke_on: [account-enabled]}", "policy.revoke_on.0 can't be used"),
        ("guards: {max_leavers: 0}", "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(text: str, expected: str) -> None:
    assert expected in refused(text).message


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:9"])
def test_a_secret_may_go_over_plain_http_to_loopback(host: str) -> None:
    loads(f"proxy: {{upstreams: {{llm: {{url: 'http://{host}/v1', secret: s}}}}}}")


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("0.0.0.0", False),
    ],
)
def test_what_counts_as_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ProxySettings().lease = timedelta(seconds=9)  # type: ignore[misc]
