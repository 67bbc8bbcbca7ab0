/* The load generator of `make bench`: one thread and one epoll in C, so that the server is what limits.
 *
 *     load MODE --port N [--connections N] [--in-flight N] [--size BYTES] [--seconds S] [--warm-up S] [--timeout S]
 *
 * echo     every connection keeps `in-flight` text messages of `size` bytes on their way, and checks their echoes
 * flood    the same, beside one more connection that writes and reads as fast as the server lets it
 * connect  handshake and closing handshake, over and over, on `connections` connections at a time
 * fanout   one publisher; all of `connections` must have received its message before it sends the next one
 * idle     every connection has one message echoed and then does nothing
 *
 * On stdout it says "begin" when the warm-up is over, and one line of JSON when the measured time is. Then it holds
 * the connections until stdin ends, so that whoever started it can look at the server. The JSON has the `count` of
 * echoes, connections or deliveries; the `seconds` that they took; the seconds of `cpu` that this process took; and
 * `p50` and `p99`, in microseconds, of one echo, of one connection from SYN to EOF, or of one message from its
 * publisher to the last of its receivers. Of the mode idle, only that it has come so far is of interest.
 *
 * The server is on 127.0.0.1 and serves /echo, and for fanout /receive and /publish. Whatever it does that is not
 * asked for, or nothing at all for `timeout` seconds, ends the run with one sentence on stderr.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HANDSHAKES_AT_ONCE = 64, /* below every server's backlog: a SYN that is dropped costs a second */
    FLOOD_BLOCK = 65536,     /* what the flooding connection writes or reads between two looks at the others */
    LARGEST_HEADER = 14,
    HANDSHAKE_ROOM = 2048, /* in the buffers: for the 101 response, and for Pongs beside the messages */
    SEQUENCE = 8,          /* hexadecimal digits at the beginning of each message */
    BUCKETS = 64 * 60,
};

