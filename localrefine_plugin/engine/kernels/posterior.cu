// CUDA twins of align/marginalize.py and of what align/ knows of poses before and after the search: one thread for a
// mode, an image, or a rotation of an image's grid, float64. poses.py has the columns of the arrays.

#include "poses.cuh"

#define INSERTION 13
#define CORNERS 4
#define MINUS_INFINITY (-1.0f / 0.0f)

// fixed_point.summable
__device__ __forceinline__ double summable(double value)
{
    return rint(value * 1099511627776.0) / 1099511627776.0;
}

// marginalize.mode_weights (m) and spread_of_modes (n, 5, 5) of modes in the order of their images, best first; the
// thread of an image's first mode does all of them.
extern "C" __global__ void weigh_modes(
    int m, const int* __restrict__ owner, const double* __restrict__ records, double* __restrict__ weights,
    double* __restrict__ spread)
{
    const int begin = thread_number();
    if (begin >= m || (begin > 0 && owner[begin - 1] == owner[begin]))
        return;
    const int image = owner[begin];
    const double* best = records + (long long)RECORD * begin;
    double top = 0.0, total = 0.0, x[5], sum[15] = {0.0};
    for (int i = begin; i < m && owner[i] == image; i++) {
        const double* record = records + (long long)RECORD * i;
        double a[15], log_det = 0.0;
#pragma unroll
        for (int b = 0, s = 0; b < 5; b++)
#pragma unroll
            for (int k = 0; k <= b; k++, s++)
                a[s] = record[PRECISION + 5 * b + k] + (b == k ? NOTHING_KNOWN : 0.0);
        factorise(a);
#pragma unroll
        for (int k = 0; k < 5; k++)
            log_det += log(fabs(a[k * (k + 3) / 2]));
        weights[i] = record[SCORE] - 0.5 * log_det;
        top = i == begin || weights[i] > top ? weights[i] : top;
    }
    for (int i = begin; i < m && owner[i] == image; i++) {
        weights[i] = summable(exp(weights[i] - top));
        total += weights[i];
    }
    for (int i = begin; i < m && owner[i] == image; i++) {
        const double* record = records + (long long)RECORD * i;
        weights[i] /= total;
        log_of_turn(best + ROTATION, record + ROTATION, x);
        x[3] = record[SHIFT] - best[SHIFT];
        x[4] = record[SHIFT + 1] - best[SHIFT + 1];
#pragma unroll
        for (int b = 0, s = 0; b < 5; b++)
#pragma unroll
            for (int k = 0; k <= b; k++, s++)
                sum[s] += summable(weights[i] * x[b] * x[k]);
    }
#pragma unroll
    for (int b = 0, s = 0; b < 5; b++)
#pragma unroll
        for (int k = 0; k <= b; k++, s++)
            spread[25 * image + 5 * b + k] = spread[25 * image + 5 * k + b] = sum[s];
}

// reference_errors.pose_error_covariance of n images; curvature, precision and errors (n, 5, 5), share (n).
extern "C" __global__ void pose_errors(
    int n, const double* __restrict__ curvature, const double* __restrict__ precision, const double* __restrict__ share,
    double* __restrict__ errors)
{
    const int i = thread_number();
    if (i >= n)
        return;
    const double *h = curvature + 25 * i, *q = precision + 25 * i;
    const double lost = 1.0 - share[i];
    double a[15];
#pragma unroll
    for (int b = 0, s = 0; b < 5; b++)
#pragma unroll
        for (int k = 0; k <= b; k++, s++)
            a[s] = q[5 * b + k] + (b == k ? NOTHING_KNOWN : 0.0) - lost * h[5 * b + k];
    factorise(a);
#pragma unroll
    for (int column = 0; column < 5; column++) {
        double x[5] = {0.0}, y[5];
        x[column] = 1.0;
        solve(a, x);
#pragma unroll
        for (int b = 0; b < 5; b++) {
            y[b] = NOTHING_KNOWN * x[b];
#pragma unroll
            for (int k = 0; k < 5; k++)
                y[b] += q[5 * b + k] * x[k];
        }
        solve(a, y);
#pragma unroll
        for (int b = 0; b < 5; b++)
            errors[25 * i + 5 * b + column] = y[b];
    }
}

