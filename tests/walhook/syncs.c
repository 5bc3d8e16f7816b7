/* Logs every fsync and fdatasync of a file by its name and the microseconds it took (SYNCS_LOG), and keeps what is on the disk after it (SYNCS_KEEP):
 * loaded before the C library, it lets a test see what a daemon made durable, and lose the rest. SYNCS_DELAY_MS makes
 * the disk slow: whoever does not wait for it is found out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void keep(int fd, const char *name) {
    const char *folder = getenv("SYNCS_KEEP");
    char path[PATH_MAX], fresh[PATH_MAX], source[64], buffer[65536];
    if (folder == NULL) return;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(fresh, sizeof fresh, "%s/.%s", folder, name);
    snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
    int from = open(source, O_RDONLY), to = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (from < 0 || to < 0) abort();
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, (size_t)got) != got) abort();
    close(from);
    close(to);
    /* In one step, so that a kill in the middle leaves what was there before. */
    if (rename(fresh, path) != 0) abort();
}

static long long micros(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void note(int fd, long long began) {
    char link[64], target[PATH_MAX], line[PATH_MAX + 32];
    const char *log = getenv("SYNCS_LOG");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (log == NULL || length <= 0) return;
    target[length] = 0;
    const char *name = strrchr(target, '/');
    name = name == NULL ? target : name + 1;
    /* A folder is synced for the names in it, which this shim does not lose. */
    if (strstr(name, ".db") == NULL) return;
    keep(fd, name);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (out < 0) abort();
    int size = snprintf(line, sizeof line, "%s %lld\n", name, micros() - began);
    if (write(out, line, (size_t)size) != size) abort();
    close(out);
}

static int synced(const char *which, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, which);
    long long began = micros();
    const char *delay = getenv("SYNCS_DELAY_MS");
    if (delay != NULL) usleep((useconds_t)atoi(delay) * 1000);
    int result = real(fd), kept = errno;
    if (result == 0) note(fd, began);
    errno = kept;
    return result;
}

/* What is removed stays removed: file systems write that before what is synced afterwards. */
int unlink(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    int result = real(path), kept = errno;
    const char *folder = getenv("SYNCS_KEEP"), *name = strrchr(path, '/');
    if (result == 0 && folder != NULL && name != NULL && strstr(name, ".db") != NULL) {
        char copy[PATH_MAX];
        snprintf(copy, sizeof copy, "%s/%s", folder, name + 1);
        real(copy);
    }
    errno = kept;
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
