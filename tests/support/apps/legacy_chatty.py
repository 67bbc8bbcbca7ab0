"""Another example of 0.6.1, in addition to legacy_app.py. It never forgets a user."""

from flask import Blueprint
from live_app import MODULE

ws = Blueprint("chatty", __name__, url_prefix="/legacy")


def sleep(seconds):  # gevent's in the example
    MODULE.sleep(seconds / 100)


class Users(dict):
    """The users of an example: a dict that threads may change while others iterate over it. Greenlets did not do that."""

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
