// The hot operators as anybody would write them in C++, one thread: the judge of the Numba kernels' speed and values.
// Compiled by operators.py with -O3 -march=native. Layouts are those of engine/kernels/slices.py and insert.py.
#include <cstring>

namespace {

struct Cell {
    long base, sy, sz;
    float x, y, z, fx, fy, fz, sign;
    bool inside;
};

inline Cell locate(const float* a, float kx, float ky, int nz, int ny, int nx) {
    Cell c;
    c.x = a[0] * kx + a[3] * ky;
    c.y = a[1] * kx + a[4] * ky;
    c.z = a[2] * kx + a[5] * ky;
    c.sign = 1.0f;
    if (c.x < 0) {
        c.x = -c.x; c.y = -c.y; c.z = -c.z; c.sign = -1.0f;
    }
    const float yc = c.y + ny / 2, zc = c.z + nz / 2;
    const int x0 = (int)c.x, y0 = (int)yc, z0 = (int)zc;
    c.inside = x0 < nx - 1 && yc >= 0 && y0 < ny - 1 && zc >= 0 && z0 < nz - 1;
    c.fx = c.x - x0; c.fy = yc - y0; c.fz = zc - z0;
    c.sy = 2L * nx; c.sz = 2L * nx * ny;
    c.base = 2L * x0 + c.sy * y0 + c.sz * z0;
    return c;
}

inline void trilinear(const float* v, const Cell& c, float* re, float* im) {
    *re = *im = 0;
    if (!c.inside) return;
    const float gx = 1 - c.fx, gy = 1 - c.fy, gz = 1 - c.fz;
    const float w[4] = {gy * gz, c.fy * gz, gy * c.fz, c.fy * c.fz};
    const long b[4] = {c.base, c.base + c.sy, c.base + c.sz, c.base + c.sy + c.sz};
    for (int i = 0; i < 4; i++) {
        *re += w[i] * (gx * v[b[i]] + c.fx * v[b[i] + 2]);
        *im += w[i] * (gx * v[b[i] + 1] + c.fx * v[b[i] + 3]);
    }
    *im *= c.sign;
}

}  // namespace

extern "C" void extract_slices(const float* v, int nz, int ny, int nx, const float* rows, int m, const float* kx,
                               const float* ky, int n_k, float* out) {
    for (int i = 0; i < m; i++)
        for (int k = 0; k < n_k; k++) {
            float* p = out + 2 * ((long)i * n_k + k);
            trilinear(v, locate(rows + 6 * i, kx[k], ky[k], nz, ny, nx), p, p + 1);
        }
}

extern "C" void score_grid(const float* v, int nz, int ny, int nx, const float* rows, int n, int n_rot,
                           const float* kx, const float* ky, int n_k, const float* matched, int n_shift,
                           const float* weight, float* slice, float* out) {
    for (int i = 0; i < n; i++)
        for (int g = 0; g < n_rot; g++) {
            float power = 0;
            for (int k = 0; k < n_k; k++) {
                float* p = slice + 2 * k;
                trilinear(v, locate(rows + 6 * ((long)i * n_rot + g), kx[k], ky[k], nz, ny, nx), p, p + 1);
                power += weight[(long)i * n_k + k] * (p[0] * p[0] + p[1] * p[1]);
            }
            for (int s = 0; s < n_shift; s++) {
                const float* b = matched + ((long)i * n_shift + s) * 2 * n_k;
                float sum = 0;
                for (int k = 0; k < 2 * n_k; k++) sum += slice[k] * b[k];
                out[((long)i * n_rot + g) * n_shift + s] = sum - 0.5f * power;
            }
        }
}

