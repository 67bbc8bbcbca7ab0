"""Publish a message to the pages of a topic, while ``app.py`` runs: ``python publish.py news "Hello"``."""

import sys

from app import websocket

from flask_uwsgi_websocket import BrokerUnavailable

if len(sys.argv) != 3:
    sys.exit('Usage: python publish.py TOPIC MESSAGE, such as: python publish.py news "Hello"')
_, topic, message = sys.argv
try:
    websocket.room(topic).publish(message)
except BrokerUnavailable as error:
    sys.exit(f"Nothing was published: {error}")
