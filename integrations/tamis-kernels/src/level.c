/* Which of the instructions that the kernels have versions for are here. */
#include "kernels.h"

#ifdef TAMIS_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static const long REQUEST_PERMISSION = 0x1023; /* ARCH_REQ_XCOMP_PERM: Linux keeps tile registers from who did not ask */
static const long TILE_DATA = 18;

static int has_tiles(void) {
    unsigned a, b, c, d;
    const unsigned bf16 = 1u << 22, tile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile)) != (bf16 | tile)) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int tamis_kernels_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bf16"))
        return TAMIS_NONE;
    return has_tiles() ? TAMIS_AMX : TAMIS_AVX512_BF16;
}
#else
int tamis_kernels_level(void) { return TAMIS_NONE; }
#endif
