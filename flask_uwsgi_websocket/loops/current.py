"""The loop of a blocking caller, which is a greenlet or a thread."""

from __future__ import annotations

import sys
import threading
from weakref import WeakValueDictionary

from .base import BlockingLoop
from .greenlets import GeventLoop, is_in_gevent, warn_if_unpatched
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
