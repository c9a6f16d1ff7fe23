/*
 * Faults at system calls, by LD_PRELOAD.  shim.py builds this, and says what a plan is.
 *
 * Calls are counted whose file is the folder of the plan or lies in it.  What a plan says happens
 * at those of its name whose number is from first to last.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum fate { NOTHING, BEFORE, MIDDLE, AFTER, FAIL, HALF };

static struct {
    enum fate fate;
    char call[32], file[128], folder[PATH_MAX];
    long first, last, seen;
    int error, trace;
} plan;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile long *clock_offset; /* seconds; shared with who sets the clock */

/* Called once, in a process that is to have faults. */
void fault_plan(int fate, const char *call, const char *file, long first, long last, int error,
                const char *folder, int trace, int clock)
{
    plan.fate = fate;
    strncpy(plan.call, call, sizeof plan.call - 1);
    strncpy(plan.file, file, sizeof plan.file - 1);
    strncpy(plan.folder, folder, sizeof plan.folder - 1);
    plan.first = first;
    plan.last = last;
    plan.error = error;
    plan.trace = trace;
    if (clock >= 0)
        clock_offset = mmap(NULL, sizeof *clock_offset, PROT_READ, MAP_SHARED, clock, 0);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static enum fate meet(const char *call, const char *path)
{
    size_t length = strlen(plan.folder);
    if (!length || !path || strncmp(path, plan.folder, length) || (path[length] && path[length] != '/'))
        return NOTHING;
    const char *file = path[length] ? path + length + 1 : ".";
    if (!strncmp(file, "output", 6)) /* what it says, which is no fault's business */
        return NOTHING;
    enum fate fate = NOTHING;
    pthread_mutex_lock(&lock);
    if ((*plan.call == '*' || !strcmp(plan.call, call)) && (*plan.file == '*' || !strcmp(plan.file, file))) {
        plan.seen++;
        if (plan.trace >= 0)
            dprintf(plan.trace, "%ld %s %s\n", plan.seen, call, file);
        if (plan.first <= plan.seen && plan.seen <= plan.last)
            fate = plan.fate == HALF && plan.seen > plan.first ? FAIL : plan.fate;
    }
    pthread_mutex_unlock(&lock);
    if (fate == BEFORE || (fate == MIDDLE && strstr(call, "write") == NULL))
        die();
    return fate;
}

static enum fate meet_fd(const char *call, int fd)
{
    char link[40], path[PATH_MAX];
    if (!*plan.folder)
        return NOTHING;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return NOTHING;
    path[length] = 0;
    char *gone = strstr(path, " (deleted)");
    if (gone)
        *gone = 0;
    return meet(call, path);
}

#define REAL(name)                                  \
    static __typeof__(&name) real;                  \
    if (!real)                                      \
        real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

#define DO(what, call)                \
    do {                              \
        enum fate met = what;         \
        if (met == FAIL) {            \
            errno = plan.error;       \
            return -1;                \
        }                             \
        __typeof__(call) done = call; \
        if (met == AFTER)             \
            die();                    \
        return done;                  \
    } while (0)

#define WRITE(what, count, part, whole)      \
    do {                                     \
        enum fate met = what;                \
        if (met == FAIL) {                   \
            errno = plan.error;              \
            return -1;                       \
        }                                    \
        if (met == MIDDLE || met == HALF) {  \
            size_t half = (count + 1) / 2;   \
            ssize_t done = part;             \
            if (met == MIDDLE)               \
                die();                       \
            return done;                     \
        }                                    \
        ssize_t done = whole;                \
        if (met == AFTER)                    \
            die();                           \
        return done;                         \
    } while (0)

ssize_t write(int fd, const void *data, size_t count)
{
    REAL(write);
    WRITE(meet_fd("write", fd), count, real(fd, data, half), real(fd, data, count));
}

#define PWRITE(name)                                                             \
    ssize_t name(int fd, const void *data, size_t count, off64_t at)             \
    {                                                                            \
        REAL(name);                                                              \
        WRITE(meet_fd("pwrite", fd), count, real(fd, data, half, at), real(fd, data, count, at)); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define OPEN(name)                                     \
    int name(const char *path, int flags, ...)         \
    {                                                  \
        va_list rest;                                  \
        va_start(rest, flags);                         \
        mode_t mode = va_arg(rest, mode_t);            \
        va_end(rest);                                  \
        REAL(name);                                    \
        DO(meet("open", path), real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define ON_FD(name, said)                          \
    int name(int fd)                               \
    {                                              \
        REAL(name);                                \
        DO(meet_fd(said, fd), real(fd));           \
    }
ON_FD(fdatasync, "fdatasync")
ON_FD(fsync, "fsync")
ON_FD(close, "close")

#define TRUNCATE(name)                                  \
    int name(int fd, off64_t size)                      \
    {                                                   \
        REAL(name);                                     \
        DO(meet_fd("ftruncate", fd), real(fd, size));   \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int fallocate64(int fd, int mode, off64_t at, off64_t count)
{
    REAL(fallocate64);
    DO(meet_fd("fallocate", fd), real(fd, mode, at, count));
}

int flock(int fd, int how)
{
    static int (*real)(int, int);
    if (!real)
        real = (__typeof__(real))dlsym(RTLD_NEXT, "flock");
    DO(meet_fd("flock", fd), real(fd, how));
}

int rename(const char *old, const char *new)
{
    REAL(rename);
    DO(meet("rename", old), real(old, new));
}

int unlink(const char *path)
{
    REAL(unlink);
    DO(meet("unlink", path), real(path));
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    REAL(clock_gettime);
    int done = real(id, now);
    if (!done && id == CLOCK_REALTIME && clock_offset)
        now->tv_sec += *clock_offset;
    return done;
}
