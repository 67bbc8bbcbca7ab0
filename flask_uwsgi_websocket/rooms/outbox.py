"""What a process publishes: a bounded queue, so that no handler waits for the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from enum import Enum
from functools import partial
from random import random
from uuid import uuid4

from ..exceptions import BrokerUnavailable
from ..loops.base import EventLoop, allocate_lock
from ..loops.current import served_loop
from .brokers.base import Broker, Outgoing, Retention
from .envelope import SEAL_SIZE, seal

#: The most bytes that wait for the broker. Beyond it, the oldest messages are lost.
MOST_BYTES = 16 * 2**20

#: The most seconds for which a message waits for the broker. After them, it is lost.
MOST_SECONDS = 30.0

#: The most seconds for which messages wait after an outage until they would arrive in this process, too.
LISTEN_TIME = 5.0

#: The most messages in one call of the broker.
BATCH = 256

#: The most messages that a callback of a loop hands to the broker.
BATCH_NOW = 32

#: The seconds until the next callback: as few as they may be for the loop to look for input meanwhile.
NEXT = 1e-9

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


# A message in the queue: the seconds on the clock when it came, and who wants to know what becomes of it.
_Waiting = tuple[Outgoing, float, "Receipt | None"]


class Sender(Enum):
    """Who hands the messages of an outbox to the broker."""

    #: No message waits.
    NOBODY = "nobody"
    #: A callback of a loop, which has not begun.
    CALLBACK = "callback"
    #: A callback of a loop, which has begun.
    LOOP = "loop"
    #: The thread.
    THREAD = "thread"


class Outbox:
    """Publishes messages in the order of the calls, without waiting.

    Where the caller has an event loop, and the broker has :meth:`.Broker.publish_now`, a callback of the loop hands
    over all messages of one turn of the loop. Otherwise, a thread does it, or a greenlet where the standard library is
    patched. It starts with the first message and ends when there was none for it for a while.

    :param get_broker: returns the broker, or raises :exc:`BrokerUnavailable`.
    :param is_listening: returns whether the messages would arrive in this process. After an outage, the outbox waits
        for that for a while, so that its own members do not miss what it has kept.
    """

    def __init__(self, get_broker: Callable[[], Broker], is_listening: Callable[[], bool] = lambda: True) -> None:
        self._get_broker = get_broker
        self._is_listening = is_listening
        publisher = uuid4()
        self._publisher, self._name = publisher.bytes, publisher.hex
        self._lock = allocate_lock()  # guards the following attributes, but not the alarm
        self._sender = Sender.NOBODY
        self._is_running = False
        # The thread waits for the alarm, a lock that is released to wake it: once each time that the thread is idle.
        self._alarm = threading.Lock()
        self._alarm.acquire()
        self._is_idle = False
        self._queue: deque[_Waiting] = deque()
        self._size = 0
        self._number = 0
        self._sending: list[_Waiting] = []  # only the sender changes it
        # The broker's publish_now() if it has one, once the thread has reached the broker.
        self._publish_now: Callable[[Sequence[Outgoing], str], Sequence[int] | None] = _not_now
        #: How many messages were lost: they waited for too long, or too many waited.
        self.lost = 0
        self._reported = 0  # how many losses the log has
        #: Why the broker cannot be reached, or None.
        self.error: str | None = None

    def __len__(self) -> int:
        """Return the number of messages that the broker does not have yet."""
        return len(self._queue) + len(self._sending)

    @property
    def accepted(self) -> int:
        """How many messages there were so far."""
        return self._number

    def put(
        self, room: str, data: bytes, retention: Retention | None = None, *, receipt: Receipt | None = None
    ) -> None:
        """Publish a message soon.

        :param receipt: gets what becomes of the message.
        :raises ValueError: when the message is larger than all messages that may wait.
        """
        size = _checked_size(data)
        with self._lock:
            self._number = number = self._number + 1
            message = Outgoing(room, seal(self._publisher, number, data), number, retention)
            self._queue.append((message, time.monotonic(), receipt))
            self._size += size
            while self._size > MOST_BYTES:
                self._lose_oldest()
            sender = self._sender
            if sender is Sender.NOBODY:
                self._sender = Sender.CALLBACK
        if sender is Sender.NOBODY or sender is Sender.CALLBACK:
            loop = None if self._publish_now is _not_now else served_loop()
            if loop is None:  # nor may the message wait for the loop of another thread, which may be busy
                self.hurry()
            elif sender is Sender.NOBODY:
                loop.call_soon(partial(self._send_soon, loop))

    def hurry(self) -> None:
        """Have the thread send what a callback of a loop would send, such as a loop that does not run any more."""
        self._let_thread_send(instead_of=Sender.CALLBACK)

    def _send_soon(self, loop: EventLoop) -> None:
        """Send what waits. Called by a loop, where nothing may wait."""
        with self._lock:
            if self._sender is not Sender.CALLBACK:  # the thread was faster
                return
            self._sender = Sender.LOOP
        if (delay := self._send_now(loop)) is not None:
            loop.run_every(delay, partial(self._send_now, loop))

    def _send_now(self, loop: EventLoop) -> float | None:
        """Send a batch without waiting; return the seconds until the next one if there is one."""
        with self._lock:
            self._take(BATCH_NOW)
        reached = None
        try:
            reached = self._publish_now([message for message, _, _ in self._sending], self._name)
        except Exception:  # the thread gets it again, and logs it
            pass
        finally:
            if reached is None:
                loop.run_aside(partial(self._let_thread_send, instead_of=Sender.LOOP))
        if reached is None:
            return None
        self._fill_receipts(reached)
        with self._lock:
            self._sending = []
            if not self._queue:
                self._sender = Sender.NOBODY
                return None
            return NEXT

    def _let_thread_send(self, instead_of: Sender) -> None:
        """Start or wake the thread, without the lock: a greenlet that starts one lets others run."""
        with self._lock:
            if self._sender is not instead_of:
                return
            self._sender = Sender.THREAD
            starts, self._is_running = not self._is_running, True
            wakes, self._is_idle = self._is_idle, False
        if starts:
            thread = threading.Thread(target=self._run, name="flask-uwsgi-websocket-outbox", daemon=True)
            try:
                Context().run(thread.start)  # a greenlet would keep the caller's context alive
            except BaseException:  # no more threads: the next message tries again
                with self._lock:
                    self._is_running = False
                    self._sender = Sender.NOBODY
                raise
        elif wakes:
            self._alarm.release()

    def _lose_oldest(self) -> None:
        """Forget the oldest message. Called with the lock."""
        message, _, receipt = self._queue.popleft()
        self._size -= _memory_of(message)
        self._count_loss(receipt)

    def _count_loss(self, receipt: Receipt | None) -> None:
        self.lost += 1
        if receipt is not None:
            receipt.reached = 0

    def _run(self) -> None:
        """Hand the messages to the broker until there were none for a while. Runs in the thread."""
        while self._wait():
            self._send_all()

    def _wait(self) -> bool:
        """Wait until the thread has to send; return False when it ends."""
        with self._lock:
            if self._sender is Sender.THREAD:
                return True
            self._is_idle = True
        if self._alarm.acquire(timeout=IDLE_TIME):
            return True
        with self._lock:
            is_over, self._is_idle = self._is_idle, False
            self._is_running = not is_over
        if not is_over:  # a message has come just now, and its publisher is about to release the alarm
            self._alarm.acquire()
        return not is_over

    def _take(self, most: int) -> None:
        """Take a batch from the queue, unless there is one that the broker did not take. Called with the lock."""
        if not self._sending:
            for _ in range(min(most, len(self._queue))):
                waiting = self._queue.popleft()
                self._size -= _memory_of(waiting[0])
                self._sending.append(waiting)

    def _send_all(self) -> None:
        """Hand over all messages, however long that takes. Runs in the thread."""
        while True:
            with self._lock:
                self._take(BATCH)
                if not self._sending:
                    self._sender = Sender.NOBODY
                    return
            attempt = 0
            while self._sending and not self._try():
                time.sleep(backoff(attempt))
                attempt += 1
                self._wait_for_members()
                self._drop_late()
            with self._lock:
                self._sending = []

    def _wait_for_members(self) -> None:
        """Wait until the messages would arrive in this process, for at most :data:`LISTEN_TIME`."""
        deadline = time.monotonic() + LISTEN_TIME
        while not self._is_listening() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _try(self) -> bool:
        """Hand over the batch; return whether the broker has it."""
        try:
            broker = self._get_broker()
            reached = broker.publish([message for message, _, _ in self._sending], self._name)
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
        self._fill_receipts(reached)
        self._publish_now = broker.publish_now if broker.publishes_now else _not_now
        return True

    def _fill_receipts(self, reached: Sequence[int]) -> None:
        """Fill the receipts of the batch, which the broker has."""
        for (_, _, receipt), count in zip(self._sending, reached, strict=True):
            if receipt is not None:
                receipt.reached = max(count, 0)

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
    """

    def __init__(self, get_broker: Callable[[], Broker]) -> None:
        self._get_broker = get_broker
        publisher = uuid4()
        self._publisher, self._name = publisher.bytes, publisher.hex
        self._lock = threading.Lock()  # held while the broker is asked: one call after the other
        self._number = 0

    @property
    def accepted(self) -> int:
        """How many messages there were so far."""
        return self._number

    def put(
        self, room: str, data: bytes, retention: Retention | None = None, *, receipt: Receipt | None = None
    ) -> None:
        """Publish a message.

        :param receipt: gets how many subscriptions the message has reached.
        :raises BrokerUnavailable: when the broker does not have it.
        :raises ValueError: when the message is too large.
        """
        _checked_size(data)
        with self._lock:
            self._number += 1
            message = Outgoing(room, seal(self._publisher, self._number, data), self._number, retention)
            (reached,) = self._get_broker().publish([message], self._name)
        if receipt is not None:
            receipt.reached = reached


def _not_now(messages: Sequence[Outgoing], publisher: str) -> None:
    """Do nothing, as a broker without ``publish_now()``."""


def _memory_of(message: Outgoing) -> int:
    return len(message.data) + _OVERHEAD


def _checked_size(data: bytes) -> int:
    """Return the memory that a message will take in an outbox.

    :raises ValueError: when it is larger than all messages that may wait.
    """
    size = len(data) + SEAL_SIZE + _OVERHEAD
    if size > MOST_BYTES:
        raise ValueError(f"a message of {len(data):,} bytes cannot be published: the most is {MOST_BYTES:,}")
    return size
