/* The cards that are not there, as BIGQA_NULL_CARD describes them: "name=Tesla T4;capability=7.5;sms=40;...". All are
 * alike. BIGQA_NULL_COUNT says how many are installed, CUDA_VISIBLE_DEVICES which of them this program sees. */
#define _GNU_SOURCE
#include "null.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda.h>

#define MAX_CARDS 64

_Thread_local int null_device;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static null_card card;
static int installed, visible, places[MAX_CARDS];
static atomic_size_t handles = 0x10000;

static const struct { const char *name; size_t offset; } numbers[] = {
    {"sms", offsetof(null_card, sms)},
    {"l2", offsetof(null_card, l2)},
    {"shared_sm", offsetof(null_card, shared_sm)},
    {"shared_block", offsetof(null_card, shared_block)},
    {"threads_sm", offsetof(null_card, threads_sm)},
    {"blocks_sm", offsetof(null_card, blocks_sm)},
    {"bus", offsetof(null_card, bus)},
};

static void read_field(const char *name, const char *value) {
    if (!strcmp(name, "name")) snprintf(card.name, sizeof card.name, "%s", value);
    else if (!strcmp(name, "capability")) sscanf(value, "%d.%d", &card.major, &card.minor);
    else if (!strcmp(name, "memory")) card.memory = strtoull(value, NULL, 10);
    else if (!strcmp(name, "context")) card.context = strtoull(value, NULL, 10);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) *(int *)((char *)&card + numbers[i].offset) = atoi(value);
}

static void read_card(const char *text) {
    char copy[1024], *rest = copy, *field;
    snprintf(copy, sizeof copy, "%s", text);
    while ((field = strsep(&rest, ";"))) {
        char *value = strchr(field, '=');
        if (value) *value++ = 0, read_field(field, value);
    }
}

void null_uuid(int place, unsigned char bytes[16]) { memset(bytes, 0x11 * (place + 1), 16); }

static int place_named(const char *name) { /* "1" or the beginning of "GPU-22222222-..."; -1: no card */
    char *end;
    if (strncmp(name, "GPU-", 4)) {
        long place = strtol(name, &end, 10);
        return end != name && !*end && place >= 0 && place < installed ? (int)place : -1;
    }
    for (int place = 0; place < installed; place++) {
        unsigned char bytes[16];
        char uuid[16];
        null_uuid(place, bytes);
        snprintf(uuid, sizeof uuid, "GPU-%02x%02x%02x%02x", bytes[0], bytes[1], bytes[2], bytes[3]);
        if (!strncmp(name, uuid, strlen(name) < 12 ? strlen(name) : 12)) return place;
    }
    return -1;
}

static void read_visible(const char *text) { /* as CUDA does: up to the first name that means no card */
    char copy[1024], *rest = copy, *name;
    snprintf(copy, sizeof copy, "%s", text);
    while (visible < installed && (name = strsep(&rest, ","))) {
        while (*name == ' ') name++;
        int place = place_named(name);
        if (place < 0) return;
        places[visible++] = place;
    }
}

static void forget(void) { /* a fork reads its own environment: NVML, which forks survive, may have been asked before */
    once = (pthread_once_t)PTHREAD_ONCE_INIT;
    visible = installed = 0;
}

static void start(void) {
    static int forgets;
    if (!forgets++) pthread_atfork(NULL, NULL, forget);
    const char *text = getenv("BIGQA_NULL_CARD"), *count = getenv("BIGQA_NULL_COUNT");
    if (!text) return; /* no cards */
    read_card(text);
    installed = count && *count ? atoi(count) : 1;
    if (installed > MAX_CARDS) installed = MAX_CARDS;
    const char *names = getenv("CUDA_VISIBLE_DEVICES");
    if (names) read_visible(names);
    else while (visible < installed) places[visible] = visible, visible++;
}

int null_count(void) { pthread_once(&once, start); return visible; }
int null_installed(void) { null_count(); return installed; }
const null_card *null_card_of(int device) { return device >= 0 && device < null_count() ? &card : NULL; }
int null_place_of(int device) { return device >= 0 && device < null_count() ? places[device] : -1; }
int null_device_at(int place) {
    for (int i = 0; i < null_count(); i++)
        if (places[i] == place) return i;
    return -1;
}
void *null_handle(void) { return (void *)(handles += 16); }

int null_attribute(int device, int attribute) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card.major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card.minor;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card.sms;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card.l2;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card.bus;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return card.shared_sm;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card.shared_block;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return card.major >= 8 ? 1024 : 0;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card.threads_sm;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card.blocks_sm;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: return card.major >= 9;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return 1 + null_place_of(device);
    /* the same for every card since 7.5 (CUDA C++ Programming Guide, technical specifications) */
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
    case CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT: return 32;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 1500000; /* time means nothing here */
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
    default: return 0;
    }
}
