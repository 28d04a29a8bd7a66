/* What the C files of tamis-kernels share: which processors they are for, and how work is spread over threads. */
#ifndef TAMIS_KERNELS_H
#define TAMIS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)
#define TAMIS_X86 1
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define TILES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")))
#define INLINE __attribute__((always_inline)) inline
#define APART __attribute__((noinline)) /* gets registers of its own */
#define LANES 16 /* float32 numbers in a register */
#endif

enum tamis_level { TAMIS_NONE = 0, TAMIS_AVX512_BF16 = 1, TAMIS_AMX = 2 };

/* Runs a function on a team of threads: OpenMP's own, so that no second team competes with that of torch. */
typedef void (*tamis_parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

/* This thread's memory for one of its users, at least so many bytes, aligned to a page; what it held is not kept where it
 * grows. Null if there is none. */
typedef enum { TAMIS_FOR_ATTENTION, TAMIS_FOR_LAYERS, TAMIS_USERS } tamis_user;
void *tamis_room(tamis_user user, size_t bytes);

/* The best level that this processor and this process have; AMX is asked for once a process. */
int tamis_kernels_level(void);

#endif
