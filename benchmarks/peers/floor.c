/* The floor: what the kernel needs for one send() per client and message, and nothing else.
 *
 * No database, no JSON, no WebSocket library: the message is made here, at the requested rate, and sent
 * to each client by a send() of its own on a non-blocking socket. The answer to the handshake is the one
 * for the key of RFC 6455, section 1.3, built in. A server that costs less per delivery sends more than
 * one message at a time.
 *
 *   floor PORT     then on standard input, one line each: COUNT RATE (changes, changes/s; rate 0: as
 *                  fast as possible)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 20000 };
static const char ACCEPTED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int clients[MOST], count;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void leave(int fd)
{
    for (int i = 0; i < count; i++)
        if (clients[i] == fd) {
            clients[i] = clients[--count];
            break;
        }
    close(fd);
}

/* One frame: as long as that of the same change in the other servers. */
static int message(char *frame, int number)
{
    char text[512];
    time_t second = time(NULL);
    struct tm utc;
    char when[32];
    gmtime_r(&second, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    int size = snprintf(text, sizeof text,
                        "{\"type\":\"run_update\",\"data\":{\"id\":\"run-%08d\",\"status\":\"running\",\"progress\":42.0,"
                        "\"task_id\":\"task-%08d\",\"agent\":\"benchmark\",\"started_at\":\"%s.000000Z\",\"error\":\"t=%019lld\"},"
                        "\"timestamp\":\"%s.000000Z\"}",
                        number, number, when, now(), when);
    frame[0] = (char)0x81;
    frame[1] = 126;
    frame[2] = (char)(size >> 8);
    frame[3] = (char)size;
    memcpy(frame + 4, text, (size_t)size);
    return size + 4;
}

static void deliver(int fd, const char *data, int size)
{
    while (size) {
        ssize_t sent = send(fd, data, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            data += sent;
            size -= (int)sent;
        } else if (errno == EAGAIN) {
            struct pollfd room = {.fd = fd, .events = POLLOUT};
            poll(&room, 1, -1);
        } else {
            return;
        }
    }
}

static void burst(int changes, double rate)
{
    char frame[600];
    long long began = now();
    for (int i = 0; i < changes; i++) {
        if (rate > 0) {
            long long due = began + (long long)(i * 1e9 / rate), left = due - now();
            if (left > 0) {
                struct timespec t = {left / 1000000000LL, left % 1000000000LL};
                nanosleep(&t, NULL);
            }
        }
        int size = message(frame, i);
        for (int c = 0; c < count; c++)
            deliver(clients[c], frame, size);
    }
    printf("done\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, epoll = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"))};
    struct rlimit files = {MOST, MOST};
    setrlimit(RLIMIT_NOFILE, &files);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) {
        perror("floor");
        return 1;
    }
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wish);
    wish.data.fd = 0;
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &wish);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int found = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < found; i++) {
            int fd = events[i].data.fd, client;
            char data[4096];
            if (fd == listener) {
                while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    wish.data.fd = client;
                    epoll_ctl(epoll, EPOLL_CTL_ADD, client, &wish);
                }
                continue;
            }
            ssize_t size = read(fd, data, sizeof data - 1);
            if (fd == 0) {
                int changes = 0;
                double rate = 0;
                if (size <= 0)
                    return 0;
                data[size] = 0;
                if (sscanf(data, "%d %lf", &changes, &rate) == 2)
                    burst(changes, rate);
            } else if (size == 0 || (size < 0 && errno != EAGAIN)) {
                leave(fd);
            } else if (size > 4 && !memcmp(data, "GET ", 4) && count < MOST) {
                clients[count++] = fd; /* a request on loopback comes in one piece */
                send(fd, ACCEPTED, sizeof ACCEPTED - 1, MSG_NOSIGNAL);
            }
        }
    }
}
