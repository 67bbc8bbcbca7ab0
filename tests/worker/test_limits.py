"""How many connections a worker takes, and how much one client may send."""

from __future__ import annotations

import os
import resource
import threading
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from flask import Flask
from websockets.exceptions import ConnectionClosed
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from flask_uwsgi_websocket import RateLimit, WebSocket
from flask_uwsgi_websocket.connection.ratelimit import Meter
from flask_uwsgi_websocket.settings import Settings
from flask_uwsgi_websocket.worker import admission
from flask_uwsgi_websocket.worker.admission import Admissions, admissions, most_by_descriptors, reserved_cores
from support.inprocess import DEADLINE, Site, serving, wait_until
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, TEXT, close_body, frame

# Connections


def hold(site: Site, **options: Any) -> None:
    """Declare a handler at ``/`` that lasts as long as its connection."""

    @site.route("/", **options)
    async def handler(ws: Any) -> None:
        await ws.send("hello")
        async for _ in ws:
            pass


def refusal(site: Site, path: str = "/") -> tuple[int, str | None]:
    """Return the status of the response to an upgrade request, and its Retry-After."""
    client = site.raw()
    client.request(path)
    response = client.response()
    client.close()
    return response.status, next(iter(response.all("Retry-After")), None)


def connect_until_admitted(site: Site) -> None:
    """Connect once the server has noticed that others have left."""
    while True:
        client = site.raw()
        client.request()
        if client.response().status == 101:
            return
        client.close()  # there may be hundreds, if it takes a while


def test_above_max_connections_a_handshake_is_answered_with_503_and_http_goes_on(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 2
    site.app.add_url_rule("/page", view_func=lambda: "page", endpoint="page")
    hold(site)
    first, _ = site.upgrade(), site.upgrade()
    assert refusal(site) == (503, "10")

    page = site.raw()
    page.send(b"GET /page HTTP/1.0\r\n\r\n")
    assert page.response().status == 200

    first.reset()
    connect_until_admitted(site)


def test_above_max_connections_per_ip_a_handshake_is_answered_with_429(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_CONNECTIONS_PER_IP"] = 1
    hold(site)
    first = site.upgrade()
    assert refusal(site) == (429, "10")
    first.reset()
    connect_until_admitted(site)


def test_a_connection_that_is_refused_or_fails_is_not_counted(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1

    @site.route("/")
    async def handler(ws: Any) -> Any:
        return "no", 403

    for _ in range(3):
        assert refusal(site) == (403, None)


def test_a_route_may_be_limited_further(site: Site) -> None:
    hold(site)

    @site.route("/more", max_connections=1)
    async def more(ws: Any) -> None:
        await ws.send("more")

    site.upgrade()
    assert refusal(site, "/more") == (503, "10")
    site.upgrade()


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1:5678", "192.0.2.1:5679", True),
        ("192.0.2.1:5678", "192.0.2.1", True),
        ("192.0.2.1:5678", "192.0.2.2:5678", False),
        ("[2001:db8::1]:5678", "2001:db8::2", True),
        ("[2001:db8::1]", "[2001:db8:0:1::1]:1", False),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1:2", True),
        ("unknown", "unknown", True),
    ],
)
def test_an_address_of_ipv6_is_a_network_of_64_bits(one: str, other: str, are_one: bool) -> None:
    admissions = Admissions()
    with admissions.admit(one, None, 1):
        if are_one:
            with pytest.raises(TooManyRequests), admissions.admit(other, None, 1):
                pass
        else:
            with admissions.admit(other, None, 1):
                pass


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(("limit", "refused"), [("MAX_CONNECTIONS", 503), ("MAX_CONNECTIONS_PER_IP", 429)])
@pytest.mark.parametrize("end", ["answer", "raise", "raise in teardown"])
def test_a_request_is_counted_from_its_beginning_to_its_end_however_it_ends(limit: str, refused: int, end: str) -> None:
    app = Flask(__name__)
    app.config[f"WEBSOCKET_{limit}"] = 1
    statuses = []

    def request_upgrade() -> int:
        with suppress(RuntimeError):
            return app.test_client().get("/", headers=UPGRADE).status_code
        return 500

    @app.before_request
    def look_up() -> Any:
        if len(statuses) % 2 == 0:
            statuses.append(request_upgrade())
        if end == "raise":
            raise RuntimeError
        return "no", 403

    @app.teardown_request
    def tear_down(error: BaseException | None) -> None:
        if end == "raise in teardown":
            raise RuntimeError

    WebSocket(app).add_url_rule("/", "handler", lambda ws: None)
    for _ in range(2):
        statuses.append(request_upgrade())
    ended = 403 if end == "answer" else 500
    if end == "raise in teardown":
        refused = 500  # all that a client sees, but look_up() was not called
    assert statuses == [refused, ended] * 2


def test_pages_and_upgrades_of_pages_are_not_counted() -> None:
    app = Flask(__name__)
    app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1
    WebSocket(app).add_url_rule("/", "handler", lambda ws: None)
    app.add_url_rule("/outer", "outer", lambda: str(app.test_client().get("/", headers=UPGRADE).status_code))
    assert app.test_client().get("/outer").text == "500"  # not 503: the test client has no socket for the handler


def test_a_view_that_is_put_around_that_of_a_route_is_limited_as_the_route_is() -> None:
    app = Flask(__name__)
    WebSocket(app).add_url_rule("/", "handler", lambda ws: None, max_connections=1)
    view = app.view_functions["handler"]

    def around(**values: Any) -> Any:
        with admissions.admit(None, None, None):
            return view(**values)

    app.view_functions["handler"] = around
    assert app.test_client().get("/", headers=UPGRADE).status_code == 503


def test_where_no_more_files_can_be_opened_a_handshake_is_answered_with_503_and_the_log_has_one_line(
    blocking: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_told_at", -admission.SILENCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hold(blocking, max_connections=10)
    is_starving = False

    @blocking.app.before_request
    def use_up() -> None:
        if is_starving:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))

    @blocking.app.teardown_request
    def give_back(error: BaseException | None) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    blocking.upgrade()  # what the first connection needs is there from now on
    is_starving = True
    for _ in range(3):
        assert refusal(blocking) == (503, "10")
    said = blocking.logged().getMessage()
    assert said == "WebSockets are refused with 503: this process may open no more files (Too many open files)"


