/* Attention in bfloat16, with float32 between; both left factors of its products are laid out once for each sequence and
 * head. */
#include "attention.h"
#include "rows.h"

#ifdef TAMIS_X86
#include <string.h>

enum { STEP = 32 }; /* columns of a left factor that one step of a product takes */

/* A left factor, bfloat16: rows lie in blocks of 16, columns in steps of 32; distances in numbers. */
typedef struct {
    const uint16_t *data;
    int64_t row, block, step;
} left;

typedef void (*product)(left a, int rows, int steps, int blocks, const uint32_t *b, int64_t next_b, float *c,
                        int64_t next_c, int add);

/* The first `count` of 32 or of 16 numbers, zeros behind them. */
WIDE static INLINE __m512i load32(const uint16_t *at, int count) {
    if (count >= 32) return _mm512_loadu_si512(at);
    return count <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16((1u << count) - 1, at);
}
WIDE static INLINE __m256i load16(const uint16_t *at, int count) {
    if (count >= 16) return _mm256_loadu_si256((const void *)at);
    return count <= 0 ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16((1u << count) - 1, at);
}

/* Queries with pairs of numbers down and queries across: (heads, blocks, d / 2, 16) pairs.
 * All heads of a row are read while it is near: they lie together, and the row's next head is far from its last row. */
WIDE static void lay_queries(const scratch *s, int64_t first, int head, int heads) {
    const rows_of *x = &s->job->query;
    const int count = s->asked, dim = s->job->dim;
    const int64_t wide = s->wide, all = up(count, LANES) * wide / 2;
    for (int block = 0; block < count; block += LANES)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += STEP) {
                const uint16_t *at = (const uint16_t *)x->data + (first + block) * x->row + (head + h) * x->head + d;
                uint32_t *out = (uint32_t *)s->queries + h * all + block * wide / 2 + d / 2 * LANES;
                __m512i r[16];
                for (int i = 0; i < 16; i++) r[i] = load32(at + i * x->row, block + i < count ? dim - d : 0);
                transpose(r);
                for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * LANES, r[i]);
            }
}

/* Keys by head: (heads, n, d), zeros where they are filled up. */
WIDE static void lay_keys(const scratch *s, int64_t first, int head, int heads) {
    const rows_of *x = &s->job->key;
    const int count = s->known, dim = s->job->dim;
    const int64_t wide = s->wide, n = s->n;
    uint16_t *to = s->keys;
    for (int i = 0; i < count; i++)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += STEP) {
                const uint16_t *at = (const uint16_t *)x->data + (first + i) * x->row + (head + h) * x->head + d;
                _mm512_store_si512(to + (h * n + i) * wide + d, load32(at, dim - d));
            }
    for (int h = 0; h < heads; h++) memset(to + (h * n + count) * wide, 0, 2 * (n - count) * wide);
}

/* Values with keys across, in tiles of 16 numbers by 32 keys: (heads, d / 16, n / 32, 16, 32). */
WIDE static void lay_values(const scratch *s, int64_t first, int head, int heads) {
    const rows_of *x = &s->job->value;
    const int count = s->known, dim = s->job->dim;
    const int64_t wide = s->wide, n = s->n;
    for (int i = 0; i < n; i += STEP)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += LANES) {
                const uint16_t *at = (const uint16_t *)x->data + (first + i) * x->row + (head + h) * x->head + d;
                uint16_t *out = (uint16_t *)s->values + h * wide * n + d * n + i * LANES;
                __m512i r[16];
                for (int p = 0; p < 16; p++) {
                    const int key = i + 2 * p;
                    __m256i even = load16(at + 2 * p * x->row, key < count ? dim - d : 0);
                    __m256i odd = load16(at + (2 * p + 1) * x->row, key + 1 < count ? dim - d : 0);
                    r[p] = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
                }
                transpose(r);
                for (int p = 0; p < 16; p++) _mm512_store_si512(out + p * STEP, r[p]);
            }
}

