"""How one part of the particle moves against another, from what the images say of each.

Both parts are aligned from the same poses R₀. Near its optimum each has a Gaussian likelihood in x = (w, u), of
curvature H and pull H y (motion_prior.Evidence). With a and b at one common point of the body frame, and the pose of b
unknown but for its own likelihood, the motion x = x_a − x_b of a against b has

    H = H_a (H_a + H_b)⁻¹ H_b,        H y = H_b (H_a + H_b)⁻¹ H_a y_a − H_a (H_a + H_b)⁻¹ H_b y_b,

the Gaussian of y_a − y_b with the sum of both errors H_a⁻¹ + H_b⁻¹, also where one of them tells nothing. The error of
the input pose, which both share, is gone. The EM of motion_prior.py then tells motion from error. Of finished runs,
which keep poses and covariances and not this evidence, bodies/relative.py makes it.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..model.pose import cross_matrix
from .motion_prior import Evidence, inverses, seen_in_projection

NOTHING = 1e-9  # added to the diagonal of curvatures that may be singular
Array = np.ndarray


def evidence_about(evidence: Evidence, offset: np.ndarray) -> Evidence:
    """The same evidence in the displacement of the point ``offset`` (3,) px away: u = u' − P R₀ (w × offset)."""
    jacobian = np.zeros((len(evidence.pull), 5, 5))
    jacobian[:] = np.eye(5)
    jacobian[:, 3:, :3] = evidence.rotation0[:, :2] @ cross_matrix(np.asarray(offset, dtype=np.float64))
    transposed = np.swapaxes(jacobian, 1, 2)
    return replace(evidence, curvature=transposed @ evidence.curvature @ jacobian,
                   pull=(transposed @ evidence.pull[..., None])[..., 0])


def relative(of: Evidence, against: Evidence) -> Evidence:
    """The evidence of the motion of one part against another, both (n,) of the same images about the same point."""
    spread = inverses(of.curvature + against.curvature + NOTHING * np.eye(5))
    curvature = of.curvature @ spread @ against.curvature
    pull = against.curvature @ spread @ of.pull[..., None] - of.curvature @ spread @ against.pull[..., None]
    return Evidence(of.rotation0, 0.5 * (curvature + np.swapaxes(curvature, 1, 2)), pull[..., 0],
                    of.weight * against.weight)


@dataclass(frozen=True)
class Wobble:
    """Variance per axis, px², of the place of a point v of the body (px from ``centre``) in the images:

        ½ (constant + 2 linear·v + vᵀ square v),

    the mean of ½ tr(J C Jᵀ) over poses with covariances C of (w, u), J = (−P R [v]×, 1).
    """

    centre: np.ndarray
    constant: float
    linear: np.ndarray
    square: np.ndarray

    @classmethod
    def of_poses(cls, rotation: np.ndarray, covariance: np.ndarray, centre: np.ndarray) -> "Wobble":
        """Of poses at ``rotation`` (n, 3, 3) with covariances (n, 5, 5) about ``centre`` (px from the box centre)."""
        turned = np.stack([-rotation[:, :2] @ cross_matrix(axis) for axis in np.eye(3)], axis=1)  # (n, 3, 2, 3)
        n = len(rotation)
        linear = np.einsum("nkab,nba->k", turned, covariance[:, :3, 3:]) / n
        square = np.einsum("nkab,nbc,nlac->kl", turned, covariance[:, :3, :3], turned) / n
        return cls(centre, float(np.trace(covariance[:, 3:, 3:], axis1=1, axis2=2).mean()), linear, square)

    @classmethod
    def of_motion(cls, covariance: np.ndarray, rotation: np.ndarray, centre: np.ndarray) -> "Wobble":
        """Of a motion Σ (6, 6) in the body frame, seen at ``rotation`` (n, 3, 3)."""
        seen = seen_in_projection(rotation)
        return cls.of_poses(rotation, seen @ covariance @ np.swapaxes(seen, 1, 2), centre)

    def on_grid(self, box: int, scale: float = 1.0) -> np.ndarray:
        """(box, box, box), in px², of a grid of ``scale`` of its voxels per px."""
        axis = (np.arange(box) - box // 2) / scale
        x, y, z = axis - self.centre[0], (axis - self.centre[1])[:, None], (axis - self.centre[2])[:, None, None]
        s, b = self.square, self.linear
        total = (s[0, 0] * x + 2 * b[0]) * x + (s[1, 1] * y + 2 * b[1]) * y + (s[2, 2] * z + 2 * b[2]) * z
        total = total + 2 * (s[0, 1] * x * y + s[0, 2] * x * z + s[1, 2] * y * z) + self.constant
        result: np.ndarray = 0.5 * total
        return result

    def over(self, density: "Moments") -> float:
        """The mean over a density ≥ 0, px²."""
        c = self.centre
        mean = density.mean - density.mass * c
        square = density.square - np.outer(density.mean, c) - np.outer(c, density.mean) + density.mass * np.outer(c, c)
        return float(0.5 * (density.mass * self.constant + 2 * self.linear @ mean + (self.square * square).sum()))


@dataclass(frozen=True)
class Moments:
    """⟨1⟩, ⟨v⟩ (3,) and ⟨v vᵀ⟩ (3, 3) of a density, v in px from the box centre, xyz; ``mass`` is 0 of no density."""

    mass: float
    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, density: np.ndarray, scale: float = 1.0) -> "Moments":
        """Of a density (box, box, box) ≥ 0 on a grid of ``scale`` of its voxels per px."""
        axis = (np.arange(len(density)) - len(density) // 2) / scale
        planes = [density.sum(axis=k, dtype=np.float64) for k in range(3)]  # (y, x), (z, x), (z, y)
        x, y, z = (line / max(float(line.sum()), 1e-30)
                   for line in (planes[0].sum(axis=0), planes[0].sum(axis=1), planes[1].sum(axis=1)))
        total = max(float(planes[0].sum()), 1e-30)
        square = np.diag([float((line * axis ** 2).sum()) for line in (x, y, z)])
        for i, j, plane in ((0, 1, planes[0]), (0, 2, planes[1]), (1, 2, planes[2])):
            square[i, j] = square[j, i] = float(axis @ plane @ axis) / total
        return cls(float(planes[0].sum()) / total, np.array([float(line @ axis) for line in (x, y, z)]), square)
