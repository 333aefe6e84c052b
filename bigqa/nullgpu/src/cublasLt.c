/* libcublasLt.so.13: there always is an algorithm, and it asks for no workspace beyond what torch gives it. */
#include "null.h"
#include <string.h>

enum { RESULT_SIZE = 96 }; /* cublasLtMatmulHeuristicResult_t: the algorithm, its workspace, its state, and room */

size_t cublasLtGetVersion(void) { return 130100; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
int cublasLtMatmulAlgoGetHeuristic(void *handle UNUSED, void *operation UNUSED, void *a UNUSED, void *b UNUSED, void *c UNUSED,
                                   void *d UNUSED, void *preference UNUSED, int wanted, char *results, int *found) {
    memset(results, 0, RESULT_SIZE * (size_t)wanted);
    return *found = wanted > 0, 0;
}