/* C (rows, 16), = or += A (rows, 32 steps) B (32 steps, 16), for each of one or two blocks B and C. */
WIDE static void product_wide(left a, int rows, int steps, int blocks, const uint32_t *b, int64_t next_b, float *c,
                              int64_t next_c, int add) {
    for (int block = 0; block < blocks; block++, b += next_b, c += next_c)
        for (int r = 0; r < rows; r += 8) {
            __m512 sum[8];
            for (int i = 0; i < 8; i++) sum[i] = add ? _mm512_load_ps(c + (r + i) * LANES) : _mm512_setzero_ps();
            for (int s = 0; s < steps; s++) {
                const uint16_t *at = a.data + r / 16 * a.block + r % 16 * a.row + s * a.step;
                for (int p = 0; p < 16; p++) {
                    const __m512bh right = (__m512bh)_mm512_load_si512(b + (s * 16 + p) * LANES);
                    for (int i = 0; i < 8; i++) {
                        int32_t pair;
                        memcpy(&pair, at + i * a.row + 2 * p, sizeof pair);
                        sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(pair), right);
                    }
                }
            }
            for (int i = 0; i < 8; i++) _mm512_store_ps(c + (r + i) * LANES, sum[i]);
        }
}

/* The same in tiles. Four sums are under way wherever there are enough rows: one alone would wait for itself. */
TILES static void product_tiles(left a, int rows, int steps, int blocks, const uint32_t *b, int64_t next_b, float *c,
                                int64_t next_c, int add) {
    const int64_t pitch = 2 * a.row, line = 64, tile = 16 * LANES;
    int both = 0;
    for (; blocks == 2 && both + 32 <= rows; both += 32) {
        const uint16_t *at = a.data + both / 16 * a.block;
        float *c0 = c + both * LANES, *c1 = c0 + next_c;
        if (add) {
            _tile_loadd(0, c0, line); _tile_loadd(1, c0 + tile, line);
            _tile_loadd(2, c1, line); _tile_loadd(3, c1 + tile, line);
        } else {
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        }
        for (int s = 0; s < steps; s++) {
            _tile_loadd(4, b + s * tile, line);
            _tile_loadd(6, at + s * a.step, pitch);
            _tile_dpbf16ps(0, 6, 4);
            _tile_loadd(7, at + a.block + s * a.step, pitch);
            _tile_dpbf16ps(1, 7, 4);
            _tile_loadd(5, b + next_b + s * tile, line);
            _tile_dpbf16ps(2, 6, 5);
            _tile_dpbf16ps(3, 7, 5);
        }
        _tile_stored(0, c0, line); _tile_stored(1, c0 + tile, line);
        _tile_stored(2, c1, line); _tile_stored(3, c1 + tile, line);
    }
    for (int block = 0; block < blocks; block++, b += next_b, c += next_c) {
        int r = both;
        for (; r + 64 <= rows; r += 64) {
            const uint16_t *at = a.data + r / 16 * a.block;
            float *to = c + r * LANES;
            if (add) {
                _tile_loadd(0, to, line); _tile_loadd(1, to + tile, line);
                _tile_loadd(2, to + 2 * tile, line); _tile_loadd(3, to + 3 * tile, line);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            for (int s = 0; s < steps; s++) {
                const uint16_t *x = at + s * a.step;
                _tile_loadd(4, b + s * tile, line);
                _tile_loadd(5, x, pitch);
                _tile_dpbf16ps(0, 5, 4);
                _tile_loadd(6, x + a.block, pitch);
                _tile_dpbf16ps(1, 6, 4);
                _tile_loadd(7, x + 2 * a.block, pitch);
                _tile_dpbf16ps(2, 7, 4);
                _tile_loadd(5, x + 3 * a.block, pitch);
                _tile_dpbf16ps(3, 5, 4);
            }
            _tile_stored(0, to, line); _tile_stored(1, to + tile, line);
            _tile_stored(2, to + 2 * tile, line); _tile_stored(3, to + 3 * tile, line);
        }
        for (; r < rows; r += 16) {
            float *to = c + r * LANES;
            if (add) _tile_loadd(0, to, line);
            else _tile_zero(0);
            for (int s = 0; s < steps; s++) {
                _tile_loadd(4, b + s * tile, line);
                _tile_loadd(5, a.data + r / 16 * a.block + s * a.step, pitch);
                _tile_dpbf16ps(0, 5, 4);
            }
            _tile_stored(0, to, line);
        }
    }
}

/* 2 to the power of x, by a polynomial of x's fraction: its relative error is under 3e-6, a bfloat16's half step 2e-3. */
WIDE static INLINE __m512 exp2_of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(0.009570102f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.055917863f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.24024744f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.6931218f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.9999993f));
    return _mm512_scalef_ps(y, whole);
}

