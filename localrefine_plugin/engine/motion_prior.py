"""The prior of the motion, learned from the data: one 6×6 covariance per half-set.

Model. The sub-volume of particle i moves in the body frame by x_i = (w_i, d_i), a rotation vector (rad)
and a displacement (px) of a point, x_i ~ Student-t(0, Σ, ν). What an image sees is z = B x with
B = [I 0; 0 P R0] (in-plane displacement only), and its likelihood near the optimum is Gaussian with
curvature H (Gauss–Newton) and maximum y. Expectation–maximisation over Σ:

    E:  Λ_i = BᵀHB + Σ⁻¹,   m_i = Λ_i⁻¹ BᵀH y,   r_i = (ν + 6) / (ν + tr Σ⁻¹(m mᵀ + Λ⁻¹))
    M:  Σ = (n₀ Σ₀ + Σ_i r_i (m_i m_iᵀ + Λ_i⁻¹)) / (n₀ + n)

with n₀ pseudo-particles of the starting Σ₀ (an inverse-Wishart floor). The robust weights r keep junk
from widening Σ (Lange, Little & Taylor 1989, doi:10.1080/01621459.1989.10478852). Σ contains the
widths of the motion, its hinge and the hinge's axis: with Σ = [A Cᵀ; C D], d ≈ C A⁻¹ w is a rotation
about the point h with [−h]× = C A⁻¹ as nearly as it can be.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from .pose import cross_matrix
from .search import inverse_right_jacobian

STUDENT_NU = 8.0
SWEEPS = 15
PSEUDO_PARTICLES = 5.0  # 50 of them, at twice the width, moved the hinge of 1,000 particles by 12 Å on `mid`
GAUSSIAN_CONSISTENCY = 1.15  # Gaussian motion has this many times the Σ at which ⟨r x xᵀ⟩ = Σ, for ν = 8 in six dimensions
MOST_PARTICLES = 4000  # more add nothing to 21 numbers; keeps the cost constant
SMALLEST_SIGMA_RAD, SMALLEST_SIGMA_PX = np.deg2rad(0.05), 0.02


@dataclass(frozen=True)
class Evidence:
    """What the likelihood of n images says about their motion.

    rotation0 (n, 3, 3), the poses the motion starts from; curvature H (n, 5, 5) and pull H·y (n, 5) in
    (w in rad, displacement in px of the projected point).
    """

    rotation0: np.ndarray
    curvature: np.ndarray
    pull: np.ndarray

    def some(self, most: int) -> "Evidence":
        """At most so many images, evenly spaced."""
        rows = np.unique(np.linspace(0, len(self.pull) - 1, most).astype(int))
        return Evidence(self.rotation0[rows], self.curvature[rows], self.pull[rows])


def isotropic_covariance(rotation_deg: float, shift_px: float) -> np.ndarray:
    """Σ (6, 6) of independent rotation and displacement, the same in every direction."""
    return np.diag([np.deg2rad(rotation_deg) ** 2] * 3 + [shift_px ** 2] * 3)


def seen_in_projection(rotation0: np.ndarray) -> np.ndarray:
    """B (n, 5, 6) of images at rotations R0."""
    b = np.zeros((len(rotation0), 5, 6))
    b[:, [0, 1, 2], [0, 1, 2]] = 1
    b[:, 3:, 3:] = rotation0[:, :2]
    return b


def precision_of(covariance: np.ndarray, rotation0: np.ndarray) -> np.ndarray:
    """Q = (B Σ Bᵀ)⁻¹ (n, 5, 5), the prior of each image in (w, in-plane displacement)."""
    b = seen_in_projection(rotation0)
    precision: np.ndarray = np.linalg.inv(b @ covariance @ np.swapaxes(b, 1, 2))
    return precision


def evidence_at(rotation0: np.ndarray, w: np.ndarray, shift: np.ndarray, curvature: np.ndarray,
                precision: np.ndarray) -> Evidence:
    """Evidence from converged poses.

    At the posterior's maximum the likelihood's gradient is Q x, hence H y = H x + Q x. ``curvature`` is
    that of right increments of R; it is carried to w by the right Jacobian.
    """
    to_w = np.zeros((len(w), 5, 5))
    to_w[:, :3, :3] = np.linalg.inv(inverse_right_jacobian(w))
    to_w[:, 3, 3] = to_w[:, 4, 4] = 1
    h = np.swapaxes(to_w, 1, 2) @ curvature @ to_w
    x = np.concatenate([w, shift], axis=1)
    return Evidence(rotation0, h, ((h + precision) @ x[..., None])[..., 0])


def learn(evidence: Evidence, start: np.ndarray, floor: np.ndarray, isotropic: bool = False) -> np.ndarray:
    """Σ (6, 6) by EM from ``start``; ``floor`` Σ₀ weighs as PSEUDO_PARTICLES particles.

    ``isotropic`` keeps two widths only, one of rotation and one of displacement.
    """
    evidence = evidence.some(MOST_PARTICLES)
    b = seen_in_projection(evidence.rotation0)
    bt = np.swapaxes(b, 1, 2)
    information, pull = bt @ evidence.curvature @ b, (bt @ evidence.pull[..., None])[..., 0]
    covariance = start / GAUSSIAN_CONSISTENCY
    for _ in range(SWEEPS):
        covariance = em_sweep(information, pull, covariance, floor)
        if isotropic:
            rotation, shift = np.trace(covariance[:3, :3]) / 3, np.trace(covariance[3:, 3:]) / 3
            covariance = np.diag([rotation] * 3 + [shift] * 3)
    return floored(GAUSSIAN_CONSISTENCY * covariance)


def em_sweep(information: np.ndarray, pull: np.ndarray, covariance: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """One E and M step; ``information`` BᵀHB (n, 6, 6), ``pull`` BᵀHy (n, 6)."""
    inverse = np.linalg.inv(covariance)
    spread = np.linalg.inv(information + inverse)
    mean = (spread @ pull[..., None])[..., 0]
    moment = mean[:, :, None] * mean[:, None, :] + spread
    distance = np.einsum("ij,nij->n", inverse, moment)
    weight = (STUDENT_NU + 6) / (STUDENT_NU + distance)
    total = PSEUDO_PARTICLES * floor + np.einsum("n,nij->ij", weight, moment)
    result: np.ndarray = total / (PSEUDO_PARTICLES + len(mean))
    return result


def floored(covariance: np.ndarray) -> np.ndarray:
    """Σ with no principal width below a twentieth of a degree or a fiftieth of a pixel."""
    scale = np.array([SMALLEST_SIGMA_RAD] * 3 + [SMALLEST_SIGMA_PX] * 3)
    value, vector = np.linalg.eigh(covariance / np.outer(scale, scale))
    clipped: np.ndarray = (vector * np.maximum(value, 1.0)) @ vector.T * np.outer(scale, scale)
    return clipped


def about_point(covariance: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Σ for the displacement of the point ``offset`` px away: d' = d + w × offset."""
    move = np.eye(6)
    move[3:, :3] = -cross_matrix(np.asarray(offset, dtype=np.float64))
    moved: np.ndarray = move @ covariance @ move.T
    return moved


