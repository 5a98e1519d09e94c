// What a CUDA source needs to be C++: qualifiers, built-in variables, the few functions our kernels call.
// A launch is a loop over the grid and the block, from the end with BACKWARDS; with several workers they share out the
// blocks, as a GPU would.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline

using std::min;

struct float2 { float x, y; };
struct Extent { unsigned x, y, z; };
static thread_local Extent blockIdx, threadIdx, blockDim, gridDim;

static inline float atomicAdd(float* address, float value)
{
    float before, after;
    __atomic_load(address, &before, __ATOMIC_RELAXED);
    do
        after = before + value;
    while (!__atomic_compare_exchange(address, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}

static inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value)
{
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static inline long long __float2ll_rn(float x)
{
    return std::llrint((double)x);
}

static inline void sincospif(float x, float* sine, float* cosine)
{
    const double angle = 3.14159265358979323846 * std::fmod((double)x, 2.0);
    *sine = (float)std::sin(angle);
    *cosine = (float)std::cos(angle);
}

template <class Kernel> static void over_grid(Extent grid, Extent block, int workers, Kernel kernel)
{
    auto share = [=](int worker) {
        gridDim = grid;
        blockDim = block;
        const unsigned long long count = (unsigned long long)grid.x * grid.y;
        for (unsigned long long i = worker; i < count; i += workers)
            for (unsigned j = 0; j < block.x; j++) {
#ifdef BACKWARDS
                const unsigned long long b = count - 1 - i;
                const unsigned t = block.x - 1 - j;
#else
                const unsigned long long b = i;
                const unsigned t = j;
#endif
                blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x), 0};
                threadIdx = {t, 0, 0};
                kernel();
            }
    };
    if (workers == 1) {
        share(0);
        return;
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; i++)
        threads.emplace_back(share, i);
    for (auto& thread : threads)
        thread.join();
}