// One Jacobi rotation of a symmetric matrix and its eigenvectors v: rows and columns P and Q, R the third.
template <int P, int Q, int R> __device__ __forceinline__ void turn(double* s, double* v)
{
    const double off = s[3 * P + Q];
    if (off == 0.0)
        return;
    const double theta = 0.5 * (s[4 * Q] - s[4 * P]) / off;
    const double t = (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + sqrt(theta * theta + 1.0));
    const double c = 1.0 / sqrt(t * t + 1.0), sine = t * c;
    s[4 * P] -= t * off;
    s[4 * Q] += t * off;
    s[3 * P + Q] = s[3 * Q + P] = 0.0;
    const double p = s[3 * R + P], q = s[3 * R + Q];
    s[3 * R + P] = s[3 * P + R] = c * p - sine * q;
    s[3 * R + Q] = s[3 * Q + R] = sine * p + c * q;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        const double a = v[3 * k + P], b = v[3 * k + Q];
        v[3 * k + P] = c * a - sine * b;
        v[3 * k + Q] = sine * a + c * b;
    }
}

// marginalize.posterior_insertions: up to CORNERS insertions of each mode, of which ``used`` (m, CORNERS) are; columns
// rotation (9), shift (2), weight, variance of the shift. Modes are in the order of their images.
extern "C" __global__ void make_insertions(
    int m, const int* __restrict__ owner, const double* __restrict__ records, const double* __restrict__ weights,
    double smallest, double voxels_per_radian, double* __restrict__ insertions, int* __restrict__ used)
{
    const int i = thread_number();
    if (i >= m)
        return;
    const double *record = records + (long long)RECORD * i, *a = record + PRECISION;
    // the shift given the rotation: its covariance is that block's inverse, E[u | w] = -inverse A_uw w
    const double xx = a[18] + NOTHING_KNOWN, xy = a[19], yy = a[24] + NOTHING_KNOWN, det = xx * yy - xy * xy;
    double gain[6], s[9], v[9] = {1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0};
#pragma unroll
    for (int k = 0; k < 3; k++) {
        gain[k] = -(yy * a[15 + k] - xy * a[20 + k]) / det;
        gain[3 + k] = -(xx * a[20 + k] - xy * a[15 + k]) / det;
    }
    // the rotation's precision, whose eigenvectors are the covariance's
#pragma unroll
    for (int b = 0; b < 3; b++)
#pragma unroll
        for (int k = 0; k < 3; k++)
            s[3 * b + k] = a[5 * b + k] + (b == k ? NOTHING_KNOWN : 0.0) + a[5 * b + 3] * gain[k] + a[5 * b + 4] * gain[3 + k];
    for (int sweep = 0; sweep < 8; sweep++) {
        turn<0, 1, 2>(s, v);
        turn<0, 2, 1>(s, v);
        turn<1, 2, 0>(s, v);
    }
    double deviation[3], root[9] = {0.0}, pair[3] = {0.0}, widest = -1.0;
    int count = 0;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        deviation[k] = s[4 * k] > 0.0 ? 1.0 / sqrt(s[4 * k]) : 0.0;
        const bool split = deviation[k] * voxels_per_radian > 0.5;
        count += split;
#pragma unroll
        for (int b = 0; b < 3; b++)
#pragma unroll
            for (int c = 0; c < 3; c++)
                root[3 * b + c] += split ? deviation[k] * v[3 * b + k] * v[3 * c + k] : 0.0;
        if (deviation[k] > widest) {
            widest = deviation[k];
#pragma unroll
            for (int b = 0; b < 3; b++)
                pair[b] = deviation[k] * v[3 * b + k];
        }
    }
    double largest = pair[0];
    largest = fabs(pair[1]) > fabs(largest) ? pair[1] : largest;
    largest = fabs(pair[2]) > fabs(largest) ? pair[2] : largest;
    double total = 0.0;  // of the modes of the image that are not left out
    int first = i;
    while (first > 0 && owner[first - 1] == owner[i])
        first--;
    for (int k = first; k < m && owner[k] == owner[i]; k++)
        total += weights[k] > smallest ? summable(weights[k]) : 0.0;
    const int number = weights[i] > smallest ? (count == 0 ? 1 : count == 1 ? 2 : CORNERS) : 0;
    for (int corner = 0; corner < CORNERS; corner++) {
        used[CORNERS * i + corner] = corner < number;
        if (corner >= number)
            continue;
        double* out = insertions + (long long)INSERTION * (CORNERS * (long long)i + corner);
        const double y = corner == 0 || corner == 2 ? 1.0 : -1.0, x = corner == 0 || corner == 3 ? 1.0 : -1.0;
        const double z = corner < 2 ? 1.0 : -1.0;  // marginalize.TETRAHEDRON
        const double side = (corner == 0 ? 1.0 : -1.0) * (largest < 0.0 ? -1.0 : 1.0);
        double offset[3], about[9];
#pragma unroll
        for (int b = 0; b < 3; b++)
            offset[b] = count == 0 ? 0.0 : count == 1 ? side * pair[b]
                      : root[3 * b] * x + root[3 * b + 1] * y + root[3 * b + 2] * z;
        exp_map(offset, about);
        product(record + ROTATION, about, out);
        out[9] = record[SHIFT] + dot3(gain, offset);
        out[10] = record[SHIFT + 1] + dot3(gain + 3, offset);
        out[11] = summable(weights[i]) / total / (double)number;
        out[12] = 0.5 * (xx + yy) / det;
    }
}

