/* A residual sum and the layer norm behind it, in one pass: bfloat16 in and out, float32 between. */
#include "kernels.h"
#include "rows.h"

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

WIDE static void one(const tamis_add_norm_job *job, int64_t row, float *sums) {
    const int dim = job->dim;
    const uint16_t *x = job->x + row * dim;
    for (int d = 0; d < dim; d += LANES) _mm512_store_ps(sums + d, widen_some(x + d, upto(dim - d)));
    add_row(sums, job->residual + row * dim, dim);
    norm_row(sums, dim, job->weight, job->bias, job->epsilon, job->out + row * dim);
}

static void run(void *data) {
    work *w = data;
    float sums[WIDEST] __attribute__((aligned(64)));
    for (int64_t first; (first = atomic_fetch_add(&w->next, ROWS)) < w->job->rows;)
        for (int64_t row = first; row < first + ROWS && row < w->job->rows; row++) one(w->job, row, sums);
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
