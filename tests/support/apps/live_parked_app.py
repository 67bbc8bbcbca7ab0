"""The application of the tests of parked views under load and faults.

A view notes its calls. It tells the journal of its beginning, its end, and of each call that should not have been.
"""

import asyncio
import gc
import importlib
import json
import os
import resource
import threading
import weakref
from contextlib import suppress

from flask import abort, request
from live_app import IS_ASYNCIO, Deliberate, app, for_mode, journal, sleep, websocket

from flask_uwsgi_websocket import WebSocketView
from flask_uwsgi_websocket.worker.housekeeper import connections

__all__ = ["app"]

#: The names that ``/release/<name>`` has released.
released = set()

#: The views of connections that have not ended, and of others that only a garbage collection would free.
views = weakref.WeakSet()


class Noted(WebSocketView):
    """Each message is the token of its client, its number, and what to do, with a colon between them."""

    @for_mode
    async def on_connect(self, ws):
        views.add(self)
        self.token = request.args["token"]
        self.count = 0
        self.running = None
        self.has_ended = False
        journal("opened", token=self.token)

    @for_mode
    async def on_message(self, ws, message):
        self.begin("on_message")
        try:
            token, number, what, *arguments = message.split(":")
            if (token, int(number), request.args["token"]) != (self.token, self.count, self.token):
                journal("wrong", token=self.token, count=self.count, message=message)
            self.count += 1
            await getattr(self, "do_" + what)(ws, message, *arguments)
        finally:
            self.running = None

    @for_mode
    async def on_close(self, ws, code, reason):
        self.begin("on_close")
        self.has_ended = True
        await sleep(0)
        self.running = None
        journal("ended", token=self.token, count=self.count, code=code)

    def begin(self, name):
        if self.running or self.has_ended:
            journal("wrong", token=self.token, running=self.running, name=name, has_ended=self.has_ended)
        self.running = name

    async def do_count(self, ws, message):
        pass

    async def do_echo(self, ws, message, *filling):
        await ws.send(message)

    async def do_sleep(self, ws, message, seconds):
        await sleep(float(seconds))
        await ws.send(message)

    async def do_hold(self, ws, message, name):
        await ws.send(message)
        while name not in released:
            await sleep(0.005)

    async def do_send(self, ws, message, size):
        await ws.send("x" * int(size))

    async def do_raise(self, ws, message):
        raise Deliberate

    async def do_exit(self, ws, message):
        """Raise what ends the thread, greenlet or task."""
        if IS_ASYNCIO:
            raise asyncio.CancelledError
        if os.environ["LIVE_CLASS"] == "GeventWebSocket":
            raise importlib.import_module("gevent").GreenletExit
        raise KeyboardInterrupt

    async def do_abort(self, ws, message):
        abort(404)

    async def do_close(self, ws, message, code):
        await ws.close(int(code))

    async def do_close_at_once(self, ws, message, code):
        await ws.close(int(code), wait=False)


websocket.add_url_rule("/noted", "noted", Noted.as_view("noted"))
websocket.add_url_rule("/compressed", "compressed", Noted.as_view("compressed"), compression=True)
websocket.add_url_rule(
    "/impatient", "impatient", Noted.as_view("impatient"), send_timeout=1, close_timeout=1, idle_timeout=2
)


@app.route("/release/<name>")
def release(name):
    released.add(name)
    return ""


@app.route("/parked")
def parked():
    return json.dumps(len(connections()))


@app.route("/views")
def count_views():
    return json.dumps(len(views))


@app.route("/collect/<int:goes_on>")
def collect(goes_on):
    """Collect garbage, and go on with that or not."""
    (gc.enable if goes_on else gc.disable)()
    return json.dumps(gc.collect())


@app.route("/rests")
def rests():
    """Return whether there is no view, and no thread of the housekeeper, which has descriptors of its own."""
    gc.collect()
    return json.dumps(not views and all(thread.name != "flask-uwsgi-websocket" for thread in threading.enumerate()))


# Views that cannot be parked


def raising_after(view):
    """Decorate a view so that it raises when it is about to be parked."""
    if IS_ASYNCIO:

        async def call(ws):
            await view(ws)
            raise Deliberate

    else:

        def call(ws):
            view(ws)
            raise Deliberate

    call.view_class = view.view_class
    return call


class Decorated(Noted):
    decorators = (raising_after,)


class Receiving(Noted):
    """Another thread, greenlet or task receives."""

    @for_mode
    async def on_connect(self, ws):
        await super().on_connect(ws) if IS_ASYNCIO else super().on_connect(ws)
        await ws.accept()
        if IS_ASYNCIO:
            self.task = asyncio.create_task(ws.receive())
        else:
            threading.Thread(target=ws._ws.receive).start()
        while not ws.channel.is_receiving:
            await sleep(0.005)


class Starving(Noted):
    """No more files can be opened."""

    @for_mode
    async def on_connect(self, ws):
        await super().on_connect(ws) if IS_ASYNCIO else super().on_connect(ws)
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, self.limits[1]))
        self.files = []
        with suppress(OSError):
            while True:
                self.files.append(os.open(os.devnull, os.O_RDONLY))

    @for_mode
    async def on_close(self, ws, code, reason):
        for file in self.files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        await super().on_close(ws, code, reason) if IS_ASYNCIO else super().on_close(ws, code, reason)


websocket.add_url_rule("/decorated", "decorated", Decorated.as_view("decorated"), max_connections=2)
websocket.add_url_rule("/receiving", "receiving", Receiving.as_view("receiving"))
websocket.add_url_rule("/starving", "starving", Starving.as_view("starving"))
