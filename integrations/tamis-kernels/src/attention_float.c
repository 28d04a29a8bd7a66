/* Attention in float32. */
#include "attention.h"
#include "rows.h"

#ifdef TAMIS_X86
#include <string.h>

enum { STEP = 16, ROWS = 8 }; /* rows of a product whose sums stand in registers, for each block */

/* Queries with numbers down and queries across: (heads, blocks, wide, 16). */
WIDE static void lay_queries(const scratch *s, int64_t first, int head, int heads) {
    const rows_of *x = &s->job->query;
    const int dim = s->job->dim;
    const int64_t all = up(s->asked, LANES) * s->wide;
    for (int block = 0; block < s->asked; block += LANES)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += LANES) {
                const float *at = (const float *)x->data + (first + block) * x->row + (head + h) * x->head + d;
                float *out = (float *)s->queries + h * all + block * s->wide + d * LANES;
                __m512i r[16];
                for (int i = 0; i < 16; i++) {
                    const __mmask16 there = block + i < s->asked ? upto(dim - d) : 0;
                    r[i] = _mm512_castps_si512(_mm512_maskz_loadu_ps(there, at + i * x->row));
                }
                transpose(r);
                for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * LANES, r[i]);
            }
}

/* Keys or values by head: (groups, n, wide), zeros where they are filled up. */
WIDE static void lay_keys(const scratch *s, const rows_of *x, int64_t first, int group, int groups, float *to) {
    const int dim = s->job->dim;
    const int64_t head = (int64_t)s->n * s->wide;
    for (int i = 0; i < s->known; i++)
        for (int g = 0; g < groups; g++)
            for (int d = 0; d < dim; d += LANES) {
                const float *at = (const float *)x->data + (first + i) * x->row + (group + g) * x->head + d;
                _mm512_store_ps(to + g * head + i * s->wide + d, _mm512_maskz_loadu_ps(upto(dim - d), at));
            }
    for (int g = 0; g < groups; g++) memset(to + g * head + s->known * s->wide, 0, 4 * (s->n - s->known) * s->wide);
}

static void lay(const scratch *s, int64_t query, int64_t key, int head, int heads, int group, int groups) {
    lay_queries(s, query, head, heads);
    lay_keys(s, &s->job->key, key, group, groups, s->keys);
    lay_keys(s, &s->job->value, key, group, groups, s->values);
}

/* ROWS rows of C (., 16), = or += A (., steps) B (steps, 16), for each block; A's numbers lie `row` and `next` apart. */
WIDE static INLINE void product_rows(const float *a, int64_t row, int64_t next, int steps, const int blocks,
                                     const float *b, int64_t next_b, float *c, int64_t next_c, int add) {
    __m512 sum[2][ROWS];
    for (int k = 0; k < blocks; k++)
        for (int i = 0; i < ROWS; i++)
            sum[k][i] = add ? _mm512_load_ps(c + k * next_c + i * LANES) : _mm512_setzero_ps();
    for (int s = 0; s < steps; s++, a += next, b += LANES) {
        __m512 right[2];
        for (int k = 0; k < blocks; k++) right[k] = _mm512_load_ps(b + k * next_b);
        for (int i = 0; i < ROWS; i++) {
            const __m512 left = _mm512_set1_ps(a[i * row]);
            for (int k = 0; k < blocks; k++) sum[k][i] = _mm512_fmadd_ps(left, right[k], sum[k][i]);
        }
    }
    for (int k = 0; k < blocks; k++)
        for (int i = 0; i < ROWS; i++) _mm512_store_ps(c + k * next_c + i * LANES, sum[k][i]);
}

WIDE static APART void product(const float *a, int64_t row, int64_t next, int rows, int steps, int blocks,
                               const float *b, int64_t next_b, float *c, int64_t next_c, int add) {
    for (int r = 0; r < rows; r += ROWS, a += ROWS * row, c += ROWS * LANES)
        if (blocks == 2) product_rows(a, row, next, steps, 2, b, next_b, c, next_c, add);
        else product_rows(a, row, next, steps, 1, b, next_b, c, next_c, add);
}

WIDE static void score(const scratch *s, int head, int group, int block, int blocks, int start, int size) {
    const float *keys = (const float *)s->keys + ((int64_t)group * s->n + start) * s->wide;
    const float *queries = (const float *)s->queries + (head * up(s->asked, LANES) + block) * s->wide;
    product(keys, s->wide, 1, up(size, ROWS), s->job->dim, blocks, queries, LANES * s->wide, s->scores, KEYS * LANES, 0);
}

WIDE static void sum(const scratch *s, int group, int blocks, int start, int size, int add) {
    const float *values = (const float *)s->values + ((int64_t)group * s->n + start) * s->wide;
    product(values, 1, s->wide, s->wide, size, blocks, s->scores, KEYS * LANES, s->out, s->wide * LANES, add);
}

/* Weights take the place of their scores. */
WIDE static __m512 weigh(const scratch *s, int block, int size, __m512 factor, __m512 less) {
    float *at = s->scores + block * KEYS * LANES;
    __m512 even = _mm512_setzero_ps(), odd = even;
    int i = 0;
    for (; i + 2 <= size; i += 2, at += 2 * LANES) {
        const __m512 a = exp2_full(_mm512_fmsub_ps(_mm512_load_ps(at), factor, less));
        const __m512 b = exp2_full(_mm512_fmsub_ps(_mm512_load_ps(at + LANES), factor, less));
        even = _mm512_add_ps(even, a);
        odd = _mm512_add_ps(odd, b);
        _mm512_store_ps(at, a);
        _mm512_store_ps(at + LANES, b);
    }
    if (i < size) {
        const __m512 a = exp2_full(_mm512_fmsub_ps(_mm512_load_ps(at), factor, less));
        even = _mm512_add_ps(even, a);
        _mm512_store_ps(at, a);
    }
    return _mm512_add_ps(even, odd);
}

WIDE static void give(const scratch *s, int block, __m512 over, int count, int64_t row, int head) {
    const rows_of *x = &s->job->out;
    const int dim = s->job->dim;
    for (int d = 0; d < dim; d += LANES) {
        __m512i r[16];
        summed(s, block, d, over, r);
        for (int i = 0; i < count; i++) {
            float *to = (float *)x->data + (row + i) * x->row + head * x->head + d;
            _mm512_mask_storeu_ps(to, upto(dim - d), _mm512_castsi512_ps(r[i]));
        }
    }
}

const tamis_form tamis_float = {4, STEP, lay, score, weigh, sum, give};
#endif
