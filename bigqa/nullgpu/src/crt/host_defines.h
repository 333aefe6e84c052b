/* Stands in for the compiler's own header of this name, which the package nvidia-cuda-runtime leaves out: what the words
 * of the CUDA headers mean to a plain C compiler, which is nothing. */
#pragma once
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __host__
#define __device__
#define __global__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __location__(place)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
