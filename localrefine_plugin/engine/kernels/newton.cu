// CUDA twins of the Newton steps of align/search.py: one thread for each mode, float64. poses.py has the columns of the
// arrays.

#include "poses.cuh"

// records (m, RECORD) of modes at poses (m, 5): w and the shift, moved inside the extents. Nothing else is known yet.
extern "C" __global__ void place_modes(
    int m, const int* __restrict__ owner, const double* __restrict__ poses, const double* __restrict__ images,
    const double* __restrict__ limits, double* __restrict__ records)
{
    const int i = thread_number();
    if (i >= m)
        return;
    double w[3], shift[2], r[9], *record = records + (long long)RECORD * i;
#pragma unroll
    for (int k = 0; k < 3; k++)
        w[k] = poses[5 * i + k];
    shift[0] = poses[5 * i + 3];
    shift[1] = poses[5 * i + 4];
    clip(images + (long long)IMAGE * owner[i], limits, w, shift, r);
#pragma unroll
    for (int k = 0; k < 3; k++)
        record[k] = w[k];
    record[SHIFT] = shift[0];
    record[SHIFT + 1] = shift[1];
#pragma unroll
    for (int k = 0; k < 9; k++)
        record[ROTATION + k] = r[k];
    for (int k = LOG_LIKELIHOOD; k < RECORD; k++)
        record[k] = 0.0;
}

// rows (m, 2, 3) and shifts (m, 2) of modes as they are.
extern "C" __global__ void sample_modes(
    int m, const int* __restrict__ owner, const double* __restrict__ records, const double* __restrict__ images,
    double scale, float* __restrict__ rows, float* __restrict__ shifts)
{
    const int i = thread_number();
    if (i >= m)
        return;
    const double* record = records + (long long)RECORD * i;
    sampled(images + (long long)IMAGE * owner[i], scale, record + SHIFT, record + ROTATION, rows + 6 * i, shifts + 2 * i);
}

// Score, gradient, curvature and precision of modes, from sums (22, m); work (m, WORK) and active (m) begin.
extern "C" __global__ void begin_newton(
    int m, const int* __restrict__ owner, const double* __restrict__ sums, double omega,
    const double* __restrict__ images, const double* __restrict__ limits, int shells,
    const float* __restrict__ strength, const float* __restrict__ rates, double* __restrict__ records,
    double* __restrict__ work, int* __restrict__ active)
{
    const int i = thread_number();
    if (i >= m)
        return;
    const double* image = images + (long long)IMAGE * owner[i];
    double *record = records + (long long)RECORD * i, *mine = work + (long long)WORK * i;
    double g[5], j[9], l[6], factor, *curvature = record + CURVATURE, *precision = record + PRECISION;
    const double* r = record + ROTATION;
    const double value = likelihood(sums, m, i, omega, image, shells, strength + (long long)shells * owner[i],
                                    rates + 2LL * shells * owner[i], record + SHIFT, r, g);
    record[LOG_LIKELIHOOD] = value;
    record[SCORE] = value + add_prior(image, limits, record, record + SHIFT, r, g, &factor);
#pragma unroll
    for (int k = 0; k < 5; k++)
        record[GRADIENT + k] = g[k];
    // sums 7 to 12: the rotations' triangle; 13 to 18: rotation by shift; 19 to 21: the shifts' triangle
    const double* of = sums + 7 * (long long)m + i;
#pragma unroll
    for (int a = 0, s = 0; a < 3; a++)
#pragma unroll
        for (int b = a; b < 3; b++, s++)
            curvature[5 * a + b] = curvature[5 * b + a] = of[s * (long long)m];
    const double* mag = image + MAGNIFICATION;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        const double x = omega * of[(6 + 2 * a) * (long long)m], y = omega * of[(7 + 2 * a) * (long long)m];
        curvature[5 * a + 3] = curvature[15 + a] = mag[0] * x + mag[1] * y;
        curvature[5 * a + 4] = curvature[20 + a] = mag[2] * x + mag[3] * y;
    }
    const double o2 = omega * omega;
    const double xx = o2 * of[12 * (long long)m], xy = o2 * of[13 * (long long)m], yy = o2 * of[14 * (long long)m];
    curvature[18] = mag[0] * mag[0] * xx + 2.0 * mag[0] * mag[1] * xy + mag[1] * mag[1] * yy;
    curvature[19] = curvature[23] = mag[0] * (mag[2] * xx + mag[3] * xy) + mag[1] * (mag[2] * xy + mag[3] * yy);
    curvature[24] = mag[2] * mag[2] * xx + 2.0 * mag[2] * mag[3] * xy + mag[3] * mag[3] * yy;
    // the prior's, factor J^T Q J, column by column; J = [[j, 0], [l, 1]]
    inverse_right_jacobian(record, j);
    lever(r, limits, l);
    const double* q = image + OWN_PRECISION;
#pragma unroll
    for (int b = 0; b < 5; b++) {
        double v[5], turned[3];
#pragma unroll
        for (int a = 0; a < 5; a++) {
            const double* row = q + 5 * a;
            v[a] = b < 3 ? row[0] * j[b] + row[1] * j[3 + b] + row[2] * j[6 + b] + row[3] * l[b] + row[4] * l[3 + b]
                         : row[b];
        }
        transposed_times(j, v, turned);
#pragma unroll
        for (int a = 0; a < 5; a++) {
            const double along = a < 3 ? turned[a] + l[a] * v[3] + l[3 + a] * v[4] : v[a];
            precision[5 * a + b] = mine[5 * a + b] = curvature[5 * a + b] + factor * along;
        }
    }
    mine[DAMPING] = 1e-3;
    active[i] = 1;
}

