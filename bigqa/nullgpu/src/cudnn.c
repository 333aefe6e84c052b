/* libcudnn.so.9, in the version that torch was built with (CUDNN_VERSION): every graph is supported and gets one plan that
 * asks for no workspace. What cuDNN's own engines would ask for is not known here. */
#include "null.h"
#include <string.h>

enum { INT64 = 3, DESCRIPTOR = 15, INT32 = 23 }; /* of cudnnBackendAttributeType_t */

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnGetProperty(int which, int *value) {
    *value = which == 0 ? CUDNN_VERSION / 10000 : which == 1 ? CUDNN_VERSION / 100 % 100 : CUDNN_VERSION % 100;
    return 0;
}
const char *cudnnGetErrorString(int status) { return status ? "the null GPU has no such function of cuDNN" : "success"; }
void cudnnGetLastErrorString(char *text, size_t size) {
    if (size) *text = 0;
}
int cudnnGetStream(void *handle UNUSED, void **stream) { return *stream = NULL, 0; }
int cudnnBackendCreateDescriptor(int kind UNUSED, void **out) { return *out = null_handle(), 0; }
int cudnnBackendGetAttribute(void *descriptor UNUSED, int name, int type, long wanted, long *found, void *out) {
    int is_number = type == INT64 || type == INT32;
    if (null_logs("cudnn")) null_log("cudnnBackendGetAttribute %d, type %d, %ld wanted\n", name, type, wanted);
    if (found) *found = type == DESCRIPTOR ? 1 : is_number ? wanted : 0;
    if (is_number && out) memset(out, 0, (type == INT64 ? 8 : 4) * (size_t)wanted);
    return 0;
}
