// CUDA twins of slices.py: slices of a Fourier volume and the sums over their pixels.
// One thread per output or per lane of an output; no barriers, shared memory, textures or shuffles.
// The volume v is (nz, ny, nx) of the half x >= 0, zero frequency at [nz / 2, ny / 2, 0]; rows (items, 2, 3) are the
// first two rows of each rotation times the grid scale.

#define SUMS_OF_GRADIENT 7
#define SUMS 22

struct Cell {
    float x, y, z;     // scale * R^T k, folded to x >= 0
    float fx, fy, fz;  // fractions inside the cell
    float sign;        // -1 where it was folded
    long long base;    // index of the cell's lowest corner
    bool inside;
};

__device__ __forceinline__ Cell locate(const float* row, float kx, float ky, int nx, int ny, int nz)
{
    Cell c;
    c.x = row[0] * kx + row[3] * ky;
    c.y = row[1] * kx + row[4] * ky;
    c.z = row[2] * kx + row[5] * ky;
    c.sign = 1.0f;
    if (c.x < 0.0f) {
        c.x = -c.x;
        c.y = -c.y;
        c.z = -c.z;
        c.sign = -1.0f;
    }
    const float yc = c.y + (float)(ny / 2), zc = c.z + (float)(nz / 2);
    const int x0 = (int)c.x, y0 = (int)yc, z0 = (int)zc;
    c.inside = x0 < nx - 1 && yc >= 0.0f && y0 < ny - 1 && zc >= 0.0f && z0 < nz - 1;
    c.fx = c.x - (float)x0;
    c.fy = yc - (float)y0;
    c.fz = zc - (float)z0;
    c.base = ((long long)z0 * ny + y0) * nx + x0;
    return c;
}

__device__ __forceinline__ float2 slice_value(const float2* v, const Cell& c, int nx, int ny)
{
    float2 p;
    p.x = 0.0f;
    p.y = 0.0f;
    if (!c.inside)
        return p;
    const float gx = 1.0f - c.fx, gy = 1.0f - c.fy, gz = 1.0f - c.fz;
    const float2* a = v + c.base;
    const float2* b = a + (long long)nx * ny;
    const float w0 = gy * gz, w1 = c.fy * gz, w2 = gy * c.fz, w3 = c.fy * c.fz;
    p.x = gx * (w0 * a[0].x + w1 * a[nx].x + w2 * b[0].x + w3 * b[nx].x)
        + c.fx * (w0 * a[1].x + w1 * a[nx + 1].x + w2 * b[1].x + w3 * b[nx + 1].x);
    p.y = c.sign * (gx * (w0 * a[0].y + w1 * a[nx].y + w2 * b[0].y + w3 * b[nx].y)
        + c.fx * (w0 * a[1].y + w1 * a[nx + 1].y + w2 * b[1].y + w3 * b[nx + 1].y));
    return p;
}

// One thread per pixel of a slice. Grid: (items, ceil(n_k / block)).
extern "C" __global__ void extract_slices(
    const float2* __restrict__ v, int nz, int ny, int nx, const float* __restrict__ rows,
    const float* __restrict__ kx, const float* __restrict__ ky, int n_k, float2* __restrict__ out)
{
    const long long item = blockIdx.x;
    const int k = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (k >= n_k)
        return;
    const Cell c = locate(rows + 6 * item, kx[k], ky[k], nx, ny, nz);
    out[item * n_k + k] = slice_value(v, c, nx, ny);
}

// Slices, and lane by lane the sums of W |P|^2, W of particle item / n_rot. Grid: (items, 1), block: lanes.
extern "C" __global__ void slices_and_power(
    const float2* __restrict__ v, int nz, int ny, int nx, const float* __restrict__ rows,
    const float* __restrict__ kx, const float* __restrict__ ky, int n_k,
    const float* __restrict__ weight, int n_rot, float2* __restrict__ out, float* __restrict__ power)
{
    const long long item = blockIdx.x;
    const float* w = weight + (item / n_rot) * n_k;
    float sum = 0.0f;
    for (int k = (int)threadIdx.x; k < n_k; k += (int)blockDim.x) {
        const Cell c = locate(rows + 6 * item, kx[k], ky[k], nx, ny, nz);
        const float2 p = slice_value(v, c, nx, ny);
        out[item * n_k + k] = p;
        sum += w[k] * (p.x * p.x + p.y * p.y);
    }
    power[item * blockDim.x + threadIdx.x] = sum;
}

