"""Rotations, Euler angles, and the motion of a sub-volume about a fulcrum (docs/reference/conventions.md).

A point v of the specimen (px from the box centre, xyz) lands in the image at P(R v) + t, P the first
two rows. The motion of the sub-volume about a point f is x = (w, s):

    R = R0·Exp(w),    s = (t + P R f) − (t0 + P R0 f)

with w a rotation vector in the body frame (radians) and s the displacement of the projected point.
Everything here is float64 and works on numpy and CuPy arrays alike.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from ..kernels.device import array_module

Array = Any  # numpy.ndarray or cupy.ndarray


def rotation_from_euler_deg(angles: np.ndarray) -> np.ndarray:
    """R (n, 3, 3) from (rot, tilt, psi) in degrees (n, 3): RELION's Euler_angles2matrix (ZYZ).

    R = Rz(psi)·Ry(tilt)·Rz(rot) with RELION's sense of rotation (passive; R maps specimen to image).
    """
    a, b, g = np.deg2rad(np.asarray(angles, dtype=np.float64)).T
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    rows = [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb,
            -sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb,
            sb * ca, sb * sa, cb]
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)


def euler_deg_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(rot, tilt, psi) in degrees (n, 3), tilt in [0, 180]; inverse of `rotation_from_euler_deg`.

    At tilt 0 or 180 only rot ± psi is defined; rot = 0 is chosen.
    """
    r = np.asarray(rotation, dtype=np.float64)
    sin_tilt = np.hypot(r[:, 2, 0], r[:, 2, 1])
    tilt = np.arctan2(sin_tilt, r[:, 2, 2])
    pole = sin_tilt < 1e-9
    rot = np.where(pole, 0.0, np.arctan2(r[:, 2, 1], r[:, 2, 0]))
    psi = np.where(pole, np.arctan2(r[:, 0, 1], r[:, 1, 1]), np.arctan2(r[:, 1, 2], -r[:, 0, 2]))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=-1))


def exp_map(w: Array) -> Array:
    """Exp(w): rotation vectors (..., 3) in radians → matrices (..., 3, 3) (Rodrigues' formula)."""
    xp = array_module(w)
    angle2 = xp.sum(w * w, axis=-1)[..., None, None]
    angle = xp.sqrt(angle2)
    small = angle2 < 1e-12
    safe = xp.where(small, 1.0, angle)
    a = xp.where(small, 1 - angle2 / 6, xp.sin(safe) / safe)
    b = xp.where(small, 0.5 - angle2 / 24, (1 - xp.cos(safe)) / (safe * safe))
    k = cross_matrix(w)
    return xp.eye(3) + a * k + b * (k @ k)


def log_map(rotation: Array) -> Array:
    """Log(R): matrices (..., 3, 3) → rotation vectors (..., 3), angle in [0, π).

    Accurate to 1e-9 for angles below 179°, which is all a local refinement meets.
    """
    xp = array_module(rotation)
    r = rotation
    v = 0.5 * xp.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], axis=-1)
    sin = xp.sqrt(xp.sum(v * v, axis=-1))
    cos = 0.5 * (r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2] - 1)
    angle = xp.arctan2(sin, cos)
    small = sin < 1e-7
    factor = xp.where(small, 1 + sin * sin / 6, angle / xp.where(small, 1.0, sin))
    return v * factor[..., None]


def inverse_right_jacobian(w: Array) -> Array:
    """dLog(Exp(w) Exp(δ))/dδ at δ = 0 = I + ½[w]× + c [w]×², c = 1/θ² − (1 + cos θ)/(2 θ sin θ); (..., 3, 3)."""
    xp = array_module(w)
    k = cross_matrix(w)
    angle2 = xp.sum(w * w, axis=-1)[..., None, None]
    c = 1 / 12 + angle2 / 720 + angle2 * angle2 / 30240  # series: 1e-6 up to one radian
    return xp.eye(3) + 0.5 * k + c * (k @ k)


def cross_matrix(v: Array) -> Array:
    """[v]×, the matrix of the cross product: (..., 3) → (..., 3, 3)."""
    xp = array_module(v)
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = xp.zeros_like(x)
    rows = xp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    return rows.reshape(v.shape[:-1] + (3, 3))


def project(rotation: Array, point: Array) -> Array:
    """P R v: in-plane position (..., 2) of points v (..., 3) under rotations (..., 3, 3)."""
    return (rotation[..., :2, :] @ point[..., None])[..., 0]


def displacement_at(rotation0: Array, rotation: Array, shift_of_centre: Array, from_point: Array,
                    to_point: Array) -> Array:
    """Displacement s (..., 2) of the projected ``to_point`` when that of ``from_point`` is known.

    s_f = s_c + P(R − R0)(f − c); exact, all points in px from the box centre.
    """
    return shift_of_centre + project(rotation - rotation0, to_point - from_point)


def random_rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    """n uniformly distributed rotations (n, 3, 3), from unit quaternions."""
    q = rng.standard_normal((n, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, axis=-1).reshape(n, 3, 3)


def rotation_vector_ball(radius: float, step: float) -> np.ndarray:
    """Rotation vectors (m, 3) on a body-centred cubic lattice inside a ball, the zero vector first.

    ``step`` is the spacing of nearest neighbours. BCC covers space with 30 % fewer points than a
    cubic lattice of the same covering radius (Conway & Sloane, Sphere Packings, ch. 2).
    """
    edge = 2 * step / np.sqrt(3)
    m = int(np.ceil(radius / edge)) + 1
    axis = np.arange(-m, m + 1) * edge
    corner = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.concatenate([corner, corner + edge / 2])
    norm = np.linalg.norm(points, axis=1)
    inside = norm <= radius + 1e-9
    order = np.lexsort((points[inside, 2], points[inside, 1], points[inside, 0], np.round(norm[inside], 9)))
    return points[inside][order]


def shift_disc(radius: float, step: float) -> np.ndarray:
    """Shifts (m, 2) on a hexagonal lattice of this spacing inside a disc, the zero shift first."""
    m = int(np.ceil(radius / (step * 0.5))) + 1
    i, j = np.meshgrid(np.arange(-m, m + 1), np.arange(-m, m + 1), indexing="ij")
    points = np.stack([step * (i + 0.5 * j), step * np.sqrt(0.75) * j], axis=-1).reshape(-1, 2)
    norm = np.linalg.norm(points, axis=1)
    inside = norm <= radius + 1e-9
    order = np.lexsort((points[inside, 1], points[inside, 0], np.round(norm[inside], 9)))
    return points[inside][order]


def pose_from_motion(rotation0: Array, shift0_px: Array, w: Array, displacement: Array,
                     point: Array) -> Tuple[Array, Array]:
    """(R, t) of the motion (w, s) about ``point`` starting from (R0, t0)."""
    rotation = rotation0 @ exp_map(w)
    shift = shift0_px + displacement - project(rotation - rotation0, point)
    return rotation, shift
