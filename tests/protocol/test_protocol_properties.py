"""Comparison with the sans-I/O protocol of ``websockets``, in both directions, on input made by Hypothesis.

``websockets`` differs from this package in these points. The tests refer to them by number:

1. Length: it accepts lengths in more bytes than necessary, and fails lengths with the top bit as too
   big (1009). RFC 6455 section 5.2 forbids both, so we fail them with 1002.
2. Order: it waits for a frame's payload, and checks its size, before it checks reserved bits, the rules
   of control frames and the order of fragments. We fail such a header with 1002 at once.
3. Close within a message: it fails a Close frame between the fragments of a message with 1002. Section 5.4
   allows control frames there, so we accept it.
4. Close code and reason: if both are wrong, it reports the reason (1007), and we report the code (1002).
5. Text: it leaves UTF-8 to the layers above. The oracle here checks the text of each whole frame.
6. Deflate data: it fails invalid data with 1002, and we fail it with 1007.
7. Compressed size: it also limits the compressed size, and we only limit the message.
8. BFINAL: after a block with BFINAL set it inflates no more data, and we start again (RFC 7692, 7.2.3.4).
9. Two errors at once: a compressed frame may be too big and also be invalid UTF-8 or deflate data. We inflate
   it as it arrives, so the first error in the input decides. It inflates the frame as a whole.
10. Control frames within a message: it limits them to the bytes that the message may still have.
"""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close as WebsocketsClose
from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from flask_uwsgi_websocket.protocol.deflate import DeflateParameters
from flask_uwsgi_websocket.protocol.protocol import Close, Ping, Pong, Protocol
from support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, bodies, close_body, deflating, feed, frame

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("functions")]

RSV1 = 4

#: The number of examples in the current profile of Hypothesis. A longer run uses another profile.
USUAL = settings().max_examples


