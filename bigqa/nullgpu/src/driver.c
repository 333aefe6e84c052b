/* libcuda.so.1: what torch, Triton and bitsandbytes ask of the driver itself and that has to give something back. */
#define _GNU_SOURCE
#include "null.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda.h>

#define OK CUDA_SUCCESS
static _Thread_local CUcontext current;
static CUcontext primary_of(int device) { return (CUcontext)(0x100 + 0x100 * (size_t)device); }
static CUdevice device_of(CUcontext context) { return context ? (int)((size_t)context / 0x100 - 1) : null_device; }

CUresult cuInit(unsigned flags UNUSED) { return null_count() ? OK : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, OK; }
CUresult cuDeviceGetCount(int *count) { return *count = null_count(), OK; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (!null_card_of(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    return *device = ordinal, OK;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice d) {
    if (!null_card_of(d)) return CUDA_ERROR_INVALID_DEVICE;
    return snprintf(name, size, "%s", null_card_of(d)->name), OK;
}
CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice d) {
    if (!null_card_of(d)) return CUDA_ERROR_INVALID_DEVICE;
    return *size = null_card_of(d)->memory, OK;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice d) {
    if (!null_card_of(d)) return CUDA_ERROR_INVALID_DEVICE;
    return *value = null_attribute(d, attribute), OK;
}
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice d) { return null_uuid(null_place_of(d), (unsigned char *)uuid), OK; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice d) { return *context = primary_of(d), OK; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d UNUSED, unsigned *flags, int *active) { return *flags = 0, *active = 1, OK; }
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = current ? current : primary_of(null_device), OK; }
CUresult cuCtxSetCurrent(CUcontext context) { return current = context, null_device = device_of(context), OK; }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return cuCtxSetCurrent(context); }
CUresult cuCtxPopCurrent_v2(CUcontext *context) { return context ? cuCtxGetCurrent(context) : OK; }
CUresult cuCtxGetDevice(CUdevice *d) { return *d = device_of(current), OK; }
CUresult cuCtxSynchronize(void) { return null_device_wait(null_device), OK; }
CUresult cuGetErrorString(CUresult e, const char **text) { return *text = e ? "an error of the null GPU" : "no error", OK; }
CUresult cuGetErrorName(CUresult e, const char **text) { return *text = e ? "CUDA_ERROR_UNKNOWN" : "CUDA_SUCCESS", OK; }

/* ---- memory ---- */

CUresult cuMemGetInfo_v2(size_t *left, size_t *total) {
    *total = null_card_of(null_device)->memory;
    *left = *total - null_used(null_device);
    return OK;
}
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t size) {
    *at = (CUdeviceptr)null_alloc(null_device, size, NULL_DEVICE);
    return *at ? OK : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAllocManaged(CUdeviceptr *at, size_t size, unsigned flags UNUSED) {
    *at = (CUdeviceptr)null_alloc(null_device, size, NULL_MANAGED);
    return *at ? OK : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemHostAlloc(void **at, size_t size, unsigned flags UNUSED) {
    return (*at = null_alloc(null_device, size, NULL_PINNED)) ? OK : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFree_v2(CUdeviceptr at) {
    null_device_wait(null_device);
    return !at || null_free((void *)at) ? OK : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemFreeHost(void *at) { return null_free(at) ? OK : CUDA_ERROR_INVALID_VALUE; }
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
    null_span span;
    if (!null_find((void *)at, &span)) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = (CUdeviceptr)span.at;
    if (size) *size = span.size;
    return OK;
}
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr at) {
    null_span span;
    if (!null_find((void *)at, &span)) return CUDA_ERROR_INVALID_VALUE;
    int on_host = span.kind == NULL_PINNED || span.kind == NULL_REGISTERED;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)data = primary_of(span.device); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)data = on_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(CUdeviceptr *)data = at; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = span.device; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(char **)data = span.at; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)data = span.size; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)data = (size_t)span.at; break;
    default: *(int *)data = 0;
    }
    return OK;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) { return null_copy((void *)to, from, size), OK; }
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
    null_stream_wait(NULL);
    return null_copy(to, (void *)from, size), OK;
}
CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream s UNUSED) {
    if (!value) null_set((void *)at, 0, 4 * count);
    return OK;
}

/* torch's expandable segments: ranges of addresses, and memory behind them, which here is only counted. */
typedef struct { size_t size; int device; } chunk;

