// What the kernels of newton.cu and posterior.cu share: rotations, priors and small matrices in float64, as
// model/pose.py and align/prior.py have them. The columns of the arrays are those of poses.py.

#define RECORD 71
#define SHIFT 3
#define ROTATION 5
#define LOG_LIKELIHOOD 14
#define SCORE 15
#define CURVATURE 16
#define PRECISION 41
#define GRADIENT 66

#define WORK 45
#define DAMPING 25
#define STEP 26
#define TRIAL 31

#define IMAGE 63
#define OWN_PRECISION 9
#define MEAN 34
#define FORM 39
#define LAST_ROTATION 48
#define LAST_SHIFT 57
#define MAGNIFICATION 59

#define FULCRUM 3
#define ROTATION_EXTENT 6
#define SHIFT_EXTENT 7
#define TAILS 8

#define NOTHING_KNOWN 1e-9

__device__ __forceinline__ int thread_number()
{
    return (int)(blockIdx.x * blockDim.x + threadIdx.x);
}

__device__ __forceinline__ double dot3(const double* a, const double* b)
{
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

__device__ __forceinline__ void product(const double* a, const double* b, double* c)  // 3 x 3, c = a b
{
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
        for (int j = 0; j < 3; j++)
            c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
}

__device__ __forceinline__ void exp_map(const double* w, double* r)
{
    const double angle2 = dot3(w, w), angle = sqrt(angle2);
    const bool small = angle2 < 1e-12;
    const double a = small ? 1.0 - angle2 / 6.0 : sin(angle) / angle;
    const double b = small ? 0.5 - angle2 / 24.0 : (1.0 - cos(angle)) / (angle * angle);
    const double x = w[0], y = w[1], z = w[2];
    r[0] = 1.0 - b * (y * y + z * z);
    r[1] = b * x * y - a * z;
    r[2] = b * x * z + a * y;
    r[3] = b * x * y + a * z;
    r[4] = 1.0 - b * (x * x + z * z);
    r[5] = b * y * z - a * x;
    r[6] = b * x * z - a * y;
    r[7] = b * y * z + a * x;
    r[8] = 1.0 - b * (x * x + y * y);
}

// w = Log(a^T b)
__device__ __forceinline__ void log_of_turn(const double* a, const double* b, double* w)
{
    double r[9];
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
        for (int j = 0; j < 3; j++)
            r[3 * i + j] = a[i] * b[j] + a[3 + i] * b[3 + j] + a[6 + i] * b[6 + j];
    w[0] = 0.5 * (r[7] - r[5]);
    w[1] = 0.5 * (r[2] - r[6]);
    w[2] = 0.5 * (r[3] - r[1]);
    const double sine = sqrt(dot3(w, w)), cosine = 0.5 * (r[0] + r[4] + r[8] - 1.0);
    const double factor = sine < 1e-7 ? 1.0 + sine * sine / 6.0 : atan2(sine, cosine) / sine;
#pragma unroll
    for (int i = 0; i < 3; i++)
        w[i] *= factor;
}

// The inverse of the right Jacobian, I + [w]x / 2 + c [w]x [w]x.
__device__ __forceinline__ void inverse_right_jacobian(const double* w, double* j)
{
    const double angle2 = dot3(w, w), c = 1.0 / 12.0 + angle2 / 720.0 + angle2 * angle2 / 30240.0;
    const double x = w[0], y = w[1], z = w[2];
    j[0] = 1.0 - c * (y * y + z * z);
    j[1] = c * x * y - 0.5 * z;
    j[2] = c * x * z + 0.5 * y;
    j[3] = c * x * y + 0.5 * z;
    j[4] = 1.0 - c * (x * x + z * z);
    j[5] = c * y * z - 0.5 * x;
    j[6] = c * x * z - 0.5 * y;
    j[7] = c * y * z + 0.5 * x;
    j[8] = 1.0 - c * (x * x + y * y);
}

// out = turned^T v of a 3 x 3 matrix
__device__ __forceinline__ void transposed_times(const double* m, const double* v, double* out)
{
#pragma unroll
    for (int i = 0; i < 3; i++)
        out[i] = m[i] * v[0] + m[3 + i] * v[1] + m[6 + i] * v[2];
}

// P (R - R0) offset
__device__ __forceinline__ void projected(const double* r, const double* r0, const double* offset, double* p)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        p[i] = (r[3 * i] - r0[3 * i]) * offset[0] + (r[3 * i + 1] - r0[3 * i + 1]) * offset[1]
             + (r[3 * i + 2] - r0[3 * i + 2]) * offset[2];
}

