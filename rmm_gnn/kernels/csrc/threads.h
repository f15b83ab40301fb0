/* Shares of a loop, on the threads of an OpenMP runtime that is there already, or on threads that live for one call. */
#ifndef RMM_THREADS_H
#define RMM_THREADS_H

#include <pthread.h>
#include <stdint.h>

enum { MAX_THREADS = 64 };

typedef int (*share_function)(void *task, int thread, int64_t begin, int64_t end);

/* GOMP_parallel of libgomp: runs a function on so many threads, the caller among them, or on fewer. */
typedef void (*parallel_function)(void (*run)(void *), void *data, unsigned threads, unsigned flags);

/* Torch's own runtime where it was found. Its threads wait busily for their next work: others, started beside them, would
 * share their cores with them, and a layer of a thousand rows took half as long again. */
extern parallel_function rmm_parallel;

typedef struct {
    share_function run;
    void *task;
    int thread, failed;
    int64_t begin, end;
} share;

typedef struct {
    share *shares;
    int count, next;
} share_list;

static inline void *run_share(void *given) {
    share *own = given;
    own->failed = own->run(own->task, own->thread, own->begin, own->end);
    return NULL;
}

/* Each thread of the runtime takes shares until there are none. */
static inline void take_shares(void *given) {
    share_list *list = given;
    for (;;) {
        int own = __atomic_fetch_add(&list->next, 1, __ATOMIC_RELAXED);
        if (own >= list->count)
            return;
        run_share(&list->shares[own]);
    }
}

static inline void start_threads(share *shares, int threads) {
    pthread_t handles[MAX_THREADS];
    int started[MAX_THREADS];
    for (int t = 1; t < threads; t++)
        started[t] = pthread_create(&handles[t], NULL, run_share, &shares[t]) == 0;
    run_share(&shares[0]);
    for (int t = 1; t < threads; t++) {
        if (started[t])
            pthread_join(handles[t], NULL);
        else
            run_share(&shares[t]);
    }
}

/* Cuts [begin, end) into nearly equal shares, one a thread; returns 0 where none failed. */
static inline int run_shares(share_function run, void *task, int threads, int64_t begin, int64_t end) {
    share shares[MAX_THREADS];
    int failed = 0;
    int64_t length = end - begin;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    for (int t = 0; t < threads; t++) {
        share own = {run, task, t, 0, begin + length * t / threads, begin + length * (t + 1) / threads};
        shares[t] = own;
    }
    if (threads == 1)
        run_share(&shares[0]);
    else if (rmm_parallel != NULL) {
        share_list list = {shares, threads, 0};
        rmm_parallel(take_shares, &list, (unsigned)threads, 0);
    } else
        start_threads(shares, threads);
    for (int t = 0; t < threads; t++)
        failed |= shares[t].failed;
    return failed;
}

#endif
