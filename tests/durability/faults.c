/* Counts the calls that a process makes on files below one folder, and kills the process at a numbered one,
   or lets that one fail.

   Loaded by LD_PRELOAD, it stands between the process and the C library, through which Python, torch and
   safetensors make their system calls; test_faults.py compares it with what strace sees. It does nothing until
   it is attached to a control file, which the one who watches has mapped as well: so the count and the list of
   calls outlive a SIGKILL. Its layout is repeated in faults.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RECORD, KILL_BEFORE, KILL_AFTER, KILL_TORN, FAIL };

struct control {
    char folder[4096]; /* absolute; calls on it and on what is below it count */
    int64_t mode;
    int64_t number; /* of the call that is hit, from 1 */
    int64_t error;  /* errno of a call that fails */
    int64_t count;  /* calls so far */
    int64_t used;   /* bytes of the list */
    int64_t size;   /* bytes that the list may have */
    char list[];    /* a line a call: number, name, path, second path, bytes; between tabs */
};

#define DESCRIPTORS 4096
static struct control *control;
static char *open_paths[DESCRIPTORS];

void faults_attach(const char *path) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) != 0) abort();
    void *mapped = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapped == MAP_FAILED) abort();
    close(descriptor);
    control = mapped;
}

__attribute__((constructor)) static void attach_by_environment(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (path != NULL && *path != '\0') faults_attach(path);
}

/* The absolute path of a call's argument, if it counts. */
static int counts(int folder, const char *path, char *whole) {
    if (control == NULL || path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else if (folder == AT_FDCWD) {
        char here[PATH_MAX];
        if (getcwd(here, sizeof here) == NULL) return 0;
        snprintf(whole, PATH_MAX, "%.2000s/%.2000s", here, path);
    } else {
        if (folder < 0 || folder >= DESCRIPTORS || open_paths[folder] == NULL) return 0;
        snprintf(whole, PATH_MAX, "%.2000s/%.2000s", open_paths[folder], path);
    }
    size_t length = strlen(control->folder);
    return strncmp(whole, control->folder, length) == 0 && (whole[length] == '/' || whole[length] == '\0');
}

static const char *path_of(int descriptor) {
    return control != NULL && descriptor >= 0 && descriptor < DESCRIPTORS ? open_paths[descriptor] : NULL;
}

static void opened(int descriptor, const char *path) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) open_paths[descriptor] = strdup(path);
}

static void closed(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS && open_paths[descriptor] != NULL) {
        free(open_paths[descriptor]);
        open_paths[descriptor] = NULL;
    }
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts and lists a call; what is to become of it. */
static int enter(const char *name, const char *path, const char *second, long bytes) {
    char line[3 * PATH_MAX];
    int64_t number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    int length = snprintf(line, sizeof line, "%lld\t%s\t%s\t%s\t%ld\n", (long long)number, name, path, second, bytes);
    int64_t start = __atomic_fetch_add(&control->used, length, __ATOMIC_SEQ_CST);
    if (start + length <= control->size) memcpy(control->list + start, line, (size_t)length);
    if (number != control->number) return RECORD;
    if (control->mode == KILL_BEFORE) die();
    if (control->mode == FAIL) errno = (int)control->error;
    return (int)control->mode;
}

static void leave(int what) {
    if (what == KILL_AFTER || what == KILL_TORN) die();
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name)

#define MODE_OF(flags, mode)                                    \
    mode_t mode = 0;                                            \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                      \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode = va_arg(rest, mode_t);                            \
        va_end(rest);                                           \
    }

#define OPENED(folder, path, flags, call)                                                      \
    char whole[PATH_MAX];                                                                      \
    if (!counts(folder, path, whole)) return call;                                             \
    int what = enter((flags) & (O_CREAT | O_WRONLY | O_RDWR) ? "create" : "open", whole, "", 0); \
    if (what == FAIL) return -1;                                                               \
    int result = call;                                                                         \
    if (result >= 0) opened(result, whole);                                                    \
    leave(what);                                                                               \
    return result

int open(const char *path, int flags, ...) {
    REAL(int, open, const char *, int, ...);
    MODE_OF(flags, mode);
    OPENED(AT_FDCWD, path, flags, real(path, flags, mode));
}

int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    MODE_OF(flags, mode);
    OPENED(AT_FDCWD, path, flags, real(path, flags, mode));
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(int, openat, int, const char *, int, ...);
    MODE_OF(flags, mode);
    OPENED(folder, path, flags, real(folder, path, flags, mode));
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    MODE_OF(flags, mode);
    OPENED(folder, path, flags, real(folder, path, flags, mode));
}

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    char whole[PATH_MAX];
    if (!counts(AT_FDCWD, path, whole)) return real(path);
    int what = enter("open", whole, "", 0);
    if (what == FAIL) return NULL;
    DIR *result = real(path);
    leave(what);
    return result;
}

