"""The loop of a blocking caller: of its greenlet, or of its thread."""

from __future__ import annotations

import sys
import threading
from weakref import WeakValueDictionary

from .base import BlockingLoop
from .greenlets import GeventLoop, is_in_gevent, warn_if_unpatched
from .threads import ThreadLoop

_thread_loop = ThreadLoop()
# By the id() of gevent's hub or asyncio's loop, which cannot be another's as long as the value refers to it.
_gevent_loops: WeakValueDictionary[int, GeventLoop] = WeakValueDictionary()


def current_blocker() -> object:
    """Return what a blocking call holds up here: the greenlet of gevent, or else the thread."""
    return sys.modules["gevent"].getcurrent() if is_in_gevent() else threading.get_ident()


def current_blocking_loop() -> BlockingLoop:
    """Return the loop for the caller: gevent's inside one of its greenlets, else the one for threads."""
    if not is_in_gevent():
        return _thread_loop
    from gevent import get_hub

    hub = get_hub()
    warn_if_unpatched()
    loop = _gevent_loops.get(id(hub))
    if loop is None:
        loop = _gevent_loops[id(hub)] = GeventLoop(hub)
    return loop
