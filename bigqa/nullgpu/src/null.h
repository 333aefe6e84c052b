/* What the stub libraries share. The state lives in libcuda.so.1 (card.c, memory.c, contents.c, clock.c, log.c); the
 * other libraries, which link to it, translate their own functions into these. */
#pragma once
#include <stddef.h>

#define MIB ((size_t)1 << 20)
#define GRANULE (2 * MIB)                             /* the driver's unit of device memory */
#define ROUND_UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define UNUSED __attribute__((unused))

/* ---- card.c: which cards there are ---- */

typedef struct {
    char name[64];
    int major, minor, sms;                            /* compute capability, multiprocessors */
    size_t memory, context;                           /* bytes: what CUDA reports in all, what its context takes of it */
    int l2, shared_sm, shared_block;                  /* bytes: L2; shared memory of a multiprocessor, of a block */
    int threads_sm, blocks_sm;                        /* resident on a multiprocessor */
    int bus;                                          /* bits */
} null_card;

extern _Thread_local int null_device;                 /* the current device, among the visible ones */
int null_count(void);                                 /* devices that are visible */
int null_installed(void);                             /* cards, visible or not: what NVML counts */
const null_card *null_card_of(int device);            /* NULL: no such device */
int null_place_of(int device);                        /* the card that a visible device is */
int null_device_at(int place);                        /* the visible device of a card, or -1 */
int null_attribute(int device, int attribute);        /* by the numbers of CUdevice_attribute = cudaDeviceAttr */
void null_uuid(int place, unsigned char bytes[16]);
void *null_handle(void);                              /* something unique that is not NULL */

/* ---- memory.c: address space, and how much of it is taken ---- */

typedef enum { NULL_DEVICE, NULL_RANGE, NULL_PINNED, NULL_REGISTERED, NULL_MANAGED } null_kind;
typedef struct { char *at; size_t size; int device; null_kind kind; } null_span;

int null_take(int device, size_t size);               /* account for device memory; 0: it does not fit */
void null_give(int device, size_t size);
size_t null_used(int device);                         /* with the context */
size_t null_most(int device);                         /* the most that was ever used, with the context */
size_t null_most_of(null_kind kind);                  /* pinned or managed memory: the most that there was */
void *null_alloc(int device, size_t size, null_kind kind); /* NULL: out of memory */
int null_free(void *at);                              /* 0: was never allocated here */
void null_register(void *at, size_t size);            /* the program's own memory, from now on pinned */
int null_find(const void *at, null_span *out);        /* 0: ordinary host memory */
int null_is_on_device(const void *at);

/* ---- contents.c: what is in that memory, as far as the host can know ---- */

void null_copy(void *to, const void *from, size_t size);
void null_set(void *at, int value, size_t size);
void null_ran(void);                                  /* a kernel was launched: it may have written anywhere */
size_t null_crossed(int from_device);                /* bytes that copies took to devices so far, or from them */
void null_on_read(int (*answer)(size_t size));        /* asked whenever the host reads what a kernel should have made */

/* ---- clock.c: streams and events, and what is done when ---- */

typedef struct null_stream null_stream;
typedef struct null_event null_event;
null_stream *null_stream_new(unsigned flags, int priority);
null_stream *null_stream_of(void *handle);            /* a default stream for the handles 0, 1 and 2 */
void null_stream_delete(void *handle);
int null_stream_priority(void *handle);
unsigned null_stream_flags(void *handle);
int *null_stream_capture(void *handle);               /* the number of its capture, 0 if it has none; writable */
null_event *null_event_new(void);
void null_event_delete(null_event *event);
void null_event_record(null_event *event, void *stream);
int null_event_is_done(null_event *event);
float null_event_ms(null_event *from, null_event *to);
void null_event_wait(null_event *event);              /* by the host */
void null_stream_follow(void *stream, null_event *event);  /* the stream waits, not the host */
int null_stream_is_done(void *stream);
void null_stream_wait(void *stream);                  /* by the host */
void null_device_wait(int device);                    /* by the host, for all its streams */
void null_busy(void);                                 /* this thread did something other than asking an event */

/* ---- end.c ---- */

void null_threads_stay(void);                         /* as the program ends: a thread that cannot go on waits for its end */

/* ---- log.c ---- */

int null_logs(const char *what);                      /* does BIGQA_NULL_LOG_WHAT name it */
void null_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void null_called(const char *name);                   /* a function that is not modelled was called */