int closedir(DIR *folder) {
    REAL(int, closedir, DIR *);
    closed(dirfd(folder));
    return real(folder);
}

int close(int descriptor) {
    REAL(int, close, int);
    const char *path = path_of(descriptor);
    if (path == NULL) return real(descriptor);
    int what = enter("close", path, "", 0);
    closed(descriptor);
    int saved = errno, result = real(descriptor); /* a close that fails has closed all the same */
    if (what == FAIL) {
        errno = saved;
        return -1;
    }
    leave(what);
    return result;
}

#define WRITTEN(descriptor, bytes, call, half)                  \
    const char *path = path_of(descriptor);                     \
    if (path == NULL) return call;                              \
    int what = enter("write", path, "", (long)(bytes));         \
    if (what == FAIL) return -1;                                \
    ssize_t result = what == KILL_TORN ? half : call;           \
    leave(what);                                                \
    return result

ssize_t write(int descriptor, const void *data, size_t bytes) {
    REAL(ssize_t, write, int, const void *, size_t);
    WRITTEN(descriptor, bytes, real(descriptor, data, bytes), real(descriptor, data, bytes / 2));
}

ssize_t pwrite(int descriptor, const void *data, size_t bytes, off_t where) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    WRITTEN(descriptor, bytes, real(descriptor, data, bytes, where), real(descriptor, data, bytes / 2, where));
}

ssize_t pwrite64(int descriptor, const void *data, size_t bytes, off64_t where) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    WRITTEN(descriptor, bytes, real(descriptor, data, bytes, where), real(descriptor, data, bytes / 2, where));
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    WRITTEN(descriptor, bytes, real(descriptor, parts, count), real(descriptor, parts, (count + 1) / 2));
}

#define ON_DESCRIPTOR(name, descriptor, call)                   \
    const char *path = path_of(descriptor);                     \
    if (path == NULL) return call;                              \
    int what = enter(name, path, "", 0);                        \
    if (what == FAIL) return -1;                                \
    int result = call;                                          \
    leave(what);                                                \
    return result

int fsync(int descriptor) {
    REAL(int, fsync, int);
    ON_DESCRIPTOR("fsync", descriptor, real(descriptor));
}

int fdatasync(int descriptor) {
    REAL(int, fdatasync, int);
    ON_DESCRIPTOR("fsync", descriptor, real(descriptor));
}

int ftruncate(int descriptor, off_t length) {
    REAL(int, ftruncate, int, off_t);
    ON_DESCRIPTOR("truncate", descriptor, real(descriptor, length));
}

int ftruncate64(int descriptor, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    ON_DESCRIPTOR("truncate", descriptor, real(descriptor, length));
}

#define ON_PATH(name, folder, path, call)                       \
    char whole[PATH_MAX];                                       \
    if (!counts(folder, path, whole)) return call;              \
    int what = enter(name, whole, "", 0);                       \
    if (what == FAIL) return -1;                                \
    int result = call;                                          \
    leave(what);                                                \
    return result

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    ON_PATH("mkdir", AT_FDCWD, path, real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    ON_PATH("mkdir", folder, path, real(folder, path, mode));
}

int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    ON_PATH("rmdir", AT_FDCWD, path, real(path));
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    ON_PATH("unlink", AT_FDCWD, path, real(path));
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, real(folder, path, flags));
}

#define RENAMED(old_folder, old, new_folder, new, call)                                        \
    char whole[PATH_MAX], second[PATH_MAX];                                                    \
    if (!counts(old_folder, old, whole) | !counts(new_folder, new, second)) return call;       \
    int what = enter("rename", whole, second, 0);                                              \
    if (what == FAIL) return -1;                                                               \
    int result = call;                                                                         \
    leave(what);                                                                               \
    return result

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    RENAMED(AT_FDCWD, old, AT_FDCWD, new, real(old, new));
}

int renameat(int old_folder, const char *old, int new_folder, const char *new) {
    REAL(int, renameat, int, const char *, int, const char *);
    RENAMED(old_folder, old, new_folder, new, real(old_folder, old, new_folder, new));
}

int renameat2(int old_folder, const char *old, int new_folder, const char *new, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    RENAMED(old_folder, old, new_folder, new, real(old_folder, old, new_folder, new, flags));
}

#define LINKED(folder, path, call)                                                             \
    char whole[PATH_MAX];                                                                      \
    if (!counts(folder, path, whole)) return call;                                             \
    int what = enter("link", whole, "", 0);                                                    \
    if (what == FAIL) return -1;                                                               \
    int result = call;                                                                         \
    leave(what);                                                                               \
    return result

int link(const char *old, const char *new) {
    REAL(int, link, const char *, const char *);
    LINKED(AT_FDCWD, new, real(old, new));
}

int symlink(const char *target, const char *path) {
    REAL(int, symlink, const char *, const char *);
    LINKED(AT_FDCWD, path, real(target, path));
}
