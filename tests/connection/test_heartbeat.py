"""The heartbeat decides when to ping a peer and when to drop it. No socket and no clock is needed."""

from __future__ import annotations

import pytest

from flask_uwsgi_websocket.connection.heartbeat import Heartbeat, SendPing
from flask_uwsgi_websocket.protocol.protocol import Close


def nothing_unread() -> bool:
    return False


def started(interval: float | None = 20, timeout: float | None = 10) -> Heartbeat:
    """Return a heartbeat that has sent its first ping at 20 s."""
    heartbeat = Heartbeat(interval, timeout)
    heartbeat.start(0)
    if interval is not None:
        assert heartbeat.check(20, False, nothing_unread) == SendPing()
        assert heartbeat.ping_sent(20)
    return heartbeat


def test_the_first_ping_comes_within_the_second_half_of_the_interval() -> None:
    for _ in range(100):
        heartbeat = Heartbeat(20, 10)
        heartbeat.start(100)
        assert 110 <= heartbeat.due <= 120
        assert heartbeat.check(109.9, False, nothing_unread) is None


def test_a_peer_is_pinged_again_after_the_interval() -> None:
    heartbeat = started(timeout=None)
    assert heartbeat.due == 40
    assert heartbeat.check(39.9, False, nothing_unread) is None
    assert heartbeat.check(40, False, nothing_unread) == SendPing()


def test_a_peer_that_is_silent_after_a_ping_is_dropped() -> None:
    heartbeat = started()
    assert heartbeat.due == 30
    assert heartbeat.check(30, False, nothing_unread) is None
    assert heartbeat.check(30.1, False, nothing_unread) == Close(1006, "no answer to a ping for 10 s")


def test_silence_counts_from_the_first_unanswered_ping() -> None:
    heartbeat = started(interval=4)
    assert not heartbeat.ping_sent(24)
    assert isinstance(heartbeat.check(30.1, False, nothing_unread), Close)


def test_any_input_is_an_answer() -> None:
    heartbeat = started()
    assert heartbeat.check(30.1, True, nothing_unread) is None
    assert heartbeat.due == 40
    assert heartbeat.check(40, False, nothing_unread) == SendPing()
    assert heartbeat.ping_sent(40)


def test_unread_input_may_be_the_answer() -> None:
    heartbeat = started()
    assert heartbeat.check(35, False, lambda: True) is None
    assert isinstance(heartbeat.check(36, False, nothing_unread), Close)


@pytest.mark.parametrize("timeout", [10, None])
def test_without_an_interval_only_the_pings_of_the_application_are_watched(timeout: float | None) -> None:
    heartbeat = started(None, timeout)
    assert heartbeat.check(1e9, False, nothing_unread) is None
    assert heartbeat.ping_sent(1e9)
    assert isinstance(heartbeat.check(1e9 + 11, False, nothing_unread), Close) is (timeout is not None)
