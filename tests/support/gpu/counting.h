// Included before cuda_shim.h, it makes every float of a CUDA source a number that counts the operations on it.
// A multiply-add is two; a sine, a cosine and an exponential are one each; conversions and comparisons are none.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

extern "C" { long long operations = 0; }

struct Number {
    float v;
    Number() = default;
    Number(float x) : v(x) {}
    Number(double x) : v((float)x) {}
    Number(int x) : v((float)x) {}
    explicit operator int() const { return (int)v; }
    explicit operator double() const { return v; }
};

static inline Number counted(float value) { operations++; return value; }
static inline Number operator+(Number a, Number b) { return counted(a.v + b.v); }
static inline Number operator-(Number a, Number b) { return counted(a.v - b.v); }
static inline Number operator*(Number a, Number b) { return counted(a.v * b.v); }
static inline Number operator/(Number a, Number b) { return counted(a.v / b.v); }
static inline Number operator-(Number a) { return -a.v; }
static inline Number& operator+=(Number& a, Number b) { a = a + b; return a; }
static inline bool operator<(Number a, Number b) { return a.v < b.v; }
static inline bool operator>=(Number a, Number b) { return a.v >= b.v; }
static inline Number expf(Number x) { return counted(std::exp(x.v)); }

#define float Number