class OracleDeflate(PerMessageDeflate):
    """permessage-deflate of ``websockets``. It remembers whether BFINAL ended one of its decoders."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "decoder":
            self.__dict__.setdefault("decoders", []).append(value)
        super().__setattr__(name, value)

    @property
    def met_bfinal(self) -> bool:
        return any(decoder.eof for decoder in self.__dict__.get("decoders", []))


@dataclass
class Oracle:
    """``websockets`` at one end of a connection. It joins the fragments of messages, and decodes text."""

    is_client: bool
    parameters: DeflateParameters | None = None
    max_size: int | None = 2**20
    protocol: WebsocketsProtocol = field(init=False)
    deflate: OracleDeflate | None = field(init=False, default=None)
    events: list[object] = field(init=False, default_factory=list)
    code: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.is_client:
            uri = parse_uri("ws://localhost/")
            self.protocol = ClientProtocol(uri, state=OPEN, max_size=self.max_size)
        else:
            self.protocol = ServerProtocol(state=OPEN, max_size=self.max_size)
        if self.parameters is not None:
            server = (
                self.parameters.server_no_context_takeover,
                self.parameters.server_max_window_bits or 15,
            )
            client = (
                self.parameters.client_no_context_takeover,
                self.parameters.client_max_window_bits or 15,
            )
            remote, local = (server, client) if self.is_client else (client, server)
            # It cannot write with 8, but a test of reading does not need that.
            self.deflate = OracleDeflate(remote[0], local[0], remote[1], max(9, local[1]))
            self.protocol.extensions = [self.deflate]
        self._message: list[bytes] = []
        self._decoder: codecs.IncrementalDecoder | None = None

    def receive(self, data: bytes) -> None:
        """Receive input until the connection fails."""
        if self.code is not None:
            return
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            self._take(event)
            if self.code is not None:
                return
        error = self.protocol.parser_exc
        if isinstance(error, PayloadTooBig):
            self.code = 1009
        elif isinstance(error, UnicodeDecodeError):
            self.code = 1007
        elif isinstance(error, ProtocolError):
            self.code = 1007 if isinstance(error.__cause__, zlib.error) else 1002  # difference 6
        else:
            assert error is None

    def _take(self, event: Frame) -> None:
        payload = bytes(event.data)
        if event.opcode == CLOSE:
            close = WebsocketsClose.parse(payload)
            self.code = int(close.code)
            self.events.append(Close(self.code, close.reason))
        elif event.opcode in (PING, PONG):
            self.events.append(Ping(payload) if event.opcode == PING else Pong(payload))
        else:
            if event.opcode != CONTINUATION:
                decoder = codecs.getincrementaldecoder("utf-8")
                self._decoder = decoder() if event.opcode == TEXT else None
            try:
                if self._decoder is not None:
                    self._decoder.decode(payload, event.fin)
                    pending = self._decoder.getstate()[0]
                    # Python accepts the first two bytes of a surrogate until the third has arrived.
                    if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
                        raise UnicodeDecodeError("utf-8", pending, 0, 2, "surrogate")
            except UnicodeDecodeError:  # difference 5
                self.code = 1007
                return
            self._message.append(payload)
            if event.fin:
                message = b"".join(self._message)
                self._message = []
                self.events.append(message if self._decoder is None else message.decode())

    def sent(self) -> bytes:
        return b"".join(self.protocol.data_to_send())


def ours(
    is_client: bool, parameters: DeflateParameters | None, *, threshold: int = 0, max_size: int = 2**20
) -> Protocol:
    deflate = None
    if parameters is not None:
        deflate = deflating(parameters, threshold=threshold, is_client=is_client)
    return Protocol(is_client=is_client, max_message_size=max_size, deflate=deflate)


# Sent data

texts = st.one_of(
    st.text(max_size=40),
    st.builds(lambda text, times: text * times, st.text(max_size=20), st.integers(0, 400)),
)
binaries = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda data, times: data * times, st.binary(max_size=20), st.integers(0, 400)),
    st.integers(65530, 65540).map(bytes),
)
messages = st.one_of(texts, binaries)
control_payloads = st.binary(max_size=125)
codes = st.one_of(
    st.sampled_from([*range(1000, 1004), *range(1007, 1015)]),
    st.integers(3000, 4999),
)
reasons = st.text(max_size=30).filter(lambda reason: len(reason.encode()) <= 123)
closes = st.one_of(st.none(), st.tuples(codes, reasons))
windows = st.one_of(st.none(), st.integers(9, 15))
parameters = st.one_of(
    st.none(),
    st.builds(DeflateParameters, st.booleans(), st.booleans(), windows, windows),
    # Our client with 8 bits, which websockets' server can read.
    st.builds(DeflateParameters, st.booleans(), st.booleans(), windows, st.just(8)),
)
items = st.lists(st.one_of(messages, st.builds(Ping, control_payloads), st.builds(Pong, control_payloads)), max_size=8)


@st.composite
def cut(draw: st.DrawFn, data: bytes, most: int = 6) -> list[bytes]:
    """Cut data in a few places, or one byte at a time."""
    if 0 < len(data) < 400 and draw(st.integers(0, 9)) == 0:
        return [data[i : i + 1] for i in range(len(data))]
    places = draw(st.lists(st.integers(0, len(data)), max_size=most))
    return [data[start:end] for start, end in pairwise([0, *sorted(places), len(data)])]


@settings(deadline=None, max_examples=3 * USUAL // 2)
@given(data=st.data(), is_client=st.booleans(), parameters=parameters, items=items, close=closes)
def test_websockets_receives_what_we_send(
    data: st.DataObject,
    is_client: bool,
    parameters: DeflateParameters | None,
    items: list[object],
    close: tuple[int, str] | None,
) -> None:
    threshold = data.draw(st.sampled_from([0, 1, 20, 1024]))
    protocol = ours(is_client, parameters, threshold=threshold)
    oracle = Oracle(not is_client, parameters)
    output = b""
    pings = []
    for item in items:
        if isinstance(item, str):
            output += protocol.send_text(item)
        elif isinstance(item, bytes):
            output += protocol.send_binary(item)
        elif isinstance(item, Ping):
            output += protocol.send_ping(item.payload)
            pings.append(item.payload)
        else:
            # The protocol sends a Pong after a Ping has arrived.
            assert isinstance(item, Pong)
            oracle.protocol.send_ping(item.payload)
            assert protocol.receive_data(oracle.sent()) == [Ping(item.payload)]
            output += protocol.replies()
    if close is not None:
        output += protocol.send_close(*close)
    for part in data.draw(cut(output)):
        oracle.receive(part)
    expected = [*items, Close(*close)] if close is not None else items
    assert oracle.events == expected
    assert oracle.code == (close and close[0])
    # The answers come back: the Pongs, then the Close.
    answers: list[object] = [Pong(payload) for payload in pings]
    if close is not None:
        answers.append(Close(*close))
    assert feed(protocol, data.draw(cut(oracle.sent()))) == answers
    assert protocol.replies() == b""
    assert protocol.input_ended is (close is not None)


@settings(deadline=None, max_examples=3 * USUAL // 2)
@given(data=st.data(), is_client=st.booleans(), parameters=parameters, items=items, close=closes)
def test_we_receive_what_websockets_sends(
    data: st.DataObject,
    is_client: bool,
    parameters: DeflateParameters | None,
    items: list[object],
    close: tuple[int, str] | None,
) -> None:
    if parameters is not None and parameters.client_max_window_bits == 8 and not is_client:
        parameters = DeflateParameters(client_max_window_bits=9)
    protocol = ours(is_client, parameters)
    oracle = Oracle(not is_client, parameters)
    expected: list[object] = []
    pings: list[bytes] = []
    for item in items:
        if isinstance(item, (str, bytes)):
            payload = item.encode() if isinstance(item, str) else item
            fragments = data.draw(cut(payload, most=4))
            for i, fragment in enumerate(fragments):
                fin = i == len(fragments) - 1
                if i:
                    oracle.protocol.send_continuation(fragment, fin)
                elif isinstance(item, str):
                    oracle.protocol.send_text(fragment, fin)
                else:
                    oracle.protocol.send_binary(fragment, fin)
                if not fin and data.draw(st.integers(0, 3)) == 0:
                    ping = data.draw(control_payloads)
                    oracle.protocol.send_ping(ping)
                    pings.append(ping)
                    expected.append(Ping(ping))
        elif isinstance(item, Ping):
            oracle.protocol.send_ping(item.payload)
            pings.append(item.payload)
        else:
            assert isinstance(item, Pong)
            oracle.protocol.send_pong(item.payload)
        expected.append(item)
    if close is not None:
        oracle.protocol.send_close(*close)
        expected.append(Close(*close))
    assert feed(protocol, data.draw(cut(oracle.sent()))) == expected
    assert protocol.closed == (close and Close(*close))
    assert protocol.close_received == protocol.closed
    replies = protocol.replies()
    answers = [(PONG, ping) for ping in pings]
    if close is not None:
        answers.append((CLOSE, close_body(close[0], close[1].encode())))
    assert bodies(replies, is_client=is_client) == answers
    # websockets accepts the answers, too.
    oracle.receive(replies)
    assert oracle.protocol.parser_exc is None
    assert oracle.code == (close and close[0])


# Errors

#: Small, so that random lengths are often above it.
LIMIT = 300


@dataclass(frozen=True)
class Header:
    """The header of a frame in the bytes, parsed for the test alone."""

    start: int
    payload: int
    end: int
    fin: bool
    rsv: int
    opcode: int
    masked: bool
    length: int
    minimal: bool


def headers(data: bytes) -> list[Header]:
    """Yield the headers of all frames whose header has arrived."""
    found = []
    start = 0
    while len(data) - start >= 2:
        first, second = data[start], data[start + 1]
        length, position, minimal = second & 0x7F, start + 2, True
        if length > 125:
            size = 2 if length == 126 else 8
            if len(data) - position < size:
                break
            length = int.from_bytes(data[position : position + size], "big")
            minimal = length >= (126 if size == 2 else 65536) and length < 2**63
            position += size
        masked = second >= 128
        position += 4 * masked
        end = position + length
        fin, rsv, opcode = first >= 128, first >> 4 & 7, first & 15
        found.append(Header(start, position, end, fin, rsv, opcode, masked, length, minimal))
        start = end
    return found


def breaks_a_rule(header: Header, is_client: bool, in_message: bool, deflate: bool) -> bool:
    """Return whether RFC 6455 section 5 or RFC 7692 section 6 forbids a header, whatever its payload is."""
    control = header.opcode >= 8
    return (
        header.masked is is_client
        or header.opcode not in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}
        or (header.rsv & 3) != 0
        or (header.rsv == RSV1 and (not deflate or header.opcode not in {TEXT, BINARY}))
        or (control and (not header.fin or header.length > 125))
        or (header.opcode in {TEXT, BINARY} and in_message)
        or (header.opcode == CONTINUATION and not in_message)
        or not header.minimal
    )


@dataclass
class Verdict:
    """The result of the oracle for a stream. The code None means that the connection stays open."""

    events: list[object]
    code: int | None
    #: Whether a difference makes the rest of the stream, or the code, incomparable.
    incomparable: bool = False
    other_codes: tuple[int, ...] = ()


def judge(data: bytes, is_client: bool, parameters: DeflateParameters | None) -> Verdict:
    """Feed the oracle frame by frame, and compensate for the differences in the module's docstring."""
    oracle = Oracle(is_client, parameters, LIMIT)
    in_message = compressed = False
    for header in headers(data):
        if breaks_a_rule(header, is_client, in_message, parameters is not None):
            if header.minimal:
                # The oracle must also fail the connection, sooner or later (difference 2).
                oracle.receive(data[header.start :])
                assert oracle.code in {1002, 1007, 1009}
            return Verdict(oracle.events, 1002)  # differences 1 and 2
        if header.opcode in {TEXT, BINARY}:
            compressed = header.rsv == RSV1
        if header.opcode < 8 and compressed and header.length > LIMIT:
            return Verdict(oracle.events, None, incomparable=True)  # difference 7
        if header.opcode == CLOSE and header.end <= len(data):
            body = data[header.payload : header.end]
            if header.masked:
                key = data[header.payload - 4 : header.payload]
                body = bytes(octet ^ key[i % 4] for i, octet in enumerate(body))
            if len(body) >= 2 and not acceptable(int.from_bytes(body[:2], "big")):
                return Verdict(oracle.events, 1002)  # difference 4
        if header.opcode >= 8 and in_message:  # differences 3 and 10
            aside = resumed(oracle, is_client)
            aside.receive(data[header.start : header.end])
            if aside.code is not None:
                return Verdict(aside.events, aside.code)
            continue
        oracle.receive(data[header.start : header.end])
        if oracle.deflate is not None and oracle.deflate.met_bfinal:
            return Verdict(oracle.events[:-1], None, incomparable=True)  # difference 8
        if oracle.code is not None:
            other_codes = (1007, 1009) if header.opcode < 8 and compressed else ()  # difference 9
            return Verdict(oracle.events, oracle.code, other_codes=other_codes)
        if header.opcode < 8:
            in_message = not header.fin
    return Verdict(oracle.events, None)


