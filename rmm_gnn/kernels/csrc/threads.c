#include "threads.h"

parallel_function rmm_parallel = NULL;

/* Has loops run on the threads of a runtime, given its GOMP_parallel, or on threads of their own, given NULL. */
void rmm_use_threads_of(parallel_function parallel) {
    rmm_parallel = parallel;
}
