/* libnvrtc.so.13: compiles everything to nothing, for torch's kernels that are made at run time. */
#include "null.h"
#include <string.h>

static const char nothing[] = "nothing";
int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, 0; }
const char *nvrtcGetErrorString(int status) { return status ? "an error of the null GPU" : "success"; }
int nvrtcGetPTXSize(void *program UNUSED, size_t *size) { return *size = sizeof nothing, 0; }
int nvrtcGetPTX(void *program UNUSED, char *out) { return memcpy(out, nothing, sizeof nothing), 0; }
int nvrtcGetCUBINSize(void *program UNUSED, size_t *size) { return *size = sizeof nothing, 0; }
int nvrtcGetCUBIN(void *program UNUSED, char *out) { return memcpy(out, nothing, sizeof nothing), 0; }
int nvrtcGetProgramLogSize(void *program UNUSED, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(void *program UNUSED, char *out) { return *out = 0, 0; }
int nvrtcGetLoweredName(void *program UNUSED, const char *name, const char **out) { return *out = name, 0; }