def acceptable(code: int) -> bool:
    try:
        WebsocketsClose(code, "").check()
    except ProtocolError:
        return False
    return True


def resumed(oracle: Oracle, is_client: bool) -> Oracle:
    """Return an oracle outside of a message that has seen the same events."""
    other = Oracle(is_client, None, LIMIT)
    other.events = oracle.events
    return other


@st.composite
def frames(draw: st.DrawFn, is_client: bool, deflate: bool) -> bytes:
    """Draw the frames of a mostly legal stream."""
    stream: list[bytes] = []
    keys = st.just(None) if is_client else st.sampled_from([b"\0\0\0\0", b"\x37\xfa\x21\x3d"])

    def control() -> bytes:
        opcode = draw(st.sampled_from([PING, PONG, PING, PONG, CLOSE]))
        payload = draw(st.binary(max_size=8))
        if opcode == CLOSE:
            number = draw(st.one_of(codes, st.integers(990, 1020), st.integers(0, 65535)))
            payload = draw(st.sampled_from([b"", b"\x03", close_body(number), close_body(number, payload)]))
        return frame(opcode, payload, key=draw(keys))

    for _ in range(draw(st.integers(1, 5))):
        if draw(st.integers(0, 3)) == 0:
            stream.append(control())
            continue
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        payload = draw(st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=60)))
        payload *= draw(st.sampled_from([1, 1, 1, 2, 5, 10, 30]))
        rsv = 0
        if deflate and draw(st.booleans()):
            compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
            payload = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            rsv = RSV1
        pieces = draw(cut(payload, most=2))
        for i, piece in enumerate(pieces):
            fin = i == len(pieces) - 1
            code = CONTINUATION if i else opcode
            stream.append(frame(code, piece, fin=fin, rsv=0 if i else rsv, key=draw(keys)))
            if not fin and draw(st.integers(0, 4)) == 0:
                stream.append(control())
    # Remove, repeat or swap whole frames.
    for _ in range(draw(st.integers(0, 2))):
        i, j = draw(st.integers(0, len(stream) - 1)), draw(st.integers(0, len(stream) - 1))
        change = draw(st.sampled_from(["swap", "double", "drop", "truncate"]))
        if change == "swap":
            stream[i], stream[j] = stream[j], stream[i]
        elif change == "double":
            stream.insert(j, stream[i])
        elif change == "truncate":
            stream[i] = stream[i][: draw(st.integers(0, len(stream[i])))]
        elif len(stream) > 1:
            del stream[i]
    return b"".join(stream)


