/* A layer's products on tile registers, with what follows them done while their results are near: bias, GELU, the
 * residual sum and its norm. bfloat16 in and out, float32 between; what lies between an MLP's two products never leaves
 * the cache.
 *
 * Weights are laid out once, in tiles of 16 outputs by 32 inputs as the right factor of a tile product takes them:
 * (outputs / 16, inputs / 32, 16 pairs of inputs, 16 outputs, 2).
 */
#include "kernels.h"
#include "rows.h"

#ifdef TAMIS_X86
#include <stdatomic.h>

enum { TILE = 16 * 32, MOST = 128 }; /* bfloat16 numbers of a tile; rows of a task */

typedef struct {
    const uint16_t *tiles, *bias;
    int32_t inputs, outputs; /* multiples of 32 */
} packed;

typedef struct {
    const uint16_t *x;
    packed first, second;                    /* the second has no tiles where there is but one product */
    const uint16_t *residual, *gamma, *beta; /* none without a norm */
    uint16_t *out;
    int64_t rows;
    float epsilon;
} tamis_layer_job;

typedef struct {
    const tamis_layer_job *job;
    int64_t block;
    atomic_long next;
    atomic_int failed;
} work;

typedef enum { TO_GELU, TO_FLOAT, TO_OUT } sink;

/* x Phi(x), Phi by an odd polynomial on [-4.25, 4.25] whose error times x is at most 8e-5; 2.4e-4 at x = -8. */
WIDE static INLINE __m512 gelu(__m512 x) {
    const __m512 bound = _mm512_set1_ps(4.25f);
    const __m512 c = _mm512_max_ps(_mm512_min_ps(x, bound), _mm512_sub_ps(_mm512_setzero_ps(), bound));
    const __m512 square = _mm512_mul_ps(c, c);
    __m512 y = _mm512_set1_ps(-8.904818549204663e-10f);
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(7.866950824109153e-08f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(-3.0181806778273312e-06f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(6.662107625743374e-05f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(-0.0009486540802754462f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(0.0092903608456254f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(-0.06551376730203629f));
    y = _mm512_fmadd_ps(y, square, _mm512_set1_ps(0.3984570801258087f));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(c, y, _mm512_set1_ps(0.5f)));
}

/* What became of 32 rows by 32 outputs, and where it goes. */
typedef struct {
    const packed *w;
    sink where;
    void *to;
    int count;      /* rows that there are */
    int n, r;       /* its first output and row */
    const float *c; /* four tiles: left above, right above, left below, right below */
} block;

/* One row of 32 of them, plus the bias: through GELU into tiles again; to float32 rows, one behind the other; or to
 * bfloat16 rows. */
TILES static INLINE void finish(const block *it, int i) {
    const int n = it->n, r = it->r;
    const float *left = it->c + i / 16 * 512 + i % 16 * LANES;
    __m512 a = _mm512_add_ps(_mm512_load_ps(left), widen(it->w->bias + n));
    __m512 b = _mm512_add_ps(_mm512_load_ps(left + 256), widen(it->w->bias + n + LANES));
    if (it->where == TO_FLOAT) {
        float *at = (float *)it->to + (int64_t)(r + i) * it->w->outputs + n;
        _mm512_store_ps(at, a);
        _mm512_store_ps(at + LANES, b);
        return;
    }
    if (it->where == TO_GELU) a = gelu(a), b = gelu(b);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    if (it->where == TO_GELU) {
        uint16_t *tile = (uint16_t *)it->to + (int64_t)(r + i / 16 * 16) * it->w->outputs + n / 32 * TILE;
        _mm512_store_si512(tile + i % 16 * 32, both);
    } else if (r + i < it->count) {
        _mm512_storeu_si512((uint16_t *)it->to + (int64_t)(r + i) * it->w->outputs + n, both);
    }
}

/* 32 rows of tiles by 32 outputs, into four tiles of float32. Meanwhile the block before is finished, a few rows a step:
 * tiles and vectors have units of their own. */
TILES static INLINE void product(const uint16_t *rows, const uint16_t *weights, int steps, float *to, const block *before) {
    const uint16_t *below = rows + steps * TILE, *right = weights + steps * TILE;
    const int64_t line = 64, tile = 16 * LANES;
    int done = before->c ? 0 : 32;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < steps; s++) {
        _tile_loadd(4, rows + s * TILE, line);
        _tile_loadd(6, weights + s * TILE, line);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + s * TILE, line);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, below + s * TILE, line);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        for (; done < 32 && done * steps < 32 * (s + 1); done++) finish(before, done);
    }
    _tile_stored(0, to, line);
    _tile_stored(1, to + tile, line);
    _tile_stored(2, to + 2 * tile, line);
    _tile_stored(3, to + 3 * tile, line);
}

