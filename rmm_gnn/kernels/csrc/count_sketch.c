/* S^T M of the balanced CountSketch in one pass over M, with its column sums and S^T 1. */

#include <stdlib.h>
#include <string.h>

#include "entries.h"
#include "hashing.h"
#include "permutation.h"
#include "threads.h"

/* How many rows are asked for before they are read, and bytes of each. */
enum { AHEAD = 8, MOST_AHEAD = 1024 };

typedef struct {
    const void *matrix;
    int64_t row_stride, column_stride; /* in entries */
    int64_t matrix_rows;
    const void *selected; /* numbers of the rows that are sketched, or NULL for all */
    int selected_is_wide; /* int64 instead of int32 */
    int64_t num_columns, sketch_size, start;
    uint64_t seed;
    permutation rows;
    void *out;    /* [stop - start, num_columns] */
    double *sums; /* [threads, num_columns], or NULL */
    float *ones;  /* [stop - start], or NULL */
} sketch_task;

static inline uint64_t bucket_begin(const sketch_task *task, int64_t bucket) {
    return (uint64_t)bucket * task->rows.num_rows / (uint64_t)task->sketch_size;
}

/* Row numbers and signs of positions [position, position + count); returns 0, or OUT_OF_RANGE. */
static int read_batch(const sketch_task *task, stream_key key, uint64_t position, int count, uint64_t *rows,
                       float *signs) {
    permutation_read(&task->rows, position, count, rows);
    for (int i = 0; i < count;) {
        uint32_t word = hash_index((uint32_t)((position + i) / 32), key);
        int bit = (int)((position + i) % 32);
        for (; bit < 32 && i < count; bit++, i++)
            signs[i] = (word >> bit) & 1 ? -1.0f : 1.0f;
    }
    if (task->selected != NULL)
        for (int i = 0; i < count; i++) {
            int64_t row = task->selected_is_wide ? ((const int64_t *)task->selected)[rows[i]]
                                                 : ((const int32_t *)task->selected)[rows[i]];
            if (row < 0 || row >= task->matrix_rows)
                return OUT_OF_RANGE;
            rows[i] = (uint64_t)row;
        }
    return 0;
}

/* Rows lie anywhere: no hardware foresees the next one. */
static inline void prefetch(const void *row, size_t size) {
    const char *bytes = row;
    for (size_t at = 0; at < size && at < MOST_AHEAD; at += 64)
        __builtin_prefetch(bytes + at);
}

