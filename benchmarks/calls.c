/* Counts the system calls with which a server receives and sends: a library for LD_PRELOAD.
 *
 * The environment variable CALLS names a file of three 64-bit numbers, which all processes of the server share: the calls
 * that received something from TCP, the calls that found nothing there (EAGAIN), and the calls that sent something.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum number { RECEIVED, EMPTY, SENT, NUMBERS };

static _Atomic uint64_t none[NUMBERS], *calls = none;

__attribute__((constructor)) static void open_file(void)
{
    const char *path = getenv("CALLS");
    int fd = path ? open(path, O_RDWR) : -1;
    void *memory = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        calls = memory;
    if (fd >= 0)
        close(fd);
}

static ssize_t count(enum number number, int fd, ssize_t result)
{
    int error = errno, domain = 0;
    bool is_empty = result < 0 && error == EAGAIN && number == RECEIVED;
    if (result > 0 || is_empty) {
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &(socklen_t){sizeof domain}); /* it may be a file or a pipe */
        if (domain == AF_INET)
            atomic_fetch_add_explicit(&calls[is_empty ? EMPTY : number], 1, memory_order_relaxed);
        errno = error;
    }
    return result;
}

#define RECEIVE(name, ...) return count(RECEIVED, fd, syscall(SYS_##name, fd, __VA_ARGS__))
#define SEND(name, ...) return count(SENT, fd, syscall(SYS_##name, fd, __VA_ARGS__))

ssize_t read(int fd, void *to, size_t size) { RECEIVE(read, to, size); }
ssize_t readv(int fd, const struct iovec *parts, int n) { RECEIVE(readv, parts, n); }
ssize_t recv(int fd, void *to, size_t size, int flags) { RECEIVE(recvfrom, to, size, flags, NULL, NULL); }
ssize_t recvmsg(int fd, struct msghdr *message, int flags) { RECEIVE(recvmsg, message, flags); }
ssize_t recvfrom(int fd, void *to, size_t size, int flags, __SOCKADDR_ARG from, socklen_t *length)
{
    RECEIVE(recvfrom, to, size, flags, from.__sockaddr__, length);
}

/* The names in programs that were compiled with _FORTIFY_SOURCE. */
ssize_t __read_chk(int fd, void *to, size_t size, size_t room)
{
    (void)room;
    RECEIVE(read, to, size);
}
ssize_t __recv_chk(int fd, void *to, size_t size, size_t room, int flags)
{
    (void)room;
    RECEIVE(recvfrom, to, size, flags, NULL, NULL);
}

ssize_t write(int fd, const void *from, size_t size) { SEND(write, from, size); }
ssize_t writev(int fd, const struct iovec *parts, int n) { SEND(writev, parts, n); }
ssize_t send(int fd, const void *from, size_t size, int flags) { SEND(sendto, from, size, flags, NULL, 0); }
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) { SEND(sendmsg, message, flags); }
ssize_t sendto(int fd, const void *from, size_t size, int flags, __CONST_SOCKADDR_ARG to, socklen_t length)
{
    SEND(sendto, from, size, flags, to.__sockaddr__, length);
}
