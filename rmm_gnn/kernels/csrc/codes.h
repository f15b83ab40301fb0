/* The codes, offsets and steps of rmm_gnn/codecs/stochastic.py, and the bytes of rmm_gnn/codecs/bitpack.py. */
#ifndef RMM_CODES_H
#define RMM_CODES_H

#include "entries.h"

/* Where a coded matrix lies: rows [first, first + rows) of it, each of `width` bytes and of offsets and steps of
 * `groups` runs of `group_size` columns. */
typedef struct {
    uint8_t *codes; /* [rows, width] */
    void *scales;   /* [rows, 2 groups], bfloat16, or float where `wide` */
    int wide, bits;
    int64_t num_columns, group_size, groups, width;
} coded;

/* Rounded towards minus infinity, or plus infinity where `up`; nan stays nan. */
static inline float directed_float(double value, int up) {
    float nearest = (float)value;
    int32_t bits;
    if (value != value || (up ? (double)nearest >= value : (double)nearest <= value))
        return nearest;
    memcpy(&bits, &nearest, sizeof bits);
    bits = nearest == 0.0f ? (up ? 1 : (int32_t)0x80000001u) : bits + ((nearest > 0.0f) == up ? 1 : -1);
    memcpy(&nearest, &bits, sizeof bits);
    return nearest;
}

/* The same to those numbers that bfloat16 holds. */
static inline float directed_bf16(double value, int up) {
    float result = directed_float(value, up);
    uint32_t bits, kept;
    memcpy(&bits, &result, sizeof bits);
    kept = bits & 0xFFFF0000u;
    if (result != result || kept == bits)
        return result;
    kept += (bits >> 31 == 0) == up ? 0x10000u : 0;
    memcpy(&result, &kept, sizeof result);
    return result;
}

static inline void write_scale(const coded *to, int64_t place, float value) {
    if (to->wide)
        ((float *)to->scales)[place] = value;
    else
        ((uint16_t *)to->scales)[place] = to_bf16(value);
}

static inline float read_scale(const coded *from, int64_t place) {
    return from->wide ? ((const float *)from->scales)[place] : from_bf16(((const uint16_t *)from->scales)[place]);
}

/* Packs one row of codes; `levels` has room for width * 8 / bits of them, and 0 beyond the last column. */
static inline void pack_row(const uint8_t *restrict levels, uint8_t *restrict octets, int64_t width, int bits) {
    if (bits == 8)
        memcpy(octets, levels, (size_t)width);
    else if (bits == 4)
        for (int64_t j = 0; j < width; j++)
            octets[j] = (uint8_t)(levels[j] | levels[j + width] << 4);
    else if (bits == 2)
        for (int64_t j = 0; j < width; j++)
            octets[j] = (uint8_t)(levels[j] | levels[j + width] << 2 | levels[j + 2 * width] << 4 |
                                  levels[j + 3 * width] << 6);
    else
        for (int64_t j = 0; j < width; j++) {
            uint8_t octet = 0;
            for (int plane = 0; plane < 8; plane++)
                octet |= (uint8_t)(levels[j + plane * width] << plane);
            octets[j] = octet;
        }
}

/* Reads the codes of one row, width * 8 / bits of them. */
static inline void unpack_row(const uint8_t *restrict octets, uint8_t *restrict levels, int64_t width, int bits) {
    const uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (int plane = 0; plane < 8 / bits; plane++)
        for (int64_t j = 0; j < width; j++)
            levels[plane * width + j] = (uint8_t)(octets[j] >> (bits * plane)) & mask;
}

#endif
