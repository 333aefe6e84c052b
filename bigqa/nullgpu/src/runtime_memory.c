/* libcudart.so.13: memory and copies. */
#include "runtime.h"
#include <stdint.h>
#include <string.h>

static cudaError_t allocate(void **at, size_t size, null_kind kind) {
    *at = size ? null_alloc(null_device, size, kind) : NULL;
    return *at || !size ? cudaSuccess : null_fail(cudaErrorMemoryAllocation);
}
static cudaError_t release(void *at) { return !at || null_free(at) ? cudaSuccess : null_fail(cudaErrorInvalidValue); }

cudaError_t cudaMalloc(void **at, size_t size) { return allocate(at, size, NULL_DEVICE); }
cudaError_t cudaMallocAsync(void **at, size_t size, cudaStream_t s UNUSED) { return allocate(at, size, NULL_DEVICE); }
cudaError_t cudaMallocManaged(void **at, size_t size, unsigned flags UNUSED) { return allocate(at, size, NULL_MANAGED); }
cudaError_t cudaHostAlloc(void **at, size_t size, unsigned flags UNUSED) { return allocate(at, size, NULL_PINNED); }
cudaError_t cudaMallocHost(void **at, size_t size) { return allocate(at, size, NULL_PINNED); }
cudaError_t cudaFree(void *at) {
    null_device_wait(null_device);
    return release(at);
}
cudaError_t cudaFreeAsync(void *at, cudaStream_t s UNUSED) { return release(at); }
cudaError_t cudaFreeHost(void *at) {
    null_device_wait(null_device);
    return release(at);
}
cudaError_t cudaHostRegister(void *at, size_t size, unsigned flags UNUSED) {
    null_register(at, size);
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *at) { return release(at); }
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags UNUSED) {
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    const null_card *card = null_card_of(null_device);
    if (!card) return null_fail(cudaErrorNoDevice);
    *total = card->memory;
    *left = card->memory - null_used(null_device);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *at) {
    null_span span;
    memset(attributes, 0, sizeof *attributes);
    if (!null_find(at, &span)) {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = -2;
        attributes->hostPointer = (void *)at;
        return cudaSuccess;
    }
    int on_device = span.kind == NULL_DEVICE || span.kind == NULL_RANGE;
    attributes->device = span.device;
    attributes->devicePointer = (void *)at;
    attributes->hostPointer = on_device ? NULL : (void *)at;
    attributes->type = on_device ? cudaMemoryTypeDevice : span.kind == NULL_MANAGED ? cudaMemoryTypeManaged : cudaMemoryTypeHost;
    return cudaSuccess;
}

/* ---- copies ---- */

static int is_pageable(const void *at) {
    null_span span;
    return !null_find(at, &span);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind UNUSED, cudaStream_t stream) {
    null_busy();
    if (null_is_on_device(from) && is_pageable(to)) null_stream_wait(stream); /* returns when the host has it */
    null_copy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t result = cudaMemcpyAsync(to, from, size, kind, NULL);
    if (!null_is_on_device(to) || !null_is_on_device(from)) null_stream_wait(NULL);
    return result;
}
cudaError_t cudaMemcpyPeerAsync(void *to, int d UNUSED, const void *from, int e UNUSED, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (width * height > MIB && null_is_on_device(to)) return cudaSuccess; /* as null_copy: too large to carry out */
    for (size_t i = 0; i < height; i++)
        cudaMemcpyAsync((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width, kind, stream);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream UNUSED) {
    null_busy();
    null_set(at, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *at, int value, size_t size) { return cudaMemsetAsync(at, value, size, NULL); }

/* ---- pools ---- */

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device UNUSED) {
    *pool = null_handle();
    return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool UNUSED, enum cudaMemPoolAttr attribute, void *value) {
    int is_now = attribute == cudaMemPoolAttrUsedMemCurrent || attribute == cudaMemPoolAttrReservedMemCurrent;
    *(uint64_t *)value = is_now ? null_used(null_device) : 0;
    return cudaSuccess;
}
