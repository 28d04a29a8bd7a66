/* A residual sum and the layer norm behind it, in one pass, in float32: bfloat16 in and out, or float32. */
#include "kernels.h"
#include "rows.h"

#ifdef TAMIS_X86
enum { WIDEST = 8192 }; /* numbers of a row */

typedef struct {
    const void *x, *residual, *weight, *bias;
    void *out;
    int64_t rows;
    int32_t dim, full; /* full: float32 numbers instead of bfloat16 */
    float epsilon;
} tamis_add_norm_job;

WIDE static void one_half(const tamis_add_norm_job *job, int64_t first, float *sums) {
    const int dim = job->dim;
    const uint16_t *x = (const uint16_t *)job->x + first;
    for (int d = 0; d < dim; d += LANES) _mm512_store_ps(sums + d, widen_some(x + d, upto(dim - d)));
    add_row(sums, (const uint16_t *)job->residual + first, dim);
    norm_row(sums, dim, job->weight, job->bias, job->epsilon, (uint16_t *)job->out + first);
}

WIDE static void one_full(const tamis_add_norm_job *job, int64_t first, float *sums) {
    const int dim = job->dim;
    const float *x = (const float *)job->x + first, *residual = (const float *)job->residual + first;
    const float *gamma = job->weight, *beta = job->bias;
    float *out = (float *)job->out + first;
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = upto(dim - d);
        const __m512 more = _mm512_maskz_loadu_ps(there, residual + d);
        _mm512_store_ps(sums + d, _mm512_add_ps(_mm512_maskz_loadu_ps(there, x + d), more));
    }
    const __m512 over = center(sums, dim, job->epsilon);
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = upto(dim - d);
        const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(sums + d), over);
        const __m512 shift = _mm512_maskz_loadu_ps(there, beta + d);
        _mm512_mask_storeu_ps(out + d, there, _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(there, gamma + d), shift));
    }
}

WIDE static void one(const void *data, int64_t row) {
    const tamis_add_norm_job *job = data;
    float sums[WIDEST] __attribute__((aligned(64)));
    (job->full ? one_full : one_half)(job, row * job->dim, sums);
}

/* Returns 0; 2 if rows are wider than WIDEST, and nothing was read. */
int tamis_add_norm(const tamis_add_norm_job *job, tamis_parallel parallel, int threads) {
    if (job->dim < 1 || job->dim > WIDEST) return 2;
    tamis_rows(one, job, job->rows, parallel, threads);
    return 0;
}
#endif
