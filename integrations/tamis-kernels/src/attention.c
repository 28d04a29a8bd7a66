/* Softmax attention over sequences laid end to end, bfloat16 in and out, float32 between.
 *
 * Sixteen queries lie in the sixteen lanes of a register, and keys run down: scores are K Q', so that the largest
 * score and the sum of the weights of a query are taken without ever crossing lanes, and the weights are already what
 * the second product, V' P', wants on its right. Both left factors are laid out once for each sequence and head.
 * Scores of at most KEYS keys stand in memory at a time; more keys are taken in turns, as FlashAttention does it
 * (Dao et al. 2022, arXiv 2205.14135).
 */
#include "kernels.h"
#include "rows.h"

#ifdef TAMIS_X86
#include <stdatomic.h>
#include <string.h>

enum {
    KEYS = 256,    /* keys whose scores stand in memory at once, for each of two blocks of queries */
    STEP = 32,     /* columns of a left factor that one step of a product takes */
    TASKS = 8,     /* that each thread has at least, where there are so many heads: they differ in length */
};
static const float UNSEEN = -1e30f; /* a score that no other is below, and whose weight is 0 beside any other */

/* Rows of (heads, dim) numbers; strides in numbers. */
typedef struct {
    uint16_t *data;
    int64_t row, head;
} rows_of;

typedef struct {
    rows_of query, key, value, out;
    const int32_t *asked, *known; /* segments + 1 each: where each segment's queries and keys begin */
    int32_t queries, keys; /* rows of each, which the offsets must end with */
    int32_t segments, heads, groups, dim;
    int32_t causal, window; /* window: |query - key| < window; 0 sees all */
    int32_t level;
    float scale;
} tamis_attention_job;

typedef struct {
    const tamis_attention_job *job;
    int part; /* heads of a task */
    atomic_int next, failed;
} work;

/* What a thread lays out. */
typedef struct {
    uint16_t *keys, *values;
    uint32_t *queries, *weights;
    float *scores, *out;
} scratch;

/* A left factor, bfloat16: rows lie in blocks of 16, columns in steps of 32; distances in numbers. */
typedef struct {
    const uint16_t *data;
    int64_t row, block, step;
} left;

typedef void (*product)(left a, int rows, int steps, int blocks, const uint32_t *b, int64_t next_b, float *c,
                        int64_t next_c, int add);

static INLINE int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static int reserve(scratch *s, int64_t asked, int64_t known, int64_t dim, int64_t heads, int64_t groups) {
    const int64_t n = up(known, STEP), d = up(dim, STEP);
    const int64_t sizes[] = {
        groups * n * d * 2,           groups * n * d * 2, heads * up(asked, LANES) * d * 2, 2 * KEYS * LANES * 2,
        2 * KEYS * LANES * 4, 2 * d * LANES * 4,
    };
    void **parts[] = {(void **)&s->keys,    (void **)&s->values, (void **)&s->queries,
                      (void **)&s->weights, (void **)&s->scores, (void **)&s->out};
    size_t all = 0;
    for (int i = 0; i < 6; i++) all += up(sizes[i], 64);
    char *at = tamis_room(TAMIS_FOR_ATTENTION, all);
    if (!at) return 0;
    for (int i = 0; i < 6; i++, at += up(sizes[i - 1], 64)) *parts[i] = at;
    return 1;
}

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
WIDE static void lay_queries(const rows_of *x, int64_t first, int head, int heads, int count, int dim, uint32_t *to) {
    const int64_t wide = up(dim, STEP), all = up(count, LANES) * wide / 2;
    for (int block = 0; block < count; block += LANES)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += STEP) {
                const uint16_t *at = x->data + (first + block) * x->row + (head + h) * x->head + d;
                uint32_t *out = to + h * all + block * wide / 2 + d / 2 * LANES;
                __m512i r[16];
                for (int i = 0; i < 16; i++) r[i] = load32(at + i * x->row, block + i < count ? dim - d : 0);
                transpose(r);
                for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * LANES, r[i]);
            }
}

/* Keys by head: (heads, n, d), zeros where they are filled up. */
WIDE static void lay_keys(const rows_of *x, int64_t first, int head, int heads, int count, int dim, uint16_t *to) {
    const int64_t wide = up(dim, STEP), n = up(count, STEP);
    for (int i = 0; i < count; i++)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += STEP) {
                const uint16_t *at = x->data + (first + i) * x->row + (head + h) * x->head + d;
                _mm512_store_si512(to + (h * n + i) * wide + d, load32(at, dim - d));
            }
    for (int h = 0; h < heads; h++) memset(to + (h * n + count) * wide, 0, 2 * (n - count) * wide);
}

