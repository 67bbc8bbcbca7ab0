"""The commands ``flask uwsgi``, ``flask websocket`` and ``flask routes``, and how they start uWSGI."""
