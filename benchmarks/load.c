/* The load generator of `make bench`: one thread and one epoll in C, so that the server is the bottleneck.
 *
 *     load MODE --port [ADDRESS:]N... [--connections N] [--in-flight N] [--size BYTES] [--seconds S] [--warm-up S]
 *         [--timeout S] [--rate N] [--echo PATH] [--receive PATH] [--publish PATH] [--socketio] [--source ADDRESS]
 *
 * echo     every connection keeps `in-flight` text messages of `size` bytes on their way, and checks their echoes
 * open     `rate` messages a second, whose gaps are random (Poisson), each on a random connection: they do not wait for
 *          the echoes of others
 * flood    the same, beside one more connection that writes and reads as fast as the server lets it
 * connect  handshake, one echo and closing handshake, again and again, on `connections` connections at a time
 * page     the same with connections that get an ordinary page, /page
 * fanout   one publisher, which sends its next message when all of `connections` have received the last one
 * room     one publisher, which sends `rate` messages a second to `connections` receivers, without waiting for them
 * beside   echo, beside the publisher of `room` and one receiver on each port
 * idle     every connection has one message echoed, and then does nothing
 * ask      every connection sends a message at the same time, and when all have their echoes, all do it again
 * hold     idle, but connections may end: a second line of JSON, at the end of stdin, has their numbers
 * return   idle, and a connection that ends is opened again at once, until each one has ended and is back with an echo
 *
 * On stdout it prints "begin" after the warm-up, and one line of JSON after the measured time. Then it holds the
 * connections until stdin ends, so that the parent process can examine the server. The JSON has the `count` of
 * echoes, connections or deliveries, the `seconds` that they took, the seconds of `cpu` time of this process, and
 * `p50`, `p99` and the `longest`, in microseconds: in fanout of one message from its publisher to the last of its receivers; in room of
 * one message to each receiver on the other ports, if there are several; in connect and page of one connection from SYN
 * to EOF; in return from the end of a connection to the echo of the next one; otherwise of one echo. In open, the time begins when the message was due, so that it contains every wait that a
 * slow server or a late load generator causes, and `late` is by how many microseconds the load generator sent a message
 * too late on average. In the modes idle and hold, only the connections themselves matter. In hold and return, `closed`
 * is the number of connections that the server has closed, `abnormal` of those that ended without a Close frame (1006,
 * RFC 6455 section 7.1.5), and `refused` of handshakes that failed; in hold, `pings` is the number of Pings.
 *
 * The server is on 127.0.0.1, or at the address before the port. It serves /echo, and /publish and /receive for the
 * publisher and the receivers, unless options name other paths. Each worker may have a `port` of its own: the receivers
 * are divided evenly among the ports, and all other connections are on the first one. With `socketio`, the publisher and
 * the receivers speak Socket.IO. `source` is the address from which the connections come. If the server does anything unexpected, or nothing at all for `timeout` seconds, the run
 * ends with one sentence on stderr.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    HANDSHAKES_AT_ONCE = 64, /* below every server's backlog: a dropped SYN costs a second */
    FLOOD_BLOCK = 65536,     /* bytes that the flooding connection writes or reads in one turn */
    LARGEST_HEADER = 14,
    HANDSHAKE_ROOM = 2048, /* in the buffers: for the 101 response, and for Pongs beside the messages */
    SEQUENCE = 8,          /* hexadecimal digits at the beginning of each message */
    BUCKETS = 64 * 60,
    MOST_PORTS = 16,
    MOST_UNDER_WAY = 1024, /* messages of the publisher, or of one connection of the open loop */
    LONGEST_WAIT = 10000000, /* nanoseconds */
    RETRY = 100000000,       /* nanoseconds after a handshake that failed */
};

