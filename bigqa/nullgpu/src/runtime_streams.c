/* libcudart.so.13: streams, events, graphs. What waits for what is in clock.c. */
#include "runtime.h"
#include <stdatomic.h>
#include <stdint.h>

static null_event *event_of(cudaEvent_t event) { return (null_event *)event; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = (cudaStream_t)null_stream_new(flags, priority);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    null_stream_delete(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = null_stream_priority(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    *flags = null_stream_flags(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    null_stream_wait(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return null_stream_is_done(stream) ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags UNUSED) {
    null_stream_follow(stream, event_of(event));
    return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t f, void *data, unsigned flags UNUSED) {
    f(stream, cudaSuccess, data);
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream UNUSED, cudaHostFn_t f, void *data) {
    f(data);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags UNUSED) {
    *event = (cudaEvent_t)null_event_new();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    null_event_delete(event_of(event));
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    null_event_record(event_of(event), stream);
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags UNUSED) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return null_event_is_done(event_of(event)) ? cudaSuccess : null_fail(cudaErrorNotReady); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    null_event_wait(event_of(event));
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = null_event_ms(event_of(from), event_of(to));
    return cudaSuccess;
}

/* ---- graphs: what is captured is not kept, for it would not be run ---- */

static cudaGraph_t graph_of(int capture) { return (cudaGraph_t)(0x1000 + 16 * (size_t)capture); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode UNUSED) {
    static atomic_int captures;
    *null_stream_capture(stream) = ++captures;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = graph_of(*null_stream_capture(stream));
    *null_stream_capture(stream) = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = *null_stream_capture(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
    int capture = *null_stream_capture(stream);
    cudaStreamIsCapturing(stream, status);
    if (id) *id = (unsigned long long)capture;
    if (graph) *graph = graph_of(capture);
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph UNUSED, cudaGraphNode_t *nodes UNUSED, size_t *count) {
    *count = 1; /* torch warns of empty graphs */
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph UNUSED, unsigned long long flags UNUSED) {
    *exec = null_handle();
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiateWithFlags(exec, graph, flags);
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *data UNUSED, cudaHostFn_t f UNUSED, unsigned n UNUSED,
                                 unsigned flags UNUSED) {
    *object = null_handle();
    return cudaSuccess;
}
