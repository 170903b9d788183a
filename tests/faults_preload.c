/* faults_preload.c - system calls and memory that fail on demand, for a program that knows nothing of it
 *
 * A library for LD_PRELOAD on Linux with glibc; tests/tool_faults.c sets its environment:
 *     FAULT_CALL=NAME    which call fails: malloc, calloc, realloc, open, stat, read, write, mmap, sync, rename ...
 *     FAULT_HOW=N        the errno; -1: half of what is read or written; -2, -3: SIGKILL, SIGTERM
 *     FAULT_AT=N         at its N-th call
 *     FAULT_LAST=N       and at all later ones up to that
 *     FAULT_TOLD=FD      a byte goes there when it happens
 *     FAULT_STORM=N      a signal every N microseconds instead, whose handler lets calls be interrupted
 * Streams of files go through here as well, as glibc's own reading and writing would not. */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* both names of each function are defined here */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

/* glibc's own, under names that nothing replaces. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);

static struct {
    const char *call;
    int how;
    long at, last, calls;
    int told;
} fault;

static long number_of(const char *name)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

static void on_alarm(int number)
{
    (void)number;
}

static void storm(long every)
{
    struct sigaction action;
    struct itimerval timer;
    memset(&action, 0, sizeof action);
    memset(&timer, 0, sizeof timer);
    action.sa_handler = on_alarm;
    sigaction(SIGALRM, &action, NULL);
    timer.it_value.tv_usec = timer.it_interval.tv_usec = every;
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* From here on it counts; what ran before is the loader's. */
__attribute__((constructor)) static void begin(void)
{
    fault.how = (int)number_of("FAULT_HOW");
    fault.at = number_of("FAULT_AT");
    fault.last = number_of("FAULT_LAST");
    fault.told = (int)number_of("FAULT_TOLD");
    if (getenv("FAULT_STORM")) storm(number_of("FAULT_STORM"));
    else alarm(60); /* the end of a run that has none */
    fault.call = getenv("FAULT_CALL");
}

/* Whether this call fails; errno is set then. */
static bool fails(const char *call)
{
    if (!fault.call || strcmp(call, fault.call) != 0) return false;
    fault.calls++;
    if (fault.calls < fault.at || (fault.calls > fault.at && fault.calls > fault.last)) return false;
    if (fault.calls == fault.at) syscall(SYS_write, fault.told, "!", 1);
    if (fault.how == -2) raise(SIGKILL);
    if (fault.how == -3) raise(SIGTERM);
    if (fault.how > 0) errno = fault.how;
    return true;
}

/* How much of `size` is done where a call is short; 0: it fails. */
static size_t share(const char *call, size_t size)
{
    if (!fails(call)) return size;
    return fault.how > 0 ? 0 : (size + 1) / 2;
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

void *malloc(size_t size)
{
    return fails("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails("calloc") ? NULL : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    return fails("realloc") ? NULL : __libc_realloc(block, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    if (fails("mmap")) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    return mmap(at, size, protection, flags, file, offset);
}

/* ---- files --------------------------------------------------------------------------------------------- */

static int open_file(const char *path, int flags, mode_t mode)
{
    return fails("open") ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;
    va_start(args, flags);
    mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

ssize_t read(int file, void *data, size_t size)
{
    size_t part = share("read", size);
    return part == 0 && size > 0 ? -1 : syscall(SYS_read, file, data, part);
}

ssize_t pread(int file, void *data, size_t size, off_t at)
{
    size_t part = share("read", size);
    return part == 0 && size > 0 ? -1 : syscall(SYS_pread64, file, data, part, at);
}

ssize_t pread64(int file, void *data, size_t size, off_t at)
{
    return pread(file, data, size, at);
}

ssize_t write(int file, const void *data, size_t size)
{
    size_t part = share("write", size);
    return part == 0 && size > 0 ? -1 : syscall(SYS_write, file, data, part);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    size_t part = share("write", size);
    return part == 0 && size > 0 ? -1 : syscall(SYS_pwrite64, file, data, part, at);
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t at)
{
    return pwrite(file, data, size, at);
}

off_t lseek(int file, off_t at, int whence)
{
    return fails("lseek") ? -1 : syscall(SYS_lseek, file, at, whence);
}

off_t lseek64(int file, off_t at, int whence)
{
    return lseek(file, at, whence);
}

int fsync(int file)
{
    return fails("sync") ? -1 : (int)syscall(SYS_fsync, file);
}

/* Closes, and then says that it has not: what a file system reports that writes late. */
int close(int file)
{
    int result = (int)syscall(SYS_close, file);
    return fails("close") ? -1 : result;
}

static int stat_of(int folder, const char *path, struct stat *info, int flags)
{
    return fails("stat") ? -1 : fstatat(folder, path, info, flags);
}

int stat(const char *restrict path, struct stat *restrict info)
{
    return stat_of(AT_FDCWD, path, info, 0);
}

int lstat(const char *restrict path, struct stat *restrict info)
{
    return stat_of(AT_FDCWD, path, info, AT_SYMLINK_NOFOLLOW);
}

int fstat(int file, struct stat *info)
{
    return stat_of(file, "", info, AT_EMPTY_PATH);
}

int stat64(const char *restrict path, struct stat64 *restrict info)
{
    return stat_of(AT_FDCWD, path, (struct stat *)info, 0);
}

int lstat64(const char *restrict path, struct stat64 *restrict info)
{
    return stat_of(AT_FDCWD, path, (struct stat *)info, AT_SYMLINK_NOFOLLOW);
}

int fstat64(int file, struct stat64 *info)
{
    return stat_of(file, "", (struct stat *)info, AT_EMPTY_PATH);
}

/* ---- names --------------------------------------------------------------------------------------------- */

int rename(const char *from, const char *to)
{
    return fails("rename") ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int mkdir(const char *path, mode_t mode)
{
    return fails("mkdir") ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int unlink(const char *path)
{
    return fails("unlink") ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return fails("rmdir") ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

/* ---- streams ------------------------------------------------------------------------------------------- */

static ssize_t stream_read(void *cookie, char *data, size_t size)
{
    return read(*(int *)cookie, data, size);
}

static ssize_t stream_write(void *cookie, const char *data, size_t size)
{
    ssize_t put = write(*(int *)cookie, data, size);
    return put < 0 ? 0 : put; /* as fopencookie() wants it */
}

static int stream_seek(void *cookie, off64_t *at, int whence)
{
    off_t now = lseek(*(int *)cookie, *at, whence);
    *at = now;
    return now < 0 ? -1 : 0;
}

static int stream_close(void *cookie)
{
    int file = *(int *)cookie;
    free(cookie);
    return close(file);
}

FILE *fopen(const char *restrict path, const char *restrict mode)
{
    static const cookie_io_functions_t functions = { stream_read, stream_write, stream_seek, stream_close };
    int flags = mode[0] == 'r' ? O_RDONLY : O_WRONLY | O_CREAT | (mode[0] == 'w' ? O_TRUNC : O_APPEND);
    int *cookie = (int *)malloc(sizeof *cookie);
    FILE *stream = NULL;
    if (!cookie) return NULL;
    *cookie = open_file(path, flags, 0666);
    if (*cookie >= 0) {
        stream = fopencookie(cookie, mode, functions);
        if (stream) return stream;
        close(*cookie);
    }
    free(cookie);
    return NULL;
}

FILE *fopen64(const char *restrict path, const char *restrict mode)
{
    return fopen(path, mode);
}
