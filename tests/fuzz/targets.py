"""The functions that are fuzzed. They take any bytes, and raise when a rule is broken. ``corpus`` has the kept inputs.

The first bytes of an input are options, so the fuzzer explores these, too.
"""

from __future__ import annotations

import os
import re
import zlib
from _socket import MSG_DONTWAIT, socketpair
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from werkzeug.exceptions import HTTPException

import flask_uwsgi_websocket.protocol._frames as _frames
from flask_uwsgi_websocket.connection.channel import WAIT
from flask_uwsgi_websocket.connection.transport import Transport
from flask_uwsgi_websocket.exceptions import ConnectionClosed
from flask_uwsgi_websocket.loops.threads import ThreadLoop
from flask_uwsgi_websocket.protocol import frames, protocol
from flask_uwsgi_websocket.protocol.deflate import Deflate, DeflateParameters, MessageTooBig
from flask_uwsgi_websocket.protocol.handshake import negotiate_handshake, parse_extensions, parse_origin
from flask_uwsgi_websocket.protocol.protocol import Protocol, is_valid_close_code
from flask_uwsgi_websocket.settings import Settings

CORPUS = Path(__file__).with_name("corpus")

#: The functions that the protocol may use. "neither" leaves all frames to the general parser.
FUNCTIONS: dict[str, Any] = {
    "pure": frames,
    "compiled": _frames,
    "neither": SimpleNamespace(
        apply_mask=frames.apply_mask, frame=frames.frame, take_messages=lambda data, position, *others: position
    ),
}

#: Bytes to inflate at a time.
STEP = 1000

LIMITS = (1, 10, 125, 126, 1000, 4000, 70000, 2**20)


def read_corpus(target: str) -> list[bytes]:
    """Return the kept inputs of a target: each line of the file is one input in hexadecimal digits."""
    path = CORPUS / f"{target}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def split(data: bytes) -> list[bytes]:
    """Cut an input into parts. Its first byte says how many of the next bytes are sizes, which are used in turn."""
    start = 1 + data[0] % 4 if data else 0
    sizes = cycle([1 + size for size in data[1:start]] or [len(data)])
    parts = []
    while start < len(data):
        size = next(sizes)
        parts.append(data[start : start + size])
        start += size
    return parts


class Subject:
    """A protocol with the options in the first byte of an input."""

    def __init__(self, options: int) -> None:
        self.is_client = bool(options & 1)
        self.is_deflated = bool(options & 2)
        self.closes = bool(options & 8)
        self.limit = LIMITS[options >> 5]
        self._parameters = DeflateParameters(bool(options & 4), bool(options & 16))

    def deflate(self) -> Deflate | None:
        return Deflate(self._parameters, is_client=self.is_client) if self.is_deflated else None

    def protocol(self) -> Protocol:
        return Protocol(is_client=self.is_client, max_message_size=self.limit, deflate=self.deflate())


@contextmanager
def using(functions: Any) -> Iterator[None]:
    """Let the protocol use these functions."""
    names = ("apply_mask", "frame", "take_messages")
    before = {name: getattr(protocol, name) for name in names}
    try:
        for name in names:
            setattr(protocol, name, getattr(functions, name))
        yield
    finally:
        for name in names:
            setattr(protocol, name, before[name])


# The protocol: the same events, close codes and replies with all functions, however the input is split


def fuzz_protocol(data: bytes) -> None:
    subject = Subject(data[0] if data else 0)
    parts = split(data[1:])
    said = {name: converse(subject, functions, parts) for name, functions in FUNCTIONS.items()}
    assert said["compiled"] == said["pure"], said
    assert said["neither"] == said["pure"], said
    others = [converse(subject, frames, parts, 1)]
    if not subject.closes:
        others.append(converse(subject, frames, [b"".join(parts)]))
    for events, code, _ in others:
        assert events == said["pure"][0], (events, said)
        # A compressed message may be broken and too big. Which error comes first depends on how it is split.
        assert code == said["pure"][1] or (subject.is_deflated and {code, said["pure"][1]} == {1007, 1009}), (
            code,
            said,
        )