// search.damped_step and search.moved: where the modes that still move are tried next. A mode whose step would gain
// less than least_gain / 2 moves no more.
extern "C" __global__ void propose_steps(
    int m, const int* __restrict__ owner, const double* __restrict__ records, const double* __restrict__ images,
    const double* __restrict__ limits, double least_gain, double scale, double* __restrict__ work,
    int* __restrict__ active, float* __restrict__ rows, float* __restrict__ shifts)
{
    const int i = thread_number();
    if (i >= m || !active[i])
        return;
    const double *image = images + (long long)IMAGE * owner[i], *record = records + (long long)RECORD * i;
    double a[15], step[5], turn[9], r[9], w[3], shift[2], *mine = work + (long long)WORK * i;
    double trace = 0.0, gain = 0.0;
#pragma unroll
    for (int k = 0; k < 5; k++)
        trace += mine[6 * k];
    const double ridge = 1e-6 * trace + 1e-12;
#pragma unroll
    for (int b = 0, s = 0; b < 5; b++)
#pragma unroll
        for (int k = 0; k <= b; k++, s++)
            a[s] = mine[5 * b + k] + (b == k ? mine[DAMPING] * mine[6 * b] + ridge : 0.0);
    factorise(a);
#pragma unroll
    for (int k = 0; k < 5; k++)
        step[k] = record[GRADIENT + k];
    solve(a, step);
#pragma unroll
    for (int k = 0; k < 5; k++)
        gain += step[k] * record[GRADIENT + k];
    if (!(gain > least_gain)) {
        active[i] = 0;
        return;
    }
    exp_map(step, turn);
    product(record + ROTATION, turn, r);
    log_of_turn(image, r, w);
    shift[0] = record[SHIFT] + step[3];
    shift[1] = record[SHIFT + 1] + step[4];
    clip(image, limits, w, shift, r);
    double* trial = mine + TRIAL;
#pragma unroll
    for (int k = 0; k < 5; k++) {
        mine[STEP + k] = step[k];
        trial[k] = k < 3 ? w[k] : shift[k - 3];
    }
#pragma unroll
    for (int k = 0; k < 9; k++)
        trial[ROTATION + k] = r[k];
    sampled(image, scale, shift, r, rows + 6 * i, shifts + 2 * i);
}

// search.secant_update, and the trial kept where it is better; sums (7, m) at the trials.
extern "C" __global__ void accept_steps(
    int m, const int* __restrict__ owner, const int* __restrict__ active, const double* __restrict__ sums, double omega,
    const double* __restrict__ images, const double* __restrict__ limits, int shells,
    const float* __restrict__ strength, const float* __restrict__ rates, double* __restrict__ records,
    double* __restrict__ work)
{
    const int i = thread_number();
    if (i >= m || !active[i])
        return;
    const double* image = images + (long long)IMAGE * owner[i];
    double *record = records + (long long)RECORD * i, *mine = work + (long long)WORK * i;
    const double *trial = mine + TRIAL, *step = mine + STEP;
    double g[5], pushed[5], factor;
    const double value = likelihood(sums, m, i, omega, image, shells, strength + (long long)shells * owner[i],
                                    rates + 2LL * shells * owner[i], trial + SHIFT, trial + ROTATION, g);
    const double score = value + add_prior(image, limits, trial, trial + SHIFT, trial + ROTATION, g, &factor);
    double model = 0.0, actual = 0.0;
#pragma unroll
    for (int a = 0; a < 5; a++) {
        pushed[a] = 0.0;
#pragma unroll
        for (int b = 0; b < 5; b++)
            pushed[a] += mine[5 * a + b] * step[b];
        model += step[a] * pushed[a];
        actual += step[a] * (record[GRADIENT + a] - g[a]);
    }
    if (actual > 0.1 * model) {
#pragma unroll
        for (int a = 0; a < 5; a++)
#pragma unroll
            for (int b = 0; b < 5; b++)
                mine[5 * a + b] += (record[GRADIENT + a] - g[a]) * (record[GRADIENT + b] - g[b]) / actual
                                 - pushed[a] * pushed[b] / model;
    }
    if (!(score > record[SCORE])) {
        mine[DAMPING] *= 10.0;
        return;
    }
    mine[DAMPING] *= 0.1;
    for (int k = 0; k < LOG_LIKELIHOOD; k++)
        record[k] = trial[k];
    record[LOG_LIKELIHOOD] = value;
    record[SCORE] = score;
#pragma unroll
    for (int k = 0; k < 5; k++)
        record[GRADIENT + k] = g[k];
}

// search.prune: whether the mode at each place of an order by image and score is kept.
extern "C" __global__ void mark_modes(
    int m, const int* __restrict__ order, const int* __restrict__ owner, const double* __restrict__ records,
    int most, double margin, double same_rotation, double same_shift, int* __restrict__ kept)
{
    const int place = thread_number();
    if (place >= m)
        return;
    const int i = order[place], image = owner[i];
    const double* mine = records + (long long)RECORD * i;
    int best = i;
    bool other = true;
    for (int behind = 1; behind <= place; behind++) {
        const int earlier = order[place - behind];
        if (owner[earlier] != image)
            break;
        best = earlier;
        const double* its = records + (long long)RECORD * earlier;
        double turned = 0.0, moved = 0.0;
        for (int k = 0; k < 3; k++)
            turned += (mine[k] - its[k]) * (mine[k] - its[k]);
        for (int k = SHIFT; k < ROTATION; k++)
            moved += (mine[k] - its[k]) * (mine[k] - its[k]);
        if (behind <= most && turned < same_rotation * same_rotation && moved < same_shift * same_shift)
            other = false;
    }
    kept[place] = other && mine[SCORE] > records[(long long)RECORD * best + SCORE] - margin;
}