enum opcode { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

struct place {
    in_addr_t address;
    int port;
};

struct connection {
    int fd; /* -1 after its end */
    int number;
    const struct place *place;
    const char *path;
    bool socketio;
    bool open;                      /* the handshake is done */
    bool closing;                   /* our Close frame is sent: the server may end the connection */
    bool watches_output;            /* epoll reports when the socket takes more */
    uint8_t *input, *output;        /* an incomplete frame; bytes that the socket has not taken yet */
    size_t input_size, output_size; /* bytes in them */
    size_t capacity;                /* of each */
    uint32_t sent, received;        /* messages; the publisher's `received` is the sum of its receivers */
    uint64_t *sent_at;              /* a ring, of the messages in flight */
    uint32_t ring;                  /* its length */
    uint64_t opened_at;
    uint64_t ended_at;      /* in return: the end of the connection before, or 0 */
    uint64_t due_at;        /* in return: when to open it again, or 0 */
    bool is_back;           /* in return: the connection after it has its echo */
    uint64_t waiting_since; /* for input from the server; 0 when none is due */
};

struct mode {
    const char *name;
    void (*opened)(struct connection *);   /* a handshake is done */
    void (*begin)(void);                   /* all handshakes are done */
    void (*received)(struct connection *); /* the expected message has arrived: its `number` */
    void (*ended)(struct connection *);    /* the server has ended a connection that was closing */
    bool (*over)(void);                    /* the measurement is complete */
};

static struct {
    struct place places[MOST_PORTS];
    int port_count, connections, in_flight, timeout;
    size_t size;
    double seconds, warm_up, rate;
    const char *echo, *receive, *publish;
    bool socketio;
    struct in_addr source;
} options = {
    .connections = 32, .in_flight = 1, .timeout = 10, .size = 64, .seconds = 2, .warm_up = 0.5, .rate = 20,
    .echo = "/echo", .receive = "/receive", .publish = "/publish"};

static const struct mode *mode;
static struct connection *connections, *flooder, *publisher; /* the last two are NULL in most modes */
static struct connection *receivers;                         /* the receivers of the publisher, which follows them */
static struct connection timer;                              /* not a connection, but the timer of the publisher */
static int total;                                            /* number of connections, with all of these */
static int started, opened, living; /* numbers of connections */
static int epoll;
static uint64_t now;      /* in nanoseconds; read once for each batch of input */
static uint64_t deadline; /* end of the current phase */
static uint64_t next_due = UINT64_MAX; /* when the open loop sends its next message */
static bool stopping;     /* no connection sends anything new */
static bool gets_pages;   /* the connections are no WebSockets */
static bool input_ended;  /* stdin has ended */
static bool may_end;      /* the server may end connections */
static int closed, abnormal, refused, away; /* numbers of them, and of those that wait to be opened again */
static uint64_t pings;
static uint32_t number;   /* the number of the message that has arrived */
static uint64_t count;    /* of echoes, connections or deliveries */
static uint64_t late, due_count; /* nanoseconds by which the open loop sent too late, and the messages that were due */
static uint64_t histogram[BUCKETS];
static uint8_t *pattern;


/* Errors, time, latencies */

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    if (!memory)
        fail("no memory for %zu bytes", size);
    return memory;
}

static uint64_t nanoseconds(double seconds)
{
    return (uint64_t)(seconds * 1e9);
}

static uint64_t read_clock(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* 64 buckets for each power of two make the percentiles exact to 1.6 %. */
static void record_latency(uint64_t since)
{
    uint64_t latency = now - since;
    int shift = latency < 128 ? 0 : 57 - __builtin_clzll(latency);
    histogram[(uint64_t)shift * 64 + (latency >> shift)]++;
}

static double percentile_in_microseconds(double fraction)
{
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        all += histogram[i];
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > 0 && (double)seen >= fraction * (double)all) {
            int shift = i < 128 ? 0 : i / 64 - 1;
            return ((double)(i - shift * 64) + 0.5) * (double)(1ull << shift) / 1000;
        }
    }
    return 0;
}


/* Output */

