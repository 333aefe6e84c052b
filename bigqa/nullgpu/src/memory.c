/* Memory as address space: every device has one mapping that nothing fills, so that a card of 80 GiB costs nothing. Places
 * are given first-fit from the bottom, in units of 2 MiB, as the driver does for what torch asks for. What is taken is
 * counted, and refused beyond the card's total less its context. */
#define _GNU_SOURCE
#include "null.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_DEVICES 64
#define PAGE 4096
#define KINDS (NULL_MANAGED + 1)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *arena[MAX_DEVICES];                      /* made when a device is first used */
static size_t used[MAX_DEVICES], most[MAX_DEVICES];
static size_t now_of[KINDS], most_of[KINDS];          /* host memory, by kind */
static null_span *spans;                              /* everything that is allocated, by address */
static size_t span_count, span_room;

static char *map_nothing(size_t size) {
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static size_t arena_size(int device) { return ROUND_UP(4 * null_card_of(device)->memory, GRANULE); } /* room for holes */

static char *arena_of(int device) {
    if (!arena[device]) {
        size_t size = arena_size(device) + GRANULE;
        char *at = map_nothing(size);
        if (!at) {
            perror("bigqa's null GPU: no address space for its memory");
            _exit(2);
        }
        madvise(at, size, MADV_NOHUGEPAGE); /* a small copy must not fill 2 MiB */
        madvise(at, size, MADV_DONTDUMP);
        arena[device] = (char *)ROUND_UP((size_t)at, GRANULE);
    }
    return arena[device];
}

/* ---- accounts ---- */

static int take(int device, size_t size) {
    const null_card *card = null_card_of(device);
    if (used[device] + size + card->context > card->memory) return 0;
    used[device] += size;
    if (used[device] > most[device]) most[device] = used[device];
    return 1;
}

static void count_host(null_kind kind, size_t size) {
    now_of[kind] += size;
    if (now_of[kind] > most_of[kind]) most_of[kind] = now_of[kind];
}

int null_take(int device, size_t size) {
    if (!null_card_of(device)) return 0;
    pthread_mutex_lock(&lock);
    int fits = take(device, size);
    pthread_mutex_unlock(&lock);
    return fits;
}

void null_give(int device, size_t size) {
    pthread_mutex_lock(&lock);
    used[device] -= size;
    pthread_mutex_unlock(&lock);
}

static size_t with_context(int device, const size_t *counts) {
    const null_card *card = null_card_of(device);
    return card ? counts[device] + card->context : 0;
}
size_t null_used(int device) { return with_context(device, used); }
size_t null_most(int device) { return with_context(device, most); }
size_t null_most_of(null_kind kind) { return most_of[kind]; }

/* ---- places ---- */

static size_t first_behind(const char *at) { /* the index of the first span that begins behind `at` */
    size_t low = 0, high = span_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (spans[middle].at <= at) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void insert(null_span span) {
    if (span_count == span_room) {
        span_room = 2 * span_room + 256;
        spans = realloc(spans, span_room * sizeof *spans);
    }
    size_t i = first_behind(span.at);
    memmove(spans + i + 1, spans + i, (span_count - i) * sizeof *spans);
    spans[i] = span;
    span_count++;
}

static char *first_fit(int device, size_t size) {
    char *at = arena_of(device), *end = at + arena_size(device);
    for (size_t i = first_behind(at - 1); i < span_count && spans[i].at < end; i++) {
        if ((size_t)(spans[i].at - at) >= size) return at;
        at = spans[i].at + spans[i].size;
    }
    return (size_t)(end - at) >= size ? at : NULL;
}

static char *place(int device, size_t size, null_kind kind) {
    if (kind == NULL_DEVICE) {
        char *at = NULL;
        if (take(device, size) && !(at = first_fit(device, size))) used[device] -= size;
        return at;
    }
    if (kind != NULL_RANGE) return map_nothing(size);
    char *at = map_nothing(size + GRANULE);
    if (!at) return NULL;
    at = (char *)ROUND_UP((size_t)at, GRANULE);
    madvise(at, size, MADV_NOHUGEPAGE);
    return at;
}

void *null_alloc(int device, size_t size, null_kind kind) {
    if (!size || !null_card_of(device)) return NULL;
    size = ROUND_UP(size, kind == NULL_DEVICE || kind == NULL_RANGE ? GRANULE : PAGE);
    pthread_mutex_lock(&lock);
    char *at = place(device, size, kind);
    if (at) {
        insert((null_span){at, size, device, kind});
        count_host(kind, size);
    }
    pthread_mutex_unlock(&lock);
    if (null_logs("memory")) null_log("memory kind %d: %zu bytes -> %p\n", kind, size, (void *)at);
    return at;
}

void null_register(void *at, size_t size) {
    pthread_mutex_lock(&lock);
    insert((null_span){at, size, null_device, NULL_REGISTERED});
    count_host(NULL_PINNED, size);
    pthread_mutex_unlock(&lock);
}

static void release(null_span span) {
    switch (span.kind) {
    case NULL_DEVICE:
        used[span.device] -= span.size;
        madvise(span.at, span.size, MADV_DONTNEED); /* the next owner reads zeros */
        break;
    case NULL_REGISTERED: now_of[NULL_PINNED] -= span.size; return;
    default: munmap(span.at, span.size);
    }
    now_of[span.kind] -= span.size;
}

int null_free(void *at) {
    pthread_mutex_lock(&lock);
    size_t i = first_behind(at);
    int found = i > 0 && spans[i - 1].at == (char *)at;
    if (found) {
        null_span span = spans[i - 1];
        memmove(spans + i - 1, spans + i, (span_count - i) * sizeof *spans);
        span_count--;
        release(span);
    }
    pthread_mutex_unlock(&lock);
    if (null_logs("memory")) null_log("memory freed: %p\n", at);
    return found;
}

int null_find(const void *at, null_span *out) {
    pthread_mutex_lock(&lock);
    size_t i = first_behind(at);
    int found = i > 0 && (const char *)at < spans[i - 1].at + spans[i - 1].size;
    if (found) *out = spans[i - 1];
    pthread_mutex_unlock(&lock);
    return found;
}

int null_is_on_device(const void *at) {
    null_span span;
    return null_find(at, &span) && (span.kind == NULL_DEVICE || span.kind == NULL_RANGE);
}