/* A float32's upper half is a bfloat16: rounded to the nearest. */
WIDE static INLINE __m512i rounded(__m512 x) {
    return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
}

/* Weights as pairs of keys in bfloat16, zeros up to a whole step. */
WIDE static __m512 weigh(const scratch *s, int block, int size, __m512 factor, __m512 less) {
    const float *scores = s->scores + block * KEYS * LANES;
    uint32_t *to = (uint32_t *)s->weights + block * KEYS / 2 * LANES;
    __m512 even = _mm512_setzero_ps(), odd = even;
    int i = 0;
    for (; i + 2 <= size; i += 2) {
        const __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + i * LANES), factor, less));
        const __m512 b = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + (i + 1) * LANES), factor, less));
        even = _mm512_add_ps(even, a);
        odd = _mm512_add_ps(odd, b);
        const __m512i pair = _mm512_mask_mov_epi16(_mm512_srli_epi32(rounded(a), 16), 0xaaaaaaaau, rounded(b));
        _mm512_store_si512(to + i / 2 * LANES, pair);
    }
    if (i < size) {
        const __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + i * LANES), factor, less));
        even = _mm512_add_ps(even, a);
        _mm512_store_si512(to + i / 2 * LANES, _mm512_srli_epi32(rounded(a), 16));
        i += 2;
    }
    for (; i < up(size, STEP); i += 2) _mm512_store_si512(to + i / 2 * LANES, _mm512_setzero_si512());
    return _mm512_add_ps(even, odd);
}

WIDE static void give(const scratch *s, int block, __m512 over, int count, int64_t row, int head) {
    const rows_of *x = &s->job->out;
    const int dim = s->job->dim;
    for (int d = 0; d < dim; d += LANES) {
        __m512i r[16];
        summed(s, block, d, over, r);
        for (int i = 0; i < count; i++) {
            uint16_t *to = (uint16_t *)x->data + (row + i) * x->row + head * x->head + d;
            _mm256_mask_storeu_epi16(to, upto(dim - d), (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
        }
    }
}

static void lay(const scratch *s, int64_t query, int64_t key, int head, int heads, int group, int groups) {
    lay_queries(s, query, head, heads);
    lay_keys(s, key, group, groups);
    lay_values(s, key, group, groups);
}

static product product_of(const scratch *s) { return s->job->level >= TAMIS_AMX ? product_tiles : product_wide; }

static void score(const scratch *s, int head, int group, int block, int blocks, int start, int size) {
    const int64_t wide = s->wide;
    const uint16_t *at = (const uint16_t *)s->keys + ((int64_t)group * s->n + start) * wide;
    const left keys = {at, wide, LANES * wide, STEP};
    const uint32_t *queries = (const uint32_t *)s->queries + (head * up(s->asked, LANES) + block) * wide / 2;
    product_of(s)(keys, up(size, LANES), wide / STEP, blocks, queries, LANES * wide / 2, s->scores, KEYS * LANES, 0);
}

static void sum(const scratch *s, int group, int blocks, int start, int size, int add) {
    const uint16_t *at = (const uint16_t *)s->values + (int64_t)group * s->n * s->wide + start * LANES;
    const left values = {at, STEP, LANES * s->n, LANES * STEP};
    product_of(s)(values, up(s->job->dim, LANES), up(size, STEP) / STEP, blocks, s->weights, KEYS / 2 * LANES, s->out,
                  s->wide * LANES, add);
}

const tamis_form tamis_bf16 = {2, STEP, lay, score, weigh, sum, give};
#endif