@pytest.mark.parametrize(
    ("limit", "queues", "most"), [(64, 0, 14), (64, 12, 8), (64, 100, 1), (1024, 0, 464), (8192, 0, 3824)]
)
def test_each_connection_takes_two_descriptors_and_some_are_for_other_files(limit: int, queues: int, most: int) -> None:
    assert most_by_descriptors(limit, queues) == most


def test_no_setting_makes_more_room_than_there_are_descriptors_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    admissions = Admissions()
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
        for _ in range(most_by_descriptors(40, 0)):
            stack.enter_context(admissions.admit(None, 100, None))
        with pytest.raises(ServiceUnavailable):
            stack.enter_context(admissions.admit(None, 100, None))


@pytest.mark.parametrize("address", [None, ""])
def test_who_has_no_address_is_counted_for_the_worker_only(address: str | None) -> None:
    admissions = Admissions()
    with (
        admissions.admit(address, 2, 1),
        admissions.admit(address, 2, 1),
        pytest.raises(ServiceUnavailable),
        admissions.admit(address, 2, 1),
    ):
        pass
    with admissions.admit(address, 1, 1):
        pass


def test_many_threads_never_get_in_together_where_one_has_room() -> None:
    admissions = Admissions()
    inside: list[int] = []
    most = 0

    def enter(number: int) -> None:
        nonlocal most
        for _ in range(300):
            try:
                with admissions.admit("192.0.2.1", 2, None):
                    inside.append(number)
                    most = max(most, len(inside))
                    inside.remove(number)
            except ServiceUnavailable:
                continue

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 2
    assert not admissions._open


@pytest.mark.parametrize(("cores", "reserved"), [(1, 1), (10, 1), (16, 1), (100, 10), (200, 20), (2_100, 20)])
def test_a_tenth_of_the_cores_is_kept_for_http(cores: int, reserved: int) -> None:
    assert reserved_cores(cores) == reserved


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_ip"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1"], ids=repr)
def test_a_number_of_connections_is_a_whole_one_above_0_or_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is a whole number above 0 or None, not"):
        Settings(**{name: value})


# Rates