// prior.grid_log_prior added to scores (n, G, S) of grid poses: turns (G, 3, 3) of vectors w (G, 3), shifts (S, 2).
extern "C" __global__ void add_grid_prior(
    int n, int n_rotations, int n_shifts, const double* __restrict__ w, const double* __restrict__ turns,
    const double* __restrict__ shifts, const double* __restrict__ images, const double* __restrict__ limits,
    double reach, float* __restrict__ scores)
{
    const int item = thread_number();
    if (item >= n * n_rotations)
        return;
    const int g = item % n_rotations;
    const double* image = images + (long long)IMAGE * (item / n_rotations);
    const double *q = image + OWN_PRECISION, *mean = image + MEAN;
    double r[9], a[5], of_a[5], at_fulcrum[2], of_rotation = 0.0;
    product(image, turns + 9 * g, r);
    projected(r, image, limits, a + 3);
    projected(r, image, limits + FULCRUM, at_fulcrum);
#pragma unroll
    for (int k = 0; k < 5; k++)
        a[k] = (k < 3 ? w[3 * g + k] : a[k]) - mean[k];
#pragma unroll
    for (int k = 0; k < 5; k++) {
        of_a[k] = 0.0;
#pragma unroll
        for (int b = 0; b < 5; b++)
            of_a[k] += a[b] * q[5 * b + k];
        of_rotation += of_a[k] * a[k];
    }
    const double most = (limits[SHIFT_EXTENT] + reach) * (limits[SHIFT_EXTENT] + reach);
    for (int s = 0; s < n_shifts; s++) {
        const double x = shifts[2 * s], y = shifts[2 * s + 1];
        const double m2 = of_rotation + 2.0 * (of_a[3] * x + of_a[4] * y)
                        + x * (q[18] * x + q[19] * y) + y * (q[23] * x + q[24] * y);
        const double u = at_fulcrum[0] + x, v = at_fulcrum[1] + y;
        double pull;
        float* score = scores + (long long)n_shifts * item + s;
        *score = u * u + v * v > most ? MINUS_INFINITY : *score + (float)log_prior_at(m2, limits[TAILS], &pull);
    }
}

// Sums (n, S) of the pixels of each shell, first (S + 1), of weights (n, K).
extern "C" __global__ void sum_shells(
    int n, int n_shells, int n_pixels, const int* __restrict__ first, const float* __restrict__ weights,
    float* __restrict__ sums)
{
    const int item = thread_number();
    if (item >= n * n_shells)
        return;
    const int shell = item % n_shells;
    const float* row = weights + (long long)n_pixels * (item / n_shells);
    double sum = 0.0;
    for (int k = first[shell]; k < first[shell + 1]; k++)
        sum += (double)row[k];
    sums[item] = (float)sum;
}
