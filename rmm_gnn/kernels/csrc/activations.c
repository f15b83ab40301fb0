/* ReLU, dropout, both, and their gradients, with one bit for every entry or none. */

#include "entries.h"
#include "hashing.h"
#include "threads.h"

/* rmm_gnn.autograd.bit_masks.TILE */
enum { TILE = 1 << 18 };

enum { RELU = 0, LEAKY_RELU = 1, RELU_DROPOUT = 2 };

typedef struct {
    const void *source;
    void *target;
    int64_t count, first;
    int kind;
    double slope, factor;
    uint64_t seed;
    uint32_t threshold;
    uint8_t *bits; /* [ceil(count / 8)] */
} mask_task;

#define TYPE float
#define ENTRY float
#define MATH float
#define LOAD IDENTITY
#define STORE IDENTITY
#include "activations_of_type.h"
#undef TYPE
#undef ENTRY
#undef MATH
#undef LOAD
#undef STORE

#define TYPE double
#define ENTRY double
#define MATH double
#define LOAD IDENTITY
#define STORE IDENTITY
#include "activations_of_type.h"
#undef TYPE
#undef ENTRY
#undef MATH
#undef LOAD
#undef STORE

#define TYPE bf16
#define ENTRY uint16_t
#define MATH float
#define LOAD from_bf16
#define STORE to_bf16
#include "activations_of_type.h"

static int64_t tiles_of(int64_t count) {
    return (count + TILE - 1) / TILE;
}

/* ReLU of `count` contiguous entries of a type (0 float, 1 double, 2 bfloat16), and one bit for each.
 *
 * kind: RELU; LEAKY_RELU with a slope; RELU_DROPOUT, which keeps an entry, times factor, where its hash is no less than
 * threshold. */
int rmm_relu(const void *source, int type, int64_t count, int kind, double slope, double factor, uint64_t seed,
             uint32_t threshold, void *target, uint8_t *bits, int threads) {
    static const share_function functions[] = {relu_tiles_float, relu_tiles_double, relu_tiles_bf16};
    mask_task task = {.source = source,
                      .target = target,
                      .count = count,
                      .kind = kind,
                      .slope = slope,
                      .factor = factor,
                      .seed = seed,
                      .threshold = threshold,
                      .bits = bits};
    return run_shares(functions[type], &task, threads, 0, tiles_of(count));
}

int rmm_masked_grad(const void *source, int type, int64_t count, uint8_t *bits, double slope, double factor,
                    void *target, int threads) {
    static const share_function functions[] = {masked_tiles_float, masked_tiles_double, masked_tiles_bf16};
    mask_task task = {
        .source = source, .target = target, .count = count, .slope = slope, .factor = factor, .bits = bits};
    return run_shares(functions[type], &task, threads, 0, tiles_of(count));
}

/* Dropout of entries [first, first + count) of a tensor. */
int rmm_dropout(const void *source, int type, int64_t count, int64_t first, double factor, uint64_t seed,
                uint32_t threshold, void *target, int threads) {
    static const share_function functions[] = {dropout_entries_float, dropout_entries_double, dropout_entries_bf16};
    mask_task task = {.source = source,
                      .target = target,
                      .count = count,
                      .first = first,
                      .factor = factor,
                      .seed = seed,
                      .threshold = threshold};
    return run_shares(functions[type], &task, threads, 0, count);
}
