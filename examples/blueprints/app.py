"""A community with accounts, rooms to chat in, and who is there. Start it with ``python app.py``."""

import os

from community import create_app

app = create_app()

if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    # A window has two WebSockets, each in a greenlet. All are in one process, the default: who is in a room is known
    # to a process only, and several need a broker such as Redis between them.
    app.run(host=host, port=port, gevent=200)
