// CUDA twin of moved.py: one thread per voxel adds up what all copies of the map have there.

// map, window and out (nz, ny, nx), turns (n, 3, 3), offsets (n, 3), z y x. Grid: (nz * ny, ceil(nx / block)).
extern "C" __global__ void sum_of_moved(
    const float* __restrict__ map, int nz, int ny, int nx, const float* __restrict__ turns,
    const float* __restrict__ offsets, int n, const float* __restrict__ window, float* __restrict__ out)
{
    const int z = (int)blockIdx.x / ny, y = (int)blockIdx.x % ny, x = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (x >= nx)
        return;
    const long long voxel = ((long long)z * ny + y) * nx + x;
    float sum = 0.0f;
    for (int d = 0; d < n && window[voxel] != 0.0f; ++d) {
        const float* a = turns + 9 * d;
        const float* b = offsets + 3 * d;
        const float qz = a[0] * (float)z + a[1] * (float)y + b[0] + a[2] * (float)x;
        const float qy = a[3] * (float)z + a[4] * (float)y + b[1] + a[5] * (float)x;
        const float qx = a[6] * (float)z + a[7] * (float)y + b[2] + a[8] * (float)x;
        if (qz < 0.0f || qy < 0.0f || qx < 0.0f || qz > (float)(nz - 1) || qy > (float)(ny - 1) || qx > (float)(nx - 1))
            continue;
        const int z0 = min((int)qz, nz - 2), y0 = min((int)qy, ny - 2), x0 = min((int)qx, nx - 2);
        const float fz = qz - (float)z0, fy = qy - (float)y0, fx = qx - (float)x0;
        const float* c = map + ((long long)z0 * ny + y0) * nx + x0;
        const float* e = c + (long long)ny * nx;
        float low = c[0] + fx * (c[1] - c[0]), high = c[nx] + fx * (c[nx + 1] - c[nx]);
        const float front = low + fy * (high - low);
        low = e[0] + fx * (e[1] - e[0]);
        high = e[nx] + fx * (e[nx + 1] - e[nx]);
        const float back = low + fy * (high - low);
        sum += front + fz * (back - front);
    }
    out[voxel] = sum;
}
