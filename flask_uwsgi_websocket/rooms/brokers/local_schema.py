"""The tables of a log's file. Triggers do what belongs to one change: a statement is a transaction of its own.

So the lock is held only while SQLite runs, which it does without the interpreter's lock. A thread that computes cannot
make other processes wait.
"""

from __future__ import annotations

#: The version of the schema. Raise it with every change.
VERSION = 2

#: What a message costs in the log besides its data, and what it costs in the history of its room, in bytes; roughly.
OVERHEAD = 100
HISTORY_OVERHEAD = 150

# Ids have no gaps, because the last message is never deleted: a reader that finds one knows that it came too late.
# A new room begins after the last offset of all rooms that were forgotten, so that no offset of a room comes twice.
_LOG = f"""
CREATE TABLE log (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, total INTEGER NOT NULL,
    room TEXT NOT NULL, previous INTEGER NOT NULL, offset INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE rooms (
    room TEXT PRIMARY KEY, previous INTEGER NOT NULL, offset INTEGER NOT NULL, hour INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX rooms_by_hour ON rooms (hour);
CREATE TABLE forgotten (offset INTEGER NOT NULL);
INSERT INTO forgotten VALUES (0);
CREATE TRIGGER forget AFTER DELETE ON rooms BEGIN
    UPDATE forgotten SET offset = max(offset, OLD.offset);
END;
CREATE TABLE publishers (
    publisher TEXT PRIMARY KEY, number INTEGER NOT NULL, hour INTEGER NOT NULL
) WITHOUT ROWID;
CREATE VIEW batch AS SELECT room, data, number, publisher, at FROM log, publishers;
CREATE TRIGGER publish INSTEAD OF INSERT ON batch BEGIN
    INSERT INTO rooms VALUES (NEW.room, 0, (SELECT offset + 1 FROM forgotten), NEW.at / 3600)
        ON CONFLICT DO UPDATE SET previous = offset, offset = offset + 1;
    UPDATE rooms SET hour = NEW.at / 3600 WHERE room = NEW.room AND hour <> NEW.at / 3600;
    INSERT INTO log (at, total, room, previous, offset, data)
        SELECT NEW.at, coalesce((SELECT total FROM log ORDER BY id DESC LIMIT 1), 0) + length(NEW.data) + {OVERHEAD},
            room, previous, offset, NEW.data FROM rooms WHERE room = NEW.room;
    INSERT INTO publishers VALUES (NEW.publisher, NEW.number, NEW.at / 3600)
        ON CONFLICT DO UPDATE SET number = excluded.number, hour = excluded.hour;
END;
"""

# A room has a row in histories until all of its messages are too old, and its messages have the number of that row: a
# name may be long. ends is the number of bytes that the history of the room has ever had, and starts is where a
# message is among them, so that a difference is the size of all that are newer.
# Each message has the time of the day and that of the machine: a clock may be set, and a machine begins again.
_HISTORY = f"""
CREATE TABLE histories (
    id INTEGER PRIMARY KEY, room TEXT NOT NULL UNIQUE, ends INTEGER NOT NULL, until INTEGER NOT NULL
);
CREATE INDEX histories_by_time ON histories (until);
CREATE TABLE history (
    id INTEGER PRIMARY KEY, history INTEGER NOT NULL, offset INTEGER NOT NULL, previous INTEGER NOT NULL,
    at REAL NOT NULL, uptime REAL NOT NULL, starts INTEGER NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX history_by_offset ON history (history, offset);
CREATE TABLE history_size (bytes INTEGER NOT NULL);
INSERT INTO history_size VALUES (0);
CREATE TRIGGER shrink AFTER DELETE ON history BEGIN
    UPDATE history_size SET bytes = bytes - OLD.size - {HISTORY_OVERHEAD};
END;
CREATE VIEW kept_batch (room, data, number, publisher, at, uptime, messages, seconds, size)
    AS SELECT room, data, number, publisher, at, 0, 0, 0, 0 FROM log, publishers;
CREATE TRIGGER publish_only INSTEAD OF INSERT ON kept_batch WHEN NEW.messages IS NULL BEGIN
    INSERT INTO batch VALUES (NEW.room, NEW.data, NEW.number, NEW.publisher, CAST(NEW.at AS INTEGER));
END;
CREATE TRIGGER publish_and_keep INSTEAD OF INSERT ON kept_batch WHEN NEW.messages IS NOT NULL BEGIN
    INSERT INTO batch VALUES (NEW.room, NEW.data, NEW.number, NEW.publisher, CAST(NEW.at AS INTEGER));
    INSERT INTO histories (room, ends, until) VALUES (NEW.room, length(NEW.data), 0)
        ON CONFLICT DO UPDATE SET ends = ends + excluded.ends;
    UPDATE histories SET until = CAST(NEW.at + NEW.seconds AS INTEGER)
        WHERE room = NEW.room AND until <> CAST(NEW.at + NEW.seconds AS INTEGER);
    INSERT INTO history (history, offset, previous, at, uptime, starts, size, data)
        SELECT histories.id, rooms.offset, rooms.previous, NEW.at, NEW.uptime, histories.ends - length(NEW.data),
            length(NEW.data), NEW.data FROM rooms, histories WHERE rooms.room = NEW.room AND histories.room = NEW.room;
    UPDATE history_size SET bytes = bytes + length(NEW.data) + {HISTORY_OVERHEAD};
    DELETE FROM history WHERE history = (SELECT id FROM histories WHERE room = NEW.room) AND offset < coalesce(
        (
            SELECT history.offset FROM rooms, histories, history
            WHERE rooms.room = NEW.room AND histories.room = NEW.room AND history.history = histories.id
                AND history.offset > rooms.offset - NEW.messages AND history.starts >= histories.ends - NEW.size
                AND history.at >= NEW.at - NEW.seconds
            ORDER BY history.offset LIMIT 1
        ), {2**63 - 1}
    );
END;
"""

