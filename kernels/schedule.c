/*
 * Steps and learning rates, as transformers has them.  A batch is batch_size rows, a window grad_acc_steps
 * batches (the last of an epoch may be shorter), a step one window; T = ceil(epochs * windows per epoch) or
 * max_steps. Step k counts from 0; with W warm-up steps its factor is k/W below W, then by the schedule;
 * constant has no warm-up.
 */
#include <math.h>

#include "kernels/job.h"

int64_t schedule_steps_per_epoch(const struct dtx_train_params *p, uint32_t n_rows)
{
    int64_t batches = ((int64_t)n_rows + p->batch_size - 1) / p->batch_size;
    return (batches + p->grad_acc_steps - 1) / p->grad_acc_steps;
}

int64_t schedule_total(const struct dtx_train_params *p, uint32_t n_rows)
{
    if (p->max_steps > 0)
        return p->max_steps;
    return (int64_t)ceil(p->epochs * (double)schedule_steps_per_epoch(p, n_rows));
}

int64_t schedule_warmup(const struct dtx_train_params *p, int64_t total)
{
    return p->schedule == DTX_CONSTANT ? 0 : (int64_t)ceil(p->warmup_ratio * (double)total);
}

double schedule_lr(const struct dtx_train_params *p, int64_t step, int64_t total, int64_t warmup)
{
    if (p->schedule == DTX_CONSTANT)
        return p->learning_rate;
    if (step < warmup)
        return p->learning_rate * ((double)step / (double)warmup);
    double length = total > warmup ? (double)(total - warmup) : 1.0;
    if (p->schedule == DTX_LINEAR)
        return p->learning_rate * fmax(0, (double)(total - step) / length);
    return p->learning_rate * fmax(0, 0.5 * (1 + cos(M_PI * (double)(step - warmup) / length)));
}