// prior.with_tails: the log prior at m2, and its pull relative to a Gaussian's.
__device__ __forceinline__ double log_prior_at(double m2, double tails, double* pull)
{
    *pull = 1.0;
    if (tails == 0.0)
        return -0.5 * m2;
    m2 = fmax(m2, 0.0);
    *pull = (tails + 5.0) / (tails + m2);
    return -0.5 * (tails + 5.0) * log1p(m2 / tails);
}

// a (15: the lower triangle, row by row) becomes L and D of A = L D L^T.
__device__ __forceinline__ void factorise(double* a)
{
#pragma unroll
    for (int i = 0; i < 5; i++) {
#pragma unroll
        for (int j = 0; j < i; j++) {
            double sum = a[i * (i + 1) / 2 + j];
#pragma unroll
            for (int k = 0; k < j; k++)
                sum -= a[i * (i + 1) / 2 + k] * a[j * (j + 1) / 2 + k] * a[k * (k + 3) / 2];
            a[i * (i + 1) / 2 + j] = sum / a[j * (j + 3) / 2];
        }
        double pivot = a[i * (i + 3) / 2];
#pragma unroll
        for (int k = 0; k < i; k++)
            pivot -= a[i * (i + 1) / 2 + k] * a[i * (i + 1) / 2 + k] * a[k * (k + 3) / 2];
        a[i * (i + 3) / 2] = pivot;
    }
}

// x becomes A^-1 x, with a of factorise
__device__ __forceinline__ void solve(const double* a, double* x)
{
#pragma unroll
    for (int i = 1; i < 5; i++)
#pragma unroll
        for (int k = 0; k < i; k++)
            x[i] -= a[i * (i + 1) / 2 + k] * x[k];
#pragma unroll
    for (int i = 4; i >= 0; i--) {
        x[i] /= a[i * (i + 3) / 2];
#pragma unroll
        for (int k = i + 1; k < 5; k++)
            x[i] -= a[k * (k + 1) / 2 + i] * x[k];
    }
}

// The derivatives of a displacement of the prior's point by a right increment of R: -P R [offset]x (2 x 3).
__device__ __forceinline__ void lever(const double* r, const double* offset, double* m)
{
    const double x = offset[0], y = offset[1], z = offset[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const double* row = r + 3 * i;
        m[3 * i] = -(row[1] * z - row[2] * y);
        m[3 * i + 1] = -(row[2] * x - row[0] * z);
        m[3 * i + 2] = -(row[0] * y - row[1] * x);
    }
}

// prior.log_prior: the value; its gradient is added to g (5), and ``factor`` is its pull relative to a Gaussian's.
__device__ __forceinline__ double add_prior(
    const double* image, const double* limits, const double* w, const double* shift, const double* r, double* g,
    double* factor)
{
    double x[5], q[5], j[9], m[6], turned[3];
    projected(r, image, limits, x + 3);
#pragma unroll
    for (int i = 0; i < 3; i++)
        x[i] = w[i];
    x[3] += shift[0];
    x[4] += shift[1];
#pragma unroll
    for (int i = 0; i < 5; i++)
        x[i] -= image[MEAN + i];
    double m2 = 0.0;
#pragma unroll
    for (int i = 0; i < 5; i++) {
        q[i] = 0.0;
#pragma unroll
        for (int k = 0; k < 5; k++)
            q[i] += image[OWN_PRECISION + 5 * i + k] * x[k];
        m2 += x[i] * q[i];
    }
    const double value = log_prior_at(m2, limits[TAILS], factor);
    inverse_right_jacobian(w, j);
    lever(r, limits, m);
    transposed_times(j, q, turned);
#pragma unroll
    for (int i = 0; i < 3; i++)
        g[i] -= *factor * (turned[i] + m[i] * q[3] + m[3 + i] * q[4]);
    g[3] -= *factor * q[3];
    g[4] -= *factor * q[4];
    return value;
}

