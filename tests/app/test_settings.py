"""The settings of a connection: their sources and their valid values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from flask_uwsgi_websocket import Compression, RateLimit
from flask_uwsgi_websocket.settings import NAMES, Settings, check_count, resolve, setting


def test_without_configuration_the_settings_have_defaults() -> None:
    settings = resolve({})
    assert settings == Settings()
    assert settings == Settings(
        origins="same-origin",
        max_message_size=1_048_576,
        max_fragments=65_536,
        ping_interval=25,
        ping_timeout=20,
        close_timeout=5,
        send_timeout=30,
        send_buffer=1_048_576,
        compression=False,
        subprotocols=(),
        text_as_bytes=False,
        max_connections=None,
        max_connections_per_ip=None,
        rate_limit=None,
    )


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("WEBSOCKET_ALLOWED_ORIGINS", "origins", "*"),
        ("WEBSOCKET_MAX_MESSAGE_SIZE", "max_message_size", 1),
        ("WEBSOCKET_MAX_FRAGMENTS", "max_fragments", 1),
        ("WEBSOCKET_PING_INTERVAL", "ping_interval", 0.5),
        ("WEBSOCKET_PING_TIMEOUT", "ping_timeout", None),
        ("WEBSOCKET_CLOSE_TIMEOUT", "close_timeout", 1),
        ("WEBSOCKET_SEND_TIMEOUT", "send_timeout", 1),
        ("WEBSOCKET_SEND_BUFFER", "send_buffer", 1),
        ("WEBSOCKET_COMPRESSION", "compression", Compression(level=1)),
        ("WEBSOCKET_SUBPROTOCOLS", "subprotocols", ["chat"]),
        ("WEBSOCKET_TEXT_AS_BYTES", "text_as_bytes", True),
        ("WEBSOCKET_MAX_CONNECTIONS", "max_connections", 1),
        ("WEBSOCKET_MAX_CONNECTIONS_PER_IP", "max_connections_per_ip", 1),
        ("WEBSOCKET_ACCEPT", "accept", "early"),
        ("WEBSOCKET_HANDSHAKE_TIMEOUT", "handshake_timeout", None),
        ("WEBSOCKET_RATE_LIMIT", "rate_limit", RateLimit(messages=1)),
    ],
)
def test_each_setting_has_its_key(key: str, name: str, value: Any) -> None:
    assert getattr(resolve({key: value, "SECRET_KEY": "x"}), name) == value


def test_every_setting_has_a_key() -> None:
    assert {field.name for field in fields(Settings)} == NAMES


def test_later_overrides_win_setting_by_setting() -> None:
    config = {"WEBSOCKET_PING_INTERVAL": 1, "WEBSOCKET_PING_TIMEOUT": 1, "WEBSOCKET_CLOSE_TIMEOUT": 1}
    settings = resolve(config, {"ping_interval": 2, "ping_timeout": 2}, {"ping_interval": None})
    assert (settings.ping_interval, settings.ping_timeout, settings.close_timeout) == (None, 2, 1)


def test_defaults_are_below_the_configuration_and_all_overrides() -> None:
    defaults = {"ping_interval": 3, "ping_timeout": 3, "close_timeout": 3}
    settings = resolve({"WEBSOCKET_PING_INTERVAL": 1}, {"ping_timeout": 2}, defaults=defaults)
    assert (settings.ping_interval, settings.ping_timeout, settings.close_timeout) == (1, 2, 3)


@pytest.mark.parametrize("name", ["max_message_size", "send_buffer"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (True, ValueError), (1.5, TypeError), (None, TypeError)]
)
def test_a_size_is_a_whole_number_above_0(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{name} must be a (number above 0|whole number of bytes), not"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["close_timeout", "send_timeout"])
@pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), [1]], ids=repr)
def test_a_time_is_a_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number above 0, not"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["ping_interval", "ping_timeout"])
@pytest.mark.parametrize("value", [0, -1, "1", False, float("nan")], ids=repr)
def test_a_ping_time_is_a_number_above_0_or_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number above 0, not"):
        Settings(**{name: value})
    assert getattr(Settings(**{name: None}), name) is None


@pytest.mark.parametrize("origins", ["https://example.com", "same origin", "", "null"])
def test_one_origin_is_no_list_of_origins(origins: str) -> None:
    with pytest.raises(ValueError, match="a list of origins"):
        Settings(origins=origins)


@pytest.mark.parametrize("value", [None, 1, iter(["https://example.com"])], ids=["None", "1", "iterator"])
def test_lists_must_be_lists(value: Any) -> None:
    with pytest.raises(TypeError, match=r"origins must be .* or a list of origins, not"):
        Settings(origins=value)
    with pytest.raises(TypeError, match="subprotocols must be a list of names, not"):
        Settings(subprotocols=value)


@pytest.mark.parametrize(
    "origin",
    ["example.com", "*", "same-origin", "https://example.com/", "https://a:99999", "https://[", "null", ""],
)
def test_a_listed_origin_has_a_scheme_and_a_host_and_no_path(origin: str) -> None:
    with pytest.raises(ValueError, match="is not an origin: write scheme://host"):
        Settings(origins=["https://example.com", origin])


@pytest.mark.parametrize(
    "origin", ["https://a*.example.com", "https://*.*.com", "https://a.*.com", "https://*", "https://*."]
)
def test_a_listed_origin_has_its_asterisk_only_in_front_of_a_domain(origin: str) -> None:
    Settings(origins=["https://*.example.com:8443"])
    with pytest.raises(ValueError, match=r"a \* stands for subdomains, as in https://\*.example.com"):
        Settings(origins=[origin])


def test_subprotocols_must_be_a_list() -> None:
    with pytest.raises(TypeError, match="a list of names"):
        Settings(subprotocols="chat")
    with pytest.raises(ValueError, match="'a chat' cannot name a subprotocol"):
        Settings(subprotocols=["chat", "a chat"])


@pytest.mark.parametrize("compression", [1, None, "on", {}], ids=repr)
def test_compression_is_a_bool_or_a_compression(compression: Any) -> None:
    with pytest.raises(TypeError, match="compression must be True, False or a Compression"):
        Settings(compression=compression)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1", None], ids=repr)
def test_max_fragments_is_a_whole_number_above_0(value: Any) -> None:
    with pytest.raises(ValueError, match="max_fragments must be a whole number above 0, not"):
        Settings(max_fragments=value)


@pytest.mark.parametrize("value", ["false", 1, None], ids=repr)
def test_text_as_bytes_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="text_as_bytes must be True or False, not"):
        Settings(text_as_bytes=value)


def test_an_unknown_setting_raises_a_type_error() -> None:
    with pytest.raises(TypeError, match="ping_intervall"):
        resolve({}, {"ping_intervall": 1})


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("max_quue", "did you mean max_queue?"),
        ("origin", "did you mean origins?"),
        ("colour", "the settings are origins, max_message_size, max_fragments, "),
    ],
)
def test_an_unknown_name_gets_an_error_with_the_nearest_setting_or_with_all_settings(name: str, advice: str) -> None:
    with pytest.raises(TypeError) as error:
        resolve({}, {name: 1})
    assert str(error.value).startswith(f"{name} is not a setting: {advice}")


def test_a_setting_without_a_check_raises_where_it_is_declared() -> None:
    for declared in (1, field(default=1), field(default=1, metadata={"key": "X"})):
        with pytest.raises(TypeError, match=r"More\.unchecked has no check: declare it as unchecked = setting\("):

            class More(Settings):
                unchecked: int = declared  # type: ignore[assignment]

    with pytest.raises(TypeError, match="has no check"):

        class Bare(Settings):
            bare: int


def test_a_setting_that_a_subclass_adds_is_checked() -> None:
    @dataclass(frozen=True)
    class More(Settings):
        rooms: int = setting(1, check_count)

    assert More(rooms=2).rooms == 2
    with pytest.raises(ValueError, match="rooms must be a whole number above 0, not 0"):
        More(rooms=0)
    with pytest.raises(ValueError, match="max_queue must be a whole number above 0, not 0"):
        More(max_queue=0)


def test_the_docstring_has_every_setting_in_the_order_of_the_fields() -> None:
    assert re.findall(r":param (\w+):", str(Settings.__doc__)) == [each.name for each in fields(Settings)]
