/* libnccl.so.2: one rank of a group, whether or not there are others. What others would send is taken to be what this one
 * sends; sums are not summed. Small transfers are carried out (contents.c), which is enough for what ranks tell each other
 * about shapes. */
#include "null.h"
#include <stdlib.h>
#include <string.h>

typedef struct { int ranks, rank, device, known; } group; /* known: 0 for a part of another group, whose size nobody says */
typedef struct { char bytes[128]; } unique_id;

static size_t bytes_of(size_t count, int type) {
    static const unsigned char sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; /* by ncclDataType_t */
    return count * (type >= 0 && type < (int)sizeof sizes ? sizes[type] : 1);
}
static int new_group(void **out, int ranks, int rank, int known) {
    group *made = malloc(sizeof *made);
    *made = (group){ranks, rank, null_device, known};
    return *out = made, 0;
}

int ncclGetVersion(int *version) { return *version = 22907, 0; }
const char *ncclGetErrorString(int status) { return status ? "an error of the null GPU" : "no error"; }
const char *ncclGetLastError(void *comm UNUSED) { return ""; }
int ncclGetUniqueId(char *id) { return memset(id, 7, sizeof(unique_id)), 0; }

int ncclCommInitRank(void **comm, int n, unique_id id UNUSED, int rank) { return new_group(comm, n, rank, 1); }
int ncclCommInitRankConfig(void **comm, int n, unique_id id UNUSED, int rank, void *config UNUSED) {
    return new_group(comm, n, rank, 1);
}
int ncclCommInitRankScalable(void **comm, int n, int rank, int ids UNUSED, void *id UNUSED, void *config UNUSED) {
    return new_group(comm, n, rank, 1);
}
int ncclCommInitAll(void **comms, int n, const int *devices UNUSED) {
    for (int i = 0; i < n; i++) new_group(comms + i, n, i, 1);
    return 0;
}
int ncclCommSplit(void *comm, int color, int key UNUSED, void **out, void *config UNUSED) {
    group *whole = comm;
    if (color < 0) return *out = NULL, 0; /* not a member */
    return new_group(out, whole->ranks, whole->rank, 0);
}
int ncclCommDestroy(void *comm) { return free(comm), 0; }
int ncclCommAbort(void *comm) { return free(comm), 0; }
int ncclCommGetAsyncError(void *comm UNUSED, int *status) { return *status = 0, 0; }
int ncclCommCount(void *comm, int *count) { return *count = ((group *)comm)->ranks, 0; }
int ncclCommUserRank(void *comm, int *rank) { return *rank = ((group *)comm)->rank, 0; }
int ncclCommCuDevice(void *comm, int *device) { return *device = ((group *)comm)->device, 0; }
int ncclCommRegister(void *comm UNUSED, void *at UNUSED, size_t size UNUSED, void **handle) { return *handle = null_handle(), 0; }
int ncclMemAlloc(void **at, size_t size) { return (*at = null_alloc(null_device, size, NULL_DEVICE)) ? 0 : 1; }
int ncclMemFree(void *at) { return null_free(at) ? 0 : 4; }

static int hand_on(const void *from, void *to, size_t size) {
    null_busy();
    if (from != to) null_copy(to, from, size);
    return 0;
}
int ncclAllReduce(const void *from, void *to, size_t n, int type, int op UNUSED, void *comm UNUSED, void *stream UNUSED) {
    return hand_on(from, to, bytes_of(n, type));
}
int ncclReduce(const void *from, void *to, size_t n, int type, int op UNUSED, int root UNUSED, void *comm UNUSED, void *stream UNUSED) {
    return hand_on(from, to, bytes_of(n, type));
}
int ncclBroadcast(const void *from, void *to, size_t n, int type, int root UNUSED, void *comm UNUSED, void *stream UNUSED) {
    return hand_on(from, to, bytes_of(n, type));
}
int ncclBcast(void *at UNUSED, size_t n UNUSED, int type UNUSED, int root UNUSED, void *comm UNUSED, void *stream UNUSED) { return 0; }
int ncclReduceScatter(const void *from, void *to, size_t n, int type, int op UNUSED, void *comm, void *stream UNUSED) {
    size_t size = bytes_of(n, type);
    return hand_on((const char *)from + (size_t)((group *)comm)->rank * size, to, size);
}
int ncclAllGather(const void *from, void *to, size_t n, int type, void *comm, void *stream UNUSED) {
    group *us = comm;
    size_t size = bytes_of(n, type);
    int copies = us->known ? us->ranks : 1;
    for (int i = 0; i < copies; i++) hand_on(from, (char *)to + (size_t)i * size, size);
    return 0;
}
