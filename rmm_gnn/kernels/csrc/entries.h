/* How entries of a matrix are read and written, one copy of a function for each instruction set, and how a call fails. */
#ifndef RMM_ENTRIES_H
#define RMM_ENTRIES_H

#include <stdint.h>
#include <string.h>

/* One copy of a function for each instruction set, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
/* With AVX-512's instructions for bytes, which the older name has not. */
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define CLONES
#endif

/* What the functions here return where they fail. */
enum { NO_MEMORY = 1, OUT_OF_RANGE = 2 };

/* Rows whose sums are formed in the type of the sums, before they are added in double: few enough that their rounding
 * is that of one addition. */
enum { BATCH = 256 };

static inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline float from_bf16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* To the nearest, ties to even; nan stays nan. */
static inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    return value == value ? (uint16_t)rounded : 0x7FC0u;
}

#define IDENTITY(value) (value)
/* Lanes of one vector where the mask, a comparison of vectors, is true, and of another elsewhere. */
#define CHOOSE(mask, yes, no) (((__typeof__(mask))(yes) & (mask)) | ((__typeof__(mask))(no) & ~(mask)))
#define JOINED(a, b) a##_##b
#define JOIN(a, b) JOINED(a, b)
/* The name of a function in a file that is included once for each type. */
#define OF_TYPE(name) JOIN(name, TYPE)

#endif
