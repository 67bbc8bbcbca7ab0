"""A community with accounts, chat rooms, and lists of the people in them. Start it with ``python app.py``."""

import os

from community import create_app

app = create_app()

if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    # A window has two WebSockets, and each takes a greenlet. All are in one process, the default, because a process
    # knows only its own WebSockets. Several processes need a broker such as Redis between them.
    app.run(host=host, port=port, gevent=200)
