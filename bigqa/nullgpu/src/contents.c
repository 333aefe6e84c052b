/* What the host reads back from a device whose kernels do not run. Small copies are carried out, larger ones would fill
 * memory and are skipped. The host gets back what it had put there as long as no kernel has run since, else zeros: never
 * what an earlier owner of the memory left, so that a check for an overflow finds none. Whoever wants to know of such a
 * read, or to answer a yes-or-no question otherwise, says so with null_on_read. */
#define _GNU_SOURCE
#include "null.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
#define RANGES 4096

typedef struct { const char *at; size_t size; } range;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static range known[RANGES];                           /* written by copies since the last kernel */
static size_t known_count;
static int (*asked)(size_t size);
static size_t crossed[2];                             /* to the device, and from it */

void null_on_read(int (*answer)(size_t size)) { asked = answer; }
size_t null_crossed(int from_device) { return __atomic_load_n(&crossed[!!from_device], __ATOMIC_RELAXED); }

void null_ran(void) {
    null_busy();
    __atomic_store_n(&known_count, 0, __ATOMIC_RELAXED);
}

static size_t copy_limit(void) {
    static size_t limit;
    if (!limit) {
        const char *text = getenv("BIGQA_NULL_COPY");
        limit = text && *text ? strtoull(text, NULL, 10) : MIB;
    }
    return limit;
}

static int is_known(const char *at, size_t size) {
    for (size_t i = 0; i < known_count; i++)
        if (at >= known[i].at && at + size <= known[i].at + known[i].size) return 1;
    return 0;
}

static void overwrite(const char *at, size_t size, int with_known) {
    for (size_t i = 0; i < known_count; i++)
        if (known[i].at < at + size && at < known[i].at + known[i].size) known[i].size = 0;
    if (with_known && known_count < RANGES) known[known_count++] = (range){at, size};
}

static void read_unknown(char *to, size_t size) {
    if (null_logs("reads")) null_log("read %zu bytes that no kernel has made\n", size);
    int yes = asked ? asked(size) : 0;
    memset(to, size == 1 && yes, size);
}

void null_copy(void *to, const void *from, size_t size) {
    if (!size) return;
    int to_device = null_is_on_device(to), from_device = null_is_on_device(from);
    if (to_device != from_device) __atomic_fetch_add(&crossed[from_device], size, __ATOMIC_RELAXED);
    if (from_device && !to_device && size > copy_limit()) {
        null_span span;
        if (null_find(to, &span)) return; /* pinned: reads as zero where nobody wrote */
        read_unknown(to, size);
        return;
    }
    if (size > copy_limit()) return;
    pthread_mutex_lock(&lock);
    int is_host_data = !from_device || is_known(from, size);
    if (to_device) overwrite(to, size, is_host_data);
    pthread_mutex_unlock(&lock);
    if (is_host_data) memmove(to, from, size);
    else if (!to_device) read_unknown(to, size);
}

void null_set(void *where, int value, size_t size) {
    char *at = where, *end = at + size;
    int on_device = null_is_on_device(at);
    if (on_device) {
        pthread_mutex_lock(&lock);
        overwrite(at, size, size <= copy_limit());
        pthread_mutex_unlock(&lock);
    }
    if (size <= copy_limit() || !on_device) {
        memset(at, value, size);
        return;
    }
    if (value) return;
    char *first = (char *)ROUND_UP((size_t)at, PAGE), *last = (char *)((size_t)end / PAGE * PAGE);
    madvise(first, last - first, MADV_DONTNEED); /* whole pages read as zero again and cost nothing */
    memset(at, 0, first - at);
    memset(last, 0, end - last);
}
