/* libfaketime moves the clock that librdkafka reads, and pthread_cond_timedwait, but not cnd_timedwait, by which librdkafka waits
 * for a moment of that clock: with a clock that is ahead it would wait for as long as the clock is ahead. Loaded before libfaketime,
 * this sends the one through the other. In glibc both have the same types. */
#include <errno.h>
#include <pthread.h>
#include <threads.h>

int cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until) {
    switch (pthread_cond_timedwait((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, until)) {
    case 0:
        return thrd_success;
    case ETIMEDOUT:
        return thrd_timedout;
    default:
        return thrd_error;
    }
}
