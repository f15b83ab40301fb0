/* Stochastic rounding to a few bits and back, alone and inside of batch normalisation. */

#include <math.h>
#include <stdlib.h>

#include "codes.h"
#include "hashing.h"
#include "threads.h"

typedef struct {
    const void *matrix;
    int64_t row_stride, column_stride; /* in entries */
    const void *mean, *factor;         /* [num_columns] of the type of the sums, or NULL */
    const void *column_noise;          /* [num_columns] of the type of the sums */
    int64_t first;                     /* row number of row 0 */
    uint64_t seed;
    coded to;
} encode_task;

typedef struct {
    coded from;
    void *out; /* [rows, num_columns] */
} decode_task;

typedef struct {
    coded from;
    const void *gradient;                               /* [rows, num_columns] */
    const void *factor, *mean_gradient, *mean_product;  /* [num_columns] of the type of the sums */
    void *out;                                          /* [rows, num_columns] */
    double *totals;                                     /* [threads, 2 num_columns] */
} norm_task;

/* On the grid of 2^-24 in [0, 1). */
static inline float uniform_of(uint32_t word) {
    return (float)(word >> 8) * (1.0f / 16777216.0f);
}

#define TYPE float
#define ENTRY float
#define SUM float
#define LOAD IDENTITY
#define STORE IDENTITY
#include "codes_of_type.h"
#undef TYPE
#undef ENTRY
#undef SUM
#undef LOAD
#undef STORE

#define TYPE double
#define ENTRY double
#define SUM double
#define LOAD IDENTITY
#define STORE IDENTITY
#include "codes_of_type.h"
#undef TYPE
#undef ENTRY
#undef SUM
#undef LOAD
#undef STORE

#define TYPE bf16
#define ENTRY uint16_t
#define SUM float
#define LOAD from_bf16
#define STORE to_bf16
#include "codes_of_type.h"

static coded coded_of(uint8_t *codes, void *scales, int wide, int bits, int64_t num_columns, int64_t group_size) {
    coded found = {.codes = codes,
                   .scales = scales,
                   .wide = wide,
                   .bits = bits,
                   .num_columns = num_columns,
                   .group_size = group_size,
                   .groups = (num_columns + group_size - 1) / group_size,
                   .width = (num_columns * bits + 7) / 8};
    return found;
}

/* Codes rows [first, first + rows) of a matrix; type: 0 float, 1 double, 2 bfloat16. Returns 0 or NO_MEMORY.
 *
 * With mean and factor, in the type of the sums, it is (matrix - mean) factor that is coded. */
int rmm_encode(const void *matrix, int type, int64_t row_stride, int64_t column_stride, const void *mean,
               const void *factor, int64_t rows, int64_t first, uint64_t seed, uint8_t *codes, void *scales, int wide,
               int bits, int64_t num_columns, int64_t group_size, int threads) {
    static const share_function functions[] = {encode_rows_float, encode_rows_double, encode_rows_bf16};
    void *noise = malloc(sizeof(double) * (size_t)num_columns);
    if (noise == NULL)
        return NO_MEMORY;
    const stream_key key = key_of(seed, STREAM_ROUNDING_COLUMNS);
    for (int64_t c = 0; c < num_columns; c++) {
        float value = uniform_of(hash_index((uint32_t)c, key));
        if (type == 1)
            ((double *)noise)[c] = value;
        else
            ((float *)noise)[c] = value;
    }
    encode_task task = {.matrix = matrix,
                        .row_stride = row_stride,
                        .column_stride = column_stride,
                        .mean = mean,
                        .factor = factor,
                        .column_noise = noise,
                        .first = first,
                        .seed = seed,
                        .to = coded_of(codes, scales, wide, bits, num_columns, group_size)};
    int failed = run_shares(functions[type], &task, threads, 0, rows);
    free(noise);
    return failed;
}

/* Reads rows back as `type`. Returns 0 or NO_MEMORY. */
int rmm_decode(uint8_t *codes, void *scales, int wide, int bits, int64_t num_columns, int64_t group_size, int64_t rows,
               void *out, int type, int threads) {
    static const share_function functions[] = {decode_rows_float, decode_rows_double, decode_rows_bf16};
    decode_task task = {.from = coded_of(codes, scales, wide, bits, num_columns, group_size), .out = out};
    return run_shares(functions[type], &task, threads, 0, rows);
}

/* Column sums [2, num_columns] of a contiguous gradient of `type`, and of its products with what was coded. */
int rmm_norm_reduce(uint8_t *codes, void *scales, int wide, int bits, int64_t num_columns, int64_t group_size,
                    int64_t rows, const void *gradient, int type, double *out, int threads) {
    static const share_function functions[] = {reduce_rows_float, reduce_rows_double, reduce_rows_bf16};
    const size_t size = 2 * (size_t)num_columns;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    double *totals = calloc((size_t)threads * size + 1, sizeof(double));
    if (totals == NULL)
        return NO_MEMORY;
    norm_task task = {.from = coded_of(codes, scales, wide, bits, num_columns, group_size),
                      .gradient = gradient,
                      .totals = totals};
    int failed = run_shares(functions[type], &task, threads, 0, rows);
    memset(out, 0, sizeof(double) * size);
    for (int t = 0; t < threads; t++)
        for (size_t c = 0; c < size; c++)
            out[c] += totals[(size_t)t * size + c];
    free(totals);
    return failed;
}

/* (gradient - mean_gradient - x_hat mean_product) factor, x_hat what was coded. Returns 0 or NO_MEMORY. */
int rmm_norm_gradient(uint8_t *codes, void *scales, int wide, int bits, int64_t num_columns, int64_t group_size,
                      int64_t rows, const void *gradient, int type, const void *factor, const void *mean_gradient,
                      const void *mean_product, void *out, int threads) {
    static const share_function functions[] = {norm_gradient_rows_float, norm_gradient_rows_double,
                                               norm_gradient_rows_bf16};
    norm_task task = {.from = coded_of(codes, scales, wide, bits, num_columns, group_size),
                      .gradient = gradient,
                      .factor = factor,
                      .mean_gradient = mean_gradient,
                      .mean_product = mean_product,
                      .out = out};
    return run_shares(functions[type], &task, threads, 0, rows);
}