/* Rows, in tiles of 16 by 32, times the weights, plus the bias, to where it goes; `c` has room for eight tiles. */
TILES static INLINE void multiply(const packed *w, const uint16_t *x, int rows, int count, sink where, void *to, float *c) {
    block before = {.w = w, .where = where, .to = to, .count = count};
    for (int n = 0; n < w->outputs; n += 32) {
        for (int r = 0; r < rows; r += 32) {
            float *at = before.c == c ? c + 4 * 256 : c;
            product(x + (int64_t)r * w->inputs, w->tiles + (int64_t)n * w->inputs, w->inputs / 32, at, &before);
            before.n = n, before.r = r, before.c = at;
        }
    }
    for (int i = 0; i < 32; i++) finish(&before, i);
}

/* Rows into tiles of 16 by 32, zeros where they are filled up. */
TILES static INLINE void lay_rows(const uint16_t *x, int count, int rows, int width, uint16_t *to) {
    for (int r = 0; r < rows; r++) {
        uint16_t *row = to + (int64_t)(r / 16) * 16 * width + r % 16 * 32;
        for (int k = 0; k < width; k += 32) {
            const __m512i numbers = r < count ? _mm512_loadu_si512(x + (int64_t)r * width + k) : _mm512_setzero_si512();
            _mm512_store_si512(row + k / 32 * TILE, numbers);
        }
    }
}

TILES static void some(const tamis_layer_job *job, int64_t first, int count, void *space) {
    const packed *one = &job->first, *two = job->second.tiles ? &job->second : 0, *last = two ? two : one;
    const int rows = (count + 31) / 32 * 32, width = last->outputs;
    uint16_t *x = space, *between = x + MOST * (int64_t)one->inputs;
    float *sums = (float *)(between + (two ? MOST * (int64_t)one->outputs : 0)), *c = sums + MOST * (int64_t)width;
    uint16_t *out = job->out + first * width;
    lay_rows(job->x + first * one->inputs, count, rows, one->inputs, x);
    if (two) multiply(one, x, rows, count, TO_GELU, between, c);
    if (!job->gamma) {
        multiply(last, two ? between : x, rows, count, TO_OUT, out, c);
        return;
    }
    multiply(last, two ? between : x, rows, count, TO_FLOAT, sums, c);
    for (int r = 0; r < count; r++) {
        float *row = sums + (int64_t)r * width;
        add_row(row, job->residual + (first + r) * width, width);
        norm_row(row, width, job->gamma, job->beta, job->epsilon, out + (int64_t)r * width);
    }
}

TILES static void run(void *data) {
    work *w = data;
    const tamis_layer_job *job = w->job;
    const int64_t widths = 2 * job->first.inputs + 2 * job->first.outputs + 4 * job->first.outputs + 4 * job->second.outputs;
    void *space = tamis_room(TAMIS_FOR_LAYERS, MOST * widths + 8 * 1024);
    if (!space) {
        atomic_store(&w->failed, 1);
        return;
    }
    tile_config before;
    begin_tiles(&before);
    for (int64_t at; (at = atomic_fetch_add(&w->next, w->block)) < job->rows;)
        some(job, at, job->rows - at < w->block ? job->rows - at : w->block, space);
    end_tiles(&before);
}

/* Returns 0; 1 if there was no memory. Each thread has two tasks or more where there are rows enough. */
int tamis_layer(const tamis_layer_job *job, tamis_parallel parallel, int threads) {
    int64_t block = (job->rows / (2 * threads) + 31) / 32 * 32;
    block = block < 32 ? 32 : block > MOST ? MOST : block;
    work w = {.job = job, .block = block};
    if (threads > 1 && job->rows > block) parallel(run, &w, threads, 0);
    else run(&w);
    return atomic_load(&w.failed);
}
#endif
