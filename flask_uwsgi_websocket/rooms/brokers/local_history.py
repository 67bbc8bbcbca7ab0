"""The history of each room in the log: what is read from it, and what is forgotten. Publishing fills it.

It is bounded for each room by its retention, which publishing takes care of, and for all rooms together.
"""

from __future__ import annotations

import time
from contextlib import suppress

from .base import Delivered, History, Position, Retention
from .local_log import Log, Passing
from .local_schema import HISTORY_OVERHEAD

#: The bytes that all histories have together: at most a quarter of the file system. Between two prunings, they have
#: more.
HISTORY_BYTES = 64 * 2**20

#: The most messages, and the most rooms without one, that one pruning deletes.
PRUNED_MESSAGES = 1000
PRUNED_ROOMS = 1000

# One statement, and so one moment: the position of the room, and the messages of its history.
_READ = """
SELECT rooms.offset, history.offset, history.previous, history.at, history.uptime, history.data
FROM rooms LEFT JOIN histories ON histories.room = rooms.room LEFT JOIN history ON history.history = histories.id
    AND history.offset > max(?, rooms.offset - ?) AND history.starts >= histories.ends - ?
WHERE rooms.room = ? ORDER BY history.offset
"""

#: An offset after all messages.
_END = 2**63 - 1

_OLD_ROOM = "SELECT 1 FROM histories WHERE until < ? LIMIT 1"
_DELETE_OLD = f"""
DELETE FROM history WHERE id IN (
    SELECT history.id FROM histories CROSS JOIN history ON history.history = histories.id WHERE until < ?
    LIMIT {PRUNED_MESSAGES}
)
"""
_FORGET_ROOMS = f"""
DELETE FROM histories WHERE id IN (
    SELECT id FROM histories WHERE until < ? AND NOT EXISTS (SELECT 1 FROM history WHERE history = histories.id)
    LIMIT {PRUNED_ROOMS}
)
"""

_EXCESS = "SELECT 1 FROM history_size WHERE bytes > ?"
_DELETE_EXCESS = f"""
DELETE FROM history WHERE id <= (
    SELECT max(id) FROM (
        SELECT id, sum(size + {HISTORY_OVERHEAD}) OVER (ORDER BY id) - size - {HISTORY_OVERHEAD} AS older
        FROM (SELECT id, size FROM history ORDER BY id LIMIT {PRUNED_MESSAGES})
    ) WHERE older < (SELECT bytes - ? FROM history_size)
)
"""


def read_history(log: Log, room: str, after: Position | None, retention: Retention) -> History:
    """Return what :meth:`.Broker.history` does.

    :raises BrokerUnavailable: when the log cannot be read.
    """
    offset = after.offset if after is not None and after.epoch == log.epoch else _END
    rows = log.execute(_READ, (offset, retention.messages, retention.size, room))
    if not rows:
        return History(None, [])
    # Both clocks, because one may be set, and the other begins again with the machine. After the reading, which may
    # have waited.
    since, since_uptime = time.time() - retention.seconds, time.monotonic() - retention.seconds
    messages = [
        Delivered(room, Position(log.epoch, offset), previous, data)
        for _, offset, previous, at, uptime, data in rows
        if offset is not None and at >= since and uptime >= since_uptime
    ]
    return History(Position(log.epoch, rows[0][0]), messages)


def prune_history(log: Log) -> None:
    """Delete what is too old or too much, a part of it at a time, and without waiting for a lock.

    :raises BrokerUnavailable: when the log is of no use any more.
    """
    now = int(time.time())
    with suppress(Passing):
        if log.attempt(_OLD_ROOM, (now,)):
            log.attempt(_DELETE_OLD, (now,))
            log.attempt(_FORGET_ROOMS, (now,))
        most = min(HISTORY_BYTES, log.space // 4)
        if log.attempt(_EXCESS, (most,)):
            log.attempt(_DELETE_EXCESS, (most,))
