/* Softmax attention over sequences laid end to end: what its forms in bfloat16 and in float32 have in common. */
#ifndef TAMIS_ATTENTION_H
#define TAMIS_ATTENTION_H
#include "kernels.h"

#ifdef TAMIS_X86
enum { KEYS = 256 }; /* keys whose scores stand in memory at once, for each of two blocks of queries */

/* Rows of (heads, dim) numbers; strides in numbers. */
typedef struct {
    void *data;
    int64_t row, head;
} rows_of;

typedef struct {
    rows_of query, key, value, out;
    const int32_t *asked, *known; /* segments + 1 each: where each segment's queries and keys begin */
    int32_t queries, keys; /* rows of each, which the offsets must end with */
    int32_t segments, heads, groups, dim;
    int32_t causal, window; /* window: |query - key| < window; 0 sees all */
    int32_t level, full; /* full: float32 numbers instead of bfloat16 */
    float scale;
} tamis_attention_job;

/* What a thread has of some heads of one segment, and of two blocks of queries. */
typedef struct {
    const tamis_attention_job *job;
    int asked, known; /* queries, keys */
    int n, wide; /* keys, and numbers of a head, filled up to the form's step */
    void *queries, *keys, *values, *weights;
    float *scores, *out; /* (2, KEYS, 16) and (2, wide, 16) */
} scratch;

/* A way to compute. Heads count within the scratch, blocks of queries are one or two. */
typedef struct {
    int bytes, step; /* of a number; what keys and the numbers of a head are filled up to */
    /* Lays `heads` heads of queries, and `groups` of keys and values, out. */
    void (*lay)(const scratch *s, int64_t query, int64_t key, int head, int heads, int group, int groups);
    /* Products of `size` keys from `start` on with blocks of queries from row `block` on, to `scores`. */
    void (*score)(const scratch *s, int head, int group, int block, int blocks, int start, int size);
    /* Weights 2^(factor score - less) of a block, to `weights`; returns their sums. */
    __m512 (*weigh)(const scratch *s, int block, int size, __m512 factor, __m512 less);
    /* Values weighted, to `out`, or added to it. */
    void (*sum)(const scratch *s, int group, int blocks, int start, int size, int add);
    /* A block of `out` times `over`, to the rows of `count` queries. */
    void (*give)(const scratch *s, int block, __m512 over, int count, int64_t row, int head);
} tamis_form;

extern const tamis_form tamis_bf16, tamis_float;

static INLINE int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* 16 rows of 16 dwords become columns. */
WIDE static INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* 16 numbers from `d` on of a block's 16 queries, (queries, numbers), times `over`. */
WIDE static INLINE void summed(const scratch *s, int block, int d, __m512 over, __m512i r[16]) {
    const float *at = s->out + ((int64_t)block * s->wide + d) * LANES;
    for (int i = 0; i < 16; i++) r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(at + i * LANES), over));
    transpose(r);
}
#endif
#endif
