/* The hashes of rmm_gnn/seeding.py and the permutation of rmm_gnn/permutation.py, bit for bit. */
#ifndef RMM_HASHING_H
#define RMM_HASHING_H

#include <stdint.h>

/* rmm_gnn.seeding.Stream */
enum {
    STREAM_SIGNS = 1,
    STREAM_PERMUTATION = 2,
    STREAM_ROUNDING = 6,
    STREAM_DROPOUT = 7,
    STREAM_ROUNDING_COLUMNS = 9,
    STREAM_DROPOUT_LANES = 10
};

typedef struct {
    uint32_t low, high;
} stream_key;

static inline uint32_t mix32(uint32_t word) {
    word ^= word >> 15;
    word *= 0x2C1B3C6Du;
    word ^= word >> 12;
    word *= 0x297A2D39u;
    return word ^ (word >> 15);
}

static inline stream_key key_of(uint64_t seed, uint32_t stream) {
    uint32_t first = mix32((uint32_t)seed + stream * 0x9E3779B9u);
    uint32_t second = mix32((uint32_t)(seed >> 32) ^ first);
    stream_key key = {mix32(first ^ 0x243F6A88u), mix32(second ^ 0x85A308D3u)};
    return key;
}

static inline uint32_t hash_index(uint32_t index, stream_key key) {
    return mix32(mix32(index ^ key.low) ^ key.high);
}

#endif
