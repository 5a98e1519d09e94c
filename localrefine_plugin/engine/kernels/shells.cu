// CUDA twins of shells.py: sums over shells, of two half-spectra and of the density of an accumulator.
// One thread per plane and shell; it adds its samples row by row, in the order of the CPU.

__device__ __forceinline__ int first_column(long long square)
{
    // the least x >= 0 with x * x >= square
    if (square <= 0)
        return 0;
    int x = (int)sqrt((double)square);
    while ((long long)x * x >= square)
        --x;
    while ((long long)x * x < square)
        ++x;
    return x;
}

// out (n, last + 1, 3) double: power of a, of b, and Re a b*. Grid: (n, ceil((last + 1) / block)).
extern "C" __global__ void shell_sums(
    const float2* __restrict__ a, const float2* __restrict__ b, int n, int last, double* __restrict__ out)
{
    const int z = (int)blockIdx.x, shell = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (shell > last)
        return;
    const int columns = n / 2 + 1, kz = 2 * z < n ? z : n - z;
    double power_a = 0.0, power_b = 0.0, cross = 0.0;
    for (int y = 0; y < n; ++y) {
        const int ky = 2 * y < n ? y : n - y;
        const long long base = (long long)kz * kz + (long long)ky * ky;
        const long long below = (long long)shell * (shell - 1), upto = (long long)shell * (shell + 1);
        if (base > upto)
            continue;
        int x = shell == 0 ? 0 : first_column(below + 1 - base);
        const long long row = ((long long)z * n + y) * columns;
        double row_a = 0.0, row_b = 0.0, row_cross = 0.0;
        for (; x < columns && base + (long long)x * x <= upto; ++x) {
            const double weight = x == 0 || 2 * x == n ? 1.0 : 2.0;
            const double re_a = a[row + x].x, im_a = a[row + x].y, re_b = b[row + x].x, im_b = b[row + x].y;
            row_a += weight * (re_a * re_a + im_a * im_a);
            row_b += weight * (re_b * re_b + im_b * im_b);
            row_cross += weight * (re_a * re_b + im_a * im_b);
        }
        power_a += row_a;
        power_b += row_b;
        cross += row_cross;
    }
    double* sums = out + ((long long)z * (last + 1) + shell) * 3;
    sums[0] = power_a;
    sums[1] = power_b;
    sums[2] = cross;
}

// density (nx, nz, ny); out (nx, last + 1) double. Grid: (nx, ceil((last + 1) / block)).
extern "C" __global__ void density_sums(
    const float* __restrict__ density, int nz, int ny, int last, double* __restrict__ out)
{
    const int plane = (int)blockIdx.x, shell = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (shell > last)
        return;
    const long long below = (long long)shell * (shell - 1), upto = (long long)shell * (shell + 1);
    double sum = 0.0;
    for (int z = 0; z < nz; ++z) {
        const long long kz = z - nz / 2, base = (long long)plane * plane + kz * kz;
        if (base > upto)
            continue;
        const float* row = density + ((long long)plane * nz + z) * ny;
        const int first = shell == 0 ? 0 : first_column(below + 1 - base);
        double up = 0.0, down = 0.0;
        for (long long y = first; ny / 2 + y < ny && base + y * y <= upto; ++y)
            up += (double)row[ny / 2 + y];
        for (long long y = first > 1 ? first : 1; ny / 2 - y >= 0 && base + y * y <= upto; ++y)
            down += (double)row[ny / 2 - y];
        sum += up;
        sum += down;
    }
    out[(long long)plane * (last + 1) + shell] = sum;
}