/* Values with keys across, in tiles of 16 numbers by 32 keys: (heads, d / 16, n / 32, 16, 32). */
WIDE static void lay_values(const rows_of *x, int64_t first, int head, int heads, int count, int dim, uint16_t *to) {
    const int64_t wide = up(dim, STEP), n = up(count, STEP);
    for (int i = 0; i < n; i += STEP)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < dim; d += LANES) {
                const uint16_t *at = x->data + (first + i) * x->row + (head + h) * x->head + d;
                uint16_t *out = to + h * wide * n + d * n + i * LANES;
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

/* Takes the scores of keys that a query does not see: `key` is the place of the first row, `query` of the first lane. */
WIDE static APART void hide(float *scores, int size, int key, int query, int causal, int window) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_set1_epi32(causal ? -1 : window ? -window : INT32_MIN);
    const __m512i high = _mm512_set1_epi32(window ? window : INT32_MAX);
    for (int i = 0; i < size; i++) {
        const __m512i ahead = _mm512_add_epi32(lanes, _mm512_set1_epi32(query - key - i));
        const __mmask16 seen = _mm512_cmpgt_epi32_mask(ahead, low) & _mm512_cmplt_epi32_mask(ahead, high);
        float *at = scores + i * LANES;
        _mm512_store_ps(at, _mm512_mask_mov_ps(_mm512_set1_ps(UNSEEN), seen, _mm512_load_ps(at)));
    }
}

WIDE static APART __m512 largest(const float *scores, int size, __m512 so_far) {
    __m512 even = so_far, odd = so_far;
    int i = 0;
    for (; i + 2 <= size; i += 2) {
        even = _mm512_max_ps(even, _mm512_load_ps(scores + i * LANES));
        odd = _mm512_max_ps(odd, _mm512_load_ps(scores + (i + 1) * LANES));
    }
    if (i < size) even = _mm512_max_ps(even, _mm512_load_ps(scores + i * LANES));
    return _mm512_max_ps(even, odd);
}

/* Weights 2^(factor score - less) as pairs of keys in bfloat16, zeros up to a whole step; returns their sums. */
WIDE static APART __m512 weigh(const float *scores, int size, __m512 factor, __m512 less, uint32_t *to) {
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

/* Weighted sums, (d, 16 queries) in float32, to the rows of `count` queries. */
WIDE static APART void give(const float *sums, __m512 over, int count, int dim, uint16_t *to, int64_t row) {
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = dim - d >= LANES ? 0xffff : (1u << (dim - d)) - 1;
        __m512i r[16];
        for (int i = 0; i < 16; i++)
            r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + (d + i) * LANES), over));
        transpose(r);
        for (int i = 0; i < 16; i++)
            if (i < count)
                _mm256_mask_storeu_epi16(to + i * row + d, there, (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
    }
}

