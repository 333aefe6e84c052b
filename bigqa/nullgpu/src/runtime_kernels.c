/* libcudart.so.13: kernels. They are registered and launched, not run. What follows from their code is answered as the
 * driver would: whether there is any for this card, and for which version. CUB chooses its tuning by that, and the size of
 * its temporary storage follows; so the index of the "fat binary" that holds a kernel is read. */
#include "runtime.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What nvcc's code hands over for each of its files. `data` begins with a header; behind it lie the entries. */
typedef struct { int magic, version; const unsigned char *data; void *unused; } fat_binary;
enum { HEADER_SIZE_AT = 6, ENTRIES_SIZE_AT = 8, KIND_AT = 0, ENTRY_HEADER_AT = 4, ENTRY_SIZE_AT = 8, VERSION_AT = 28 };
enum { PTX = 1, SASS = 2 };

typedef struct { const void *host; const char *name; const fat_binary *binary; int version; } kernel;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kernel *kernels;                               /* a hash table with open addresses */
static size_t kernel_count, kernel_room;

static kernel *slot(kernel *table, size_t room, const void *host) {
    size_t i = ((size_t)host >> 4) * 0x9E3779B97F4A7C15u % room;
    while (table[i].host && table[i].host != host) i = i + 1 == room ? 0 : i + 1;
    return table + i;
}

static void grow(void) {
    size_t room = kernel_room ? 2 * kernel_room : 1 << 15;
    kernel *table = calloc(room, sizeof *table);
    for (size_t i = 0; i < kernel_room; i++)
        if (kernels[i].host) *slot(table, room, kernels[i].host) = kernels[i];
    free(kernels);
    kernels = table;
    kernel_room = room;
}

static kernel kernel_of(const void *host) {
    kernel found = {NULL, "?", NULL, 0};
    pthread_mutex_lock(&lock);
    if (kernel_room) {
        kernel *at = slot(kernels, kernel_room, host);
        if (at->host) found = *at;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void **__cudaRegisterFatBinary(void *wrapper) {
    void **handle = malloc(sizeof *handle);
    *handle = wrapper;
    return handle;
}
void __cudaRegisterFatBinaryEnd(void **handle UNUSED) {}
void __cudaUnregisterFatBinary(void **handle UNUSED) {}
char __cudaInitModule(void **handle UNUSED) { return 1; }
void __cudaRegisterFunction(void **handle, const char *host, char *device UNUSED, const char *name, int limit UNUSED,
                            void *t UNUSED, void *b UNUSED, void *bd UNUSED, void *gd UNUSED, int *w UNUSED) {
    pthread_mutex_lock(&lock);
    if (2 * kernel_count >= kernel_room) grow();
    kernel *at = slot(kernels, kernel_room, host);
    kernel_count += !at->host;
    *at = (kernel){host, name, *handle, 0};
    pthread_mutex_unlock(&lock);
}

#define READ(type, at) (*(const type *)(at))

static int newest_in(const fat_binary *binary) { /* 80 for sm_80; 0: no code for this card */
    const null_card *card = null_card_of(null_device);
    const unsigned char *head = binary->data;
    const unsigned char *entry = head + READ(uint16_t, head + HEADER_SIZE_AT);
    const unsigned char *end = entry + READ(uint64_t, head + ENTRIES_SIZE_AT);
    int ours = 10 * card->major + card->minor, newest = 0;
    while (entry < end) {
        int kind = READ(uint16_t, entry + KIND_AT), version = READ(int, entry + VERSION_AT);
        int runs = version <= ours && (kind == PTX || (kind == SASS && version / 10 == card->major));
        if (runs && version > newest) newest = version;
        entry += READ(uint32_t, entry + ENTRY_HEADER_AT) + READ(uint64_t, entry + ENTRY_SIZE_AT);
    }
    return newest;
}

static int version_of(const void *host) {
    kernel found = kernel_of(host);
    const null_card *card = null_card_of(null_device);
    if (!found.binary) return 10 * card->major + card->minor; /* not from a fat binary: taken as made for the card */
    if (found.version) return found.version;
    int version = newest_in(found.binary);
    pthread_mutex_lock(&lock);
    slot(kernels, kernel_room, host)->version = version;
    pthread_mutex_unlock(&lock);
    return version;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *f) {
    memset(attributes, 0, sizeof *attributes);
    int version = version_of(f);
    if (!version) return null_fail(cudaErrorNoKernelImageForDevice);
    attributes->ptxVersion = attributes->binaryVersion = version;
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32; /* not known: it is in the kernel's own code */
    attributes->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *f UNUSED, enum cudaFuncAttribute attribute, int value) {
    int is_too_much = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > null_card_of(null_device)->shared_block;
    return is_too_much ? null_fail(cudaErrorInvalidValue) : cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f UNUSED, int threads,
                                                                   size_t shared, unsigned flags UNUSED) {
    const null_card *card = null_card_of(null_device); /* by threads and shared memory; registers are not known */
    int most = threads > 0 ? card->threads_sm / threads : 1;
    int by_shared = shared ? (int)(card->shared_sm / (shared + 1024)) : most;
    if (most > card->blocks_sm) most = card->blocks_sm;
    if (most > by_shared) most = by_shared;
    *blocks = most > 0 ? most : 1;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, f, threads, shared, 0);
}
cudaError_t cudaGetSymbolAddress(void **at, const void *symbol) {
    *at = (void *)symbol;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolSize(size_t *size, const void *symbol UNUSED) {
    *size = 8;
    return cudaSuccess;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code UNUSED, enum cudaJitOption *o UNUSED, void **v UNUSED,
                                unsigned n UNUSED, enum cudaLibraryOption *p UNUSED, void **w UNUSED, unsigned m UNUSED) {
    *library = null_handle();
    return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t library UNUSED, const char *name UNUSED) {
    *k = null_handle();
    return cudaSuccess;
}

/* ---- launches ---- */

static cudaError_t launch(const void *f, dim3 grid, dim3 block, size_t shared) {
    null_ran();
    if (null_logs("kernels"))
        null_log("kernel %s <<<%u,%u,%u; %u,%u,%u; %zu>>>\n", kernel_of(f).name, grid.x, grid.y, grid.z, block.x, block.y,
                 block.z, shared);
    return version_of(f) ? cudaSuccess : null_fail(cudaErrorNoKernelImageForDevice);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args UNUSED, size_t shared, cudaStream_t s UNUSED) {
    return launch(f, grid, block, shared);
}
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **args UNUSED, size_t shared,
                                        cudaStream_t s UNUSED) {
    return launch(f, grid, block, shared);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **args UNUSED) {
    return launch(f, config->gridDim, config->blockDim, config->dynamicSmemBytes);
}
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) {
    *k = (cudaKernel_t)f;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void **args UNUSED, size_t shared, cudaStream_t s UNUSED) {
    return launch((const void *)f, grid, block, shared);
}

/* kernel<<<grid, block, shared, stream>>>(...) pushes these, and the kernel's host code pops them. */
#define DEPTH 16
static _Thread_local struct { dim3 grid, block; size_t shared; void *stream; } calls[DEPTH];
static _Thread_local int depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    if (depth == DEPTH) return 1;
    calls[depth].grid = grid;
    calls[depth].block = block;
    calls[depth].shared = shared;
    calls[depth].stream = stream;
    depth++;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (!depth) return null_fail(cudaErrorMissingConfiguration);
    depth--;
    *grid = calls[depth].grid;
    *block = calls[depth].block;
    *shared = calls[depth].shared;
    *(void **)stream = calls[depth].stream;
    return cudaSuccess;
}
