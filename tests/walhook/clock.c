/* Moves the wall clock of one process, and only that: loaded before the C library, it adds the microseconds that stand in the
 * first 8 bytes of the file named by CLOCK_OFFSET, of which the process has a shared view. CLOCK_MONOTONIC stays. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void look(void) {
    const char *path = getenv("CLOCK_OFFSET");
    if (path == NULL) return;
    int fd = open(path, O_RDONLY);
    if (fd < 0) abort();
    void *view = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED) abort();
    close(fd);
    offset = view;
}

static int64_t real_micros(struct timespec *now) {
    syscall(SYS_clock_gettime, CLOCK_REALTIME, now);
    return now->tv_sec * 1000000LL + now->tv_nsec / 1000 + (offset == NULL ? 0 : *offset);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return (int)syscall(SYS_clock_gettime, clock, now);
    int64_t micros = real_micros(now);
    now->tv_sec = micros / 1000000;
    now->tv_nsec = micros % 1000000 * 1000 + now->tv_nsec % 1000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec real;
    int64_t micros = real_micros(&real);
    (void)zone;
    now->tv_sec = micros / 1000000;
    now->tv_usec = micros % 1000000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec real;
    time_t seconds = real_micros(&real) / 1000000;
    if (now != NULL) *now = seconds;
    return seconds;
}
