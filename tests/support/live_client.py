"""A client in its own process, which a test can stop, kill or cut off: ``python live_client.py HOST PORT PATH...``

It opens a WebSocket to each path, writes a line, and waits for the end of its input.
"""

import os
import socket
import sys

host, port, *paths = sys.argv[1:]
connections = []
for path in paths:
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    response = b""
    while b"\r\n\r\n" not in response:
        data = connection.recv(4096)
        if not data:
            sys.exit(f"refused: {response!r}")
        response += data
    connections.append(connection)
os.write(1, b"connected\n")
sys.stdin.read()
