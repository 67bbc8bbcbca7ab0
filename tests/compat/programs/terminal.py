"""A program in a pseudo-terminal, whose output a thread sends."""

import os
import pty
import select
import subprocess
import threading

from flask import Flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)


def forward(ws, fd):
    try:
        while select.select([fd], [], []) and (data := os.read(fd, 1024)):
            ws.send(data.decode())
    except OSError:  # the program has ended
        pass


@sock.route("/terminal")
def terminal(ws):
    ours, theirs = pty.openpty()
    command = ["sh", "-c", 'stty -echo; echo ready; while read line; do echo "<$line>"; done']
    shell = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    thread = threading.Thread(target=forward, args=(ws, ours))
    thread.start()
    try:
        while True:
            data = ws.receive(timeout=0.2)
            if data is not None:
                os.write(ours, data.encode())
            elif shell.poll() is not None:
                break
    except ConnectionClosed:
        print("RECORD the client has left", flush=True)
    finally:
        shell.kill()
        shell.wait()
        thread.join()
        os.close(ours)