def test_a_client_that_sends_more_messages_than_allowed_is_closed_with_1008(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    with site.connect() as client:
        for number in range(10):
            client.send(str(number))
            assert client.recv(DEADLINE) == str(number)
        with suppress(ConnectionClosed):
            for number in range(100):  # some come in while this goes out
                client.send(str(number))
                client.recv(DEADLINE)
        assert (client.close_code, client.close_reason) == (1008, "more was sent than the rate limit allows")


def test_a_client_that_sends_more_bytes_than_allowed_is_closed_with_1008(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(bytes=1_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    with site.connect() as client:
        client.send("x" * 5_000)
        assert client.recv(DEADLINE) == "x" * 5_000
        with suppress(ConnectionClosed):
            client.send("x" * 100_000)
            client.recv(DEADLINE)
        assert client.close_code == 1008


def test_pings_count_as_messages(site: Site) -> None:
    site.app.config["WEBSOCKET_RATE_LIMIT"] = RateLimit(messages=1, burst=5)
    hold(site)
    client = site.upgrade()
    for _ in range(30):
        client.frame(PING, b"x")
    opcodes = []
    while (read := client.read_frame()) is not None and read[0] != 8:
        opcodes.append(read[0])
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


@pytest.mark.parametrize("limit", [RateLimit(messages=1, burst=2), RateLimit(frames=64, burst=2)], ids=repr)
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_fragments_count_as_frames(site: Site, limit: RateLimit, payload: bytes) -> None:
    site.app.config["WEBSOCKET_RATE_LIMIT"] = limit
    hold(site)
    client = site.upgrade()
    client.frame(BINARY, payload, fin=False)
    with suppress(OSError):  # it has been closed
        client.send(frame(CONTINUATION, payload, fin=False, key=KEY) * 10_000)
    assert client.read_frame() == (TEXT, b"hello")
    read = client.read_frame()
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


def test_a_long_message_in_pieces_of_16_kib_is_one_message(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=1))
    async def handler(ws: Any) -> None:
        site.note(len(await ws.receive()))
        site.note(await ws.receive())

    client = site.upgrade()
    client.frame(BINARY, bytes(16_384), fin=False)
    for _ in range(62):
        client.frame(CONTINUATION, bytes(16_384), fin=False)
    client.frame(CONTINUATION, bytes(16_384))
    assert site.noted() == 2**20
    client.frame(CLOSE)
    assert site.noted() is None


def test_what_a_compressed_message_inflates_to_counts(site: Site) -> None:
    @site.route("/", compression=True, rate_limit=RateLimit(bytes=10_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(str(len(message)))

    with site.connect(compression="deflate") as client:
        client.send("x" * 50_000)
        assert client.recv(DEADLINE) == "50000"
        with suppress(ConnectionClosed):
            client.send("x" * 500_000)  # half a kilobyte on the network
            client.recv(DEADLINE)
        assert client.close_code == 1008


def test_what_inflates_to_nothing_counts_as_it_came(site: Site) -> None:
    @site.route("/", compression=True, rate_limit=RateLimit(bytes=10_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    client = site.upgrade(sec_websocket_extensions="permessage-deflate")
    with suppress(OSError):  # it has been closed
        for _ in range(100):  # blocks of nothing
            client.frame(BINARY, b"\0\0\0\xff\xff" * 1_000 + b"\0", rsv=4)
    while (read := client.read_frame()) == (BINARY, b""):
        pass
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


def test_a_message_of_more_fragments_than_allowed_closes_with_1008(site: Site) -> None:
    @site.route("/", max_fragments=100)
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(str(len(message)))

    client = site.upgrade()
    middle = frame(CONTINUATION, b"x", fin=False, key=KEY)
    client.send(frame(BINARY, b"x", fin=False, key=KEY) + middle * 98 + frame(CONTINUATION, b"x", key=KEY))
    assert client.read_frame() == (TEXT, b"100")
    client.send(frame(BINARY, b"x", fin=False, key=KEY) + middle * 100)
    assert client.read_frame() == (CLOSE, close_body(1008, b"a message may have at most 100 fragments"))


def test_what_was_received_before_the_limit_is_delivered(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=5))
    async def handler(ws: Any) -> None:
        async for message in ws:
            site.note(message)
        site.note((ws.close_code, ws._transport.who_ended()))

    client = site.upgrade()
    for number in range(20):
        client.frame(TEXT, str(number).encode())
    received = []
    while isinstance(message := site.noted(), str):
        received.append(message)
    assert len(received) >= 5
    assert received == [str(number) for number in range(len(received))]
    assert message == (1008, "server")


def spend(meter: Meter, now: float, messages: int, *, is_behind: bool) -> bool:
    return meter.spend(now, messages, messages, messages, is_behind=is_behind)


def test_a_polite_client_of_a_slow_handler_is_not_taken_for_a_fast_one() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    assert spend(meter, 0, 20, is_behind=True)
    assert spend(meter, 30, 300, is_behind=True)
    assert not spend(meter, 30, 1, is_behind=True)


def test_what_a_silent_client_has_not_used_is_saved_for_the_burst_only() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    assert spend(meter, 1, 5, is_behind=False)
    assert not spend(meter, 3_600, 21, is_behind=False)


@pytest.mark.parametrize("limit", [RateLimit(messages=10), RateLimit(bytes=10), RateLimit()], ids=repr)
def test_what_has_no_limit_is_never_spent_also_where_no_time_has_passed(limit: RateLimit) -> None:
    meter = Meter(limit, now=0)
    for _ in range(3):
        assert spend(meter, 0, 2, is_behind=True)


def test_once_nothing_is_left_to_read_the_credit_is_that_of_the_burst() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    meter.fall_behind()
    assert spend(meter, 3_600, 100, is_behind=False)
    assert not spend(meter, 3_600, 21, is_behind=False)


@pytest.mark.parametrize("name", ["messages", "frames", "bytes", "burst"])
@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan")], ids=repr)
def test_a_rate_is_a_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} of a RateLimit must be a number above 0, not"):
        RateLimit(**{name: value})


def test_a_rate_limit_is_one_or_none() -> None:
    with pytest.raises(TypeError, match="rate_limit is a RateLimit or None, not 10"):
        Settings(rate_limit=10)  # type: ignore[arg-type]


def test_connections_are_counted_where_the_app_runs_only_when_its_response_is_iterated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_UWSGI_DEBUG", "1")  # as below Werkzeug's debugger
    for site in serving("threads", max_connections=1):
        hold(site)
        for _ in range(2):
            with site.connect() as client:
                assert client.recv(DEADLINE) == "hello"
                assert refusal(site) == (503, "10")
            wait_until(lambda: not admissions._total, "it is still counted")
