/* What decoders do between their products, each in one pass and in float32: the RMS norm, the gate of an MLP, rotary
 * positions with the norms of heads before them. bfloat16 in and out, or float32. */
#include "rows.h"

#ifdef TAMIS_X86
typedef struct {
    const void *x;
    const float *weight;
    void *out;
    int64_t rows;
    int32_t dim, full; /* full: float32 numbers instead of bfloat16 */
    float epsilon;
} tamis_rms_norm_job;

typedef struct {
    const void *x; /* (rows, 2 dim): what goes through the function, and beside it what that is a factor of */
    void *out;
    int64_t rows;
    int32_t dim, full, gelu; /* gelu: by tanh, instead of SiLU */
} tamis_gate_job;

typedef struct {
    void *x; /* (rows, heads, dim), the heads of a row side by side */
    const void *cosine, *sine; /* (rows, dim) */
    const float *query, *key; /* (dim): weights of the heads' norms, or none */
    int64_t rows, row; /* numbers from one row to the next */
    int32_t queries, keys, dim, full; /* heads of each kind; queries come first */
    float epsilon;
} tamis_rotary_job;

static INLINE const void *at(const void *numbers, int64_t place, int full) {
    return (const char *)numbers + place * (full ? 4 : 2);
}

WIDE static INLINE __m512 load(const void *numbers, int64_t place, int full, __mmask16 there) {
    const void *here = at(numbers, place, full);
    return full ? _mm512_maskz_loadu_ps(there, here) : widen_some(here, there);
}

WIDE static INLINE void store(void *numbers, int64_t place, int full, __mmask16 there, __m512 y) {
    void *here = (void *)at(numbers, place, full);
    if (full) _mm512_mask_storeu_ps(here, there, y);
    else _mm256_mask_storeu_epi16(here, there, (__m256i)_mm512_cvtneps_pbh(y));
}

/* One over the root of the mean square of `dim` numbers. */
WIDE static INLINE __m512 over_root(const void *x, int64_t place, int dim, int full, float epsilon) {
    __m512 squares = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += LANES) {
        const __m512 y = load(x, place + d, full, upto(dim - d));
        squares = _mm512_fmadd_ps(y, y, squares);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / dim + epsilon);
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(mean));
}

WIDE static INLINE void normed(const tamis_rms_norm_job *job, int64_t row, int full) {
    const int64_t first = row * job->dim;
    const __m512 over = over_root(job->x, first, job->dim, full, job->epsilon);
    for (int d = 0; d < job->dim; d += LANES) {
        const __mmask16 there = upto(job->dim - d);
        const __m512 scaled = _mm512_mul_ps(load(job->x, first + d, full, there), over);
        store(job->out, first + d, full, there, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(there, job->weight + d)));
    }
}

/* x sigmoid(x); or GELU by tanh, which is x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
WIDE static INLINE __m512 activated(__m512 x, int gelu) {
    __m512 inner = x;
    if (gelu) {
        const __m512 square = _mm512_mul_ps(x, x);
        const __m512 curve = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        inner = _mm512_mul_ps(_mm512_mul_ps(x, curve), _mm512_set1_ps(1.5957691216f));
    }
    const __m512 power = exp2_full(_mm512_mul_ps(inner, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(power, _mm512_set1_ps(1.0f)));
}

WIDE static INLINE void gated(const tamis_gate_job *job, int64_t row, int full, int gelu) {
    const int64_t first = 2 * row * job->dim;
    for (int d = 0; d < job->dim; d += LANES) {
        const __mmask16 there = upto(job->dim - d);
        const __m512 open = activated(load(job->x, first + d, full, there), gelu);
        const __m512 y = _mm512_mul_ps(open, load(job->x, first + job->dim + d, full, there));
        store(job->out, row * job->dim + d, full, there, y);
    }
}

WIDE static INLINE void turned(const tamis_rotary_job *job, int64_t row, int full) {
    const int half = job->dim / 2;
    const int64_t angle = row * job->dim;
    for (int head = 0; head < job->queries + job->keys; head++) {
        const int64_t first = row * job->row + (int64_t)head * job->dim;
        const float *weight = head < job->queries ? job->query : job->key;
        const __m512 over = weight ? over_root(job->x, first, job->dim, full, job->epsilon) : _mm512_set1_ps(1.0f);
        for (int d = 0; d < half; d += LANES) {
            const __mmask16 there = upto(half - d);
            __m512 a = load(job->x, first + d, full, there), b = load(job->x, first + half + d, full, there);
            if (weight) {
                a = _mm512_mul_ps(_mm512_mul_ps(a, over), _mm512_maskz_loadu_ps(there, weight + d));
                b = _mm512_mul_ps(_mm512_mul_ps(b, over), _mm512_maskz_loadu_ps(there, weight + half + d));
            }
            const __m512 low = _mm512_mul_ps(b, load(job->sine, angle + d, full, there));
            const __m512 high = _mm512_mul_ps(a, load(job->sine, angle + half + d, full, there));
            store(job->x, first + d, full, there, _mm512_fmsub_ps(a, load(job->cosine, angle + d, full, there), low));
            store(job->x, first + half + d, full, there,
                  _mm512_fmadd_ps(b, load(job->cosine, angle + half + d, full, there), high));
        }
    }
}

WIDE static void norm_half(const void *job, int64_t row) { normed(job, row, 0); }
WIDE static void norm_full(const void *job, int64_t row) { normed(job, row, 1); }
WIDE static void silu_half(const void *job, int64_t row) { gated(job, row, 0, 0); }
WIDE static void silu_full(const void *job, int64_t row) { gated(job, row, 1, 0); }
WIDE static void gelu_half(const void *job, int64_t row) { gated(job, row, 0, 1); }
WIDE static void gelu_full(const void *job, int64_t row) { gated(job, row, 1, 1); }
WIDE static void turn_half(const void *job, int64_t row) { turned(job, row, 0); }
WIDE static void turn_full(const void *job, int64_t row) { turned(job, row, 1); }

void tamis_rms_norm(const tamis_rms_norm_job *job, tamis_parallel parallel, int threads) {
    tamis_rows(job->full ? norm_full : norm_half, job, job->rows, parallel, threads);
}

void tamis_gate(const tamis_gate_job *job, tamis_parallel parallel, int threads) {
    void (*silu)(const void *, int64_t) = job->full ? silu_full : silu_half;
    void (*gelu)(const void *, int64_t) = job->full ? gelu_full : gelu_half;
    tamis_rows(job->gelu ? gelu : silu, job, job->rows, parallel, threads);
}

void tamis_rotary(const tamis_rotary_job *job, tamis_parallel parallel, int threads) {
    tamis_rows(job->full ? turn_full : turn_half, job, job->rows, parallel, threads);
}
#endif
