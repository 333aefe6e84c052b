/* What the files of libcudart share. */
#pragma once
#include "null.h"
#include <cuda_runtime_api.h>

cudaError_t null_fail(cudaError_t error);             /* remembers it for cudaGetLastError */
