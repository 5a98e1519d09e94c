// CUDA twin of distance.py: one thread per voxel looks along one axis for what is nearest.

// squares, out (count) int32; ``stride`` from a voxel to the next one of the axis, which has ``length`` of them.
extern "C" __global__ void nearest_along(
    const int* __restrict__ squares, int count, int length, int stride, int reach, int* __restrict__ out)
{
    const int voxel = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (voxel >= count)
        return;
    const int place = voxel / stride % length;
    int best = squares[voxel];
    for (int step = 1; step <= reach && step * step < best; step++) {
        if (step <= place)
            best = min(best, step * step + squares[voxel - step * stride]);
        if (step < length - place)
            best = min(best, step * step + squares[voxel + step * stride]);
    }
    out[voxel] = best;
}
