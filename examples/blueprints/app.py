"""A community with accounts, chat rooms, and lists of the people in them. Start it with ``python app.py``."""

import os

from community import create_app

app = create_app()

if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    # A window has two WebSockets, and each takes a greenlet. Two windows may be on different workers.
    app.run(host=host, port=port, processes=2, gevent=200)
