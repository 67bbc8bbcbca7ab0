/* The least that a fan-out takes: epoll, and send() to each receiver, without a check of anything.
 *
 *     bare PORT...
 *
 * There is a process for each port. A message to /publish of one of them, which has at most 125 bytes, goes through a
 * pipe to each other process, and in each to the connections to /receive. The one Sec-WebSocket-Key that it answers
 * is that of the load generator.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

enum { MOST = 65536, MOST_PROCESSES = 16, ROOM = 1024 };

struct connection {
    size_t size; /* of the input that is no whole frame yet */
    uint8_t input[ROOM];
    enum { NEW, OTHER, RECEIVER } state;
    int place; /* among the receivers */
};

static struct connection *connections[MOST]; /* by their descriptors */
static int receivers[MOST], receiver_count;
static int pipes[MOST_PROCESSES][2], processes, own; /* own is the number of this process */

static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int listen_on(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1024) < 0) {
        perror("bare");
        exit(1);
    }
    return fd;
}

static void open_connection(int epoll, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connections[fd] = calloc(1, sizeof(struct connection));
    watch(epoll, fd);
}

static void end_connection(int fd)
{
    struct connection *c = connections[fd];
    if (c->state == RECEIVER) {
        receivers[c->place] = receivers[--receiver_count];
        connections[receivers[c->place]]->place = c->place;
    }
    free(c);
    close(fd);
}

/* Each of these two returns how much of the input it has used: 0 when the rest is not here yet. */

static size_t read_handshake(int fd, struct connection *c)
{
    uint8_t *end = memmem(c->input, c->size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    c->state = memcmp(c->input, "GET /receive ", 13) == 0 ? RECEIVER : OTHER;
    if (c->state == RECEIVER) {
        c->place = receiver_count;
        receivers[receiver_count++] = fd;
    }
    send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
    return (size_t)(end + 4 - c->input);
}

static void deliver(const uint8_t *message, size_t size)
{
    for (int i = 0; i < receiver_count; i++)
        send(receivers[i], message, size, MSG_NOSIGNAL);
}

static size_t read_frame(struct connection *c, uint8_t *frame, size_t available)
{
    size_t size = available < 2 ? 0 : frame[1] & 127;
    if (available < 6 + size)
        return 0;
    if ((frame[0] & 15) == 8) {
        c->size = ROOM + 1; /* ends the connection */
        return 0;
    }
    uint8_t message[127] = {frame[0], (uint8_t)size};
    for (size_t i = 0; i < size; i++)
        message[2 + i] = frame[6 + i] ^ frame[2 + i % 4];
    for (int i = 0; i < processes; i++)
        if (i != own)
            send(pipes[i][1], message, 2 + size, 0);
    deliver(message, 2 + size);
    return 6 + size;
}

static void read_input(int fd)
{
    struct connection *c = connections[fd];
    ssize_t n = recv(fd, c->input + c->size, ROOM - c->size, 0);
    if (n <= 0) {
        end_connection(fd);
        return;
    }
    c->size += (size_t)n;
    size_t used = c->state == NEW ? read_handshake(fd, c) : 0, more;
    while (c->state != NEW && (more = read_frame(c, c->input + used, c->size - used)) > 0)
        used += more;
    if (c->size > ROOM) {
        end_connection(fd);
        return;
    }
    c->size -= used;
    memmove(c->input, c->input + used, c->size);
}

static void read_pipe(int pipe)
{
    uint8_t message[127];
    ssize_t size = recv(pipe, message, sizeof message, 0);
    if (size > 0)
        deliver(message, (size_t)size);
}

static void serve(int process, int port)
{
    int epoll = epoll_create1(0), listener = listen_on(port), pipe = pipes[process][0];
    own = process;
    watch(epoll, listener);
    watch(epoll, pipe);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                open_connection(epoll, fd);
            else if (fd == pipe)
                read_pipe(fd);
            else
                read_input(fd);
        }
    }
}

int main(int argc, char **argv)
{
    processes = argc - 1;
    if (processes < 1 || processes > MOST_PROCESSES)
        return 2;
    for (int i = 0; i < processes; i++)
        socketpair(AF_UNIX, SOCK_DGRAM, 0, pipes[i]);
    for (int i = 1; i < processes; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            serve(i, atoi(argv[1 + i]));
        }
    serve(0, atoi(argv[1]));
}
