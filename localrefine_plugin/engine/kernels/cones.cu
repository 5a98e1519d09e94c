// CUDA twin of cones.cell_sums: one thread adds up the samples of a cell, in their order.

// order (samples): the samples sorted by cell, those of cell c at begins[c] to begins[c + 1] - 1; out (count, 3).
extern "C" __global__ void cell_sums(
    const int* __restrict__ order, const int* __restrict__ begins, const float2* __restrict__ first,
    const float2* __restrict__ second, int count, double* __restrict__ out)
{
    const int cell = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (cell >= count)
        return;
    double cross = 0.0, power1 = 0.0, power2 = 0.0;
    for (int i = begins[cell]; i < begins[cell + 1]; i++) {
        const float2 a = first[order[i]], b = second[order[i]];
        cross += (double)(a.x * b.x + a.y * b.y);
        power1 += (double)(a.x * a.x + a.y * a.y);
        power2 += (double)(b.x * b.x + b.y * b.y);
    }
    out[3 * (long long)cell] = cross;
    out[3 * (long long)cell + 1] = power1;
    out[3 * (long long)cell + 2] = power2;
}
