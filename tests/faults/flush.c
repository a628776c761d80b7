#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Makes flushes fail on demand: the file that MCP_FAULT_FILE names holds a word; a flush of any file whose
   path holds that word fails with EIO. Without the file, or with an empty one, nothing fails. */
static int fails(int fd) {
    const char *file = getenv("MCP_FAULT_FILE");
    char word[256], link[64], path[4096];
    if (!file) return 0;
    int in = open(file, O_RDONLY | O_CLOEXEC);
    if (in < 0) return 0;
    ssize_t length = read(in, word, sizeof word - 1);
    close(in);
    if (length <= 0) return 0;
    word[length] = 0;
    word[strcspn(word, "\n")] = 0;
    if (!word[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strstr(path, word) != NULL;
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (fails(fd)) { errno = EIO; return -1; }
    return next(fd);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (fails(fd)) { errno = EIO; return -1; }
    return next(fd);
}