static void watch(struct connection *c, int operation, bool output)
{
    struct epoll_event event = {.events = EPOLLIN | (output ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
    c->watches_output = output;
}

static void flush(struct connection *c)
{
    while (c->output_size > 0) {
        ssize_t n = send(c->fd, c->output, c->output_size, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && (c->closing || may_end)) { /* the server has ended the connection; the end will be read */
            c->output_size = 0;
            break;
        }
        if (n < 0)
            fail("connection %d cannot send: %s", c->number, strerror(errno));
        c->output_size -= (size_t)n;
        memmove(c->output, c->output + n, c->output_size);
    }
    if (c->watches_output != (c->output_size > 0))
        watch(c, EPOLL_CTL_MOD, c->output_size > 0);
}

/* Write a frame to `frame`, masked as a client has to (RFC 6455 section 5.3), and return its size. */
static size_t make_frame(uint8_t *frame, enum opcode opcode, const uint8_t *payload, size_t size)
{
    static uint32_t random = 2463534242;
    random ^= random << 13, random ^= random >> 17, random ^= random << 5; /* xorshift32: never 0 */

    size_t header = 2;
    frame[0] = (uint8_t)(0x80 | opcode);
    if (size < 126) {
        frame[1] = 0x80 | (uint8_t)size;
    } else if (size < 65536) {
        frame[1] = 0x80 | 126;
        frame[2] = (uint8_t)(size >> 8), frame[3] = (uint8_t)size;
        header = 4;
    } else {
        frame[1] = 0x80 | 127;
        for (int i = 0; i < 8; i++)
            frame[2 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
        header = 10;
    }
    memcpy(frame + header, &random, 4);
    header += 4;

    uint64_t mask = (uint64_t)random << 32 | random, word;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, payload + i, 8);
        word ^= mask;
        memcpy(frame + header + i, &word, 8);
    }
    for (; i < size; i++)
        frame[header + i] = payload[i] ^ frame[header - 4 + i % 4];
    return header + size;
}

static void append_frame(struct connection *c, enum opcode opcode, const uint8_t *payload, size_t size)
{
    if (c->output_size + size + LARGEST_HEADER > c->capacity)
        fail("connection %d: the server does not read what it is sent", c->number);
    c->output_size += make_frame(c->output + c->output_size, opcode, payload, size);
}

static void number_pattern(uint32_t n)
{
    for (int i = 0; i < SEQUENCE; i++)
        pattern[i] = (uint8_t)"0123456789abcdef"[n >> (28 - 4 * i) & 15];
}

/* Socket.IO's encoding of a message, as the argument of the event "m". */
static const char event_begin[] = "42[\"m\",\"", event_end[] = "\"]";
enum { EVENT_BEGIN = sizeof event_begin - 1, EVENT_END = sizeof event_end - 1 };

/* Append the next message. The next flush() sends it. */
static void append_message(struct connection *c)
{
    number_pattern(c->sent);
    if (c->socketio) {
        static uint8_t event[FLOOD_BLOCK + EVENT_BEGIN + EVENT_END];
        memcpy(event, event_begin, EVENT_BEGIN);
        memcpy(event + EVENT_BEGIN, pattern, options.size);
        memcpy(event + EVENT_BEGIN + options.size, event_end, EVENT_END);
        append_frame(c, TEXT, event, EVENT_BEGIN + options.size + EVENT_END);
    } else {
        append_frame(c, TEXT, pattern, options.size);
    }
    c->sent_at[c->sent++ % c->ring] = now;
    if (!c->waiting_since)
        c->waiting_since = now;
}

static void append_close(struct connection *c)
{
    append_frame(c, CLOSE, (const uint8_t[]){1000 >> 8, 1000 & 255}, 2);
    c->closing = true;
    c->waiting_since = now;
}


/* Connections */

static void open_connection(struct connection *c)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)c->place->port), .sin_addr.s_addr = c->place->address};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        fail("no socket for connection %d: %s", c->number, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (options.source.s_addr) { /* the port is chosen by connect(), which knows the other end */
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr = options.source};
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0)
            fail("--source: %s", strerror(errno));
    }
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail("connection %d: %s", c->number, strerror(errno));

    c->open = c->closing = false;
    c->input_size = 0;
    c->sent = c->received = 0;
    c->opened_at = c->waiting_since = now;
    c->output_size = (size_t)snprintf((char *)c->output, c->capacity, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n",
        c->path, c->place->port, gets_pages ? "Connection: close\r\n"
            : "Upgrade: websocket\r\nConnection: Upgrade\r\n"
              "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    watch(c, EPOLL_CTL_ADD, true); /* it is connected when it can be written */
    living++;
}

static void start_next(void)
{
    if (started < total)
        open_connection(&connections[started++]);
}

static void end_connection(struct connection *c)
{
    /* A reset leaves no TIME_WAIT. Some ten thousand of these would use up the ports. */
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    close(c->fd);
    c->fd = -1;
    living--;
}


/* Input */

static void finish_opening(struct connection *c)
{
    c->waiting_since = 0;
    opened++;
    start_next();
    mode->opened(c);
}

