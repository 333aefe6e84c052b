/* libcublas.so.13: what gives something back. The workspace that matters is torch's own, which it hands to cuBLAS. */
#include "null.h"

int cublasGetVersion_v2(void *handle UNUSED, int *version) { return *version = 130100, 0; }
int cublasGetMathMode(void *handle UNUSED, int *mode) { return *mode = 0, 0; }
int cublasGetPointerMode_v2(void *handle UNUSED, int *mode) { return *mode = 0, 0; }
int cublasGetStream_v2(void *handle UNUSED, void **stream) { return *stream = NULL, 0; }
const char *cublasGetStatusString(int status) { return status ? "an error of the null GPU" : "success"; }
