"""A connection ends when it is too old, idle for too long, or its peer reads too slowly. No socket is needed."""

from __future__ import annotations

from flask_uwsgi_websocket.connection.lifespan import Lifespan
from flask_uwsgi_websocket.connection.pace import Pace
from flask_uwsgi_websocket.protocol.protocol import Close


def test_a_connection_ends_within_the_last_tenth_of_its_lifetime() -> None:
    for _ in range(100):
        lifespan = Lifespan(100, None)
        lifespan.start(0)
        assert 90 <= lifespan.due(0) <= 100
        assert lifespan.check(89.9, 0) is None
        assert lifespan.check(100, 0) == Close(1012, "the connection has lasted long enough: connect again")


def test_a_connection_ends_after_the_idle_timeout_unless_a_message_comes() -> None:
    lifespan = Lifespan(None, 10)
    lifespan.start(0)
    assert lifespan.due(0) == 1
    assert lifespan.check(9.9, 0) is None
    assert lifespan.check(10, 1) is None
    assert lifespan.check(19.9, 1) is None
    assert lifespan.check(20, 1) == Close(1001, "no message for 10 s")


def test_without_limits_a_connection_does_not_end() -> None:
    lifespan = Lifespan(None, None)
    lifespan.start(0)
    assert lifespan.check(1e9, 0) is None


def test_a_peer_that_reads_nothing_is_too_slow() -> None:
    pace = Pace(send_timeout=10, min_read_rate=100)
    pace.begin(0, 0)
    assert pace.check(10, 0) is None
    assert pace.check(10.1, 0) == "the peer has read nothing for 10 s"
    pace.stuck_since = 5
    assert pace.check(10.1, 5000) is None


def test_a_peer_that_reads_only_a_few_bytes_is_too_slow() -> None:
    pace = Pace(send_timeout=10, min_read_rate=100)
    pace.begin(0, 1000)
    pace.stuck_since = 11
    assert pace.check(11, 1000 + 1099) == "the peer has read less than 100 bytes/s for 10 s"


def test_the_rate_is_measured_again_in_each_timeout() -> None:
    pace = Pace(send_timeout=10, min_read_rate=100)
    pace.begin(0, 0)
    pace.stuck_since = 11
    assert pace.check(11, 1100) is None
    pace.stuck_since = 22.5
    assert pace.check(22.5, 1200) == "the peer has read less than 100 bytes/s for 10 s"