/* NAME: of the function; ENTRY: type of the matrix; SUM: of the sums; LOAD: from one to the other. */
#define DEFINE_SKETCH(NAME, ENTRY, SUM, LOAD)                                                                          \
    CLONES static int NAME(void *given, int thread, int64_t begin, int64_t end) {                                      \
        const sketch_task *task = given;                                                                               \
        const int64_t columns = task->num_columns, stride = task->column_stride;                                       \
        stream_key key = key_of(task->seed, STREAM_SIGNS);                                                             \
        uint64_t rows[BATCH];                                                                                          \
        float signs[BATCH];                                                                                            \
        /* Sums of a batch of rows, in the type of the sums. */                                                        \
        double *total = task->sums == NULL ? NULL : task->sums + thread * columns;                                     \
        SUM *plain = total == NULL ? NULL : calloc((size_t)columns + 1, sizeof(SUM));                                  \
        if (total != NULL && plain == NULL)                                                                            \
            return NO_MEMORY;                                                                                          \
        uint64_t position = bucket_begin(task, begin), last = bucket_begin(task, end);                                 \
        int place = 0, count = 0, failed = 0;                                                                          \
        for (int64_t bucket = begin; bucket < end && !failed; bucket++) {                                              \
            SUM *restrict out = (SUM *)task->out + (bucket - task->start) * columns;                                   \
            uint64_t stop = bucket_begin(task, bucket + 1);                                                            \
            float signed_ones = 0.0f;                                                                                  \
            memset(out, 0, sizeof(SUM) * (size_t)columns);                                                             \
            for (; position < stop; position++, place++) {                                                             \
                if (place == count) {                                                                                  \
                    count = last - position < BATCH ? (int)(last - position) : BATCH;                                  \
                    place = 0;                                                                                         \
                    if ((failed = read_batch(task, key, position, count, rows, signs)) != 0)                           \
                        break;                                                                                         \
                    if (plain != NULL)                                                                                 \
                        for (int64_t c = 0; c < columns; c++) {                                                        \
                            total[c] += (double)plain[c];                                                              \
                            plain[c] = 0;                                                                              \
                        }                                                                                              \
                }                                                                                                      \
                if (stride == 1 && place + AHEAD < count)                                                              \
                    prefetch((const ENTRY *)task->matrix + (int64_t)rows[place + AHEAD] * task->row_stride,            \
                             sizeof(ENTRY) * (size_t)columns);                                                         \
                const ENTRY *restrict row = (const ENTRY *)task->matrix + (int64_t)rows[place] * task->row_stride;     \
                const SUM sign = (SUM)signs[place];                                                                    \
                signed_ones += signs[place];                                                                           \
                if (stride == 1 && plain == NULL)                                                                      \
                    for (int64_t c = 0; c < columns; c++)                                                              \
                        out[c] += sign * (SUM)LOAD(row[c]);                                                            \
                else if (stride == 1)                                                                                  \
                    for (int64_t c = 0; c < columns; c++) {                                                            \
                        SUM value = (SUM)LOAD(row[c]);                                                                 \
                        out[c] += sign * value;                                                                        \
                        plain[c] += value;                                                                             \
                    }                                                                                                  \
                else                                                                                                   \
                    for (int64_t c = 0; c < columns; c++) {                                                            \
                        SUM value = (SUM)LOAD(row[c * stride]);                                                        \
                        out[c] += sign * value;                                                                        \
                        if (plain != NULL)                                                                             \
                            plain[c] += value;                                                                         \
                    }                                                                                                  \
            }                                                                                                          \
            if (task->ones != NULL)                                                                                    \
                task->ones[bucket - task->start] = signed_ones;                                                        \
        }                                                                                                              \
        if (plain != NULL)                                                                                             \
            for (int64_t c = 0; c < columns; c++)                                                                      \
                total[c] += (double)plain[c];                                                                          \
        free(plain);                                                                                                   \
        return failed;                                                                                                 \
    }

DEFINE_SKETCH(sketch_float, float, float, IDENTITY)
DEFINE_SKETCH(sketch_double, double, double, IDENTITY)
DEFINE_SKETCH(sketch_bf16, uint16_t, float, from_bf16)

/* Rows [start, stop) of S^T M, for an M of float (type 0), double (1) or bfloat16 (2).
 *
 * sums [num_columns] gets the sums of the rows of these buckets without signs, ones [stop - start] those rows of S^T 1;
 * either may be NULL. Returns 0, NO_MEMORY, or OUT_OF_RANGE where a selected row is none of the matrix_rows of M.
 */
int rmm_count_sketch(const void *matrix, int type, int64_t row_stride, int64_t column_stride, int64_t matrix_rows,
                     const void *selected, int selected_is_wide, int64_t num_rows, int64_t num_columns,
                     uint32_t side_a, uint32_t side_b, int64_t sketch_size, int64_t start, int64_t stop, uint64_t seed,
                     int threads, void *out, double *sums, float *ones) {
    static const share_function functions[] = {sketch_float, sketch_double, sketch_bf16};
    sketch_task task = {.matrix = matrix,
                        .row_stride = row_stride,
                        .column_stride = column_stride,
                        .matrix_rows = matrix_rows,
                        .selected = selected,
                        .selected_is_wide = selected_is_wide,
                        .num_columns = num_columns,
                        .sketch_size = sketch_size,
                        .start = start,
                        .seed = seed,
                        .out = out,
                        .ones = ones};
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    if (permutation_open(&task.rows, seed, (uint64_t)num_rows, side_a, side_b) != 0)
        return NO_MEMORY;
    if (sums != NULL && (task.sums = calloc((size_t)threads * (size_t)num_columns + 1, sizeof(double))) == NULL) {
        permutation_close(&task.rows);
        return NO_MEMORY;
    }
    int failed = run_shares(functions[type], &task, threads, start, stop);
    if (sums != NULL) {
        memset(sums, 0, sizeof(double) * (size_t)num_columns);
        for (int t = 0; t < threads; t++)
            for (int64_t c = 0; c < num_columns; c++)
                sums[c] += task.sums[t * num_columns + c];
        free(task.sums);
    }
    permutation_close(&task.rows);
    return failed;
}
