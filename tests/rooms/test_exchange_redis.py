"""What members see when Redis fails: one order without duplicates, and a gap where messages are missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from flask import Flask
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from flask_uwsgi_websocket import WebSocket, WebSocketBlueprint, websocket_gap
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms import feed, outbox
from flask_uwsgi_websocket.rooms.brokers import redis as redis_broker
from flask_uwsgi_websocket.rooms.brokers import redis_wire
from flask_uwsgi_websocket.rooms.exchange import exchange_of
from support.inprocess import DEADLINE, MODES, Site, join, wait_for_background, wait_until
from support.redis_server import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.heavy, pytest.mark.covered]

#: What is logged while Redis is away, and once it is back.
EXPECTED = (
    "Messages of rooms do not arrive",
    "The messages of rooms arrive again",
    "The broker of the rooms is",
    "has missed",
    "messages to rooms are lost",
)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feed, outbox):
        monkeypatch.setattr(module, "backoff", lambda attempt: 0.02)


class Worker:
    """An app with a room, in a process of its own as far as Redis can see.

    :param history: the messages that Redis keeps of the room.
    """

    def __init__(self, mode: str, url: str, history: int = 0) -> None:
        self.site = Site(MODES[mode]())
        self.site._handler.addFilter(lambda record: not any(text in record.getMessage() for text in EXPECTED))
        self.app = self.site.app
        self.app.config["WEBSOCKET_BROKER"] = url
        self.room = self.site.websocket.room("news")
        if history:
            blueprint = WebSocketBlueprint("news", __name__)
            self.room = blueprint.rooms(history=history)["news"]
            self.app.register_blueprint(blueprint)
        #: What ``websocket_gap`` has reported.
        self.missed: list[int | None] = []
        websocket_gap.connect(self._on_gap, self.app)

        @self.site.route("/")
        async def handler(ws: Any) -> None:
            await join(self.room, ws)
            await ws.send("joined")
            async for _ in ws:
                pass

    def _on_gap(self, app: Flask, room: Any, missed: int | None) -> None:
        assert (app, room) == (self.app, self.room)
        self.missed.append(missed)

    def join(self) -> ClientConnection:
        """Connect a client that is a member, and wait until the broker has confirmed that."""
        client = self.join_at_once()
        wait_until(self._is_compared)
        return client

    def _is_compared(self) -> bool:
        """Return whether the broker has told the position of the room."""
        local = exchange_of(self.app)._rooms.get(self.room.key)
        return local is not None and local.position is not None

    def join_at_once(self) -> ClientConnection:
        client = self.site.connect()
        assert recv(client) == "joined"
        return client

    def publish(self, *messages: str) -> None:
        for message in messages:
            self.room.publish(message)

    def stats(self, name: str) -> Any:
        def value() -> Any:
            return self.site.websocket.stats()["rooms"][name]

        if name == "gaps":  # a gap is counted just before it is reported
            wait_until(lambda: value() == len(self.missed), "not every gap is reported")
        return value()

    def wait_until_lost(self) -> None:
        wait_until(lambda: self.stats("broker_errors"), "Redis is not away")

    def wait_until_back(self) -> None:
        wait_until(lambda: not self.stats("broker_errors"), lambda: str(self.stats("broker_errors")))

    def wait_until_sent(self) -> None:
        wait_until(lambda: self.stats("waiting") == 0, "messages are left")

    def close(self) -> None:
        try:
            self.site.close()
        finally:
            wait_for_background()
            wait_until(lambda: not exchange_of(self.app)._outbox._is_running, "the outbox does not end")
            exchange_of(self.app).broker().close()


@contextmanager
def working(mode: str, *urls: str, history: int = 0) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        for url in urls:
            workers.append(Worker(mode, url, history))
            stack.callback(workers[-1].close)
        try:
            yield workers
        finally:
            for worker in workers:  # the end of the first one waits for the connections of all
                worker.site.disconnect()


@contextmanager
def through_proxy(server: RedisServer) -> Iterator[TcpProxy]:
    proxy = TcpProxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()


def url_of(proxy: TcpProxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


def recv(client: ClientConnection) -> Any:
    return client.recv(DEADLINE)


def closing(client: ClientConnection) -> tuple[int, str]:
    """Wait until a client is closed, and return the code and the reason."""
    with pytest.raises(ConnectionClosed) as closed:
        recv(client)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def take(client: ClientConnection, last: str = "end") -> list[Any]:
    """Return what a client gets up to a message."""
    messages = [recv(client)]
    while messages[-1] != last:
        messages.append(recv(client))
    return messages


def texts(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


def check_order(received: list[list[Any]], *publishers: str) -> None:
    """Check that all members have one order without duplicates, each maybe with something missing."""
    for each in received:
        assert len(set(each)) == len(each)
        for name in publishers:
            numbers = [int(message.split()[1]) for message in each if message.startswith(f"{name} ")]
            assert numbers == sorted(numbers)
    first, *others = received
    for other in others:
        common = set(first) & set(other)
        assert [each for each in first if each in common] == [each for each in other if each in common]


# Redis ends, freezes, forgets


@pytest.mark.parametrize("snapshot", [False, True], ids=["empty", "old snapshot"])
def test_redis_is_killed_and_starts_again(server: RedisServer, mode: str, snapshot: bool) -> None:
    with working(mode, server.url, server.unix_url) as workers:
        one, two = workers
        clients = [one.join(), one.join(), two.join()]
        one.publish(*texts("early", 5), "saved")
        assert [take(client, "saved") for client in clients] == [[*texts("early", 5), "saved"]] * 3
        if snapshot:
            server.save()
        two.publish(*texts("late", 5), "killed")
        assert [take(client, "killed") for client in clients] == [[*texts("late", 5), "killed"]] * 3
        server.kill()
        for worker in workers:
            worker.wait_until_lost()
        clients.append(two.join_at_once())  # does not wait for Redis
        one.publish(*texts("one", 20))
        two.publish(*texts("two", 20))
        server.start()
        for worker in workers:
            worker.wait_until_sent()
            worker.wait_until_back()
        one.publish("end")
        received = [take(client) for client in clients]
        check_order(received, "one", "two")
        assert received[2] == received[3]
        for worker in workers:
            assert (worker.stats("gaps"), worker.missed) == (1, [None])
            assert worker.stats("lost") == 0
            assert worker.stats("broker_losses") == 1


def test_redis_is_flushed(server: RedisServer, mode: str) -> None:
    with working(mode, server.url, server.unix_url) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        for number in range(3):
            one.publish(f"before {number}")
            one.wait_until_sent()
            server.run("FLUSHALL")
            two.publish(f"after {number}")
            two.wait_until_sent()
        two.publish("end")
        received = [take(client) for client in clients]
        assert received == [[*(f"{when} {n}" for n in range(3) for when in ("before", "after")), "end"]] * 2
        assert [worker.stats("gaps") for worker in workers] == [0, 0]


def test_redis_is_flushed_while_a_worker_is_away(server: RedisServer) -> None:
    with through_proxy(server) as proxy, working("threads", server.url, url_of(proxy)) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [recv(client) for client in clients] == ["before"] * 2
        proxy.leave()
        two.wait_until_lost()
        one.publish("missed")
        one.wait_until_sent()
        server.run("FLUSHALL")
        proxy.come_back()
        two.wait_until_back()
        one.publish("end")
        assert [take(client) for client in clients] == [["missed", "end"], ["end"]]
        assert (one.stats("gaps"), two.stats("gaps"), two.missed) == (0, 1, [None])


def test_redis_freezes(server: RedisServer, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wire, "TIMEOUT", 0.5)
    with working(mode, server.url, server.unix_url) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [take(client, "before")[-1] for client in clients] == ["before"] * 2
        server.pause()
        with monkeypatch.context() as hasty:
            hasty.setattr(redis_broker, "PING_AFTER", 0.3)
            hasty.setattr(redis_broker, "SILENT_AFTER", 0.3)
            one.publish(*texts("one", 20))
            two.publish(*texts("two", 20))
            for worker in workers:
                worker.wait_until_lost()
        server.resume()
        for worker in workers:
            worker.wait_until_sent()
            worker.wait_until_back()
        two.publish("end")
        received = [take(client) for client in clients]
        check_order(received, "one", "two")
        for worker, each in zip(workers, received, strict=True):
            assert len(each) + sum(missed or 0 for missed in worker.missed) == 41
            assert None not in worker.missed
            assert worker.stats("lost") == 0


def test_connections_are_killed_while_messages_flow(server: RedisServer, mode: str) -> None:
    count, kills = 100, 5
    with working(mode, server.url, server.unix_url) as workers:
        one, two = workers
        clients = [one.join(), two.join(), two.join()]
        gate = threading.Barrier(3)

        def publish(worker: Worker, name: str) -> None:
            for number in range(count):
                if number % (count // kills) == 0:
                    gate.wait()
                worker.publish(f"{name} {number}")

        def wait_until_both_are_subscribed() -> None:
            wait_until(lambda: server.run("CLIENT", "LIST", "TYPE", "pubsub").count(b"\n") == 2)
            for worker in workers:
                worker.wait_until_back()

        threads = [threading.Thread(target=publish, args=pair) for pair in ((one, "one"), (two, "two"))]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            wait_until_both_are_subscribed()
            gate.wait()
            assert server.run("CLIENT", "KILL", "TYPE", "pubsub") == 2
            server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for thread in threads:
            thread.join()
        wait_until_both_are_subscribed()
        for worker in workers:
            worker.wait_until_sent()
            assert worker.stats("broker_losses") == kills
        one.publish("end")
        received = [take(client) for client in clients]
        check_order(received, "one", "two")
        assert received[1] == received[2]
        for worker, each in zip(workers, received, strict=False):
            known = sum(missed or 0 for missed in worker.missed)
            # Before a worker has had a message, it cannot know how many it has missed.
            assert worker.missed.count(None) <= 1
            assert len(each) + known == 2 * count + 1 or None in worker.missed
            assert len(each) + known <= 2 * count + 1
            worker.stats("gaps")


def test_redis_ends_subscriptions_whose_output_is_too_much(server: RedisServer, mode: str) -> None:
    with working(mode, server.url, server.unix_url) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [recv(client) for client in clients] == ["before"] * 2
        server.run("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100kb 0 0")
        one.publish("too much " * 100_000)
        for worker in workers:
            wait_until(lambda worker=worker: worker.stats("gaps"))  # type: ignore[misc]
        one.publish("end")
        assert [take(client) for client in clients] == [["end"]] * 2
        assert [worker.missed for worker in workers] == [[1], [1]]


# The network


def test_a_worker_that_was_cut_off_knows_how_many_messages_it_has_missed(server: RedisServer, mode: str) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy)) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [recv(client) for client in clients] == ["before"] * 2
        proxy.leave()
        two.wait_until_lost()
        two.publish(*texts("two", 5))
        one.publish(*texts("one", 7), "sent")
        assert take(clients[0], "sent") == [*texts("one", 7), "sent"]
        assert two.stats("waiting") == 5
        proxy.come_back()
        two.wait_until_back()
        two.wait_until_sent()
        assert take(clients[0], "two 4") == texts("two", 5)
        one.publish("end")
        received = take(clients[1])
        assert received == [*texts("two", 5)[6 - len(received) :], "end"]
        assert len(received) + sum(missed or 0 for missed in two.missed) == 8 + 5 + 1
        assert one.stats("gaps") == 0


def test_members_get_from_the_history_what_their_worker_has_missed(server: RedisServer, mode: str) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy), history=100) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [recv(client) for client in clients] == ["before"] * 2
        for number in range(3):
            proxy.leave()
            two.wait_until_lost()
            two.publish(*texts("two", 5))
            one.publish(*texts("one", 7), f"sent {number}")
            one.wait_until_sent()
            proxy.come_back()
            two.wait_until_back()
            two.wait_until_sent()
            one.publish(f"end {number}")
            received = [take(client, f"end {number}") for client in clients]
            assert received == [[*texts("one", 7), f"sent {number}", *texts("two", 5), f"end {number}"]] * 2
        assert [(worker.stats("gaps"), worker.missed) for worker in workers] == [(0, [])] * 2
        assert (one.stats("filled"), two.stats("filled")) == (0, 3)


def test_members_are_closed_when_the_history_does_not_have_what_was_missed(server: RedisServer, mode: str) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy), history=5) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        one.publish("before")
        assert [recv(client) for client in clients] == ["before"] * 2
        proxy.leave()
        two.wait_until_lost()
        one.publish(*texts("one", 7))
        one.wait_until_sent()
        proxy.come_back()
        assert closing(clients[1]) == (1013, "messages were missed")
        one.publish("end")
        assert take(clients[0]) == [*texts("one", 7), "end"]
        assert (two.stats("gaps"), two.missed, two.stats("filled")) == (1, [7], 0)


def test_members_are_closed_when_the_history_is_gone(server: RedisServer, mode: str) -> None:
    with working(mode, server.url, history=5) as (worker,):
        client = worker.join()
        worker.publish("before")
        assert recv(client) == "before"
        server.kill()
        worker.wait_until_lost()
        server.start()
        assert closing(client) == (1013, "messages were missed")
        assert (worker.stats("gaps"), worker.missed) == (1, [None])


def test_nobody_joins_with_a_position_while_redis_is_away(server: RedisServer, mode: str) -> None:
    with working(mode, server.url, history=5) as (worker,):

        @worker.site.route("/resume")
        async def resume(ws: Any) -> None:
            await join(worker.room, ws, since="1.epoch")

        @worker.site.route("/late")
        async def late(ws: Any) -> None:
            await ws.send("accepted")
            await join(worker.room, ws, since="1.epoch")

        worker.join()
        server.kill()
        worker.wait_until_lost()
        with pytest.raises(InvalidStatus) as refused:
            worker.site.connect("/resume")
        assert refused.value.response.status_code == 503
        assert str(server.port).encode() not in refused.value.response.body
        client = worker.site.connect("/late")
        assert recv(client) == "accepted"
        assert closing(client) == (4503, "Service Unavailable")
        assert len(worker.room.local_members) == 1


def test_a_worker_misses_the_first_messages_of_a_room(server: RedisServer, mode: str) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy)) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        proxy.leave()
        two.wait_until_lost()
        one.publish("missed")
        one.wait_until_sent()
        proxy.come_back()
        two.wait_until_back()
        one.publish("end")
        assert [take(client) for client in clients] == [["missed", "end"], ["end"]]
        assert (two.stats("gaps"), two.missed) == (1, [None])


@pytest.mark.parametrize("is_missed", [False, True], ids=["nothing", "a message"])
def test_a_member_that_joins_while_redis_is_away_may_have_missed_something(
    server: RedisServer, mode: str, is_missed: bool
) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy)) as workers:
        proxy.leave()
        one, two = workers
        clients = [one.join(), two.join_at_once()]
        if is_missed:
            one.publish("missed")
            one.wait_until_sent()
        two.wait_until_lost()
        proxy.come_back()
        two.wait_until_back()
        one.publish("end")
        assert [take(client) for client in clients] == [["missed", "end"][not is_missed :], ["end"]]
        assert (two.stats("gaps"), two.missed) == ((1, [None]) if is_missed else (0, []))


def test_a_worker_that_has_missed_nothing_reports_no_gap(server: RedisServer, mode: str) -> None:
    with through_proxy(server) as proxy, working(mode, server.url, url_of(proxy)) as workers:
        one, two = workers
        clients = [one.join(), two.join()]
        for message in ("first", "second"):  # without a message before, and with one
            proxy.leave()
            two.wait_until_lost()
            proxy.come_back()
            two.wait_until_back()
            one.publish(message)
            assert [recv(client) for client in clients] == [message] * 2
        assert [worker.stats("gaps") for worker in workers] == [0, 0]


@pytest.mark.parametrize("end", ["silence", "cut"])
def test_what_a_publisher_sends_through_a_network_that_breaks_arrives_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    if end == "silence":
        monkeypatch.setattr(redis_wire, "TIMEOUT", 0.3)
    with through_proxy(server) as proxy, working("threads", server.url, url_of(proxy)) as workers:
        one, two = workers
        client = one.join()
        own = two.join()
        two.publish("before")
        assert [recv(each) for each in (client, own)] == ["before"] * 2
        two.wait_until_sent()
        proxy.stall_after(2)  # bytes of a reply: Redis has the messages, and two does not know it
        two.publish(*texts("two", 5))
        assert recv(client) == "two 0"
        if end == "cut":
            proxy.leave()
        wait_until(lambda: exchange_of(two.app)._outbox.error is not None)
        proxy.leave()
        proxy.flow()
        proxy.come_back()
        two.publish("end")
        assert take(client) == [*texts("two", 5)[1:], "end"]
        assert (one.stats("gaps"), two.stats("lost")) == (0, 0)


# Publishers


def test_messages_wait_for_redis_and_the_oldest_are_lost_when_they_are_too_many(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_BYTES", 10_000)
    with through_proxy(server) as proxy, working("threads", server.url, url_of(proxy)) as workers:
        one, two = workers
        client = one.join()
        two.join()
        proxy.leave()
        two.publish("being sent")
        wait_until(lambda: exchange_of(two.app)._outbox.error)
        messages = [f"{number} {'x' * 900}" for number in range(100)]
        two.publish(*messages)
        kept = two.stats("waiting") - 1
        assert 5 < kept < 11
        assert two.stats("lost") == 100 - kept
        proxy.come_back()
        two.publish("end")
        assert take(client) == ["being sent", *messages[-kept:], "end"]
        assert one.stats("gaps") == 0


def test_messages_that_have_waited_for_too_long_are_lost(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with through_proxy(server) as proxy, working("threads", server.url, url_of(proxy)) as workers:
        one, two = workers
        client = one.join()
        two.join()
        proxy.leave()
        two.publish("being sent")
        wait_until(lambda: exchange_of(two.app)._outbox.error)
        two.publish(*texts("waiting", 3))
        assert two.stats("waiting") == 4
        with monkeypatch.context() as hasty:
            hasty.setattr(outbox, "LISTEN_TIME", 0.01)
            hasty.setattr(outbox, "MOST_SECONDS", 0.01)
            wait_until(lambda: two.stats("lost") == 4)
        proxy.come_back()
        two.publish("end")
        assert take(client) == ["end"]
        assert one.stats("gaps") == 0


def test_a_process_that_is_no_worker_waits_for_redis_or_fails(server: RedisServer) -> None:
    app = Flask("script")
    room = WebSocket(app).room("news")
    with through_proxy(server) as proxy, working("threads", server.url) as (worker,):
        app.config["WEBSOCKET_BROKER"] = url_of(proxy)
        client = worker.join()
        room.publish("first")
        assert recv(client) == "first"
        for number in range(3):  # on a connection that has ended meanwhile
            proxy.cut()
            room.publish(f"again {number}")
            assert recv(client) == f"again {number}"
        proxy.leave()
        for call in (partial(room.publish, "lost"), partial(room.close, 4000), room.count):
            with pytest.raises(BrokerUnavailable):
                call()
        proxy.come_back()
        room.publish("end")
        assert recv(client) == "end"
        wait_until(lambda: not exchange_of(app)._feed._is_running)
        exchange_of(app).broker().close()


# Patience


def test_attempts_become_rarer_while_redis_refuses_a_subscription(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def backoff(attempt: int) -> float:
        attempts.append(attempt)
        return 0.01

    monkeypatch.setattr(feed, "backoff", backoff)
    with working("threads", server.url) as (worker,):
        client = worker.join()
        server.run("ACL", "SETUSER", "default", "-subscribe")
        server.run("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: len(attempts) >= 5)
        assert attempts[:5] == [0, 1, 2, 3, 4]
        server.run("ACL", "SETUSER", "default", "+subscribe")
        worker.wait_until_back()
        assert worker.stats("broker_losses") == 1
        worker.publish("end")
        assert recv(client) == "end"


def test_rooms_whose_members_leave_during_an_outage_are_given_up(server: RedisServer, mode: str) -> None:
    with working(mode, server.url) as (worker,):
        client = worker.join()
        server.kill()
        worker.wait_until_lost()
        client.close()
        wait_for_background()
        assert worker.stats("rooms") == 0
        server.start()
        client = worker.join()
        worker.publish("end")
        assert recv(client) == "end"