/* Return the size of the 101 response, or 0 if it is incomplete. Of a page, only the status matters. */
static size_t read_handshake(struct connection *c)
{
    if (c->closing)
        return c->input_size; /* the rest of a page */
    uint8_t *end = memmem(c->input, c->input_size, "\r\n\r\n", 4);
    if (!end) {
        if (c->input_size == c->capacity)
            fail("connection %d: the answer to the handshake does not end", c->number);
        return 0;
    }
    size_t size = (size_t)(end + 4 - c->input);
    if (may_end && memcmp(c->input, "HTTP/1.1 503 ", 13) == 0) {
        refused++;
        c->closing = true;
        return c->input_size;
    }
    if (memcmp(c->input, gets_pages ? "HTTP/1.1 200 " : "HTTP/1.1 101 ", 13) != 0)
        fail("connection %d: the handshake was answered by %.*s", c->number,
            (int)strcspn((char *)c->input, "\r"), c->input);
    if (gets_pages) {
        finish_opening(c);
        c->closing = true;
        c->waiting_since = now;
        return c->input_size;
    }
    if (!memmem(c->input, size, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) /* the example of RFC 6455 section 1.3 */
        fail("connection %d: the handshake was answered with a wrong Sec-WebSocket-Accept", c->number);
    c->open = true;
    if (!c->socketio)
        finish_opening(c);
    return size;
}

static void read_message(struct connection *c, const uint8_t *payload, size_t size)
{
    number = c->received;
    if (c->socketio && size >= SEQUENCE) { /* Flask-SocketIO may change the order */
        char digits[SEQUENCE + 1] = {0};
        memcpy(digits, payload, SEQUENCE);
        number = (uint32_t)strtoul(digits, NULL, 16);
    }
    number_pattern(number);
    if (size != options.size || memcmp(payload, pattern, size) != 0)
        fail("connection %d: message %u is not what was sent: %zu bytes, beginning with \"%.*s\"", c->number,
            c->received, size, size < 16 ? (int)size : 16, (const char *)payload);
    c->waiting_since = c->sent > c->received + 1 ? now : 0;
    mode->received(c);
    c->received++;
}

/* Read a packet of Engine.IO 4. It begins with its type; a message continues with the type of a packet of Socket.IO 5. */
static void read_packet(struct connection *c, const uint8_t *packet, size_t size)
{
    if (size > 0 && packet[0] == '0') {
        append_frame(c, TEXT, (const uint8_t *)"40", 2); /* connect to the namespace */
    } else if (size > 0 && packet[0] == '2') {
        append_frame(c, TEXT, (const uint8_t *)"3", 1); /* a pong */
    } else if (size > 1 && memcmp(packet, "40", 2) == 0) {
        finish_opening(c);
    } else if (size > EVENT_BEGIN + EVENT_END && memcmp(packet, event_begin, EVENT_BEGIN) == 0) {
        read_message(c, packet + EVENT_BEGIN, size - EVENT_BEGIN - EVENT_END);
    } else {
        fail("connection %d: a packet of Socket.IO begins with \"%.*s\"", c->number, size < 16 ? (int)size : 16,
            (const char *)packet);
    }
}

/* Return the size of the frame at `frame`, or 0 if it is incomplete. */
static size_t read_frame(struct connection *c, const uint8_t *frame, size_t available)
{
    if (available < 2)
        return 0;
    size_t header = 2, size = frame[1];
    if (size > 127)
        fail("connection %d: the server masks its frames", c->number);
    if (size > 125) {
        size_t bytes = size == 126 ? 2 : 8;
        if (available < header + bytes)
            return 0;
        size = 0;
        for (size_t i = 0; i < bytes; i++)
            size = size << 8 | frame[header + i];
        header += bytes;
    }
    if (size > options.size && size > (c->socketio ? HANDSHAKE_ROOM / 2 : 125))
        fail("connection %d: a frame of %zu bytes, more than were sent", c->number, size);
    if (available < header + size)
        return 0;

    const uint8_t *payload = frame + header;
    switch (frame[0]) {
    case 0x80 | TEXT:
        if (c->socketio)
            read_packet(c, payload, size);
        else
            read_message(c, payload, size);
        break;
    case 0x80 | PING:
        pings++;
        append_frame(c, PONG, payload, size);
        break;
    case 0x80 | PONG:
        break;
    case 0x80 | CLOSE:
        if (may_end && !c->closing) {
            closed++;
            append_close(c);
        }
        if (!c->closing)
            fail("connection %d: the server closed it, with code %d", c->number,
                size < 2 ? 1005 : payload[0] << 8 | payload[1]);
        break;
    default:
        fail("connection %d: a frame begins with 0x%02x, which is no whole text message", c->number, frame[0]);
    }
    return header + size;
}

static void read_input(struct connection *c)
{
    ssize_t n = recv(c->fd, c->input + c->input_size, c->capacity - c->input_size, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    now = read_clock();
    if (n <= 0) {
        if (may_end && !c->closing && c->open)
            abnormal++;
        else if (may_end && !c->closing)
            refused++;
        else if (!c->closing)
            fail("connection %d: %s", c->number, n ? strerror(errno) : "the server ended it without a Close frame");
        end_connection(c);
        mode->ended(c);
        return;
    }
    c->input_size += (size_t)n;

    size_t used = c->open ? 0 : read_handshake(c), size;
    while (c->open && (size = read_frame(c, c->input + used, c->input_size - used)) > 0)
        used += size;
    c->input_size -= used;
    memmove(c->input, c->input + used, c->input_size);
    flush(c);
}


/* Modes */

static void ignore(struct connection *c)
{
    (void)c;
}

static void begin_nothing(void) {}

static bool time_is_over(void)
{
    return now >= deadline;
}

static void begin_echoes(void)
{
    for (struct connection *c = connections; c < connections + options.connections; c++) {
        for (int i = 0; i < options.in_flight; i++)
            append_message(c);
        flush(c);
    }
}

static void count_echo(struct connection *c)
{
    record_latency(c->sent_at[c->received % c->ring]);
    count++;
}

static void echoed(struct connection *c)
{
    count_echo(c);
    if (!stopping)
        append_message(c);
}

static uint64_t next_random(void)
{
    static uint64_t random = 88172645463325252;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17; /* xorshift64: never 0 */
    return random;
}

/* Return the nanoseconds from one message of the open loop to the next: exponentially distributed. */
static uint64_t random_gap(void)
{
    double fraction = (double)(next_random() >> 11) / 9007199254740992.0; /* of 2^53: below 1 */
    return nanoseconds(-log1p(-fraction) / options.rate);
}

static void begin_open_loop(void)
{
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond, or epoll would wait for 50 us longer */
    next_due = read_clock() + random_gap();
}

static void send_what_is_due(void)
{
    now = read_clock();
    for (; next_due <= now; next_due += random_gap()) {
        struct connection *c = &connections[next_random() % (uint64_t)options.connections];
        if (c->sent - c->received == c->ring)
            fail("the server cannot keep up: it is %u messages behind on connection %d", c->ring, c->number);
        append_message(c);
        c->sent_at[(c->sent - 1) % c->ring] = next_due;
        late += now - next_due;
        due_count++;
        flush(c);
    }
}

static void begin_flood(void)
{
    watch(flooder, EPOLL_CTL_MOD, true);
    begin_echoes();
}

/* The flooding connection's echoes are thrown away in the kernel, and it leaves Pings alone: its CPU time belongs to
 * the others. */
static void flood(struct connection *c)
{
    static uint8_t block[FLOOD_BLOCK];
    static size_t size, at;
    while (size + options.size + LARGEST_HEADER <= sizeof block) /* only once: fill it with whole frames */
        size += make_frame(block + size, TEXT, pattern, options.size);

    ssize_t written = send(c->fd, block + at, size - at, MSG_NOSIGNAL);
    if (written > 0)
        at = (at + (size_t)written) % size;
    ssize_t read = recv(c->fd, NULL, FLOOD_BLOCK, MSG_TRUNC);
    if (read == 0 || (read < 0 && errno != EAGAIN))
        fail("the flooding connection: %s", read ? strerror(errno) : "the server ended it");
}

/* An echo that did not come in time counts with its wait so far. */
static void record_starved(void)
{
    for (struct connection *c = connections; c < flooder; c++)
        if (c->sent > c->received)
            record_latency(c->sent_at[c->received % c->ring]);
}

static void close_it(struct connection *c)
{
    if (!stopping)
        append_close(c);
}

static void reopen(struct connection *c)
{
    record_latency(c->opened_at);
    count++;
    if (!stopping)
        open_connection(c);
}

static void publish(void)
{
    append_message(publisher);
    flush(publisher);
}

static void begin_publishing(void)
{
    usleep(200000); /* some servers register a receiver only after they have sent the 101 response */
    now = read_clock();
    publish();
}

static void delivered(struct connection *c)
{
    (void)c;
    count++;
    if (++publisher->received % (uint32_t)options.connections == 0) {
        record_latency(publisher->sent_at[(publisher->sent - 1) % publisher->ring]);
        publisher->waiting_since = 0;
        if (!stopping)
            publish();
    }
}

static void begin_timer(void)
{
    usleep(200000); /* as in begin_publishing() */
    now = read_clock();
    uint64_t interval = nanoseconds(1 / options.rate);
    struct timespec time = {.tv_sec = (time_t)(interval / 1000000000), .tv_nsec = (long)(interval % 1000000000)};
    timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (timer.fd < 0 || timerfd_settime(timer.fd, 0, &(struct itimerspec){time, time}, NULL) < 0)
        fail("no timer: %s", strerror(errno));
    watch(&timer, EPOLL_CTL_ADD, false);
}

static void publish_what_is_due(void)
{
    uint64_t due;
    if (read(timer.fd, &due, sizeof due) != sizeof due || stopping)
        return;
    while (due-- > 0) {
        if (publisher->sent - publisher->received / (uint32_t)(publisher - receivers) >= publisher->ring)
            fail("the server is %u messages behind", publisher->ring);
        append_message(publisher);
    }
    flush(publisher);
}

static void note_delivery(void)
{
    publisher->received++;
    publisher->waiting_since = publisher->received < publisher->sent * (uint32_t)(publisher - receivers) ? now : 0;
}

static void delivered_in_room(struct connection *c)
{
    note_delivery();
    count++;
    if (c->place != publisher->place || options.port_count == 1)
        record_latency(publisher->sent_at[number % publisher->ring]);
}

static void begin_beside(void)
{
    begin_timer();
    begin_echoes();
}

static void echoed_or_delivered(struct connection *c)
{
    if (c < receivers)
        echoed(c);
    else
        note_delivery();
}

static int answered;

static void send_one(struct connection *c)
{
    append_message(c);
}

static void count_answer(struct connection *c)
{
    (void)c;
    answered++;
}

static bool all_are_idle(void)
{
    return answered + closed + abnormal >= total;
}

static void ask_all(void)
{
    now = read_clock();
    answered = 0;
    for (struct connection *c = connections; c < connections + total; c++) {
        append_message(c);
        flush(c);
    }
}

static void count_echo_and_answer(struct connection *c)
{
    count_echo(c);
    answered++;
}

static bool have_answered_in_time(void)
{
    if (answered < total)
        return false;
    if (!time_is_over())
        ask_all();
    return time_is_over();
}

static void let_end(void)
{
    may_end = true;
}

static void come_back(struct connection *c)
{
    if (stopping)
        return;
    if (c->open || !c->ended_at) /* otherwise its handshake has failed */
        c->ended_at = now;
    count -= c->is_back;
    c->is_back = false;
    if (c->open) {
        open_connection(c);
    } else {
        c->due_at = now + RETRY;
        away++;
    }
}

static void open_what_is_due(void)
{
    for (struct connection *c = connections; away && c < connections + total; c++)
        if (c->due_at && c->due_at <= now) {
            c->due_at = 0;
            away--;
            open_connection(c);
        }
}

static void note_return(struct connection *c)
{
    answered++;
    if (!c->ended_at)
        return;
    record_latency(c->ended_at);
    c->is_back = true;
    count++;
}

static bool all_are_back(void)
{
    return count == (uint64_t)total;
}

static const struct mode modes[] = {
    {"echo", ignore, begin_echoes, echoed, ignore, time_is_over},
    {"open", ignore, begin_open_loop, count_echo, ignore, time_is_over},
    {"flood", ignore, begin_flood, echoed, ignore, time_is_over},
    {"connect", send_one, begin_nothing, close_it, reopen, time_is_over},
    {"page", ignore, begin_nothing, ignore, reopen, time_is_over},
    {"fanout", ignore, begin_publishing, delivered, ignore, time_is_over},
    {"room", ignore, begin_timer, delivered_in_room, ignore, time_is_over},
    {"beside", ignore, begin_beside, echoed_or_delivered, ignore, time_is_over},
    {"idle", send_one, begin_nothing, count_answer, ignore, all_are_idle},
    {"ask", ignore, ask_all, count_echo_and_answer, ignore, have_answered_in_time},
    {"hold", send_one, let_end, count_answer, ignore, all_are_idle},
    {"return", send_one, let_end, note_return, come_back, all_are_back},
};


/* The run */

static void fail_if_the_server_stalls(void)
{
    for (struct connection *c = connections; c < connections + started; c++) {
        if (c->fd < 0 || !c->waiting_since || now - c->waiting_since < nanoseconds(options.timeout))
            continue;
        if (flooder && c->open)
            continue; /* a flood that starves the other connections is a result, too */
        if (c == publisher && c->open)
            fail("after %d s, a message has reached %d of %d receivers", options.timeout,
                (int)(c->received % (uint32_t)(c - receivers)), (int)(c - receivers));
        fail("connection %d has waited %d s for %s", c->number, options.timeout,
            !c->open ? "the 101 response" : c->socketio ? "a packet of Socket.IO" : c->closing ? "its end" : "an echo");
    }
}

static int wait_for_events(struct epoll_event *events, int most)
{
    uint64_t wait = LONGEST_WAIT;
    if (next_due != UINT64_MAX) {
        uint64_t clock = read_clock();
        wait = next_due <= clock ? 0 : next_due - clock < wait ? next_due - clock : wait;
    }
    return epoll_pwait2(epoll, events, most, &(struct timespec){.tv_nsec = (long)wait}, NULL);
}

static void run_until(bool (*over)(void))
{
    static uint64_t next_check;
    struct epoll_event events[64];
    while (!over()) {
        int n = wait_for_events(events, 64);
        if (n < 0 && errno != EINTR)
            fail("epoll_pwait2: %s", strerror(errno));
        now = read_clock();
        for (struct epoll_event *event = events; event < events + n; event++) {
            struct connection *c = event->data.ptr;
            if (!c) {
                char ignored[256];
                input_ended = read(STDIN_FILENO, ignored, sizeof ignored) <= 0;
            } else if (c == &timer) {
                publish_what_is_due();
            } else if (c == flooder && c->open && opened == total) {
                flood(c);
            } else {
                if (event->events & EPOLLOUT)
                    flush(c);
                if (event->events & ~(uint32_t)EPOLLOUT)
                    read_input(c);
            }
        }
        send_what_is_due();
        open_what_is_due();
        if (now >= next_check) {
            next_check = now + nanoseconds(1);
            fail_if_the_server_stalls();
        }
    }
}

static bool all_are_open(void)
{
    return opened >= total;
}

static bool stdin_has_ended(void)
{
    return input_ended;
}

static bool all_have_ended(void)
{
    return living == 0 || time_is_over();
}

static void make_connections(void)
{
    bool is_beside = strcmp(mode->name, "beside") == 0;
    bool publishes = is_beside || strcmp(mode->name, "fanout") == 0 || strcmp(mode->name, "room") == 0;
    int receiver_count = is_beside ? options.port_count : publishes ? options.connections : 0;
    bool floods = strcmp(mode->name, "flood") == 0, is_open = strcmp(mode->name, "open") == 0;
    gets_pages = strcmp(mode->name, "page") == 0;
    total = options.connections + (is_beside ? receiver_count : 0) + publishes + floods;
    connections = allocate((size_t)total * sizeof *connections);
    if (floods)
        flooder = &connections[total - 1];
    if (publishes) {
        publisher = &connections[total - 1];
        receivers = publisher - receiver_count;
    }
    for (int i = 0; i < total; i++) {
        struct connection *c = &connections[i];
        bool receives = publishes && c >= receivers && c < publisher;
        c->number = i;
        c->place = &options.places[receives ? (c - receivers) * options.port_count / receiver_count : 0];
        c->path = receives ? options.receive : c == publisher ? options.publish : gets_pages ? "/page" : options.echo;
        c->socketio = options.socketio && (receives || c == publisher);
        c->ring = c == publisher || is_open ? MOST_UNDER_WAY : (uint32_t)options.in_flight;
        c->capacity = c->ring * (options.size + LARGEST_HEADER) + HANDSHAKE_ROOM;
        c->input = allocate(c->capacity);
        c->output = allocate(c->capacity);
        c->sent_at = allocate(c->ring * sizeof *c->sent_at);
    }
    pattern = allocate(options.size);
    for (size_t i = 0; i < options.size; i++)
        pattern[i] = (uint8_t)('A' + i % 26); /* nothing that JSON escapes */

    now = read_clock();
    for (int i = 0; i < HANDSHAKES_AT_ONCE; i++)
        start_next();
    run_until(all_are_open);
}

static void measure(void)
{
    mode->begin();
    deadline = now + nanoseconds(options.warm_up);
    run_until(time_is_over);

    count = late = due_count = 0;
    memset(histogram, 0, sizeof histogram);
    puts("begin");
    fflush(stdout);
    uint64_t begin = now = read_clock();
    double cpu = cpu_seconds();
    deadline = begin + nanoseconds(options.seconds);
    run_until(mode->over);
    stopping = true;
    next_due = UINT64_MAX;
    if (flooder)
        record_starved();
    printf("{\"count\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, \"p50\": %.2f, \"p99\": %.2f, \"longest\": %.2f, "
           "\"late\": %.2f, \"closed\": %d, \"abnormal\": %d, \"refused\": %d}\n",
        (unsigned long long)count, (double)(now - begin) / 1e9, cpu_seconds() - cpu, percentile_in_microseconds(0.5),
        percentile_in_microseconds(0.99), percentile_in_microseconds(1),
        due_count ? (double)late / (double)due_count / 1000 : 0, closed, abnormal, refused);
    fflush(stdout);
}

static void close_all(void)
{
    for (struct connection *c = connections; c < connections + total; c++)
        if (c->fd >= 0 && c->open && !c->closing) {
            append_close(c);
            flush(c);
        }
    deadline = now + nanoseconds(1);
    run_until(all_have_ended);
}

static void add_place(char *text)
{
    struct in_addr address = {.s_addr = htonl(INADDR_LOOPBACK)};
    char *colon = strchr(text, ':');
    if (colon) {
        *colon = 0;
        if (!inet_aton(text, &address))
            fail("--port: %s is no IPv4 address", text);
    }
    int port = atoi(colon ? colon + 1 : text);
    if (port <= 0 || port > 65535 || options.port_count == MOST_PORTS)
        fail("--port is from 1 to 65535, at most %d times", MOST_PORTS);
    options.places[options.port_count++] = (struct place){address.s_addr, port};
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, 0, 'p'}, {"connections", required_argument, 0, 'c'},
        {"in-flight", required_argument, 0, 'f'}, {"size", required_argument, 0, 'b'},
        {"seconds", required_argument, 0, 's'}, {"warm-up", required_argument, 0, 'w'},
        {"timeout", required_argument, 0, 't'}, {"rate", required_argument, 0, 'r'},
        {"echo", required_argument, 0, 'E'}, {"receive", required_argument, 0, 'R'},
        {"publish", required_argument, 0, 'P'}, {"socketio", no_argument, 0, 'i'},
        {"source", required_argument, 0, 'S'}, {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'p': add_place(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'f': options.in_flight = atoi(optarg); break;
        case 'b': options.size = strtoul(optarg, NULL, 10); break;
        case 's': options.seconds = atof(optarg); break;
        case 'w': options.warm_up = atof(optarg); break;
        case 't': options.timeout = atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'E': options.echo = optarg; break;
        case 'R': options.receive = optarg; break;
        case 'P': options.publish = optarg; break;
        case 'i': options.socketio = true; break;
        case 'S':
            if (!inet_aton(optarg, &options.source))
                fail("--source: %s is no IPv4 address", optarg);
            break;
        default: exit(2);
        }
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes && optind == argc - 1; i++)
        if (strcmp(argv[optind], modes[i].name) == 0)
            mode = &modes[i];
    if (!mode)
        fail("name one mode: echo, open, flood, connect, page, fanout, room, beside, idle, ask, hold or return");
    if (options.port_count == 0)
        fail("--port is needed");
    if (options.rate < 1)
        fail("--rate is 1 or more");
    if (options.connections < 1 || options.in_flight < 1 || options.timeout < 1)
        fail("--connections, --in-flight and --timeout are 1 or more");
    if (options.size < SEQUENCE || options.size > FLOOD_BLOCK - LARGEST_HEADER)
        fail("--size is from %d to %d", SEQUENCE, FLOOD_BLOCK - LARGEST_HEADER);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    epoll = epoll_create1(0);
    make_connections();
    measure();
    if (flooder)
        end_connection(flooder); /* it stopped in the middle of a frame */

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        input_ended = true; /* stdin is a file, whose end need not be awaited */
    run_until(stdin_has_ended);
    if (strcmp(mode->name, "hold") == 0) {
        printf("{\"closed\": %d, \"abnormal\": %d, \"pings\": %llu}\n", closed, abnormal, (unsigned long long)pings);
        fflush(stdout);
    }
    close_all();
}
