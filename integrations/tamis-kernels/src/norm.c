/* A residual sum and the layer norm behind it, in one pass: bfloat16 in and out, float32 between. */
#include "kernels.h"

#ifdef TAMIS_X86
#include <stdatomic.h>

enum { ROWS = 16, WIDEST = 8192 }; /* rows of a task; numbers of a row */

typedef struct {
    const uint16_t *x, *residual, *weight, *bias;
    uint16_t *out;
    int64_t rows;
    int32_t dim;
    float epsilon;
} tamis_add_norm_job;

typedef struct {
    const tamis_add_norm_job *job;
    atomic_long next;
} work;

WIDE static INLINE __m512 widen(const uint16_t *at, __mmask16 there) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, at)), 16));
}

WIDE static INLINE __mmask16 upto(int left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

WIDE static void norm_row(const tamis_add_norm_job *job, int64_t row, float *sums) {
    const int dim = job->dim;
    const uint16_t *x = job->x + row * dim, *residual = job->residual + row * dim;
    uint16_t *out = job->out + row * dim;
    __m512 total = _mm512_setzero_ps(), squares = total;
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = upto(dim - d);
        const __m512 sum = _mm512_add_ps(widen(x + d, there), widen(residual + d, there));
        _mm512_store_ps(sums + d, sum);
        total = _mm512_add_ps(total, sum);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / dim);
    for (int d = 0; d < dim; d += LANES) {
        const __m512 off = _mm512_maskz_sub_ps(upto(dim - d), _mm512_load_ps(sums + d), mean);
        _mm512_store_ps(sums + d, off);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const __m512 variance = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / dim + job->epsilon);
    const __m512 over = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(variance));
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = upto(dim - d);
        const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(sums + d), over);
        const __m512 y = _mm512_fmadd_ps(scaled, widen(job->weight + d, there), widen(job->bias + d, there));
        _mm256_mask_storeu_epi16(out + d, there, (__m256i)_mm512_cvtneps_pbh(y));
    }
}

static void run(void *data) {
    work *w = data;
    float sums[WIDEST] __attribute__((aligned(64)));
    for (int64_t first; (first = atomic_fetch_add(&w->next, ROWS)) < w->job->rows;)
        for (int64_t row = first; row < first + ROWS && row < w->job->rows; row++) norm_row(w->job, row, sums);
}

/* Returns 0; 2 if rows are wider than WIDEST, and nothing was read. */
int tamis_add_norm(const tamis_add_norm_job *job, tamis_parallel parallel, int threads) {
    if (job->dim < 1 || job->dim > WIDEST) return 2;
    work w = {.job = job};
    if (threads > 1 && job->rows > ROWS) parallel(run, &w, threads, 0);
    else run(&w);
    return 0;
}
#endif
