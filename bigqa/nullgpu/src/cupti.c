/* libcupti.so.13: a profiler that never saw anything. */
#include "null.h"

enum { NO_MORE_RECORDS = 12 };
int cuptiGetVersion(unsigned *version) { return *version = 130000, 0; }
int cuptiSubscribe(void **subscriber, void *callback UNUSED, void *data UNUSED) { return *subscriber = null_handle(), 0; }
int cuptiGetResultString(int status, const char **text) { return *text = status ? "an error of the null GPU" : "success", 0; }
int cuptiActivityGetNextRecord(void *buffer UNUSED, size_t size UNUSED, void **record) { return *record = NULL, NO_MORE_RECORDS; }
