/* Work that is done row by row, over threads. */
#include "rows.h"

#ifdef TAMIS_X86
#include <stdatomic.h>

enum { ROWS = 16 }; /* of a task */

typedef struct {
    const void *job;
    void (*row)(const void *job, int64_t row);
    int64_t rows;
    atomic_long next;
} work;

static void run(void *data) {
    work *w = data;
    for (int64_t first; (first = atomic_fetch_add(&w->next, ROWS)) < w->rows;)
        for (int64_t row = first; row < first + ROWS && row < w->rows; row++) w->row(w->job, row);
}

void tamis_rows(void (*row)(const void *, int64_t), const void *job, int64_t rows, tamis_parallel parallel, int threads) {
    work w = {.job = job, .row = row, .rows = rows};
    if (threads > 1 && rows > ROWS) parallel(run, &w, threads, 0);
    else run(&w);
}
#endif
