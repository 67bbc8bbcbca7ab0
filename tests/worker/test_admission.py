"""A worker limits the number of its connections."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from flask_uwsgi_websocket import WebSocket, WebSocketView
from flask_uwsgi_websocket.settings import Settings
from flask_uwsgi_websocket.worker import admission
from flask_uwsgi_websocket.worker.admission import (
    RESERVED_DESCRIPTORS,
    Admissions,
    Capacity,
    admissions,
    most_by_descriptors,
    reserved_cores,
)
from support.inprocess import DEADLINE, ParkingServer, Site, hold, serving, wait_until
from support.views import serve
from support.wire import TEXT


def refusal(site: Site, path: str = "/") -> tuple[int, str | None]:
    """Return the status and the Retry-After header of the response to an upgrade request."""
    client = site.raw()
    client.request(path)
    response = client.response()
    client.close()
    return response.status, next(iter(response.all("Retry-After")), None)


def connect_until_admitted(site: Site) -> None:
    """Connect, after the server has detected that other clients have left."""
    while True:
        client = site.raw()
        client.request()
        if client.response().status == 101:
            return
        client.close()  # the loop may open hundreds of sockets


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


def test_a_refused_or_failed_connection_is_not_counted(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1

    @site.route("/")
    async def handler(ws: Any) -> Any:
        return "no", 403

    for _ in range(3):
        assert refusal(site) == (403, None)


def test_a_route_may_have_lower_limits(site: Site) -> None:
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
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.01", "192.0.2.1", False),
        ("unknown", "unknown", True),
        ("unknown", "hidden", False),
        ("[]", "[]:1", False),
        ("\0", "\udc80", False),
    ],
)
def test_an_address_of_ipv6_is_a_network_of_64_bits(one: str, other: str, are_one: bool) -> None:
    admissions = Admissions()
    admissions.admit(one, None, 1)
    if are_one:
        with pytest.raises(TooManyRequests):
            admissions.admit(other, None, 1)
    else:
        admissions.admit(other, None, 1)


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(("limit", "refused"), [("MAX_CONNECTIONS", 503), ("MAX_CONNECTIONS_PER_IP", 429)])
@pytest.mark.parametrize("end", ["answer", "raise", "raise in teardown"])
def test_a_request_is_counted_from_its_beginning_to_any_end(limit: str, refused: int, end: str) -> None:
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
        refused = 500  # the client sees only this status, but look_up() was not called
    assert statuses == [refused, ended] * 2


def test_pages_and_upgrade_requests_for_pages_are_not_counted() -> None:
    app = Flask(__name__)
    app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1
    WebSocket(app).add_url_rule("/", "handler", lambda ws: None)
    app.add_url_rule("/outer", "outer", lambda: str(app.test_client().get("/", headers=UPGRADE).status_code))
    assert app.test_client().get("/outer").text == "500"  # not 503: the test client has no socket for the handler


def test_a_view_that_wraps_the_view_of_a_route_is_limited_like_the_route() -> None:
    app = Flask(__name__)
    WebSocket(app).add_url_rule("/", "handler", lambda ws: None, max_connections=1)
    view = app.view_functions["handler"]

    def around(**values: Any) -> Any:
        with closing(admissions.admit(None, None, None)):
            return view(**values)

    app.view_functions["handler"] = around
    assert app.test_client().get("/", headers=UPGRADE).status_code == 503


def test_without_free_descriptors_a_handshake_is_answered_with_503_and_the_log_has_one_line(
    blocking: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_logged_at", -admission.SILENCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hold(blocking, max_connections=10)
    is_starving = False

    @blocking.app.before_request
    def use_up() -> None:
        if is_starving:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # the standard streams take all three

    @blocking.app.teardown_request
    def give_back(error: BaseException | None) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    blocking.upgrade()  # opens the descriptors that the first connection needs, and that stay open
    is_starving = True
    for _ in range(3):
        assert refusal(blocking) == (503, "10")
    said = blocking.logged().getMessage()
    assert said.startswith("WebSockets are refused with 503: this process may open no more files (Too many open files)")


@pytest.mark.parametrize(
    ("limit", "queues", "most"), [(64, 0, 14), (64, 12, 8), (64, 100, 1), (1024, 0, 464), (8192, 0, 3824)]
)
def test_each_connection_takes_two_descriptors_and_some_are_reserved_for_other_files(
    limit: int, queues: int, most: int
) -> None:
    assert most_by_descriptors(limit, queues) == most


def test_no_setting_allows_more_connections_than_the_descriptors_suffice_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    admissions = Admissions()
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
        for _ in range(most_by_descriptors(40, 0)):
            admissions.admit(None, 100, None)
        with pytest.raises(ServiceUnavailable):
            admissions.admit(None, 100, None)


@pytest.mark.parametrize("address", [None, ""])
def test_a_client_without_an_address_counts_only_for_the_worker(address: str | None) -> None:
    admissions = Admissions()
    places = [admissions.admit(address, 2, 1) for _ in range(2)]
    with pytest.raises(ServiceUnavailable):
        admissions.admit(address, 2, 1)
    for place in places:
        place.close()
    admissions.admit(address, 1, 1)


def test_many_threads_never_get_more_places_than_there_are() -> None:
    admissions = Admissions()
    inside: list[int] = []
    most = 0

    def enter(number: int) -> None:
        nonlocal most
        for _ in range(300):
            try:
                with closing(admissions.admit("192.0.2.1", 2, None)):
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
def test_a_tenth_of_the_cores_is_reserved_for_http(cores: int, reserved: int) -> None:
    assert reserved_cores(cores) == reserved


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_ip"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1"], ids=repr)
def test_a_limit_of_connections_is_a_whole_number_above_0_or_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number above 0, not"):
        Settings(**{name: value})


def test_connections_are_counted_if_the_app_runs_only_when_its_response_is_iterated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_UWSGI_DEBUG", "1")  # as with Werkzeug's debugger
    for site in serving("threads", max_connections=1):
        hold(site)
        for _ in range(2):
            with site.connect() as client:
                assert client.recv(DEADLINE) == "hello"
                assert refusal(site) == (503, "10")
            wait_until(lambda: not admissions._total, "the connection is still counted")


# Connections that outlive their requests


def test_connections_that_take_no_core_are_not_limited_by_the_cores() -> None:
    admissions, capacity = Admissions(), Capacity(2, parks=True)
    parked = [admissions.admit(None, None, None, capacity, takes_core=False) for _ in range(50)]
    in_core = admissions.admit(None, None, None, capacity)
    with pytest.raises(ServiceUnavailable):
        admissions.admit(None, None, None, capacity)
    in_core.close()
    admissions.admit(None, None, None, capacity)
    for place in parked:
        place.close()
    with pytest.raises(ServiceUnavailable):
        admissions.admit(None, None, None, capacity)


def test_the_limits_of_the_worker_and_of_an_address_count_them() -> None:
    admissions, capacity = Admissions(), Capacity(2, parks=True)
    first = admissions.admit("192.0.2.1", 2, 1, capacity, takes_core=False)
    with pytest.raises(TooManyRequests):
        admissions.admit("192.0.2.1", 2, 1, capacity, takes_core=False)
    admissions.admit("192.0.2.2", 2, 1, capacity)
    for takes_core in (False, True):
        with pytest.raises(ServiceUnavailable):
            admissions.admit("192.0.2.3", 2, 1, capacity, takes_core=takes_core)
    first.close()
    admissions.admit("192.0.2.1", 2, 1, capacity, takes_core=False)


@pytest.mark.parametrize("in_cores", [0, 1, 3])
def test_a_connection_without_a_core_takes_one_descriptor(in_cores: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    admissions = Admissions()
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        for _ in range(in_cores):
            admissions.admit(None, 100, None)
        free = 64 - 64 // 16 - RESERVED_DESCRIPTORS
        for _ in range(free - 2 * in_cores):
            admissions.admit(None, 100, None, takes_core=False)
        for takes_core in (False, True):
            with pytest.raises(ServiceUnavailable):
                admissions.admit(None, 100, None, takes_core=takes_core)


@pytest.fixture
def parking(mode: str) -> Iterator[Site]:
    """A site in each mode whose views are parked."""
    yield from serving(mode, parks=True)


def hold_in_views(site: Site) -> None:
    """Declare a view at ``/parked/…`` whose connections outlive their requests, and a handler at ``/``."""

    class Held(WebSocketView):
        def __init__(self, site: Site) -> None:
            """Take what all views of tests take."""

        async def on_message(self, ws: Any, message: Any) -> None:
            await ws.send(message)

    serve(site, Held)
    hold(site)


def test_parked_connections_take_no_core(parking: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParkingServer, "cores", 2)
    hold_in_views(parking)
    clients = [parking.upgrade("/a") for _ in range(10)]
    parking.upgrade("/")
    assert refusal(parking, "/") == (503, "10")
    for client in clients:
        client.frame(TEXT, b"x")
        assert client.read_frame() == (TEXT, b"x")


def test_a_parked_connection_is_counted_until_it_ends(parking: Site) -> None:
    parking.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 2
    hold_in_views(parking)
    first, second = parking.upgrade("/a"), parking.upgrade("/a")
    for _ in range(3):
        assert refusal(parking, "/a") == (503, "10")
    assert refusal(parking, "/") == (503, "10")
    second.frame(TEXT, b"x")
    assert second.read_frame() == (TEXT, b"x")
    first.reset()
    connect_until_admitted(parking)
