"""Publish numbered messages from processes that are no workers: ``python rooms_publishers.py ROOM COUNT HOW...``

Like a Celery worker, the script imports the application, uses it, and starts children that use it, too: each HOW is
"os.fork" or "multiprocessing". Every process writes lines of JSON: its name as a publisher, when it has begun, and how
many messages it has published.
"""

import json
import multiprocessing
import os
import sys
import time

from live_rooms_app import app, websocket

FORKING = multiprocessing.get_context("fork")


def publish(room: str, name: str, start: int, count: int) -> None:
    """Publish messages from one number to another."""
    began = time.monotonic()
    with app.app_context():
        for number in range(start, count):
            websocket.room(room).publish(f"{name} {number}")
    os.write(1, json.dumps([name, began, count]).encode() + b"\n")


def publish_in_generations(room: str, name: str, count: int) -> None:
    """Publish from a child, and from a child of it."""
    publish(room, name, 0, count // 2)
    child = FORKING.Process(target=publish, args=(room, f"{name}-child", 0, count))
    child.start()
    publish(room, name, count // 2, count)
    child.join()
    sys.exit(child.exitcode)


def start(room: str, name: str, count: int, how: str) -> int:
    """Start a child, and return its process id."""
    if how == "multiprocessing":
        process = FORKING.Process(target=publish_in_generations, args=(room, name, count))
        process.start()
        return process.pid or 0
    pid = os.fork()
    if not pid:
        try:
            publish(room, name, 0, count)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


if __name__ == "__main__":
    room, number = sys.argv[1], int(sys.argv[2])
    publish(room, "parent", 0, number // 2)
    children = [start(room, f"{how}-{index}", number, how) for index, how in enumerate(sys.argv[3:])]
    publish(room, "parent", number // 2, number)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))