# A member has left when it has no attendance any more, and is gone at the end of its grace; both by the time of the
# machine. call is the call that the member came with, by which that call learns of it.
_ROSTER = """
CREATE TABLE owners (owner TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE attendances (
    room TEXT NOT NULL, member TEXT NOT NULL, connection TEXT NOT NULL, owner TEXT NOT NULL, grace REAL NOT NULL,
    PRIMARY KEY (room, member, connection)
) WITHOUT ROWID;
CREATE INDEX attendances_by_owner ON attendances (owner);
CREATE TABLE members (
    room TEXT NOT NULL, member TEXT NOT NULL, since REAL NOT NULL, call INTEGER NOT NULL,
    left_at REAL, gone_at REAL, data BLOB NOT NULL, PRIMARY KEY (room, member)
) WITHOUT ROWID;
CREATE INDEX members_by_end ON members (gone_at, room) WHERE gone_at IS NOT NULL;
CREATE TABLE member_counts (room TEXT PRIMARY KEY, members INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER count_up AFTER INSERT ON members BEGIN
    INSERT INTO member_counts VALUES (NEW.room, 1) ON CONFLICT DO UPDATE SET members = members + 1;
END;
CREATE TRIGGER count_down AFTER DELETE ON members BEGIN
    UPDATE member_counts SET members = members - 1 WHERE room = OLD.room;
    DELETE FROM member_counts WHERE room = OLD.room AND members = 0;
END;
CREATE VIEW entering (room, member, connection, data, grace, since, owner, call)
    AS SELECT room, member, connection, 0, grace, 0, owner, 0 FROM attendances;
CREATE TRIGGER enter INSTEAD OF INSERT ON entering BEGIN
    INSERT OR IGNORE INTO owners VALUES (NEW.owner);
    INSERT INTO members VALUES (NEW.room, NEW.member, NEW.since, NEW.call, NULL, NULL, NEW.data)
        ON CONFLICT DO UPDATE SET left_at = NULL, gone_at = NULL, data = excluded.data;
    INSERT INTO attendances VALUES (NEW.room, NEW.member, NEW.connection, NEW.owner, NEW.grace)
        ON CONFLICT DO UPDATE SET owner = excluded.owner, grace = excluded.grace;
END;
CREATE VIEW leaving (room, member, connection, now) AS SELECT room, member, connection, 0 FROM attendances;
CREATE TRIGGER leave INSTEAD OF INSERT ON leaving BEGIN
    UPDATE members SET left_at = NEW.now, gone_at = NEW.now + (
        SELECT grace FROM attendances WHERE room = NEW.room AND member = NEW.member AND connection = NEW.connection
    ) WHERE room = NEW.room AND member = NEW.member AND EXISTS (
        SELECT 1 FROM attendances WHERE room = NEW.room AND member = NEW.member AND connection = NEW.connection
    ) AND NOT EXISTS (
        SELECT 1 FROM attendances WHERE room = NEW.room AND member = NEW.member AND connection <> NEW.connection
    );
    DELETE FROM attendances WHERE room = NEW.room AND member = NEW.member AND connection = NEW.connection;
END;
"""

SCHEMA = f"{_LOG}{_HISTORY}{_ROSTER}PRAGMA user_version = {VERSION};"