def converse(
    subject: Subject, functions: Any, parts: list[bytes], most: int = 10**9
) -> tuple[list[Any], int | None, list[Any]]:
    """Return the events, the close code, and all other output of a protocol that is fed with *parts*.

    :param most: how many frames the protocol parses in each call.
    """
    events: list[Any] = []
    said: list[Any] = []
    with using(functions):
        ours = subject.protocol()
        for number, part in enumerate(parts):
            if subject.closes and number == 1:
                ours.send_close(1001)
            for event in receive_in_steps(ours, part, most):
                events.append((type(event).__name__, event))
                if isinstance(event, (str, bytes)):
                    assert len(event if isinstance(event, bytes) else event.encode()) <= subject.limit
                elif isinstance(event, protocol.Close):
                    assert event.code == 1005 or is_valid_close_code(event.code)
            replies = ours.replies()
            said += [len(replies) if subject.is_client else replies, ours.closed, ours.close_sent, ours.input_ended]
            assert ours.replies() == b""
    return events, ours.closed and ours.closed.code, said


def receive_in_steps(ours: Protocol, part: bytes, most: int) -> Iterator[Any]:
    yield from ours.receive_some(part, most)
    while ours.has_input:
        yield from ours.receive_some(b"", most)
        assert ours.frames <= most
        assert ours.gained <= most * 1024


# The connection: over a socket, and with its fast path, it gives the same results as the protocol alone


def fuzz_connection(data: bytes) -> None:
    subject = Subject(data[0] & ~1 if data else 0)  # always a server
    parts = split(data[1:])
    with using(frames):
        oracle = subject.protocol()
        expected = [echo_by_protocol(oracle, part) for part in parts]
    theirs, ours = socketpair()
    theirs.setblocking(False)
    duplicate = RawSocket(fileno=os.dup(ours.fileno()))
    settings = Settings(max_message_size=subject.limit)
    connection = Transport(duplicate, lambda: None, ThreadLoop(), settings, subject.deflate())
    try:
        connection.start(b"")
        for part, (messages, sent) in zip(parts, expected, strict=True):
            with suppress(OSError):  # the server has shut down
                theirs.send(part)
            assert echo_by_connection(connection) == messages
            assert receive(theirs) == sent
        assert (connection.protocol.closed and connection.protocol.closed.code) == (
            oracle.closed and oracle.closed.code
        )
    finally:
        connection.detach()
        theirs.close()
        ours.close()


def echo_by_protocol(oracle: Protocol, part: bytes) -> tuple[list[str | bytes], bytes]:
    """Return the messages in *part*, and the output: the replies and the echoes."""
    messages = [event for event in oracle.receive_data(part) if isinstance(event, (str, bytes))]
    sent = oracle.replies()
    if oracle.closed is None:
        for message in messages:
            sent += oracle.send_text(message) if isinstance(message, str) else oracle.send_binary(message)
    return messages, sent


def echo_by_connection(connection: Transport) -> list[str | bytes]:
    """Take all messages that have arrived, and send them back."""
    messages: list[str | bytes] = []
    connection.enter_wait()
    connection.leave_wait()
    with suppress(ConnectionClosed):  # at the end of the connection
        while (message := connection.take()) is not None:
            if message is not WAIT:
                messages.append(message)
            elif not connection.is_on_a_run():
                break
    with suppress(ConnectionClosed):
        for message in messages:
            assert connection.put(message)
    return messages


def receive(sock: RawSocket) -> bytes:
    """Return the bytes that have arrived."""
    received = b""
    with suppress(BlockingIOError):
        while data := sock.recv(65536, MSG_DONTWAIT):
            received += data
    return received


# The handshake: accepted with a well-formed response, or refused with a status

FIELDS = {
    "HTTP_SEC_WEBSOCKET_EXTENSIONS": "",
    "HTTP_ORIGIN": "",
    "HTTP_HOST": "example.com",
    "HTTP_SEC_WEBSOCKET_PROTOCOL": "",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_UPGRADE": "websocket",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "CONTENT_LENGTH": "",
    "HTTP_TRANSFER_ENCODING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
}

_is_response = re.compile(
    rb"HTTP/1\.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    rb"Sec-WebSocket-Accept: [A-Za-z0-9+/]{27}=\r\n(Sec-WebSocket-Protocol: (chat|v2\.chat)\r\n)?"
    rb"(Sec-WebSocket-Extensions: (permessage-deflate[; a-z0-9_=]*)\r\n)?X-More: yes\r\n\r\n"
).fullmatch


