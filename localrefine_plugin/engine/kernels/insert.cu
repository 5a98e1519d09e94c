// CUDA twin of insert.py: images added into a Fourier accumulator, the adjoint of extract_slices.
// One thread per pixel of an insertion, 24 atomic additions each; nothing else is shared between threads.
// accumulator (nx, nz, ny, 3) holds Re N, Im N and D of the half x >= 0, zero frequency at [0, nz / 2, ny / 2],
// as float, or as 64-bit integers (two's complement) whose sums have the same bits in any order.

typedef unsigned long long fixed64;

__device__ __forceinline__ void add(float* sum, float value)
{
    atomicAdd(sum, value);
}

__device__ __forceinline__ void add(fixed64* sum, float value)
{
    atomicAdd(sum, (fixed64)__float2ll_rn(value));
}

template <class Sum>
__device__ __forceinline__ void add_corner(Sum* cell, float tau, float re, float im, float w)
{
    add(cell, tau * re);
    add(cell + 1, tau * im);
    add(cell + 2, tau * w);
}

// The scales, powers of two, are those of fixed-point sums, and 1 for float.
template <class Sum>
__device__ __forceinline__ void insert_pixel(
    const float* __restrict__ rows, const int* __restrict__ owner, const float* __restrict__ gamma,
    const float* __restrict__ shift, const float* __restrict__ variance, const int* __restrict__ last_column,
    const float2* __restrict__ image, const float* __restrict__ weight, int max_k, float two_over_n,
    int nx, int nz, int ny, float signal_scale, float weight_scale, Sum* __restrict__ accumulator)
{
    const long long item = blockIdx.x;
    const int pixel = (int)(blockIdx.y * blockDim.x + threadIdx.x), width = max_k + 1;
    const int iy = pixel / width, ix = pixel % width;
    // the column kx = 0 holds Friedel pairs: its half ky >= 0 is enough
    if (iy > 2 * max_k || ix > last_column[iy] || (ix == 0 && iy < max_k))
        return;
    const float kx = (float)ix, ky = (float)(iy - max_k);
    const float* row = rows + 6 * item;
    float x = row[0] * kx + row[3] * ky, y = row[1] * kx + row[4] * ky, z = row[2] * kx + row[5] * ky, sign = 1.0f;
    if (x < 0.0f) {
        x = -x;
        y = -y;
        z = -z;
        sign = -1.0f;
    }
    y += (float)(ny / 2);
    z += (float)(nz / 2);
    const int x0 = (int)x, y0 = (int)y, z0 = (int)z;
    if (x0 >= nx - 1 || y < 0.0f || y0 >= ny - 1 || z < 0.0f || z0 >= nz - 1)
        return;

    float sine, cosine;
    sincospif(two_over_n * (kx * shift[2 * item] + ky * shift[2 * item + 1]), &sine, &cosine);
    const float pi_over_n = 1.57079632679489662f * two_over_n;
    const float damping = signal_scale * gamma[item] * expf(-2.0f * pi_over_n * pi_over_n * variance[item] * (kx * kx + ky * ky));
    const long long source = (long long)owner[item] * (2 * max_k + 1) * width + pixel;
    const float2 value = image[source];
    const float re = damping * (value.x * cosine - value.y * sine);
    const float im = sign * damping * (value.x * sine + value.y * cosine);
    const float w = weight_scale * gamma[item] * weight[source];

    const float fx = x - (float)x0, fy = y - (float)y0, fz = z - (float)z0;
    const float gx = 1.0f - fx, gy = 1.0f - fy, gz = 1.0f - fz;
    Sum* near = accumulator + 3 * (((long long)x0 * nz + z0) * ny + y0);
    Sum* far = near + 3 * (long long)nz * ny;
    add_corner(near, gx * gy * gz, re, im, w);
    add_corner(near + 3, gx * fy * gz, re, im, w);
    add_corner(near + 3 * ny, gx * gy * fz, re, im, w);
    add_corner(near + 3 * ny + 3, gx * fy * fz, re, im, w);
    add_corner(far, fx * gy * gz, re, im, w);
    add_corner(far + 3, fx * fy * gz, re, im, w);
    add_corner(far + 3 * ny, fx * gy * fz, re, im, w);
    add_corner(far + 3 * ny + 3, fx * fy * fz, re, im, w);
}

// Grid of both: (insertions, ceil((2 max_k + 1) (max_k + 1) / block)).
extern "C" __global__ void insert_slices(
    const float* __restrict__ rows, const int* __restrict__ owner, const float* __restrict__ gamma,
    const float* __restrict__ shift, const float* __restrict__ variance, const int* __restrict__ last_column,
    const float2* __restrict__ image, const float* __restrict__ weight, int max_k, float two_over_n,
    int nx, int nz, int ny, float* __restrict__ accumulator)
{
    insert_pixel(rows, owner, gamma, shift, variance, last_column, image, weight, max_k, two_over_n, nx, nz, ny,
                 1.0f, 1.0f, accumulator);
}

extern "C" __global__ void insert_slices_fixed(
    const float* __restrict__ rows, const int* __restrict__ owner, const float* __restrict__ gamma,
    const float* __restrict__ shift, const float* __restrict__ variance, const int* __restrict__ last_column,
    const float2* __restrict__ image, const float* __restrict__ weight, int max_k, float two_over_n,
    int nx, int nz, int ny, float signal_scale, float weight_scale, fixed64* __restrict__ accumulator)
{
    insert_pixel(rows, owner, gamma, shift, variance, last_column, image, weight, max_k, two_over_n, nx, nz, ny,
                 signal_scale, weight_scale, accumulator);
}
