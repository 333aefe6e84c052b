/* libnvidia-ml.so.1: all installed cards, visible to CUDA or not, and what this process takes of them. */
#include "null.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, INVALID = 2, TOO_SMALL = 7 };
static int place_of(void *handle) { return (int)(size_t)handle - 1; }
static void *handle_of(int place) { return (void *)(size_t)(place + 1); }
static const null_card *any_card(void) { return null_card_of(0); } /* all are alike */
static size_t used_of(int place) {
    int device = null_device_at(place);
    return device < 0 ? 0 : null_used(device);
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInit(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags UNUSED) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int status) { return status ? "an error of the null GPU" : "success"; }

int nvmlDeviceGetCount_v2(unsigned *count) { return *count = (unsigned)null_installed(), SUCCESS; }
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    *out = handle_of((int)index);
    return index < (unsigned)null_installed() ? SUCCESS : INVALID;
}
int nvmlDeviceGetHandleByIndex(unsigned index, void **out) { return nvmlDeviceGetHandleByIndex_v2(index, out); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {
    unsigned domain = 0, number = 0;
    int parts = sscanf(bus, "%x:%x", &domain, &number);
    *out = handle_of((int)number - 1);
    return parts == 2 && number >= 1 && (int)number <= null_installed() ? SUCCESS : INVALID;
}
int nvmlDeviceGetHandleByPciBusId(const char *bus, void **out) { return nvmlDeviceGetHandleByPciBusId_v2(bus, out); }

int nvmlDeviceGetIndex(void *d, unsigned *index) { return *index = (unsigned)place_of(d), SUCCESS; }
int nvmlDeviceGetName(void *d UNUSED, char *text, unsigned size) {
    return snprintf(text, size, "%s", any_card() ? any_card()->name : ""), SUCCESS;
}
int nvmlDeviceGetUUID(void *d, char *text, unsigned size) {
    unsigned char b[16];
    null_uuid(place_of(d), b);
    snprintf(text, size, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
             b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(void *d UNUSED, int *major, int *minor) {
    if (!any_card()) return INVALID;
    return *major = any_card()->major, *minor = any_card()->minor, SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long total_free_used[3]) {
    if (!any_card()) return INVALID;
    total_free_used[0] = any_card()->memory;
    total_free_used[2] = used_of(place_of(d));
    total_free_used[1] = total_free_used[0] - total_free_used[2];
    return SUCCESS;
}

/* One process, this one: its number, then its bytes. 16 bytes in the function's first form, 24 in the later ones. */
int nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *count, char *out) {
    int none = !used_of(place_of(d)), room = (int)*count;
    *count = none ? 0 : 1;
    if (none) return SUCCESS;
    if (room < 1) return TOO_SMALL;
    memset(out, 0, 16);
    *(unsigned *)out = (unsigned)getpid();
    *(unsigned long long *)(out + 8) = used_of(place_of(d));
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, char *out) {
    int status = nvmlDeviceGetComputeRunningProcesses(d, count, out);
    if (status == SUCCESS && *count) memset(out + 16, 0xff, 8); /* on no part of a partitioned card */
    return status;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *count, char *out) {
    return nvmlDeviceGetComputeRunningProcesses_v3(d, count, out);
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { return snprintf(text, size, "580.00"), SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { return *version = 13000, SUCCESS; }