struct Jet {
    float2 p;           // slice
    float2 d0, d1, d2;  // its derivatives by the right increment of R, radians
};

// Value and derivative D = grad V x q by component of the complex value: m = 0 real, 1 imaginary (times the fold's sign).
__device__ __forceinline__ void jet_component(
    float v000, float v100, float v010, float v110, float v001, float v101, float v011, float v111,
    const Cell& c, float s, float& p, float& d0, float& d1, float& d2)
{
    const float gx = 1.0f - c.fx, gy = 1.0f - c.fy, gz = 1.0f - c.fz;
    const float e00 = gx * v000 + c.fx * v100, e10 = gx * v010 + c.fx * v110;
    const float e01 = gx * v001 + c.fx * v101, e11 = gx * v011 + c.fx * v111;
    const float f0 = gy * e00 + c.fy * e10, f1 = gy * e01 + c.fy * e11;
    const float dz = f1 - f0;
    const float dy = gz * (e10 - e00) + c.fz * (e11 - e01);
    const float dx = gz * (gy * (v100 - v000) + c.fy * (v110 - v010)) + c.fz * (gy * (v101 - v001) + c.fy * (v111 - v011));
    p = s * (gz * f0 + c.fz * f1);
    d0 = s * (dy * c.z - dz * c.y);
    d1 = s * (dz * c.x - dx * c.z);
    d2 = s * (dx * c.y - dy * c.x);
}

__device__ __forceinline__ Jet slice_jet(const float2* v, const Cell& c, int nx, int ny)
{
    Jet j;
    j.p.x = j.p.y = j.d0.x = j.d0.y = j.d1.x = j.d1.y = j.d2.x = j.d2.y = 0.0f;
    if (!c.inside)
        return j;
    const float2* a = v + c.base;
    const float2* b = a + (long long)nx * ny;
    const float2 v000 = a[0], v100 = a[1], v010 = a[nx], v110 = a[nx + 1];
    const float2 v001 = b[0], v101 = b[1], v011 = b[nx], v111 = b[nx + 1];
    jet_component(v000.x, v100.x, v010.x, v110.x, v001.x, v101.x, v011.x, v111.x, c, 1.0f, j.p.x, j.d0.x, j.d1.x, j.d2.x);
    jet_component(v000.y, v100.y, v010.y, v110.y, v001.y, v101.y, v011.y, v111.y, c, c.sign, j.p.y, j.d0.y, j.d1.y, j.d2.y);
    return j;
}

// e^{2 pi i k.u / N} Z
__device__ __forceinline__ float2 shifted(float2 z, float kx, float ky, const float* u, float two_over_n)
{
    float sine, cosine;
    sincospif(two_over_n * (kx * u[0] + ky * u[1]), &sine, &cosine);
    float2 out;
    out.x = z.x * cosine - z.y * sine;
    out.y = z.x * sine + z.y * cosine;
    return out;
}

__device__ __forceinline__ void add_gradient(float* t, const Jet& j, float2 z, float w, float kx, float ky)
{
    const float er = z.x - w * j.p.x, ei = z.y - w * j.p.y;
    const float cross = z.x * j.p.y - z.y * j.p.x;  // Re(conj(Z) (-i) P)
    t[0] += z.x * j.p.x + z.y * j.p.y;
    t[1] += w * (j.p.x * j.p.x + j.p.y * j.p.y);
    t[2] += er * j.d0.x + ei * j.d0.y;
    t[3] += er * j.d1.x + ei * j.d1.y;
    t[4] += er * j.d2.x + ei * j.d2.y;
    t[5] += cross * kx;
    t[6] += cross * ky;
}

