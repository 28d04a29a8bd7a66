/* Memory that a thread keeps from call to call, and that goes with the thread. */
#include "kernels.h"

#ifdef TAMIS_X86
#include <pthread.h>
#include <stdlib.h>

enum { PAGE = 4096 };

typedef struct {
    void *base[TAMIS_USERS];
    size_t size[TAMIS_USERS];
} rooms;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void leave(void *data) {
    rooms *r = data;
    for (int i = 0; i < TAMIS_USERS; i++) free(r->base[i]);
    free(r);
}

static void make_key(void) { has_key = pthread_key_create(&key, leave) == 0; }

void *tamis_room(tamis_user user, size_t bytes) {
    pthread_once(&once, make_key);
    if (!has_key) return 0;
    rooms *r = pthread_getspecific(key);
    if (!r) {
        r = calloc(1, sizeof *r);
        if (!r) return 0;
        if (pthread_setspecific(key, r)) {
            free(r);
            return 0;
        }
    }
    if (bytes > r->size[user]) {
        free(r->base[user]);
        const size_t size = (bytes + PAGE - 1) / PAGE * PAGE;
        r->base[user] = aligned_alloc(PAGE, size);
        r->size[user] = r->base[user] ? size : 0;
    }
    return r->base[user];
}
#endif
