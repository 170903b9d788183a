/* posix.h - what the tools use of POSIX, for Windows: names in UTF-8, streams without line ends, large files.
 *
 * tool.h includes it. main() gets its arguments in UTF-8.
 */
#ifndef POSIX_H
#define POSIX_H

#include <direct.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <shellapi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#undef near /* of windows.h */
#undef far

#ifndef SIGHUP
#define SIGHUP SIGBREAK
#endif
#ifndef O_NOFOLLOW
#define O_NOFOLLOW 0
#endif
#ifndef S_ISLNK
#define S_ISLNK(mode) 0
#endif

enum { POSIX_PATH = 4096 };

/* ---- names --------------------------------------------------------------------------------- */

/* NULL with errno when `path` is too long or not UTF-8. */
static const wchar_t *posix_wide(const char *path, wchar_t out[POSIX_PATH])
{
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, POSIX_PATH) > 0) return out;
    errno = ENOENT;
    return NULL;
}

/* -1 with errno of the last failure. */
static int posix_failed(void)
{
    DWORD code = GetLastError();
    errno = code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND ? ENOENT
        : code == ERROR_DISK_FULL || code == ERROR_HANDLE_DISK_FULL ? ENOSPC
        : code == ERROR_FILE_EXISTS || code == ERROR_ALREADY_EXISTS ? EEXIST
        : EACCES;
    return -1;
}

/* ---- files --------------------------------------------------------------------------------- */

JMB_UNUSED static FILE *posix_fopen(const char *path, const char *mode)
{
    wchar_t wide[POSIX_PATH], wide_mode[POSIX_PATH];
    if (!posix_wide(path, wide) || !posix_wide(mode, wide_mode)) return NULL;
    return _wfopen(wide, wide_mode);
}
#define fopen posix_fopen

/* What is open may be removed, as with POSIX, but nobody else writes it meanwhile. */
JMB_UNUSED static int posix_open(const char *path, int flags, ...)
{
    wchar_t wide[POSIX_PATH];
    bool write = (flags & (O_WRONLY | O_RDWR)) != 0;
    DWORD access = flags & O_RDWR ? GENERIC_READ | GENERIC_WRITE : write ? GENERIC_WRITE : GENERIC_READ;
    DWORD share = FILE_SHARE_READ | FILE_SHARE_DELETE | (write ? 0 : FILE_SHARE_WRITE);
    DWORD how = flags & O_EXCL ? CREATE_NEW : flags & O_CREAT ? OPEN_ALWAYS : OPEN_EXISTING;
    HANDLE handle;
    if (!posix_wide(path, wide)) return -1;
    handle = CreateFileW(wide, access, share, NULL, how, FILE_ATTRIBUTE_NORMAL, NULL);
    return handle == INVALID_HANDLE_VALUE ? posix_failed() : _open_osfhandle((intptr_t)handle, _O_BINARY);
}
#define open posix_open

/* In place of the system's, whose files have no identity. */
struct posix_stat {
    uint64_t st_dev, st_ino, st_size;
    int st_mode;
};
#define dev_t uint64_t
#define ino_t uint64_t

static int posix_stat_handle(HANDLE handle, struct posix_stat *out)
{
    BY_HANDLE_FILE_INFORMATION info;
    memset(out, 0, sizeof *out);
    out->st_mode = S_IFCHR;
    if (GetFileType(handle) != FILE_TYPE_DISK) return 0;
    if (!GetFileInformationByHandle(handle, &info)) return posix_failed();
    out->st_mode = info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? S_IFDIR : S_IFREG;
    out->st_dev = info.dwVolumeSerialNumber;
    out->st_ino = (uint64_t)info.nFileIndexHigh << 32 | info.nFileIndexLow;
    out->st_size = (uint64_t)info.nFileSizeHigh << 32 | info.nFileSizeLow;
    return 0;
}

JMB_UNUSED static int posix_stat(const char *path, struct posix_stat *out)
{
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    wchar_t wide[POSIX_PATH];
    HANDLE handle;
    int result;
    if (!posix_wide(path, wide)) return -1;
    handle = CreateFileW(wide, 0, share, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL); /* folders too */
    if (handle == INVALID_HANDLE_VALUE) return posix_failed();
    result = posix_stat_handle(handle, out);
    CloseHandle(handle);
    return result;
}

JMB_UNUSED static int posix_fstat(int file, struct posix_stat *out)
{
    return posix_stat_handle((HANDLE)_get_osfhandle(file), out);
}
#undef stat
#undef fstat
#define stat posix_stat
#define lstat posix_stat
#define fstat posix_fstat

JMB_UNUSED static ssize_t pread(int file, void *out, size_t size, int64_t offset)
{
    OVERLAPPED at;
    DWORD part = size > (1u << 30) ? 1u << 30 : (DWORD)size, got = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)((uint64_t)offset >> 32);
    if (!ReadFile((HANDLE)_get_osfhandle(file), out, part, &got, &at) && GetLastError() != ERROR_HANDLE_EOF)
        return posix_failed();
    return (ssize_t)got;
}

JMB_UNUSED static ssize_t pwrite(int file, const void *bytes, size_t size, int64_t offset)
{
    OVERLAPPED at;
    DWORD part = size > (1u << 30) ? 1u << 30 : (DWORD)size, put = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)((uint64_t)offset >> 32);
    if (!WriteFile((HANDLE)_get_osfhandle(file), bytes, part, &put, &at)) return posix_failed();
    return (ssize_t)put;
}

