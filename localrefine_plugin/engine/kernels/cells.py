"""What an image says of small motions of the cells that a map is divided into.

Cell c has four Fourier volumes on one grid (slices.py has the layout): F of its density V about its centre, and G_j of
v_j V(v), j = x, y, z, v in px from its centre. A motion of the cell by v → v + d + w × v, w in rad and d in px in the
body frame, changes its slice by

    ∂P/∂d_j = −(2πi/N) κ_j F,      ∂P/∂w = −(2πi/N) G × κ,      κ = Rᵀ(kx, ky, 0).

For the host only: of a whole run a few thousand images are looked at once.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .slices import _locate

MOTIONS = 6  # w_x, w_y, w_z, d_x, d_y, d_z


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _cell_slices(v, shape, rows, scale, kx, ky, phase, root, omega, plane, jacobian):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    sy, sz, one = 8 * nx, 8 * nx * ny, np.float32(1.0)
    for i in prange(rows.shape[0]):
        a = rows[i]
        f = np.empty(8, np.float32)
        for k in range(kx.shape[0]):
            x, y, z, x0, y0, z0, fx, fy, fz, sign, inside = _locate(a, kx[k], ky[k], ny // 2, nz // 2, nx)
            if inside:
                b0 = 8 * x0 + sy * y0 + sz * z0
                b1, b2, b3 = b0 + sy, b0 + sz, b0 + sy + sz
                w0, w1, w2, w3 = (one - fy) * (one - fz), fy * (one - fz), (one - fy) * fz, fy * fz
                for j in range(8):  # real and imaginary parts of all four
                    low = w0 * v[b0 + j] + w1 * v[b1 + j] + w2 * v[b2 + j] + w3 * v[b3 + j]
                    high = w0 * v[b0 + 8 + j] + w1 * v[b1 + 8 + j] + w2 * v[b2 + 8 + j] + w3 * v[b3 + 8 + j]
                    f[j] = low + fx * (high - low)
            else:
                f[:] = 0
            c, s = phase[i, 2 * k], phase[i, 2 * k + 1]
            for j in range(4):
                re, im = f[2 * j], sign * f[2 * j + 1]
                f[2 * j], f[2 * j + 1] = re * c - im * s, re * s + im * c
            r = root[i, k]
            plane[i, 2 * k] += r * f[0]
            plane[i, 2 * k + 1] += r * f[1]
            # −i (a + i b) = b − i a; κ is folded as the place in the volume was, so it is unfolded here
            unfold = sign * r * omega / scale
            qx, qy, qz = unfold * x, unfold * y, unfold * z
            jacobian[i, 0, 2 * k] = f[5] * qz - f[7] * qy
            jacobian[i, 0, 2 * k + 1] = f[6] * qy - f[4] * qz
            jacobian[i, 1, 2 * k] = f[7] * qx - f[3] * qz
            jacobian[i, 1, 2 * k + 1] = f[2] * qz - f[6] * qx
            jacobian[i, 2, 2 * k] = f[3] * qy - f[5] * qx
            jacobian[i, 2, 2 * k + 1] = f[4] * qx - f[2] * qy
            jacobian[i, 3, 2 * k], jacobian[i, 3, 2 * k + 1] = f[1] * qx, -f[0] * qx
            jacobian[i, 4, 2 * k], jacobian[i, 4, 2 * k + 1] = f[1] * qy, -f[0] * qy
            jacobian[i, 5, 2 * k], jacobian[i, 5, 2 * k + 1] = f[1] * qz, -f[0] * qz


def cell_slices(volumes: Any, rows: Any, scale: float, kx: Any, ky: Any, phase: Any, root: Any, box_size: int,
                plane: Any, jacobian: Any) -> None:
    """Add the slices of one cell to those of the whole, and write their derivatives.

    volumes (4, nz, ny, nx) complex64; rows (n, 2, 3) float32, rotation times ``scale``; kx, ky (K,) float32; phase
    (n, K) complex64, which moves the cell from its centre to its place; root √W (n, K) float32, that all is
    multiplied by; plane (n, K) complex64, added to; jacobian (n, 6, K) complex64, written.
    """
    real = [array.view(np.float32) for array in (phase, plane, jacobian)]
    together = np.ascontiguousarray(np.moveaxis(volumes, 0, -1))  # no copy of those that lie like this
    _cell_slices(together.view(np.float32).reshape(-1), volumes.shape[1:], rows, np.float32(scale), kx, ky, real[0],
                 root, np.float32(2 * np.pi / box_size), real[1], real[2])
