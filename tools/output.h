/* output.h - writes a file so that it is whole or not there.
 *
 * Everything goes to OUT.part beside OUT, is synced and only then renamed. A failure or a signal removes
 * it; one that a killed run left behind is replaced.
 */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "tool.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <sys/statvfs.h>
#endif

typedef struct output {
    const char *path;
    char *temporary, *folder;
    int file;
    bool created;
} output;

/* What the signal handler removes. */
static const char *volatile output_to_remove;
/* Removes what else there is, or NULL; calls only what a signal handler may. */
static void (*volatile output_also_remove)(void);

static void output_on_signal(int number)
{
    if (output_to_remove) unlink(output_to_remove);
    if (output_also_remove) output_also_remove();
    signal(number, SIG_DFL);
    raise(number);
}

static const int output_signals[] = { SIGINT, SIGTERM, SIGHUP };

static void output_watch_signals(void)
{
    struct sigaction action, old;
    size_t i;
    for (i = 0; i < sizeof output_signals / sizeof output_signals[0]; i++) {
        memset(&action, 0, sizeof action);
        action.sa_handler = output_on_signal;
        /* one that is ignored, as under nohup, stays ignored */
        if (sigaction(output_signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(output_signals[i], &action, NULL);
    }
#if defined(SIGXFSZ)
    signal(SIGXFSZ, SIG_IGN); /* a file too large then fails as a write */
#endif
}

static bool output_fail(const output *out, const char *what, tool_error *error)
{
    return tool_error_set(error, "%s: %s: %s", out->temporary, what, strerror(errno));
}

static bool output_lock(int file)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return fcntl(file, F_SETLK, &lock) == 0 || (errno != EACCES && errno != EAGAIN);
}

/* Removes the file of a run that was killed, unless that run is still at it. */
static bool output_remove_stale(const output *out, tool_error *error)
{
    struct stat info;
    int file;
    bool mine;
    if (lstat(out->temporary, &info) != 0) return true;
    if (!S_ISREG(info.st_mode)) return tool_error_set(error, "%s: is in the way: remove it", out->temporary);
    file = open(out->temporary, O_WRONLY | O_NOFOLLOW);
    if (file < 0) return output_fail(out, "is in the way and cannot be opened", error);
    mine = output_lock(file);
    close(file);
    if (!mine) return tool_error_set(error, "%s: another program is writing it", out->temporary);
    return unlink(out->temporary) == 0 || output_fail(out, "cannot remove", error);
}

/* Signals wait while the file appears, so that it never exists unwatched. */
static bool output_appear(output *out, tool_error *error)
{
    sigset_t all, before;
    bool ok;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    out->file = open(out->temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    out->created = out->file >= 0;
    if (out->created) output_to_remove = out->temporary;
    ok = out->created || output_fail(out, "cannot create", error);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (ok && !output_lock(out->file)) return output_fail(out, "cannot lock", error);
    return ok;
}

static bool output_check_space(const output *out, uint64_t bytes, tool_error *error)
{
    struct statvfs info;
    uint64_t unit, available;
    if (statvfs(out->folder, &info) != 0) return true;
    unit = info.f_frsize ? info.f_frsize : info.f_bsize;
    available = jmb_mul(info.f_bavail, unit);
    if (info.f_blocks == 0 || available >= bytes) return true;
    return tool_error_set(error, "%s: takes %llu bytes and the disk has %llu left", out->path,
        (unsigned long long)bytes, (unsigned long long)available);
}

/* The file beside OUT, of about `bytes`. */
static bool output_create(output *out, uint64_t bytes, tool_error *error)
{
    return output_remove_stale(out, error) && output_check_space(out, bytes, error) && output_appear(out, error);
}

/* The folder of a path in a fresh allocation. */
static char *output_folder(const char *path)
{
    char *copy = (char *)malloc(strlen(path) + 2), *folder;
    if (!copy) return NULL;
    strcpy(copy, path);
    folder = dirname(copy); /* in the copy, or a constant */
    memmove(copy, folder, strlen(folder) + 1);
    return copy;
}

/* All zero but for the names. */
static bool output_begin(output *out, const char *path, tool_error *error)
{
    memset(out, 0, sizeof *out);
    out->file = -1;
    out->path = path;
    out->folder = output_folder(path);
    out->temporary = (char *)malloc(strlen(path) + sizeof ".part");
    if (!out->folder || !out->temporary) return tool_no_memory(error);
    strcpy(out->temporary, path);
    strcat(out->temporary, ".part");
    output_watch_signals();
    return true;
}

static bool output_write_at(const output *out, uint64_t offset, const uint8_t *p, size_t size, tool_error *error)
{
    while (size > 0) {
        ssize_t put = pwrite(out->file, p, size, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return output_fail(out, "cannot write", error);
        offset += (uint64_t)put;
        p += put;
        size -= (size_t)put;
    }
    return true;
}

static bool output_sync(const output *out, tool_error *error)
{
    while (fsync(out->file) != 0)
        if (errno != EINTR) return output_fail(out, "cannot sync", error);
    return true;
}

/* A rename is only safe on disk once its folder is. Where folders cannot be synced nothing is lost by it. */
static void output_sync_folder(const char *folder)
{
    int file = open(folder, O_RDONLY);
    if (file < 0) return;
    (void)fsync(file);
    close(file);
}

/* Makes the file final, unless something took its place meanwhile. */
static bool output_finish(output *out, tool_error *error)
{
    struct stat mine, there;
    if (fstat(out->file, &mine) != 0 || lstat(out->temporary, &there) != 0 || mine.st_ino != there.st_ino)
        return tool_error_set(error, "%s: was removed or replaced while it was written", out->temporary);
    if (close(out->file) != 0 && errno != EINTR) { /* which closes it all the same */
        out->file = -1;
        return output_fail(out, "cannot close", error);
    }
    out->file = -1;
    if (rename(out->temporary, out->path) != 0) return output_fail(out, "cannot rename", error);
    output_to_remove = NULL;
    out->created = false;
    output_sync_folder(out->folder);
    return true;
}

static void output_free(output *out)
{
    if (out->file >= 0) close(out->file);
    if (out->created) unlink(out->temporary);
    output_to_remove = NULL;
    free(out->temporary);
    free(out->folder);
    memset(out, 0, sizeof *out);
    out->file = -1;
}

/* Whether nothing has this name; false with an error where the disk does not tell, or there is something. */
static bool output_is_free(const char *path, struct stat *info, bool *there, tool_error *error)
{
    *there = lstat(path, info) == 0;
    if (*there) return false;
    return errno == ENOENT || errno == ENOTDIR || tool_error_set(error, "%s: %s", path, strerror(errno));
}

/* Whether OUT may be written. */
static bool output_check_path(const char *path, bool force, tool_error *error)
{
    struct stat link, info;
    bool there, unused = output_is_free(path, &link, &there, error);
    if (!there) return unused;
    if (stat(path, &info) != 0) info = link;
    if (S_ISDIR(info.st_mode)) return tool_error_set(error, "%s: is a folder: give the name of a file", path);
    if (!S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
        return tool_error_set(error, "%s: is not a regular file", path);
    return force || tool_error_set(error, "%s: exists", path);
}

/* The same for tools that have --force. */
JMB_UNUSED static bool output_check_forced(const char *path, bool force, tool_error *error)
{
    tool_error other;
    if (output_check_path(path, force, error)) return true;
    if (!force && output_check_path(path, true, &other))
        tool_error_fill(error, "%s: exists: give --force to replace it", path);
    return false;
}

JMB_UNUSED static bool output_is_file(const char *path, const struct stat *out)
{
    struct stat info;
    return path && stat(path, &info) == 0 && info.st_dev == out->st_dev && info.st_ino == out->st_ino;
}

/* A file of these bytes. On failure there is no file, or the old one. */
JMB_UNUSED static bool output_file(const char *path, const uint8_t *data, size_t size, bool force, tool_error *error)
{
    output out;
    bool ok;
    if (!output_check_path(path, force, error)) return false;
    ok = output_begin(&out, path, error) && output_create(&out, size, error)
        && output_write_at(&out, 0, data, size, error) && output_sync(&out, error)
        && output_check_path(path, force, error) && output_finish(&out, error);
    output_free(&out);
    return ok;
}

#endif