#define fsync _commit

JMB_UNUSED static int posix_unlink(const char *path)
{
    wchar_t wide[POSIX_PATH];
    if (!posix_wide(path, wide)) return -1;
    return DeleteFileW(wide) ? 0 : posix_failed();
}
#define unlink posix_unlink

/* Replaces what is there. */
JMB_UNUSED static int posix_rename(const char *from, const char *to)
{
    wchar_t wide_from[POSIX_PATH], wide_to[POSIX_PATH];
    if (!posix_wide(from, wide_from) || !posix_wide(to, wide_to)) return -1;
    return MoveFileExW(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) ? 0 : posix_failed();
}
#define rename posix_rename

/* ---- folders ------------------------------------------------------------------------------- */

JMB_UNUSED static int posix_mkdir(const char *path, int mode)
{
    wchar_t wide[POSIX_PATH];
    (void)mode;
    return posix_wide(path, wide) ? _wmkdir(wide) : -1;
}
#undef mkdir
#define mkdir posix_mkdir

JMB_UNUSED static int posix_rmdir(const char *path)
{
    wchar_t wide[POSIX_PATH];
    return posix_wide(path, wide) ? _wrmdir(wide) : -1;
}
#define rmdir posix_rmdir

/* In the path itself, or a constant. */
JMB_UNUSED static char *posix_dirname(char *path)
{
    static char here[] = ".";
    char *slash = strrchr(path, '/'), *back = strrchr(path, '\\');
    if (back > slash) slash = back;
    if (!slash) return here;
    slash[slash == path || slash[-1] == ':'] = 0;
    return path;
}
#define dirname posix_dirname

struct posix_dirent {
    char d_name[POSIX_PATH];
};

typedef struct posix_dir {
    _WDIR *names;
    struct posix_dirent entry;
} posix_dir;

JMB_UNUSED static posix_dir *posix_opendir(const char *path)
{
    wchar_t wide[POSIX_PATH];
    posix_dir *dir = posix_wide(path, wide) ? (posix_dir *)calloc(1, sizeof *dir) : NULL;
    if (!dir) return NULL;
    dir->names = _wopendir(wide);
    if (dir->names) return dir;
    free(dir);
    return NULL;
}

JMB_UNUSED static struct posix_dirent *posix_readdir(posix_dir *dir)
{
    const struct _wdirent *entry = _wreaddir(dir->names);
    char *name = dir->entry.d_name;
    if (!entry || !WideCharToMultiByte(CP_UTF8, 0, entry->d_name, -1, name, POSIX_PATH, NULL, NULL)) return NULL;
    return &dir->entry;
}

JMB_UNUSED static int posix_closedir(posix_dir *dir)
{
    int result = _wclosedir(dir->names);
    free(dir);
    return result;
}
#define DIR posix_dir
#define dirent posix_dirent
#define opendir posix_opendir
#define readdir posix_readdir
#define closedir posix_closedir

struct statvfs {
    uint64_t f_frsize, f_bsize, f_bavail, f_blocks;
};

JMB_UNUSED static int statvfs(const char *path, struct statvfs *out)
{
    wchar_t wide[POSIX_PATH];
    ULARGE_INTEGER available, total;
    if (!posix_wide(path, wide) || !GetDiskFreeSpaceExW(wide, &available, &total, NULL)) return -1;
    out->f_frsize = out->f_bsize = 1;
    out->f_bavail = available.QuadPart;
    out->f_blocks = total.QuadPart;
    return 0;
}

/* ---- locks and signals --------------------------------------------------------------------- */

/* posix_open() keeps other writers out. */
struct flock {
    int l_type, l_whence;
};
enum { F_WRLCK, F_SETLK };
#define fcntl(file, command, lock) ((void)(file), (void)(lock), 0)

struct sigaction {
    void (*sa_handler)(int);
};

JMB_UNUSED static int posix_sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    void (*before)(int) = signal(number, action ? action->sa_handler : SIG_DFL);
    if (!action) signal(number, before);
    if (old) old->sa_handler = before;
    return 0;
}
#define sigaction(number, action, old) posix_sigaction(number, action, old)

/* Signals come in threads of their own and cannot wait. */
typedef int posix_sigset;
#define sigset_t posix_sigset
#define sigfillset(set) (*(set) = 0)
#define sigprocmask(how, set, old) ((void)(set), (void)(old))

/* ---- main ---------------------------------------------------------------------------------- */

int posix_main(int argc, char **argv);

/* The arguments, NULL behind them; NULL when there is no memory. */
static char **posix_arguments(int *count)
{
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), count);
    char **argv = wide ? (char **)calloc((size_t)*count + 1, sizeof *argv) : NULL;
    for (int i = 0; argv && i < *count; i++) {
        int size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        argv[i] = (char *)malloc((size_t)size + 1);
        if (!argv[i]) return NULL;
        WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, argv[i], size, NULL, NULL);
    }
    LocalFree(wide);
    return argv;
}

int main(void)
{
    int count = 0, status = 1;
    char **argv = posix_arguments(&count);
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    if (argv) status = posix_main(count, argv);
    for (int i = 0; argv && i < count; i++) free(argv[i]);
    free(argv);
    return status;
}
#define main posix_main

#endif
