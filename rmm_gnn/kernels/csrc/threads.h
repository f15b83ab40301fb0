/* Shares of a loop on threads that live as long as one call: there is no pool that a fork could break. */
#ifndef RMM_THREADS_H
#define RMM_THREADS_H

#include <pthread.h>
#include <stdint.h>

enum { MAX_THREADS = 64 };

typedef int (*share_function)(void *task, int thread, int64_t begin, int64_t end);

typedef struct {
    share_function run;
    void *task;
    int thread, failed;
    int64_t begin, end;
} share;

static void *run_share(void *given) {
    share *own = given;
    own->failed = own->run(own->task, own->thread, own->begin, own->end);
    return NULL;
}

/* Cuts [begin, end) into nearly equal shares, one a thread; returns 0 where none failed. */
static int run_shares(share_function run, void *task, int threads, int64_t begin, int64_t end) {
    share shares[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    int started[MAX_THREADS], failed = 0;
    int64_t length = end - begin;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    for (int t = 0; t < threads; t++) {
        share own = {run, task, t, 0, begin + length * t / threads, begin + length * (t + 1) / threads};
        shares[t] = own;
    }
    for (int t = 1; t < threads; t++)
        started[t] = pthread_create(&handles[t], NULL, run_share, &shares[t]) == 0;
    run_share(&shares[0]);
    for (int t = 1; t < threads; t++) {
        if (started[t])
            pthread_join(handles[t], NULL);
        else
            run_share(&shares[t]);
    }
    for (int t = 0; t < threads; t++)
        failed |= shares[t].failed;
    return failed;
}

#endif