@st.composite
def mutated(draw: st.DrawFn, is_client: bool, deflate: bool) -> bytes:
    """Draw a stream of frames, and change a few of its bytes."""
    data = bytearray(draw(frames(is_client, deflate)))
    for _ in range(draw(st.integers(0, 3))):
        starts = [header.start for header in headers(bytes(data)) if header.start < len(data)]
        if not starts:
            break
        # Most rules concern headers.
        place = draw(st.sampled_from(starts)) + draw(st.sampled_from([0, 1, 2, 3, 6, 7, 8, 12]))
        place = min(place, len(data) - 1)
        change = draw(st.sampled_from(["bit", "bit", "bit", "byte", "insert", "delete"]))
        if change == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "byte":
            data[place] = draw(st.integers(0, 255))
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=3))
        elif len(data) > 1:
            del data[place]
    # Zeros complete a frame that waits for more, so that neither verdict stays open.
    return bytes(data) + bytes(LIMIT + 20)


mutation_parameters = st.one_of(st.none(), st.none(), st.builds(DeflateParameters, st.booleans(), st.booleans()))


@settings(deadline=None, max_examples=6 * USUAL)
@given(data=st.data(), is_client=st.booleans(), parameters=mutation_parameters)
def test_we_and_websockets_have_the_same_verdict_on_mutated_frames(
    data: st.DataObject, is_client: bool, parameters: DeflateParameters | None
) -> None:
    stream = data.draw(mutated(is_client, parameters is not None))
    verdict = judge(stream, is_client, parameters)
    protocol = ours(is_client, parameters, max_size=LIMIT)
    events = feed(protocol, data.draw(cut(stream)))
    if verdict.incomparable:
        assert events[: len(verdict.events)] == verdict.events
        return
    assert events == verdict.events
    code = protocol.closed and protocol.closed.code
    assert code == verdict.code or code in verdict.other_codes
    assert protocol.input_ended is (code is not None)


