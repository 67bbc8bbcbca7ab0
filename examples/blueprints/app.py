"""A community with accounts, chat rooms, and lists of the people in them. Start it with ``python app.py``."""

import os

from community import create_app

app = create_app()

if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, processes=2, gevent=200)  # requests at a time; a window that waits takes none of them
