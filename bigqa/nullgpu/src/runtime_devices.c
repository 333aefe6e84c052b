/* libcudart.so.13: devices, errors, and the way to the driver's functions. */
#include "runtime.h"
#include <stdio.h>
#include <string.h>
#include <cuda.h>

static _Thread_local cudaError_t last_error;
cudaError_t null_fail(cudaError_t error) { return last_error = error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct { cudaError_t error; const char *name, *text; } errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorMissingConfiguration, "cudaErrorMissingConfiguration", "__global__ function call is not configured"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
};
#define ERRORS (sizeof errors / sizeof *errors)
const char *cudaGetErrorName(cudaError_t error) {
    for (size_t i = 0; i < ERRORS; i++)
        if (errors[i].error == error) return errors[i].name;
    return "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t error) {
    for (size_t i = 0; i < ERRORS; i++)
        if (errors[i].error == error) return errors[i].text;
    return "an error of the null GPU";
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = null_count();
    return *count ? cudaSuccess : null_fail(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int *device) {
    *device = null_device;
    return null_count() ? cudaSuccess : null_fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (!null_card_of(device)) return null_fail(null_count() ? cudaErrorInvalidDevice : cudaErrorNoDevice);
    null_device = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    null_device_wait(null_device);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    if (!null_card_of(device)) return null_fail(cudaErrorInvalidDevice);
    *value = null_attribute(device, attribute);
    return cudaSuccess;
}

static void limits_of(struct cudaDeviceProp *p, int device) {
    p->sharedMemPerBlock = null_attribute(device, cudaDevAttrMaxSharedMemoryPerBlock);
    p->reservedSharedMemPerBlock = null_attribute(device, cudaDevAttrReservedSharedMemoryPerBlock);
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->textureAlignment = 512;
    p->texturePitchAlignment = 32;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    const null_card *card = null_card_of(device);
    if (!card) return null_fail(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    memcpy(p->name, card->name, sizeof card->name);
    null_uuid(null_place_of(device), (unsigned char *)&p->uuid);
    limits_of(p, device);
    p->totalGlobalMem = card->memory;
    p->sharedMemPerBlockOptin = card->shared_block;
    p->sharedMemPerMultiprocessor = card->shared_sm;
    p->major = card->major;
    p->minor = card->minor;
    p->multiProcessorCount = card->sms;
    p->maxThreadsPerMultiProcessor = card->threads_sm;
    p->maxBlocksPerMultiProcessor = card->blocks_sm;
    p->l2CacheSize = card->l2;
    p->memoryBusWidth = card->bus;
    p->pciBusID = 1 + null_place_of(device);
    p->asyncEngineCount = 3;
    p->clusterLaunch = card->major >= 9;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->streamPrioritiesSupported = 1;
    p->globalL1CacheSupported = p->localL1CacheSupported = p->managedMemory = p->concurrentManagedAccess = 1;
    p->computePreemptionSupported = p->cooperativeLaunch = p->hostRegisterSupported = p->memoryPoolsSupported = 1;
    p->canUseHostPointerForRegisteredMem = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    if (!null_card_of(device)) return null_fail(cudaErrorInvalidDevice);
    snprintf(text, size, "0000:%02X:00.0", 1 + null_place_of(device));
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) {
    *can = a != b;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status) {
    CUdriverProcAddressQueryResult found;
    cuGetProcAddress_v2(name, function, (int)version, flags, &found);
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *status) {
    return cudaGetDriverEntryPointByVersion(name, function, CUDART_VERSION, flags, status);
}
