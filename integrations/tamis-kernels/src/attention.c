/* Attention: what every form of it does, and its work, in tasks of some heads of one sequence, over threads.
 *
 * Sixteen queries lie in the sixteen lanes of a register, and keys run down: scores are K Q', so that the largest
 * score and the sum of the weights of a query are taken without ever crossing lanes, and the weights are already what
 * the second product, V' P', wants on its right. Keys and values are laid out once for each sequence and head.
 * Scores of at most KEYS keys stand in memory at a time; more keys are taken in turns, as FlashAttention does it
 * (Dao et al. 2022, arXiv 2205.14135).
 */
#include "attention.h"
#include "rows.h"

#ifdef TAMIS_X86
#include <stdatomic.h>

enum { TASKS = 8 }; /* that each thread has at least, where there are so many heads: they differ in length */
static const float UNSEEN = -1e30f; /* a score that no other is below, and whose weight is 0 beside any other */

typedef struct {
    const tamis_attention_job *job;
    int part; /* heads of a task */
    atomic_int next, failed;
} work;

static int reserve(scratch *s, const tamis_form *form, int heads, int groups) {
    const int64_t head = (int64_t)s->n * s->wide * form->bytes, queries = heads * up(s->asked, LANES) * s->wide;
    const int64_t scores = 2 * KEYS * LANES * sizeof(float), out = 2 * s->wide * LANES * sizeof(float);
    const int64_t sizes[] = {groups * head, groups * head, queries * form->bytes, scores, scores, out};
    void **parts[] = {&s->keys, &s->values, &s->queries, &s->weights, (void **)&s->scores, (void **)&s->out};
    size_t all = 0;
    for (int i = 0; i < 6; i++) all += up(sizes[i], 64);
    char *at = tamis_room(TAMIS_FOR_ATTENTION, all);
    if (!at) return 0;
    for (int i = 0; i < 6; at += up(sizes[i++], 64)) *parts[i] = at;
    return 1;
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

/* One or two blocks of queries of one head, `block` and `head` within the scratch. */
WIDE static void attend_blocks(const scratch *s, const tamis_form *form, int64_t row, int first_head, int head, int block) {
    const tamis_attention_job *job = s->job;
    const __m512 factor = _mm512_set1_ps(job->scale * 1.44269504f); /* exp(x) is 2^(x / ln 2) */
    const int group = head / (job->heads / job->groups), blocks = s->asked - block > LANES ? 2 : 1;
    const int place = block + s->known - s->asked, after = place + blocks * LANES; /* among the keys */
    const int end = !job->causal && job->window && after + job->window < s->known ? after + job->window
                    : job->causal && after < s->known                             ? after
                                                                                  : s->known;
    const int begin = job->window && place > job->window ? (place - job->window) / form->step * form->step : 0;
    __m512 most[2], sum[2];
    for (int b = 0; b < blocks; b++) most[b] = _mm512_set1_ps(UNSEEN), sum[b] = _mm512_setzero_ps();
    for (int start = begin; start < end; start += KEYS) {
        const int size = end - start < KEYS ? end - start : KEYS;
        form->score(s, head, group, block, blocks, start, size);
        for (int b = 0; b < blocks; b++) {
            float *scores = s->scores + b * KEYS * LANES, *out = s->out + b * s->wide * LANES;
            const int first = place + b * LANES;
            const int future = job->causal && start + size > first;
            const int far = job->window && (first + LANES - start > job->window || start + size - first > job->window);
            if (future || far) hide(scores, size, start, first, job->causal, job->window);
            const __m512 now = largest(scores, size, most[b]);
            if (start > begin) { /* what was summed up was relative to a smaller score */
                const __m512 shrink = exp2_full(_mm512_mul_ps(_mm512_sub_ps(most[b], now), factor));
                sum[b] = _mm512_mul_ps(sum[b], shrink);
                for (int d = 0; d < up(job->dim, LANES); d++)
                    _mm512_store_ps(out + d * LANES, _mm512_mul_ps(_mm512_load_ps(out + d * LANES), shrink));
            }
            most[b] = now;
            sum[b] = _mm512_add_ps(sum[b], form->weigh(s, b, size, factor, _mm512_mul_ps(now, factor)));
        }
        form->sum(s, group, blocks, start, size, start > begin);
    }
    for (int b = 0; b < blocks; b++) {
        const int first = block + b * LANES, count = s->asked - first < LANES ? s->asked - first : LANES;
        form->give(s, b, _mm512_div_ps(_mm512_set1_ps(1.0f), sum[b]), count, row + first, first_head + head);
    }
}

/* `heads` heads of one segment, from `head` on; 0 if there is no memory for them. */
static int attend(const tamis_attention_job *job, int segment, int head, int heads) {
    const tamis_form *form = job->full ? &tamis_float : &tamis_bf16;
    const int64_t q0 = job->asked[segment], k0 = job->known[segment];
    const int each = job->heads / job->groups, groups = heads / each;
    scratch s = {.job = job, .asked = job->asked[segment + 1] - q0, .known = job->known[segment + 1] - k0};
    s.n = up(s.known, form->step);
    s.wide = up(job->dim, form->step);
    if (!reserve(&s, form, heads, groups)) return 0;
    form->lay(&s, q0, k0, head, heads, head / each, groups);
    for (int h = 0; h < heads; h++)
        for (int block = 0; block < s.asked; block += 2 * LANES) attend_blocks(&s, form, q0, head, h, block);
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
    if (w->job->level >= TAMIS_AMX && !w->job->full) drain_in_tiles(w);
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
    work w = {.job = job, .part = (part + each - 1) / each * each};
    if (threads > 1) parallel(run, &w, threads, 0);
    else run(&w);
    return atomic_load(&w.failed);
}
#endif