enum opcode { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

struct connection {
    int fd; /* -1 when it has ended */
    int number;
    const char *path;
    bool open;                      /* the handshake is done */
    bool closing;                   /* our Close frame is sent: the server may end the connection */
    bool watches_output;            /* epoll tells when the socket takes more */
    uint8_t *input, *output;        /* what is no whole frame yet; what the socket has not taken yet */
    size_t input_size, output_size; /* bytes in them */
    uint32_t sent, received;        /* messages; of the publisher, received is what its receivers have, together */
    uint64_t *sent_at;              /* of those in flight: a ring */
    uint64_t opened_at;
    uint64_t waiting_since; /* for the next thing from the server; 0 when nothing has to come */
};

struct mode {
    const char *name;
    void (*opened)(struct connection *);   /* a handshake is done */
    void (*begin)(void);                   /* all handshakes are */
    void (*received)(struct connection *); /* a message has come, and is the expected one */
    void (*ended)(struct connection *);    /* the server has ended a connection that was closing */
    bool (*over)(void);                    /* all is measured */
};

static struct {
    int port, connections, in_flight, timeout;
    size_t size;
    double seconds, warm_up;
} options = {.connections = 32, .in_flight = 1, .timeout = 10, .size = 64, .seconds = 2, .warm_up = 0.5};

static const struct mode *mode;
static struct connection *connections, *flooder, *publisher; /* the latter are NULL in most modes */
static int total;                                            /* of the connections, these two included */
static int started, opened, living; /* connections */
static int epoll;
static uint64_t now;      /* nanoseconds; read once for each batch of input */
static uint64_t deadline; /* of the current phase */
static bool stopping;     /* nothing new is sent any more */
static bool input_ended;  /* of stdin */
static uint64_t count;    /* of what the mode is about */
static uint64_t histogram[BUCKETS];
static size_t capacity; /* of the buffers of a connection */
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
        if (n < 0 && c->closing) { /* the server has ended the connection; the end will be read */
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
    if (c->output_size + size + LARGEST_HEADER > capacity)
        fail("connection %d: the server does not read what it is sent", c->number);
    c->output_size += make_frame(c->output + c->output_size, opcode, payload, size);
}

static void number_pattern(uint32_t number)
{
    for (int i = 0; i < SEQUENCE; i++)
        pattern[i] = (uint8_t)"0123456789abcdef"[number >> (28 - 4 * i) & 15];
}

/* Append the next message, which goes out with the next flush(). */
static void append_message(struct connection *c)
{
    number_pattern(c->sent);
    append_frame(c, TEXT, pattern, options.size);
    c->sent_at[c->sent++ % (uint32_t)options.in_flight] = now;
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
        .sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        fail("no socket for connection %d: %s", c->number, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail("connection %d: %s", c->number, strerror(errno));

    c->open = c->closing = false;
    c->input_size = 0;
    c->opened_at = c->waiting_since = now;
    c->output_size = (size_t)snprintf((char *)c->output, capacity,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", c->path, options.port);
    watch(c, EPOLL_CTL_ADD, true); /* it is connected when it takes output */
    living++;
}

static void start_next(void)
{
    if (started < total)
        open_connection(&connections[started++]);
}

static void end_connection(struct connection *c)
{
    /* A reset leaves no TIME_WAIT, of which some ten thousand would use the ports up. */
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    close(c->fd);
    c->fd = -1;
    living--;
}


/* Input */

/* Return the size of the 101 response, or 0 when it is not here as a whole. */
static size_t read_handshake(struct connection *c)
{
    uint8_t *end = memmem(c->input, c->input_size, "\r\n\r\n", 4);
    if (!end) {
        if (c->input_size == capacity)
            fail("connection %d: the answer to the handshake does not end", c->number);
        return 0;
    }
    size_t size = (size_t)(end + 4 - c->input);
    if (memcmp(c->input, "HTTP/1.1 101 ", 13) != 0)
        fail("connection %d: the handshake was answered by %.*s", c->number,
            (int)strcspn((char *)c->input, "\r"), c->input);
    if (!memmem(c->input, size, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) /* the example of RFC 6455 section 1.3 */
        fail("connection %d: the handshake was answered with a wrong Sec-WebSocket-Accept", c->number);
    c->open = true;
    c->waiting_since = 0;
    opened++;
    start_next();
    mode->opened(c);
    return size;
}

static void read_message(struct connection *c, const uint8_t *payload, size_t size)
{
    number_pattern(c->received);
    if (size != options.size || memcmp(payload, pattern, size) != 0)
        fail("connection %d: message %u is not what was sent: %zu bytes, beginning with \"%.*s\"", c->number,
            c->received, size, size < 16 ? (int)size : 16, (const char *)payload);
    mode->received(c);
    c->received++;
    c->waiting_since = c->sent > c->received ? now : 0;
}

/* Return the size of the frame at `frame`, or 0 when it is not here as a whole. */
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
    if (size > options.size && size > 125)
        fail("connection %d: a frame of %zu bytes, more than were sent", c->number, size);
    if (available < header + size)
        return 0;

    const uint8_t *payload = frame + header;
    switch (frame[0]) {
    case 0x80 | TEXT:
        read_message(c, payload, size);
        break;
    case 0x80 | PING:
        append_frame(c, PONG, payload, size);
        break;
    case 0x80 | PONG:
        break;
    case 0x80 | CLOSE:
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
    ssize_t n = recv(c->fd, c->input + c->input_size, capacity - c->input_size, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    now = read_clock();
    if (n <= 0) {
        if (!c->closing)
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

static void echoed(struct connection *c)
{
    record_latency(c->sent_at[c->received % (uint32_t)options.in_flight]);
    count++;
    if (!stopping)
        append_message(c);
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
    while (size + options.size + LARGEST_HEADER <= sizeof block) /* once: fill it with whole frames */
        size += make_frame(block + size, TEXT, pattern, options.size);

    ssize_t written = send(c->fd, block + at, size - at, MSG_NOSIGNAL);
    if (written > 0)
        at = (at + (size_t)written) % size;
    ssize_t read = recv(c->fd, NULL, FLOOD_BLOCK, MSG_TRUNC);
    if (read == 0 || (read < 0 && errno != EAGAIN))
        fail("the flooding connection: %s", read ? strerror(errno) : "the server ended it");
}

/* An echo that did not come in time has been waited for nevertheless: for at least as long as this. */
static void record_starved(void)
{
    for (struct connection *c = connections; c < flooder; c++)
        if (c->sent > c->received)
            record_latency(c->sent_at[c->received % (uint32_t)options.in_flight]);
}

static void close_at_once(struct connection *c)
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
    usleep(200000); /* some servers' handlers register a receiver only after they have sent the 101 response */
    now = read_clock();
    publish();
}

static void delivered(struct connection *c)
{
    (void)c;
    count++;
    if (++publisher->received % (uint32_t)options.connections == 0) {
        record_latency(publisher->sent_at[0]);
        publisher->waiting_since = 0;
        if (!stopping)
            publish();
    }
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
    return answered == total;
}

static const struct mode modes[] = {
    {"echo", ignore, begin_echoes, echoed, ignore, time_is_over},
    {"flood", ignore, begin_flood, echoed, ignore, time_is_over},
    {"connect", close_at_once, begin_nothing, ignore, reopen, time_is_over},
    {"fanout", ignore, begin_publishing, delivered, ignore, time_is_over},
    {"idle", send_one, begin_nothing, count_answer, ignore, all_are_idle},
};


/* The run */

static void fail_if_the_server_stalls(void)
{
    for (struct connection *c = connections; c < connections + started; c++) {
        if (c->fd < 0 || !c->waiting_since || now - c->waiting_since < nanoseconds(options.timeout))
            continue;
        if (flooder && c->open)
            continue; /* to starve the others is a result, too */
        if (c == publisher && c->open)
            fail("after %d s, a message has reached %d of %d receivers", options.timeout,
                (int)(c->received % (uint32_t)options.connections), options.connections);
        fail("connection %d has waited %d s for %s", c->number, options.timeout,
            !c->open ? "the 101 response" : c->closing ? "its end" : "an echo");
    }
}

static void run_until(bool (*over)(void))
{
    static uint64_t next_check;
    struct epoll_event events[64];
    while (!over()) {
        int n = epoll_wait(epoll, events, 64, 10);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        now = read_clock();
        for (struct epoll_event *event = events; event < events + n; event++) {
            struct connection *c = event->data.ptr;
            if (!c) {
                char ignored[256];
                input_ended = read(STDIN_FILENO, ignored, sizeof ignored) <= 0;
            } else if (c == flooder && c->open && opened == total) {
                flood(c);
            } else {
                if (event->events & EPOLLOUT)
                    flush(c);
                if (event->events & ~(uint32_t)EPOLLOUT)
                    read_input(c);
            }
        }
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
    bool has_another = strcmp(mode->name, "flood") == 0 || strcmp(mode->name, "fanout") == 0;
    total = options.connections + has_another;
    connections = allocate((size_t)total * sizeof *connections);
    capacity = (size_t)options.in_flight * (options.size + LARGEST_HEADER) + HANDSHAKE_ROOM;
    for (int i = 0; i < total; i++) {
        struct connection *c = &connections[i];
        c->number = i;
        c->path = "/echo";
        c->input = allocate(capacity);
        c->output = allocate(capacity);
        c->sent_at = allocate((size_t)options.in_flight * sizeof *c->sent_at);
    }
    if (strcmp(mode->name, "flood") == 0)
        flooder = &connections[total - 1];
    if (strcmp(mode->name, "fanout") == 0) {
        for (int i = 0; i < options.connections; i++)
            connections[i].path = "/receive";
        publisher = &connections[total - 1];
        publisher->path = "/publish";
    }
    pattern = allocate(options.size);
    for (size_t i = 0; i < options.size; i++)
        pattern[i] = (uint8_t)('A' + i % 57);

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

    count = 0;
    memset(histogram, 0, sizeof histogram);
    puts("begin");
    fflush(stdout);
    uint64_t begin = now = read_clock();
    double cpu = cpu_seconds();
    deadline = begin + nanoseconds(options.seconds);
    run_until(mode->over);
    stopping = true;
    if (flooder)
        record_starved();
    printf("{\"count\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, \"p50\": %.2f, \"p99\": %.2f}\n",
        (unsigned long long)count, (double)(now - begin) / 1e9, cpu_seconds() - cpu, percentile_in_microseconds(0.5),
        percentile_in_microseconds(0.99));
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

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, 0, 'p'}, {"connections", required_argument, 0, 'c'},
        {"in-flight", required_argument, 0, 'f'}, {"size", required_argument, 0, 'b'},
        {"seconds", required_argument, 0, 's'}, {"warm-up", required_argument, 0, 'w'},
        {"timeout", required_argument, 0, 't'}, {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'p': options.port = atoi(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'f': options.in_flight = atoi(optarg); break;
        case 'b': options.size = strtoul(optarg, NULL, 10); break;
        case 's': options.seconds = atof(optarg); break;
        case 'w': options.warm_up = atof(optarg); break;
        case 't': options.timeout = atoi(optarg); break;
        default: exit(2);
        }
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes && optind == argc - 1; i++)
        if (strcmp(argv[optind], modes[i].name) == 0)
            mode = &modes[i];
    if (!mode)
        fail("name one mode: echo, flood, connect, fanout or idle");
    if (options.port <= 0 || options.port > 65535)
        fail("--port is needed");
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
        input_ended = true; /* a file has nothing to wait for */
    run_until(stdin_has_ended);
    close_all();
}
