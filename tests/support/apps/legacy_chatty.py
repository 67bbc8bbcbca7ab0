"""One more of the examples of 0.6.1, in legacy_app.py: it never forgets a user."""

from flask import Blueprint
from live_app import MODULE

ws = Blueprint("chatty", __name__, url_prefix="/legacy")


def sleep(seconds):  # gevent's in the example
    MODULE.sleep(seconds / 100)


class Users(dict):
    """The users of an example: a dict to which threads may add while others iterate over it, as greenlets did not."""

    def __iter__(self):
        return iter(list(self.keys()))


# examples/chatty-gevent

users = Users()

@ws.route('/chatty')
def sender(ws):
    users[ws.id] = ws

    while True:
        for id in users:
            if id != ws.id:
                users[id].send('hi from ' + ws.id)
        sleep(3)
