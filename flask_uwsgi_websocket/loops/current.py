"""The loop of a caller that is no coroutine: a greenlet or a thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

from .base import BlockingLoop, EventLoop, Loop, T, run
from .greenlets import GeventLoop, is_in_gevent, warn_if_unpatched
from .tasks import current_asyncio_loop, is_in_loop, parent_greenlet, run_in_greenlet, served_asyncio_loop
from .threads import ThreadLoop

_thread_loop = ThreadLoop()
# The keys are the id() of gevent's hubs. A loop refers to its hub, so no other hub gets the id while the loop exists.
_gevent_loops: WeakValueDictionary[int, GeventLoop] = WeakValueDictionary()


def current_blocker() -> object:
    """Return what a blocking call blocks here: gevent's current greenlet, or else the thread."""
    return sys.modules["gevent"].getcurrent() if is_in_gevent() else threading.get_ident()


def current_blocking_loop() -> BlockingLoop:
    """Return the caller's loop: gevent's in a greenlet of gevent, else the loop for threads."""
    if not is_in_gevent():
        return _thread_loop
    from gevent import get_hub

    hub = get_hub()
    warn_if_unpatched()
    loop = _gevent_loops.get(id(hub))
    if loop is None:
        loop = _gevent_loops[id(hub)] = GeventLoop(hub)
    return loop


def served_loop() -> EventLoop | None:
    """Return the event loop of the caller, if connections already use it: one that is likely to go on.

    None in a thread without one.
    """
    if is_in_gevent():
        return _gevent_loops.get(id(sys.modules["gevent"].get_hub()))  # without an import statement, which costs more
    return served_asyncio_loop()


def wait_for(call: Callable[[Loop], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine of a call that may wait, and return its result. The caller is no coroutine.

    :param call: called with the loop of the caller.
    :raises RuntimeError: when the caller is a coroutine, whose event loop would stand still.
    """
    if not is_in_loop():
        return run(call(current_blocking_loop()))
    if parent_greenlet() is None:
        raise RuntimeError("a coroutine cannot wait for this call: use await asyncio.to_thread(call)")
    return run_in_greenlet(call(current_asyncio_loop()), "flask-uwsgi-websocket")
