// CUDA twin of fixed_point.exact_sums: the sum of n images pixel by pixel, in 64-bit integers.
// A thread adds up a pixel of some images; neighbouring threads read neighbouring pixels.

typedef unsigned long long fixed64;

// out (count) starts as zeros; two's complement. Grid: (ceil(count / block), ceil(n / images)).
extern "C" __global__ void exact_sums(
    const float* __restrict__ values, const double* __restrict__ scale, const float* __restrict__ factor, int n,
    int images, int count, fixed64* __restrict__ out)
{
    const int pixel = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (pixel >= count)
        return;
    const int first = (int)blockIdx.y * images, end = first + images < n ? first + images : n;
    const double largest = 1125899906842624.0;  // fixed_point.LARGEST_TERM
    long long sum = 0;
    for (int i = first; i < end; ++i) {
        const double term = scale[pixel] * (double)(factor[i] * values[(long long)i * count + pixel]);
        sum += llrint(fmin(fmax(term, -largest), largest));
    }
    atomicAdd(out + pixel, (fixed64)sum);
}