// reference_errors.SelfNoiseBias.at: S, whose gradient is taken from g (5).
__device__ __forceinline__ double remove_self_noise(
    const double* image, int shells, const float* strength, const float* rates, const double* shift, const double* r,
    double* g)
{
    double w[3], turned[3], j[9], back[3];
    log_of_turn(image + LAST_ROTATION, r, w);
#pragma unroll
    for (int i = 0; i < 3; i++)
        turned[i] = dot3(image + FORM + 3 * i, w);
    const double u[2] = {shift[0] - image[LAST_SHIFT], shift[1] - image[LAST_SHIFT + 1]};
    const float w2 = (float)dot3(w, turned), u2 = (float)(u[0] * u[0] + u[1] * u[1]);
    double sum = 0.0, by_rotation = 0.0, by_shift = 0.0;
    for (int s = 0; s < shells; s++) {
        const float of_rotation = rates[2 * s], of_shift = rates[2 * s + 1];
        const float term = strength[s] * expf(-0.5f * (of_rotation * w2 + of_shift * u2));
        sum += (double)term;
        by_rotation += (double)(term * of_rotation);
        by_shift += (double)(term * of_shift);
    }
    inverse_right_jacobian(w, j);
    transposed_times(j, turned, back);
#pragma unroll
    for (int i = 0; i < 3; i++)
        g[i] += by_rotation * back[i];
    g[3] += by_shift * u[0];
    g[4] += by_shift * u[1];
    return sum;
}

// log likelihood and gradient (5) from the sums of slices.cu, those of the self-noise removed.
__device__ __forceinline__ double likelihood(
    const double* sums, int m, int i, double omega, const double* image, int shells, const float* strength,
    const float* rates, const double* shift, const double* r, double* g)
{
#pragma unroll
    for (int k = 0; k < 3; k++)
        g[k] = sums[(2 + k) * (long long)m + i];
    const double x = omega * sums[5 * (long long)m + i], y = omega * sums[6 * (long long)m + i];
    g[3] = image[MAGNIFICATION] * x + image[MAGNIFICATION + 1] * y;
    g[4] = image[MAGNIFICATION + 2] * x + image[MAGNIFICATION + 3] * y;
    double value = sums[i] - 0.5 * sums[(long long)m + i];
    if (shells > 0)
        value -= remove_self_noise(image, shells, strength, rates, shift, r, g);
    return value;
}

// prior.clip_to_extents: w, the shift and the rotation of the nearest pose inside both extents.
__device__ __forceinline__ void clip(const double* image, const double* limits, double* w, double* shift, double* r)
{
    const double inside = 1.0 - 1e-7;
    double turn[9], at[2];
    const double narrow = fmin(1.0, inside * limits[ROTATION_EXTENT] / fmax(sqrt(dot3(w, w)), 1e-12));
#pragma unroll
    for (int i = 0; i < 3; i++)
        w[i] *= narrow;
    exp_map(w, turn);
    product(image, turn, r);
    projected(r, image, limits + FULCRUM, at);
    const double x = shift[0] + at[0], y = shift[1] + at[1];
    const double factor = fmin(1.0, inside * limits[SHIFT_EXTENT] / fmax(sqrt(x * x + y * y), 1e-12));
    shift[0] = x * factor - at[0];
    shift[1] = y * factor - at[1];
}

// What the kernels of slices.cu take of a pose: rows (2, 3) M^T P R times the grid scale, and the image's shift M^T t.
__device__ __forceinline__ void sampled(
    const double* image, double scale, const double* shift, const double* r, float* rows, float* image_shift)
{
    const double* m = image + MAGNIFICATION;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 3; j++)
            rows[3 * i + j] = (float)(m[i] * (r[j] * scale) + m[2 + i] * (r[3 + j] * scale));
        image_shift[i] = (float)(m[i] * shift[0] + m[2 + i] * shift[1]);
    }
}