// 22 sums as unpack_sums takes them: Re<Z,P>, W|P|^2, gradient (5), curvature (15)
extern "C" void gauss_newton_sums(const float* v, int nz, int ny, int nx, const float* rows, int m, const float* phase_x,
                                  const float* phase_y, int max_k, const float* kx, const float* ky, int n_k,
                                  const float* matched, const float* weight, int curvature, double* out) {
    for (int i = 0; i < m; i++) {
        const float *z = matched + (long)i * 2 * n_k, *w_i = weight + (long)i * n_k;
        const float *ex = phase_x + (long)i * 2 * (max_k + 1), *ey = phase_y + (long)i * 2 * (2 * max_k + 1);
        float t[22];
        double* sums = out + 22L * i;
        std::memset(sums, 0, 22 * sizeof(double));
        for (int start = 0; start < n_k; start += 128) {
            std::memset(t, 0, sizeof t);
            for (int k = start; k < n_k && k < start + 128; k++) {
                const Cell c = locate(rows + 6 * i, kx[k], ky[k], nz, ny, nx);
                float p[2] = {0, 0}, d[3][2] = {{0, 0}, {0, 0}, {0, 0}};
                if (c.inside)
                    for (int part = 0; part < 2; part++) {
                        const float *a = v + c.base + part, *b = a + c.sy, *e = a + c.sz, *f = b + c.sz;
                        const float gx = 1 - c.fx, gy = 1 - c.fy, gz = 1 - c.fz;
                        const float e00 = gx * a[0] + c.fx * a[2], e10 = gx * b[0] + c.fx * b[2];
                        const float e01 = gx * e[0] + c.fx * e[2], e11 = gx * f[0] + c.fx * f[2];
                        const float f0 = gy * e00 + c.fy * e10, f1 = gy * e01 + c.fy * e11, dz = f1 - f0;
                        const float dy = gz * (e10 - e00) + c.fz * (e11 - e01);
                        const float dx = gz * (gy * (a[2] - a[0]) + c.fy * (b[2] - b[0])) +
                                         c.fz * (gy * (e[2] - e[0]) + c.fy * (f[2] - f[0]));
                        const float s = part ? c.sign : 1.0f;
                        p[part] = s * (gz * f0 + c.fz * f1);
                        d[0][part] = s * (dy * c.z - dz * c.y);
                        d[1][part] = s * (dz * c.x - dx * c.z);
                        d[2][part] = s * (dx * c.y - dy * c.x);
                    }
                const int ix = (int)kx[k], iy = (int)ky[k] + max_k;
                const float cos = ex[2 * ix] * ey[2 * iy] - ex[2 * ix + 1] * ey[2 * iy + 1];
                const float sin = ex[2 * ix] * ey[2 * iy + 1] + ex[2 * ix + 1] * ey[2 * iy];
                const float zr = z[2 * k] * cos - z[2 * k + 1] * sin, zi = z[2 * k] * sin + z[2 * k + 1] * cos;
                const float w = w_i[k], er = zr - w * p[0], ei = zi - w * p[1], x = kx[k], y = ky[k];
                const float cross = zr * p[1] - zi * p[0];
                t[0] += zr * p[0] + zi * p[1];
                t[1] += w * (p[0] * p[0] + p[1] * p[1]);
                for (int j = 0; j < 3; j++) t[2 + j] += er * d[j][0] + ei * d[j][1];
                t[5] += cross * x;
                t[6] += cross * y;
                if (!curvature) continue;
                int at = 7;
                for (int j = 0; j < 3; j++)
                    for (int l = j; l < 3; l++) t[at++] += w * (d[j][0] * d[l][0] + d[j][1] * d[l][1]);
                for (int j = 0; j < 3; j++) {
                    const float mixed = w * (d[j][0] * p[1] - d[j][1] * p[0]);
                    t[at++] += mixed * x;
                    t[at++] += mixed * y;
                }
                const float power = w * (p[0] * p[0] + p[1] * p[1]);
                t[at++] += power * x * x;
                t[at++] += power * x * y;
                t[at++] += power * y * y;
            }
            for (int j = 0; j < 22; j++) sums[j] += t[j];
        }
    }
}

// accumulator (nx, nz, ny, 3); image rows ky = -M … M, columns kx = 0 … M
extern "C" void insert_slices(float* acc, int nx, int nz, int ny, const float* rows, const int* owner, int m,
                              const float* phase_x, const float* phase_y, int max_k, const int* last_column,
                              const float* image, const float* weight) {
    const int height = 2 * max_k + 1, width = max_k + 1;
    for (int i = 0; i < m; i++)
        for (int iy = 0; iy < height; iy++)
            for (int k = iy >= max_k ? 0 : 1; k <= last_column[iy]; k++) {
                const float *a = rows + 6 * i, kx = k, ky = iy - max_k;
                float x = a[0] * kx + a[3] * ky, y = a[1] * kx + a[4] * ky, z = a[2] * kx + a[5] * ky, sign = 1;
                if (x < 0) { x = -x; y = -y; z = -z; sign = -1; }
                y += ny / 2; z += nz / 2;
                const int x0 = (int)x, y0 = (int)y, z0 = (int)z;
                if (x0 + 1 >= nx || y < 0 || z < 0 || y0 >= ny - 1 || z0 >= nz - 1) continue;
                const float *ex = phase_x + ((long)i * width + k) * 2, *ey = phase_y + ((long)i * height + iy) * 2;
                const float cos = ex[0] * ey[0] - ex[1] * ey[1], sin = ex[0] * ey[1] + ex[1] * ey[0];
                const long at = ((long)owner[i] * height + iy) * width + k;
                const float zr = image[2 * at], zi = image[2 * at + 1];
                const float value[3] = {zr * cos - zi * sin, sign * (zr * sin + zi * cos), weight[at]};
                const float fx = x - x0, fy = y - y0, fz = z - z0;
                for (int dx = 0; dx < 2; dx++)
                    for (int dz = 0; dz < 2; dz++)
                        for (int dy = 0; dy < 2; dy++) {
                            const float t = (dx ? fx : 1 - fx) * (dz ? fz : 1 - fz) * (dy ? fy : 1 - fy);
                            float* cell = acc + 3 * ((((long)x0 + dx) * nz + z0 + dz) * ny + y0 + dy);
                            for (int c = 0; c < 3; c++) cell[c] += t * value[c];
                        }
            }
}
