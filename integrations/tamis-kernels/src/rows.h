/* Rows of numbers, and the state of tile registers: for more than one of the files here. */
#ifndef TAMIS_ROWS_H
#define TAMIS_ROWS_H
#include "kernels.h"

#ifdef TAMIS_X86
WIDE static INLINE __mmask16 upto(int left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

WIDE static INLINE __m512 widen_some(const uint16_t *at, __mmask16 there) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, at)), 16));
}

WIDE static INLINE __m512 widen(const uint16_t *at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)), 16));
}

/* 2 to the power of x, to within rounding: a polynomial of x's fraction, whose own relative error is under 2e-9. */
WIDE static INLINE __m512 exp2_full(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.5345812e-4f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.3399931e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.618489e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.5503286e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.24022646f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.6931472f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

/* `row` plus bfloat16 numbers; rows of float32 have room for a whole last register. */
WIDE static INLINE void add_row(float *row, const uint16_t *x, int dim) {
    for (int d = 0; d < dim; d += LANES)
        _mm512_store_ps(row + d, _mm512_add_ps(_mm512_load_ps(row + d), widen_some(x + d, upto(dim - d))));
}

/* Takes the mean off a row of float32; returns one over its standard deviation. */
WIDE static INLINE __m512 center(float *row, int dim, float epsilon) {
    __m512 total = _mm512_setzero_ps(), squares = total;
    for (int d = 0; d < dim; d += LANES) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(upto(dim - d), row + d));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / dim);
    for (int d = 0; d < dim; d += LANES) {
        const __m512 off = _mm512_maskz_sub_ps(upto(dim - d), _mm512_load_ps(row + d), mean);
        _mm512_store_ps(row + d, off);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const __m512 variance = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / dim + epsilon);
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(variance));
}

/* Layer norm of a row of float32, which it changes, to bfloat16. */
WIDE static INLINE void norm_row(float *row, int dim, const uint16_t *gamma, const uint16_t *beta, float epsilon,
                                 uint16_t *out) {
    const __m512 over = center(row, dim, epsilon);
    for (int d = 0; d < dim; d += LANES) {
        const __mmask16 there = upto(dim - d);
        const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(row + d), over);
        const __m512 y = _mm512_fmadd_ps(scaled, widen_some(gamma + d, there), widen_some(beta + d, there));
        _mm256_mask_storeu_epi16(out + d, there, (__m256i)_mm512_cvtneps_pbh(y));
    }
}

/* Calls `row` for every row from 0 on, on several threads where there are many. */
void tamis_rows(void (*row)(const void *, int64_t), const void *job, int64_t rows, tamis_parallel parallel, int threads);

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_config;

/* From here to `end_tiles` all eight tiles have 16 rows of 64 bytes; afterwards again what they had. */
TILES static INLINE void begin_tiles(tile_config *before) {
    static const tile_config ours = {/* in memory as it stands: GCC may leave out stores to a variable, of which it sees
                                        the first eight bytes read */
                                     .palette = 1,
                                     .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                     .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_storeconfig(before);
    _tile_loadconfig(&ours);
}

TILES static INLINE void end_tiles(const tile_config *before) {
    if (before->palette) _tile_loadconfig(before);
    else _tile_release();
}
#endif
#endif