CUresult cuMemGetAllocationGranularity(size_t *size, const CUmemAllocationProp *p UNUSED, CUmemAllocationGranularity_flags f UNUSED) {
    return *size = GRANULE, OK;
}
CUresult cuMemAddressReserve(CUdeviceptr *at, size_t size, size_t alignment UNUSED, CUdeviceptr wish UNUSED,
                             unsigned long long flags UNUSED) {
    *at = (CUdeviceptr)null_alloc(null_device, size, NULL_RANGE);
    return *at ? OK : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr at, size_t size UNUSED) { return null_free((void *)at) ? OK : CUDA_ERROR_INVALID_VALUE; }
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags UNUSED) {
    if (!null_take(prop->location.id, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    chunk *memory = malloc(sizeof *memory);
    *memory = (chunk){size, prop->location.id};
    return *handle = (CUmemGenericAllocationHandle)memory, OK;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    chunk *memory = (chunk *)handle;
    null_give(memory->device, memory->size);
    return free(memory), OK;
}
CUresult cuMemUnmap(CUdeviceptr at, size_t size) { return null_set((void *)at, 0, size), OK; }

/* ---- streams and events: the runtime's are the same ones ---- */

CUresult cuStreamCreateWithPriority(CUstream *s, unsigned flags, int priority) {
    return *s = (CUstream)null_stream_new(flags, priority), OK;
}
CUresult cuStreamCreate(CUstream *s, unsigned flags) { return cuStreamCreateWithPriority(s, flags, 0); }
CUresult cuStreamDestroy_v2(CUstream s) { return null_stream_delete(s), OK; }
CUresult cuStreamSynchronize(CUstream s) { return null_stream_wait(s), OK; }
CUresult cuStreamQuery(CUstream s) { return null_stream_is_done(s) ? OK : CUDA_ERROR_NOT_READY; }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags UNUSED) { return null_stream_follow(s, (null_event *)e), OK; }
CUresult cuStreamGetCtx(CUstream s UNUSED, CUcontext *context) { return cuCtxGetCurrent(context); }
CUresult cuEventCreate(CUevent *e, unsigned flags UNUSED) { return *e = (CUevent)null_event_new(), OK; }
CUresult cuEventDestroy_v2(CUevent e) { return null_event_delete((null_event *)e), OK; }
CUresult cuEventRecord(CUevent e, CUstream s) { return null_event_record((null_event *)e, s), OK; }
CUresult cuEventQuery(CUevent e) { return null_event_is_done((null_event *)e) ? OK : CUDA_ERROR_NOT_READY; }
CUresult cuEventSynchronize(CUevent e) { return null_event_wait((null_event *)e), OK; }
CUresult cuEventElapsedTime_v2(float *ms, CUevent a, CUevent b) { return *ms = null_event_ms((null_event *)a, (null_event *)b), OK; }

/* ---- modules and kernels ---- */

CUresult cuModuleLoad(CUmodule *m, const char *file UNUSED) { return *m = null_handle(), OK; }
CUresult cuModuleLoadData(CUmodule *m, const void *image UNUSED) { return *m = null_handle(), OK; }
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image UNUSED, unsigned n UNUSED, CUjit_option *o UNUSED, void **v UNUSED) {
    return *m = null_handle(), OK;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m UNUSED, const char *name UNUSED) { return *f = null_handle(), OK; }
CUresult cuLinkCreate_v2(unsigned n UNUSED, CUjit_option *o UNUSED, void **v UNUSED, CUlinkState *state) {
    return *state = null_handle(), OK;
}
CUresult cuLinkComplete(CUlinkState state UNUSED, void **image, size_t *size) {
    static char nothing[64];
    return *image = nothing, *size = sizeof nothing, OK;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f UNUSED) {
    const null_card *card = null_card_of(null_device);
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 10 * card->major + card->minor; break;
    default: *value = 0;
    }
    return OK;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction f UNUSED, int threads, size_t shared UNUSED) {
    int room = null_card_of(null_device)->threads_sm;
    return *blocks = threads > 0 && threads < room ? room / threads : 1, OK;
}
CUresult cuLaunchKernel(CUfunction f UNUSED, unsigned gx UNUSED, unsigned gy UNUSED, unsigned gz UNUSED, unsigned bx UNUSED,
                        unsigned by UNUSED, unsigned bz UNUSED, unsigned shared UNUSED, CUstream s UNUSED, void **args UNUSED,
                        void **extra UNUSED) {
    return null_ran(), OK;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c UNUSED, CUfunction f UNUSED, void **args UNUSED, void **extra UNUSED) {
    return null_ran(), OK;
}

/* The newest form of a name, as cuda.h maps it: cuMemAlloc is cuMemAlloc_v2. */
CUresult cuGetProcAddress_v2(const char *name, void **function, int version UNUSED, cuuint64_t flags UNUSED,
                             CUdriverProcAddressQueryResult *status) {
    char newest[160];
    *function = NULL;
    for (int v = 4; v > 1 && !*function; v--) {
        snprintf(newest, sizeof newest, "%s_v%d", name, v);
        *function = dlsym(RTLD_DEFAULT, newest);
    }
    if (!*function) *function = dlsym(RTLD_DEFAULT, name);
    if (!*function && null_logs("stubs")) null_log("no function %s\n", name);
    if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return OK;
}