def fuzz_handshake(data: bytes) -> None:
    """Negotiate a handshake whose headers are the lines of *data*. An empty line leaves a default."""
    options, *lines = data.decode("latin-1").split("\n")
    environ = dict(zip(FIELDS, lines, strict=False))
    environ = {name: environ.get(name) or default for name, default in FIELDS.items()}
    environ = {"REQUEST_METHOD": "GET", **{name: value for name, value in environ.items() if value}}
    try:
        handshake = negotiate_handshake(
            environ,
            host=environ["HTTP_HOST"],
            secure="s" in options,
            origins=["https://example.com", "http://example.org:8000"] if "o" in options else "same-origin",
            subprotocols=["chat", "v2.chat"],
            compression="c" in options,
        )
    except HTTPException as refused:
        if refused.code not in {400, 403, 426}:
            raise
        return
    response = _is_response(handshake.response(handshake.subprotocol, [("X-More", "yes")]))
    assert response is not None, handshake
    if response[2]:
        assert response[2].decode() in {name.strip() for name in environ["HTTP_SEC_WEBSOCKET_PROTOCOL"].split(",")}
    if response[4]:
        check_extension(response[4].decode(), environ["HTTP_SEC_WEBSOCKET_EXTENSIONS"])
    if "HTTP_ORIGIN" in environ:
        scheme, host, _ = parse_origin(environ["HTTP_ORIGIN"])
        assert scheme in {"http", "https"}
        assert host in environ["HTTP_HOST"].lower() or "o" in options


def check_extension(answer: str, offers: str) -> None:
    """Check that *answer* is a valid answer to one of the *offers* (RFC 7692 section 7.1)."""
    ((_, parameters),) = parse_extensions(answer)
    accepted = dict(parameters)
    assert len(accepted) == len(parameters)
    for name, value in accepted.items():
        assert value is None or 9 <= int(value) <= 15, (name, value)
    found = [each for name, each in parse_extensions(offers) if name == "permessage-deflate"]
    assert any(is_answered(offer, accepted) for offer in found), (answer, offers)


def is_answered(parameters: list[tuple[str, str | None]], accepted: dict[str, str | None]) -> bool:
    """Return whether an offer is valid, and *accepted* a valid answer to it."""
    offer = dict(parameters)
    if len(offer) < len(parameters):
        return False
    for name, value in offer.items():
        if name.endswith("_max_window_bits"):
            is_bare = value is None and name.startswith("client")
            if not is_bare and re.fullmatch("[89]|1[0-5]", value or "") is None:
                return False
            if int(accepted.get(name) or 8) > int(value or 15):
                return False
        elif value is not None or name not in {"server_no_context_takeover", "client_no_context_takeover"}:
            return False
    # The answer has to repeat the parameters of the server. It may limit the client's window if the offer allows it.
    asked = {name for name in offer if name.startswith("server_")}
    return asked <= accepted.keys() and ("client_max_window_bits" not in accepted or "client_max_window_bits" in offer)


# permessage-deflate: no output over the limit, the same output however the input is split, and no loss


def fuzz_deflate(data: bytes) -> None:
    options = data[0] if data else 0
    limit = LIMITS[options >> 5]
    bits = (None, 9, 12, 15)[options >> 2 & 3]
    parameters = DeflateParameters(bool(options & 1), bool(options & 2), bits, bits)
    parts = split(data[1:]) or [b""]

    whole = inflate(Deflate(parameters), [b"".join(parts)], limit)
    in_parts = inflate(Deflate(parameters), parts, limit)
    # A message may have two errors. Which error comes first depends on how the message is split.
    assert whole == in_parts or isinstance(whole, str) is isinstance(in_parts, str) is True, (whole, in_parts)

    server, client = Deflate(parameters), Deflate(parameters, is_client=True)
    for part in parts:  # each part is a message
        assert inflate(client, [server.compress(part)], len(part)) == part
        assert inflate(server, [client.compress(part)], len(part)) == part


def inflate(deflate: Deflate, parts: list[bytes], limit: int) -> bytes | str:
    """Return the message in *parts*, or the name of its error."""
    output = b""
    try:
        for number, part in enumerate(parts, 1):
            while True:
                more = deflate.decompress(part, limit - len(output), STEP, final=number == len(parts))
                output += more
                assert len(more) <= STEP
                assert len(output) <= limit
                if not deflate.has_more:
                    break
                part = b""
    except (MessageTooBig, zlib.error) as error:
        return type(error).__name__
    return output


TARGETS: dict[str, Callable[[bytes], None]] = {
    "protocol": fuzz_protocol,
    "connection": fuzz_connection,
    "handshake": fuzz_handshake,
    "deflate": fuzz_deflate,
}