/* `heads` heads of one segment, from `head` on; 0 if there is no memory for them. */
WIDE static int attend(const tamis_attention_job *job, int segment, int head, int heads) {
    const int64_t q0 = job->asked[segment], k0 = job->known[segment];
    const int asked = job->asked[segment + 1] - q0, known = job->known[segment + 1] - k0;
    const int dim = job->dim, each = job->heads / job->groups, groups = heads / each;
    const int64_t n = up(known, STEP), wide = up(dim, STEP), high = up(dim, LANES);
    const product multiply = job->level >= TAMIS_AMX ? product_tiles : product_wide;
    const __m512 factor = _mm512_set1_ps(job->scale * 1.44269504f); /* exp(x) is 2^(x / ln 2) */
    scratch lent, *s = &lent;
    if (!reserve(s, asked, known, dim, heads, groups)) return 0;
    lay_queries(&job->query, q0, head, heads, asked, dim, s->queries);
    lay_keys(&job->key, k0, head / each, groups, known, dim, s->keys);
    lay_values(&job->value, k0, head / each, groups, known, dim, s->values);
    for (int h = 0; h < heads; h++)
        for (int block = 0; block < asked; block += 2 * LANES) {
            const left keys = {s->keys + h / each * n * wide, wide, LANES * wide, STEP};
            const left values = {s->values + h / each * n * wide, STEP, LANES * n, LANES * STEP};
            const uint32_t *queries = s->queries + (h * up(asked, LANES) + block) * wide / 2;
            const int blocks = asked - block > LANES ? 2 : 1;
            const int place = block + known - asked, after = place + blocks * LANES; /* among the keys */
            const int end = !job->causal && job->window && after + job->window < known ? after + job->window
                            : job->causal && after < known                             ? after
                                                                                       : known;
            const int begin = job->window && place > job->window ? (place - job->window) / STEP * STEP : 0;
            __m512 most[2], sum[2];
            for (int b = 0; b < blocks; b++) most[b] = _mm512_set1_ps(UNSEEN), sum[b] = _mm512_setzero_ps();
            for (int start = begin; start < end; start += KEYS) {
                const int size = end - start < KEYS ? end - start : KEYS;
                const left k = {keys.data + start * wide, keys.row, keys.block, keys.step};
                const left v = {values.data + start * LANES, values.row, values.block, values.step};
                multiply(k, up(size, LANES), wide / STEP, blocks, queries, LANES * wide / 2, s->scores, KEYS * LANES, 0);
                for (int b = 0; b < blocks; b++) {
                    float *scores = s->scores + b * KEYS * LANES, *out = s->out + b * wide * LANES;
                    const int first = place + b * LANES;
                    const int future = job->causal && start + size > first;
                    const int far = job->window && (first + LANES - start > job->window || start + size - first > job->window);
                    if (future || far) hide(scores, size, start, first, job->causal, job->window);
                    const __m512 now = largest(scores, size, most[b]);
                    if (start > begin) { /* what was summed up was relative to a smaller score */
                        const __m512 shrink = exp2_of(_mm512_mul_ps(_mm512_sub_ps(most[b], now), factor));
                        sum[b] = _mm512_mul_ps(sum[b], shrink);
                        for (int d = 0; d < high; d++)
                            _mm512_store_ps(out + d * LANES, _mm512_mul_ps(_mm512_load_ps(out + d * LANES), shrink));
                    }
                    most[b] = now;
                    uint32_t *weights = s->weights + b * KEYS / 2 * LANES;
                    sum[b] = _mm512_add_ps(sum[b], weigh(scores, size, factor, _mm512_mul_ps(now, factor), weights));
                }
                multiply(v, high, up(size, STEP) / STEP, blocks, s->weights, KEYS / 2 * LANES, s->out, wide * LANES,
                         start > begin);
            }
            for (int b = 0; b < blocks; b++) {
                const int first = block + b * LANES, count = asked - first < LANES ? asked - first : LANES;
                uint16_t *to = job->out.data + (q0 + first) * job->out.row + (head + h) * job->out.head;
                give(s->out + b * wide * LANES, _mm512_div_ps(_mm512_set1_ps(1.0f), sum[b]), count, dim, to, job->out.row);
            }
        }
    return 1;
}

static void drain(work *w) {
    const tamis_attention_job *job = w->job;
    const int parts = (job->heads + w->part - 1) / w->part, all = job->segments * parts;
    const unsigned before = _mm_getcsr(), denormals_are_zero = 0x8040;
    _mm_setcsr(before | denormals_are_zero); /* weights of next to nothing would be slow */
    for (int i; (i = atomic_fetch_add(&w->next, 1)) < all;) {
        const int first = i % parts * w->part, rest = job->heads - first;
        if (!attend(job, i / parts, first, rest < w->part ? rest : w->part)) atomic_store(&w->failed, 1);
    }
    _mm_setcsr(before);
}

TILES static void drain_in_tiles(work *w) {
    tile_config before;
    begin_tiles(&before);
    drain(w);
    end_tiles(&before);
}

static void run(void *data) {
    work *w = data;
    if (w->job->level >= TAMIS_AMX) drain_in_tiles(w);
    else drain(w);
}

static int fits(const tamis_attention_job *job) {
    const int32_t *asked = job->asked, *known = job->known;
    for (int i = 0; i < job->segments; i++) {
        const int64_t queries = (int64_t)asked[i + 1] - asked[i], keys = (int64_t)known[i + 1] - known[i];
        if (queries < 1 || keys < 1 || (keys < queries && (job->causal || job->window))) return 0;
    }
    return !asked[0] && !known[0] && asked[job->segments] == job->queries && known[job->segments] == job->keys;
}

/* Returns 0; 1 if there was no memory; 2 if the offsets are none of these rows, and nothing was read. */
int tamis_attention(const tamis_attention_job *job, tamis_parallel parallel, int threads) {
    if (!fits(job)) return 2;
    const int each = job->heads / job->groups;
    int64_t part = (int64_t)job->segments * job->heads / (TASKS * threads);
    part = part < 1 ? 1 : part > job->heads ? job->heads : part;
    work w = {.job = job, .part = up(part, each)};
    if (threads > 1) parallel(run, &w, threads, 0);
    else run(&w);
    return atomic_load(&w.failed);
}
#endif