def hinge(covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The point h (3,) px the motion turns about, relative to the point Σ is for, and how well it is determined.

    h minimises ⟨|d + w × h|²⟩ = the displacement left at h:  (tr A · I − A) h = b  with A = ⟨w wᵀ⟩ and b the
    axial vector of ⟨d wᵀ⟩. Returns h and the (3, 3) matrix (tr A · I − A): along an eigenvector of a
    small eigenvalue (a rotation about one axis) h is undetermined.
    """
    a, c = covariance[:3, :3], covariance[3:, :3]  # c = ⟨d wᵀ⟩
    normal = np.trace(a) * np.eye(3) - a
    # |d + w × h|² = |d|² + 2 h·(d × w) + hᵀ normal h;  ⟨d × w⟩_i = ε_ijk ⟨d_j w_k⟩
    cross = np.array([c[1, 2] - c[2, 1], c[2, 0] - c[0, 2], c[0, 1] - c[1, 0]])
    return -np.linalg.solve(normal + 1e-9 * np.trace(normal) * np.eye(3), cross), normal


def principal_widths(covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Standard deviations of rotation (rad) and displacement (px) along their principal axes, largest first."""
    rotation = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance[:3, :3]), 0))[::-1]
    shift = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance[3:, 3:]), 0))[::-1]
    return rotation, shift


