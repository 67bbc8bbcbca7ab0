"""Each difference that docs/migrating.md lists has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import DOCS, ROOT

TESTS = ROOT / "tests"

#: The first cell of each row, and the tests of its claims. Tests of the originals are in live/test_programs.py.
CLAIMS = {
    "flask-sock": {
        "an exception that leaves a view": [
            "test_an_exception_of_a_view_has_a_close_code_and_not_a_response_within_the_frames",
            "test_an_exception_of_a_view_reaches_its_error_handler",
        ],
        "a client that does not read": ["test_a_client_that_stops_reading_does_not_stop_a_chat"],
        "the largest message": ["test_max_message_size_is_64_mib_unless_the_options_say_another_one"],
        "pings without `ping_interval`": ["test_a_client_that_answers_no_ping_is_dropped_only_with_ping_interval"],
        "a client that does not answer within `ping_interval`": [
            "test_a_client_that_answers_no_ping_is_dropped_only_with_ping_interval"
        ],
        "`close_reason` after `ws.close(4001)`": ["test_after_its_own_close_a_view_sees_its_own_code"],
        "`ws.close(1016)`, which RFC 6455 does not allow": ["test_a_close_code_that_is_not_allowed_is_a_value_error"],
        "two callers in `receive()` of one connection": ["test_one_at_a_time_receives"],
        "compression": ["test_messages_are_compressed_only_if_the_app_says_so"],
        "`SOCK_SERVER_OPTIONS`": [
            "test_the_options_are_read_at_the_first_connection_of_a_route",
            "test_options_without_effect_are_accepted_and_unknown_ones_are_errors",
        ],
        "the option `methods` of a route": ["test_several_socks_serve_one_app_beside_the_routes_of_the_package"],
        "`ws.sock`, `ws.ws`, `ws.thread`, `ws.event`, `ws.input_buffer`, `ws.mode`, `ws.subprotocols`": [
            "test_the_inside_of_simple_websocket_is_not_there"
        ],
        "the status in the access log and for `after_request` functions": [
            "test_functions_after_the_request_get_the_response_101"
        ],
        "connections of one worker": ["test_a_worker_of_gunicorn_reserves_some_of_its_threads_and_greenlets_for_http"],
    },
    "Flask-Sockets": {
        "close codes": [
            "test_close_frames_have_their_codes",
            "test_a_close_code_that_is_not_allowed_is_a_value_error",
        ],
        "a page and a WebSocket of the same URL": [
            "test_a_page_and_a_socket_may_share_a_url",
            "test_a_page_and_a_socket_may_have_the_same_url_and_the_same_name",
        ],
        "a blueprint of `sockets` and one of the app": [
            "test_a_blueprint_of_sockets_and_one_of_pages_need_different_names"
        ],
        "`before_request` functions": ["test_functions_before_the_request_run_and_may_refuse_it"],
        "`ws.closed`": [
            "test_closed_notices_that_the_client_leaves_though_nothing_is_received",
            "test_closed_is_true_only_after_the_last_message",
        ],
        "the `WebSocketError` of the handler's own connection": [
            "test_the_loop_of_the_readme_ends_quietly",
            "test_the_end_of_another_connection_is_an_error",
        ],
        "another exception that leaves a handler": ["test_a_key_error_of_a_handler_is_an_error_and_not_another_page"],
        "a client that does not read": ["test_a_client_of_flask_sockets_that_stops_reading_is_dropped"],
        "the largest message": ["test_no_message_is_larger_than_64_mib"],
        "pings": ["test_a_client_is_pinged_and_not_dropped"],
        "`ws.environ` after the end": ["test_the_environ_after_the_end_does_not_keep_the_connection"],
        "`ws.stream`, `ws.raw_read`, `ws.raw_write`, `ws.current_app`, `ws.version`": [
            "test_the_environ_stays_after_the_end_and_the_inside_of_gevent_websocket_is_not_there"
        ],
        "`sockets.url_map`": ["test_converters_of_the_map_convert"],
    },
}


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("package", CLAIMS)
def test_each_difference_has_a_test(package: str) -> None:
    page = (DOCS / "migrating.md").read_text()
    section = page.partition(f"### What differs from {package}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) ?\| ", section, re.MULTILINE)
    assert rows[1:] == list(CLAIMS[package])
    existing = set().union(*map(names_in, TESTS.rglob("test_*.py")))
    for tests in CLAIMS[package].values():
        assert existing.issuperset(tests), tests


def test_each_program_is_in_the_table() -> None:
    section = (DOCS / "migrating.md").read_text().partition("## Compared programs\n")[2].partition("\n## ")[0]
    programs = re.findall(r"^\| `(\w+\.py)`", section, re.MULTILINE)
    assert sorted(programs) == sorted(path.name for path in (TESTS / "compat/programs").glob("*.py"))
