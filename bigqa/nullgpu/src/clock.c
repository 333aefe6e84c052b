/* Streams and events, and when what they hold is done. Nothing runs here, so there are two bounds (BIGQA_NULL_BOUND):
 *
 *   least  everything is done at once: memory that waits for another stream is free at once;
 *   most   work is done only when the host waits for it: by cudaEventSynchronize, cudaStreamSynchronize,
 *          cudaDeviceSynchronize, or a call that waits by itself. Until then cudaEventQuery says "not ready".
 *
 * For the second, every stream has a vector clock: how far of each stream is done when it is. Recording an event ticks
 * its stream and keeps a copy; a stream that waits for an event takes in the event's clock; a host that waits makes
 * all of a clock done. A thread that does nothing but ask the same event again and again is waiting too. */
#define _GNU_SOURCE
#include "null.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEVICES 64
#define BLOCKING 0u                                   /* a stream made without cudaStreamNonBlocking */
#define POLLS_THAT_WAIT 1000

typedef unsigned long ticket;
typedef struct { ticket *of; size_t count; } vector;  /* by the number of a stream */

struct null_stream { int device, priority, capture; unsigned flags; size_t number; vector clock; null_stream *next; };
struct null_event { struct timespec at; null_stream *stream; size_t number; ticket mark; vector clock; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static null_stream defaults[MAX_DEVICES];
static null_stream *made;                             /* all the others */
static vector leftover[MAX_DEVICES];                  /* the work of streams that are no more */
static size_t streams;                                /* numbers given so far: the first is 1 */
static vector done;
static _Thread_local null_event *polled;
static _Thread_local int polls;

static int is_most(void) {
    static int answer = -1;
    if (answer < 0) {
        const char *text = getenv("BIGQA_NULL_BOUND");
        answer = text && !strcmp(text, "most");
    }
    return answer;
}

/* ---- vector clocks; all with the lock held ---- */

static ticket get(const vector *clock, size_t number) { return number < clock->count ? clock->of[number] : 0; }

static void raise(vector *clock, size_t number, ticket to) {
    if (number >= clock->count) {
        size_t count = number + 16;
        clock->of = realloc(clock->of, count * sizeof *clock->of);
        memset(clock->of + clock->count, 0, (count - clock->count) * sizeof *clock->of);
        clock->count = count;
    }
    if (clock->of[number] < to) clock->of[number] = to;
}

static void merge(vector *into, const vector *from) {
    for (size_t i = 0; i < from->count; i++)
        if (from->of[i]) raise(into, i, from->of[i]);
}

static size_t number_of(null_stream *stream) {
    if (!stream->number) stream->number = ++streams;
    return stream->number;
}

static int is_default(const null_stream *stream) { return stream == defaults + stream->device; }

/* The default stream and the blocking ones of its device wait for each other. */
static void follow_implicitly(null_stream *stream) {
    if (is_default(stream)) {
        for (null_stream *other = made; other; other = other->next)
            if (other->device == stream->device && other->flags == BLOCKING) merge(&stream->clock, &other->clock);
    } else if (stream->flags == BLOCKING) {
        merge(&stream->clock, &defaults[stream->device].clock);
    }
}

static ticket tick(null_stream *stream) { /* a piece of work behind all that the stream already has */
    follow_implicitly(stream);
    ticket mark = get(&stream->clock, number_of(stream)) + 1;
    raise(&stream->clock, stream->number, mark);
    return mark;
}

static int is_done(const vector *clock) {
    for (size_t i = 0; i < clock->count; i++)
        if (get(&done, i) < clock->of[i]) return 0;
    return 1;
}

/* ---- streams ---- */

null_stream *null_stream_of(void *handle) {
    if ((size_t)handle >= 16) return handle;
    defaults[null_device].device = null_device;
    return defaults + null_device;
}

null_stream *null_stream_new(unsigned flags, int priority) {
    null_stream *stream = calloc(1, sizeof *stream);
    *stream = (null_stream){.device = null_device, .priority = priority < -5 ? -5 : priority, .flags = flags};
    pthread_mutex_lock(&lock);
    stream->next = made;
    made = stream;
    pthread_mutex_unlock(&lock);
    return stream;
}

void null_stream_delete(void *handle) { /* its work goes on, and events may still be asked for it */
    if ((size_t)handle < 16) return;
    null_stream *stream = handle;
    pthread_mutex_lock(&lock);
    null_stream **at = &made;
    while (*at && *at != stream) at = &(*at)->next;
    if (*at) *at = stream->next;
    merge(leftover + stream->device, &stream->clock);
    pthread_mutex_unlock(&lock);
    free(stream->clock.of);
    free(stream);
}

int null_stream_priority(void *handle) { return null_stream_of(handle)->priority; }
unsigned null_stream_flags(void *handle) { return null_stream_of(handle)->flags; }
int *null_stream_capture(void *handle) { return &null_stream_of(handle)->capture; }

int null_stream_is_done(void *handle) {
    if (!is_most()) return 1;
    pthread_mutex_lock(&lock);
    int yes = is_done(&null_stream_of(handle)->clock);
    pthread_mutex_unlock(&lock);
    return yes;
}

void null_stream_wait(void *handle) {
    null_busy();
    if (!is_most()) return;
    pthread_mutex_lock(&lock);
    null_stream *stream = null_stream_of(handle);
    follow_implicitly(stream);
    merge(&done, &stream->clock);
    pthread_mutex_unlock(&lock);
}

void null_device_wait(int device) {
    null_busy();
    if (!is_most()) return;
    pthread_mutex_lock(&lock);
    merge(&done, &defaults[device].clock);
    merge(&done, leftover + device);
    for (null_stream *stream = made; stream; stream = stream->next)
        if (stream->device == device) merge(&done, &stream->clock);
    pthread_mutex_unlock(&lock);
}

/* ---- events ---- */

null_event *null_event_new(void) { return calloc(1, sizeof(null_event)); }

void null_event_delete(null_event *event) {
    if (event) free(event->clock.of);
    free(event);
}

void null_event_record(null_event *event, void *handle) {
    null_busy();
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    if (!is_most()) return;
    pthread_mutex_lock(&lock);
    null_stream *stream = null_stream_of(handle);
    event->mark = tick(stream);
    event->number = stream->number;
    if (event->clock.count) memset(event->clock.of, 0, event->clock.count * sizeof *event->clock.of);
    merge(&event->clock, &stream->clock);
    pthread_mutex_unlock(&lock);
}

static void finish(null_event *event) {
    pthread_mutex_lock(&lock);
    merge(&done, &event->clock);
    pthread_mutex_unlock(&lock);
}

int null_event_is_done(null_event *event) {
    if (!is_most()) return 1;
    polls = event == polled ? polls + 1 : 1;
    polled = event;
    if (polls >= POLLS_THAT_WAIT) finish(event);
    pthread_mutex_lock(&lock);
    int yes = get(&done, event->number) >= event->mark;
    pthread_mutex_unlock(&lock);
    return yes;
}

void null_event_wait(null_event *event) {
    null_busy();
    if (is_most()) finish(event);
}

void null_stream_follow(void *handle, null_event *event) {
    null_busy();
    if (!is_most()) return;
    pthread_mutex_lock(&lock);
    merge(&null_stream_of(handle)->clock, &event->clock);
    pthread_mutex_unlock(&lock);
}

float null_event_ms(null_event *from, null_event *to) { /* the host's time: it says nothing of a GPU */
    float ms = (to->at.tv_sec - from->at.tv_sec) * 1e3f + (to->at.tv_nsec - from->at.tv_nsec) / 1e6f;
    return ms > 0 ? ms : 1e-3f;
}

void null_busy(void) { polls = 0; }
