/* The permutation of rmm_gnn/permutation.py: a Feistel network on a grid of side_a x side_b cells, with cycle walking. */
#ifndef RMM_PERMUTATION_H
#define RMM_PERMUTATION_H

#include <stdlib.h>

#include "hashing.h"

enum { TURNS = 3 };

typedef struct {
    uint64_t num_rows;
    uint32_t side_a, side_b;
    /* What a turn adds to the left half for each right half, and to the right half for each left half. */
    uint32_t *to_left[TURNS], *to_right[TURNS];
    uint32_t *memory;
} permutation;

static inline uint32_t below(uint32_t word, uint32_t size) {
    return (uint32_t)(((uint64_t)word * size) >> 32);
}

/* Returns 0, or -1 where there is no memory. */
static int permutation_open(permutation *p, uint64_t seed, uint64_t num_rows, uint32_t side_a, uint32_t side_b) {
    stream_key key = key_of(seed, STREAM_PERMUTATION);
    p->num_rows = num_rows;
    p->side_a = side_a;
    p->side_b = side_b;
    p->memory = malloc(sizeof(uint32_t) * TURNS * ((size_t)side_a + side_b));
    if (p->memory == NULL)
        return -1;
    uint32_t *next = p->memory;
    for (int turn = 0; turn < TURNS; turn++) {
        uint32_t left_key = hash_index(2 * turn, key), right_key = hash_index(2 * turn + 1, key);
        p->to_left[turn] = next;
        for (uint32_t right = 0; right < side_b; right++)
            *next++ = below(mix32(right ^ left_key), side_a);
        p->to_right[turn] = next;
        for (uint32_t left = 0; left < side_a; left++)
            *next++ = below(mix32(left ^ right_key), side_b);
    }
    return 0;
}

static void permutation_close(permutation *p) {
    free(p->memory);
}

static inline uint64_t feistel(const permutation *p, uint32_t left, uint32_t right) {
    for (int turn = 0; turn < TURNS; turn++) {
        left += p->to_left[turn][right];
        left -= left >= p->side_a ? p->side_a : 0;
        right += p->to_right[turn][left];
        right -= right >= p->side_b ? p->side_b : 0;
    }
    return (uint64_t)left * p->side_b + right;
}

/* Writes entries [start, start + count) of the permutation. */
static void permutation_read(const permutation *p, uint64_t start, int count, uint64_t *rows) {
    uint32_t left = (uint32_t)(start / p->side_b), right = (uint32_t)(start % p->side_b);
    for (int i = 0; i < count; i++) {
        uint64_t cell = feistel(p, left, right);
        while (cell >= p->num_rows)
            cell = feistel(p, (uint32_t)(cell / p->side_b), (uint32_t)(cell % p->side_b));
        rows[i] = cell;
        if (++right == p->side_b) {
            right = 0;
            left++;
        }
    }
}

#endif
