"""The commands: flask uwsgi, flask websocket, flask routes; and what uWSGI is started with."""
