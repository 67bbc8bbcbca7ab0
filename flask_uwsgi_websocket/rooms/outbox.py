"""What a process publishes: a bounded queue, so that no handler waits for the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from random import random
from uuid import uuid4

from ..exceptions import BrokerUnavailable
from ..loops.base import allocate_lock
from .brokers.base import Broker, Outgoing
from .envelope import SEAL_SIZE, seal

#: The most bytes that wait for the broker. Beyond it, the oldest messages are lost.
MOST_BYTES = 16 * 2**20

#: The most seconds for which a message waits for the broker. After them, it is lost.
MOST_SECONDS = 30.0

#: The most seconds for which messages wait after an outage until they would arrive in this process, too.
LISTEN_TIME = 5.0

#: The most messages in one call of the broker.
BATCH = 256

#: Seconds without a message after which the thread ends.
IDLE_TIME = 5.0

#: The memory that a message takes besides its data.
_OVERHEAD = 100

logger = logging.getLogger("flask_uwsgi_websocket")


def backoff(attempt: int) -> float:
    """Return the seconds to wait before an attempt: growing up to 5, with jitter, so that not all come at once."""
    longest: float = min(5.0, 0.05 * 2 ** min(attempt, 10))
    return longest * (0.5 + random() / 2)


class Receipt:
    """What becomes of a published message. The number of subscriptions that it reaches is not known before it is."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached: int | None = None


class Outbox:
    """Publishes messages in the order of the calls, without waiting.

    A thread, or a greenlet where the standard library is patched, hands them to the broker. It starts with the first
    message and ends when there was none for a while.

    :param get_broker: returns the broker, or raises :exc:`BrokerUnavailable`.
    :param is_listening: returns whether the messages would arrive in this process. After an outage, the outbox waits
        for that for a while, so that its own members do not miss what it has kept.
    """

    def __init__(self, get_broker: Callable[[], Broker], is_listening: Callable[[], bool] = lambda: True) -> None:
        self._get_broker = get_broker
        self._is_listening = is_listening
        self._publisher = uuid4()
        self._lock = allocate_lock()  # guards the following attributes, but not the alarm
        self._is_running = False
        # The thread waits for the alarm, a lock that is released to wake it: once each time that the thread is idle.
        self._alarm = threading.Lock()
        self._alarm.acquire()
        self._is_idle = False
        self._queue: deque[tuple[Outgoing, float, Receipt]] = deque()
        self._size = 0
        self._number = 0
        self._sending: list[tuple[Outgoing, float, Receipt]] = []  # only the thread changes it
        #: How many messages the broker has got, and how many were lost because it was away for too long.
        self.published = self.lost = 0
        self._reported = 0  # how many losses the log has
        #: Why the broker cannot be reached, or None.
        self.error: str | None = None

    def __len__(self) -> int:
        """Return the number of messages that the broker does not have yet."""
        return len(self._queue) + len(self._sending)

    def put(self, room: str, data: bytes) -> Receipt:
        """Publish a message soon.

        :raises ValueError: when the message is larger than all messages that may wait.
        """
        _check_size(data)
        receipt = Receipt()
        with self._lock:
            self._number += 1
            message = Outgoing(room, seal(self._publisher.bytes, self._number, data), self._number)
            self._queue.append((message, time.monotonic(), receipt))
            self._size += _memory_of(message)
            while self._size > MOST_BYTES:
                self._lose_oldest()
            starts, self._is_running = not self._is_running, True
            wakes, self._is_idle = self._is_idle, False
        if starts:
            self._start()
        elif wakes:
            self._alarm.release()
        return receipt

    def _start(self) -> None:
        """Start the thread, without the lock: a greenlet that starts one lets others run."""
        thread = threading.Thread(target=self._run, name="flask-uwsgi-websocket-outbox", daemon=True)
        try:
            Context().run(thread.start)  # a greenlet would keep the caller's context alive
        except BaseException:  # no more threads: the next message tries again
            self._is_running = False
            raise

    def _lose_oldest(self) -> None:
        """Forget the oldest message. Called with the lock."""
        message, _, receipt = self._queue.popleft()
        self._size -= _memory_of(message)
        self._count_loss(receipt)

    def _count_loss(self, receipt: Receipt) -> None:
        self.lost += 1
        receipt.reached = 0

    def _run(self) -> None:
        """Hand the messages to the broker until there were none for a while. Runs in the thread."""
        is_over = False
        while not is_over:
            while self._send_all() or self._wait():
                pass
            with self._lock:
                is_over = not self._queue
                self._is_running = not is_over

    def _wait(self) -> bool:
        """Wait for a message; return whether there is one."""
        with self._lock:
            if self._queue:
                return True
            self._is_idle = True
        if self._alarm.acquire(timeout=IDLE_TIME):
            return True
        with self._lock:
            is_over, self._is_idle = self._is_idle, False
        if not is_over:  # a message has come just now, and its publisher is about to release the alarm
            self._alarm.acquire()
        return not is_over

    def _send_all(self) -> bool:
        """Hand over a batch, however long that takes. Return False if there was none."""
        with self._lock:
            self._sending = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._size -= sum(_memory_of(message) for message, _, _ in self._sending)
        if not self._sending:
            return False
        attempt = 0
        while self._sending and not self._try():
            time.sleep(backoff(attempt))
            attempt += 1
            self._wait_for_members()
            self._drop_late()
        self._sending = []
        return True

    def _wait_for_members(self) -> None:
        """Wait until the messages would arrive in this process, for at most :data:`LISTEN_TIME`."""
        deadline = time.monotonic() + LISTEN_TIME
        while not self._is_listening() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _try(self) -> bool:
        """Hand over the batch; return whether the broker has it."""
        try:
            reached = self._get_broker().publish([message for message, _, _ in self._sending], self._publisher.hex)
        except BrokerUnavailable as error:
            if self.error is None:
                logger.warning("The broker of the rooms is not available, and messages wait for it: %s", error)
            self.error = str(error)
            return False
        except Exception as error:  # of a broker that is not ours, too: the messages of others go on
            logger.exception("publishing to rooms has failed")
            self.error = repr(error)
            return False
        if self.error is not None:
            logger.warning("The broker of the rooms is available again.")
            self.error = None
        self._report_losses()
        for (_, _, receipt), count in zip(self._sending, reached, strict=True):
            receipt.reached = max(count, 0)
        self.published += len(reached)
        return True

    def _drop_late(self) -> None:
        """Forget the messages that have waited for too long."""
        oldest = time.monotonic() - MOST_SECONDS
        with self._lock:
            while self._queue and self._queue[0][1] < oldest:
                self._lose_oldest()
            for _, since, receipt in self._sending:
                if since < oldest:
                    self._count_loss(receipt)
            self._sending = [each for each in self._sending if each[1] >= oldest]
        self._report_losses()

    def _report_losses(self) -> None:
        """Log how many messages were lost since the last report."""
        lost, self._reported = self.lost - self._reported, self.lost
        if lost:
            logger.error(
                "%d messages to rooms are lost: the broker was not available for %g s, or too many waited for it.",
                lost,
                MOST_SECONDS,
            )