__device__ __forceinline__ void add_curvature(float* t, const Jet& j, float w, float kx, float ky)
{
    t[7] += w * (j.d0.x * j.d0.x + j.d0.y * j.d0.y);
    t[8] += w * (j.d0.x * j.d1.x + j.d0.y * j.d1.y);
    t[9] += w * (j.d0.x * j.d2.x + j.d0.y * j.d2.y);
    t[10] += w * (j.d1.x * j.d1.x + j.d1.y * j.d1.y);
    t[11] += w * (j.d1.x * j.d2.x + j.d1.y * j.d2.y);
    t[12] += w * (j.d2.x * j.d2.x + j.d2.y * j.d2.y);
    // Re(conj(D) (-i) P) = D_re P_im - D_im P_re
    const float c0 = w * (j.d0.x * j.p.y - j.d0.y * j.p.x);
    const float c1 = w * (j.d1.x * j.p.y - j.d1.y * j.p.x);
    const float c2 = w * (j.d2.x * j.p.y - j.d2.y * j.p.x);
    const float power = w * (j.p.x * j.p.x + j.p.y * j.p.y);
    t[13] += c0 * kx;
    t[14] += c0 * ky;
    t[15] += c1 * kx;
    t[16] += c1 * ky;
    t[17] += c2 * kx;
    t[18] += c2 * ky;
    t[19] += power * kx * kx;
    t[20] += power * kx * ky;
    t[21] += power * ky * ky;
}

// Each thread is a lane: it sums pixels lane, lane + lanes, ... of the first n_pixels of one item, of particle owner[item].
// out (sums, items, lanes); n_k is the row length of matched and weight. Grid: (items, 1), block: lanes.
extern "C" __global__ void gradient_sums(
    const float2* __restrict__ v, int nz, int ny, int nx, const float* __restrict__ rows,
    const float* __restrict__ shift, const int* __restrict__ owner, const float* __restrict__ kx,
    const float* __restrict__ ky, int n_pixels, int n_k, const float2* __restrict__ matched,
    const float* __restrict__ weight, float two_over_n, const int* __restrict__ active, float* __restrict__ out)
{
    if (!active[blockIdx.x])
        return;
    const long long item = blockIdx.x, first = (long long)owner[item] * n_k;
    float t[SUMS_OF_GRADIENT] = {0.0f};
    for (int k = (int)threadIdx.x; k < n_pixels; k += (int)blockDim.x) {
        const Jet j = slice_jet(v, locate(rows + 6 * item, kx[k], ky[k], nx, ny, nz), nx, ny);
        const float2 z = shifted(matched[first + k], kx[k], ky[k], shift + 2 * item, two_over_n);
        add_gradient(t, j, z, weight[first + k], kx[k], ky[k]);
    }
    for (int s = 0; s < SUMS_OF_GRADIENT; s++)
        out[(s * (long long)gridDim.x + item) * blockDim.x + threadIdx.x] = t[s];
}

extern "C" __global__ void curvature_sums(
    const float2* __restrict__ v, int nz, int ny, int nx, const float* __restrict__ rows,
    const float* __restrict__ shift, const int* __restrict__ owner, const float* __restrict__ kx,
    const float* __restrict__ ky, int n_pixels, int n_k, const float2* __restrict__ matched,
    const float* __restrict__ weight, float two_over_n, float* __restrict__ out)
{
    const long long item = blockIdx.x, first = (long long)owner[item] * n_k;
    float t[SUMS] = {0.0f};
    for (int k = (int)threadIdx.x; k < n_pixels; k += (int)blockDim.x) {
        const Jet j = slice_jet(v, locate(rows + 6 * item, kx[k], ky[k], nx, ny, nz), nx, ny);
        const float2 z = shifted(matched[first + k], kx[k], ky[k], shift + 2 * item, two_over_n);
        add_gradient(t, j, z, weight[first + k], kx[k], ky[k]);
        add_curvature(t, j, weight[first + k], kx[k], ky[k]);
    }
    for (int s = 0; s < SUMS; s++)
        out[(s * (long long)gridDim.x + item) * blockDim.x + threadIdx.x] = t[s];
}