def test_a_control_frame_may_be_longer_than_the_rest_of_its_message() -> None:
    pieces = frame(TEXT, b"a" * (LIMIT - 4), fin=False), frame(PING, b"12345"), frame(CONTINUATION, b"bcde")
    expected = [Ping(b"12345"), "a" * (LIMIT - 4) + "bcde"]
    assert feed(ours(True, None, max_size=LIMIT), pieces) == judge(b"".join(pieces), True, None).events == expected


@settings(deadline=None, max_examples=2 * USUAL)
@given(data=st.data(), is_client=st.booleans(), parameters=mutation_parameters)
def test_our_verdict_does_not_depend_on_how_the_bytes_are_split(
    data: st.DataObject, is_client: bool, parameters: DeflateParameters | None
) -> None:
    stream = data.draw(mutated(is_client, parameters is not None))
    first, second = ours(is_client, parameters, max_size=LIMIT), ours(is_client, parameters, max_size=LIMIT)
    assert feed(first, [stream]) == feed(second, data.draw(cut(stream)))
    assert first.close_received == second.close_received
    assert first.input_ended == second.input_ended
    ends = {protocol.closed and protocol.closed.code for protocol in (first, second)}
    # Difference 9 also applies between two splits.
    assert len(ends) == 1 or (parameters is not None and ends == {1007, 1009})