class Direct:
    """Publishes from a process that is no worker: a call returns when the broker has the message.

    :param get_broker: returns the broker, or raises :exc:`BrokerUnavailable`.
    :param is_listening: returns whether the messages would arrive in this process. After an outage, the outbox waits
        for that for a while, so that its own members do not miss what it has kept.
    """

    def __init__(self, get_broker: Callable[[], Broker], is_listening: Callable[[], bool] = lambda: True) -> None:
        self._get_broker = get_broker
        self._is_listening = is_listening
        self._publisher = uuid4()
        self._lock = threading.Lock()  # held while the broker is asked: one call after the other
        self._number = 0

    def put(self, room: str, data: bytes) -> Receipt:
        """Publish a message.

        :raises BrokerUnavailable: when the broker does not have it.
        :raises ValueError: when the message is too large.
        """
        _check_size(data)
        receipt = Receipt()
        with self._lock:
            self._number += 1
            message = Outgoing(room, seal(self._publisher.bytes, self._number, data), self._number)
            (receipt.reached,) = self._get_broker().publish([message], self._publisher.hex)
        return receipt


def _memory_of(message: Outgoing) -> int:
    return len(message.data) + _OVERHEAD


def _check_size(data: bytes) -> None:
    """Check that a message is not larger than all messages that may wait.

    :raises ValueError: when it is.
    """
    if len(data) + SEAL_SIZE + _OVERHEAD > MOST_BYTES:
        raise ValueError(f"a message of {len(data):,} bytes cannot be published: the most is {MOST_BYTES:,}")
