"""Central slices of a Fourier volume, and the sums over their pixels that the search needs.

The volume ``ft`` (nz, ny, nx) complex64 is the half x ≥ 0 of a Hermitian transform, sampled on a
grid ``scale`` times finer than the image's frequencies; (kx, ky, kz) = 0 lies at
[nz // 2, ny // 2, 0]. A slice at rotation R takes, at image frequency (kx, ky),

    P(kx, ky) = V(scale·Rᵀ(kx, ky, 0)),  trilinear; where x < 0:  P = conj V(−q).

Only the first two rows of R matter; ``rows`` (..., 2, 3) float32 holds them already times scale.
Outside the stored volume the slice is zero. Each operator has a Numba twin here and a CUDA twin
in slices.cu; the readable oracle is tests/oracles.py.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numba import njit, prange

from . import cuda
from .device import array_module

Array = Any
N_SUMS = 22
SUM_OF_CURVATURE = np.array([[7, 8, 9, 13, 14], [8, 10, 11, 15, 16], [9, 11, 12, 17, 18], [13, 15, 17, 19, 20],
                             [14, 16, 18, 20, 21]])  # where each entry of the curvature is among the sums
CHUNK = 128  # pixels whose slice values stay in L1 between the gather and the sums


@njit(inline="always", fastmath=True)
def _locate(rows, kx, ky, half_y, half_z, nx):  # type: ignore[no-untyped-def]
    """Cell and fractions of scale·Rᵀk, folded to x ≥ 0; ``sign`` is −1 where it was folded."""
    x = rows[0, 0] * kx + rows[1, 0] * ky
    y = rows[0, 1] * kx + rows[1, 1] * ky
    z = rows[0, 2] * kx + rows[1, 2] * ky
    sign = np.float32(1.0)
    if x < 0:
        x, y, z, sign = -x, -y, -z, np.float32(-1.0)
    yc, zc = y + np.float32(half_y), z + np.float32(half_z)
    x0, y0, z0 = np.int32(x), np.int32(yc), np.int32(zc)
    inside = (x0 < nx - 1) and (yc >= 0) and (y0 < 2 * half_y) and (zc >= 0) and (z0 < 2 * half_z)
    return x, y, z, x0, y0, z0, x - np.float32(x0), yc - np.float32(y0), zc - np.float32(z0), sign, inside


@njit(inline="always", fastmath=True)
def _trilinear(v, base, sy, sz, fx, fy, fz):  # type: ignore[no-untyped-def]
    """Real and imaginary part from interleaved floats; base, sy, sz in floats."""
    one = np.float32(1.0)
    gx, gy, gz = one - fx, one - fy, one - fz
    b1 = base + sy
    b2 = base + sz
    b3 = b2 + sy
    w0, w1, w2, w3 = gy * gz, fy * gz, gy * fz, fy * fz
    re = gx * (w0 * v[base] + w1 * v[b1] + w2 * v[b2] + w3 * v[b3]) + fx * (
        w0 * v[base + 2] + w1 * v[b1 + 2] + w2 * v[b2 + 2] + w3 * v[b3 + 2])
    im = gx * (w0 * v[base + 1] + w1 * v[b1 + 1] + w2 * v[b2 + 1] + w3 * v[b3 + 1]) + fx * (
        w0 * v[base + 3] + w1 * v[b1 + 3] + w2 * v[b2 + 3] + w3 * v[b3 + 3])
    return re, im


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _extract_cpu(v, shape, rows, kx, ky, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    sy, sz = 2 * nx, 2 * nx * ny
    for i in prange(rows.shape[0]):
        a = rows[i]
        for k in range(kx.shape[0]):
            x, y, z, x0, y0, z0, fx, fy, fz, sign, inside = _locate(a, kx[k], ky[k], ny // 2, nz // 2, nx)
            re, im = np.float32(0.0), np.float32(0.0)
            if inside:
                re, im = _trilinear(v, 2 * x0 + sy * y0 + sz * z0, sy, sz, fx, fy, fz)
            out[i, 2 * k] = re
            out[i, 2 * k + 1] = sign * im


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _score_grid_cpu(v, shape, rows, kx, ky, matched, weight, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    sy, sz = 2 * nx, 2 * nx * ny
    n, n_rot = rows.shape[0], rows.shape[1]
    n_k, n_shift = kx.shape[0], matched.shape[1]
    for task in prange(n * n_rot):
        i, g = task // n_rot, task % n_rot
        a = rows[i, g]
        p = np.empty(2 * n_k, np.float32)
        power = np.float32(0.0)
        for k in range(n_k):
            x, y, z, x0, y0, z0, fx, fy, fz, sign, inside = _locate(a, kx[k], ky[k], ny // 2, nz // 2, nx)
            re, im = np.float32(0.0), np.float32(0.0)
            if inside:
                re, im = _trilinear(v, 2 * x0 + sy * y0 + sz * z0, sy, sz, fx, fy, fz)
            p[2 * k] = re
            p[2 * k + 1] = sign * im
            power += weight[i, k] * (re * re + im * im)
        half_power = np.float32(0.5) * power
        for s in range(0, n_shift - 3, 4):  # four rows at once: one load of p feeds four products
            b0, b1, b2, b3 = matched[i, s], matched[i, s + 1], matched[i, s + 2], matched[i, s + 3]
            c0, c1, c2, c3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for k in range(2 * n_k):
                q = p[k]
                c0 += q * b0[k]
                c1 += q * b1[k]
                c2 += q * b2[k]
                c3 += q * b3[k]
            out[i, g, s] = c0 - half_power
            out[i, g, s + 1] = c1 - half_power
            out[i, g, s + 2] = c2 - half_power
            out[i, g, s + 3] = c3 - half_power
        for s in range(n_shift - n_shift % 4, n_shift):
            b0 = matched[i, s]
            c0 = np.float32(0.0)
            for k in range(2 * n_k):
                c0 += p[k] * b0[k]
            out[i, g, s] = c0 - half_power


@njit(fastmath=True)
def _gather_chunk(v, nx, ny, nz, a, kx, ky, zre_in, phase_x, phase_y, max_k, start, stop, buf):  # type: ignore[no-untyped-def]
    """Fill ``buf`` rows: P, D_x, D_y, D_z (re, im each), shifted Z (re, im) for pixels start … stop."""
    sy, sz = 2 * nx, 2 * nx * ny
    one = np.float32(1.0)
    for k in range(start, stop):
        j = k - start
        x, y, z, x0, y0, z0, fx, fy, fz, sign, inside = _locate(a, kx[k], ky[k], ny // 2, nz // 2, nx)
        if inside:
            b0 = 2 * x0 + sy * y0 + sz * z0
            b1, b2 = b0 + sy, b0 + sz
            b3 = b2 + sy
            gx, gy, gz = one - fx, one - fy, one - fz
            for c in range(2):
                v000, v100 = v[b0 + c], v[b0 + 2 + c]
                v010, v110 = v[b1 + c], v[b1 + 2 + c]
                v001, v101 = v[b2 + c], v[b2 + 2 + c]
                v011, v111 = v[b3 + c], v[b3 + 2 + c]
                e00, e10 = gx * v000 + fx * v100, gx * v010 + fx * v110
                e01, e11 = gx * v001 + fx * v101, gx * v011 + fx * v111
                f0, f1 = gy * e00 + fy * e10, gy * e01 + fy * e11
                d_z = f1 - f0
                d_y = gz * (e10 - e00) + fz * (e11 - e01)
                d_x = gz * (gy * (v100 - v000) + fy * (v110 - v010)) + fz * (gy * (v101 - v001) + fy * (v111 - v011))
                s = one if c == 0 else sign
                buf[c, j] = s * (gz * f0 + fz * f1)
                buf[2 + c, j] = s * (d_y * z - d_z * y)  # D = ∇V × q, q folded as V was
                buf[4 + c, j] = s * (d_z * x - d_x * z)
                buf[6 + c, j] = s * (d_x * y - d_y * x)
        else:
            for c in range(8):
                buf[c, j] = np.float32(0.0)
        ix, iy = np.int32(kx[k]), np.int32(ky[k]) + max_k
        cx, sx, cy, s_y = phase_x[2 * ix], phase_x[2 * ix + 1], phase_y[2 * iy], phase_y[2 * iy + 1]
        cos, sin = cx * cy - sx * s_y, cx * s_y + sx * cy
        zr, zi = zre_in[2 * k], zre_in[2 * k + 1]
        buf[8, j] = zr * cos - zi * sin
        buf[9, j] = zr * sin + zi * cos


@njit(fastmath=True)
def _gradient_chunk(buf, kx, ky, weight, start, stop, acc):  # type: ignore[no-untyped-def]
    pr, pi, zr, zi = buf[0], buf[1], buf[8], buf[9]
    ax, ay, az, axi, ayi, azi = buf[2], buf[4], buf[6], buf[3], buf[5], buf[7]
    zero = np.float32(0.0)
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = zero
    for j in range(stop - start):
        w = weight[start + j]
        er, ei = zr[j] - w * pr[j], zi[j] - w * pi[j]
        t0 += zr[j] * pr[j] + zi[j] * pi[j]
        t1 += w * (pr[j] * pr[j] + pi[j] * pi[j])
        t2 += er * ax[j] + ei * axi[j]
        t3 += er * ay[j] + ei * ayi[j]
        t4 += er * az[j] + ei * azi[j]
        cross = zr[j] * pi[j] - zi[j] * pr[j]  # Re(conj(Z)·(−i)·P)
        t5 += cross * kx[start + j]
        t6 += cross * ky[start + j]
    acc[0] += t0
    acc[1] += t1
    acc[2] += t2
    acc[3] += t3
    acc[4] += t4
    acc[5] += t5
    acc[6] += t6


@njit(fastmath=True)
def _curvature_chunk(buf, kx, ky, weight, start, stop, acc):  # type: ignore[no-untyped-def]
    m = stop - start
    pr, pi = buf[0], buf[1]
    ax, ay, az, axi, ayi, azi = buf[2], buf[4], buf[6], buf[3], buf[5], buf[7]
    zero = np.float32(0.0)
    h0 = h1 = h2 = h3 = h4 = h5 = zero
    for j in range(m):
        w = weight[start + j]
        h0 += w * (ax[j] * ax[j] + axi[j] * axi[j])
        h1 += w * (ax[j] * ay[j] + axi[j] * ayi[j])
        h2 += w * (ax[j] * az[j] + axi[j] * azi[j])
        h3 += w * (ay[j] * ay[j] + ayi[j] * ayi[j])
        h4 += w * (ay[j] * az[j] + ayi[j] * azi[j])
        h5 += w * (az[j] * az[j] + azi[j] * azi[j])
    u0 = u1 = u2 = u3 = u4 = u5 = u6 = u7 = u8 = zero
    for j in range(m):
        w = weight[start + j]
        x, y = kx[start + j], ky[start + j]
        # Re(conj(D)·(−i)·P) = D_re·P_im − D_im·P_re
        dx = w * (ax[j] * pi[j] - axi[j] * pr[j])
        dy = w * (ay[j] * pi[j] - ayi[j] * pr[j])
        dz = w * (az[j] * pi[j] - azi[j] * pr[j])
        u0 += dx * x
        u1 += dx * y
        u2 += dy * x
        u3 += dy * y
        u4 += dz * x
        u5 += dz * y
        power = w * (pr[j] * pr[j] + pi[j] * pi[j])
        u6 += power * x * x
        u7 += power * x * y
        u8 += power * y * y
    acc[7] += h0
    acc[8] += h1
    acc[9] += h2
    acc[10] += h3
    acc[11] += h4
    acc[12] += h5
    acc[13] += u0
    acc[14] += u1
    acc[15] += u2
    acc[16] += u3
    acc[17] += u4
    acc[18] += u5
    acc[19] += u6
    acc[20] += u7
    acc[21] += u8


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _gauss_newton_cpu(v, shape, rows, phases_x, phases_y, owner, kx, ky, n_pixels, matched, weight, curvature, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    max_k = phases_y.shape[1] // 4
    for i in prange(rows.shape[0]):
        p = owner[i]
        buf = np.empty((10, CHUNK), np.float32)
        acc = np.zeros(N_SUMS, np.float64)
        for start in range(0, n_pixels, CHUNK):
            stop = min(start + CHUNK, n_pixels)
            _gather_chunk(v, nx, ny, nz, rows[i], kx, ky, matched[p], phases_x[i], phases_y[i], max_k, start, stop, buf)
            _gradient_chunk(buf, kx, ky, weight[p], start, stop, acc)
            if curvature:
                _curvature_chunk(buf, kx, ky, weight[p], start, stop, acc)
        for c in range(N_SUMS):
            out[i, c] = acc[c]


def extract_slices(ft: Array, rows: Array, kx: Array, ky: Array) -> Array:
    """Slices (m, K) complex64 of ``ft`` for ``rows`` (m, 2, 3) at pixels kx, ky (K,) float32."""
    if array_module(ft) is not np:
        return cuda.extract_slices(ft, rows, kx, ky)
    out = np.empty((len(rows), 2 * len(kx)), np.float32)
    _extract_cpu(ft.view(np.float32).reshape(-1), ft.shape, rows, kx, ky, out)
    return out.view(np.complex64)


def score_grid(ft: Array, rows: Array, kx: Array, ky: Array, matched: Array, weight: Array) -> Array:
    """log L of every rotation with every shift: Re⟨B, P⟩ − ½ Σ W|P|², shape (n, G, S) float32.

    rows (n, G, 2, 3) float32; matched B (n, S, K) complex64 = Z times each shift's phase;
    weight W (n, K) float32.
    """
    if array_module(ft) is not np:
        return cuda.score_grid(ft, rows, kx, ky, matched, weight)
    n, n_rot = rows.shape[:2]
    out = np.empty((n, n_rot, matched.shape[1]), np.float32)
    _score_grid_cpu(ft.view(np.float32).reshape(-1), ft.shape, rows, kx, ky, matched.view(np.float32), weight, out)
    return out


def gauss_newton_sums(ft: Array, rows: Array, shift_px: Array, owner: Array, kx: Array, ky: Array, n_pixels: int,
                      matched: Array, weight: Array, box_size: int,
                      curvature: bool = True) -> Tuple[Array, Array, Array]:
    """log L, its gradient and Gauss–Newton curvature at m poses, over the first ``n_pixels`` pixels.

    With P the slice, D = ∂P/∂w (right increment of R, radians) and Z, W of particle ``owner[i]``:

        log L = Re Σ conj(Z) e^{−2πi k·u/N} P − ½ Σ W |P|²

    Returns (m,), (m, 5) and (m, 5, 5) float64, in the order w_x, w_y, w_z (rad), u_x, u_y (px).
    matched Z (n, K) complex64, weight W (n, K) float32, shift_px u (m, 2), box_size N. Without
    ``curvature`` the last array is zero and a third of the work is saved.
    """
    omega = 2 * np.pi / box_size
    if array_module(ft) is not np:
        sums = cuda.gauss_newton_sums(ft, rows, shift_px, owner, kx, ky, n_pixels, matched, weight, box_size, curvature)
        return unpack_sums(sums, omega)
    max_k = int(np.abs(ky).max()) if len(ky) else 0
    frequency = np.arange(-max_k, max_k + 1) * omega
    phases = np.exp(1j * frequency * shift_px[:, :, None].astype(np.float64)).astype(np.complex64)
    sums = np.empty((len(rows), N_SUMS))
    _gauss_newton_cpu(ft.view(np.float32).reshape(-1), ft.shape, rows,
                      np.ascontiguousarray(phases[:, 0, max_k:]).view(np.float32),
                      np.ascontiguousarray(phases[:, 1]).view(np.float32),
                      owner, kx, ky, n_pixels, matched.view(np.float32), weight, curvature, sums)
    return unpack_sums(sums, omega)


def unpack_sums(sums: Array, omega: float) -> Tuple[Array, Array, Array]:
    """The 22 sums (n, 22) of the kernels as log L (n,), gradient (n, 5) and curvature (n, 5, 5); ``omega`` = 2π / N."""
    xp = array_module(sums)
    unit = np.array([1, 1, 1, omega, omega])
    gradient = sums[:, 2:7] * xp.asarray(unit)
    curvature = sums[:, xp.asarray(SUM_OF_CURVATURE)] * xp.asarray(unit[:, None] * unit)
    return sums[:, 0] - 0.5 * sums[:, 1], gradient, curvature
