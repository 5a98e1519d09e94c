"""The prior of the motion, learned from the data: one 6×6 covariance per half-set.

Model. The sub-volume of particle i moves in the body frame by x_i = (w_i, d_i), a rotation vector (rad)
and a displacement (px) of a point, x_i ~ N(0, Σ). What an image sees is z = B x with
B = [I 0; 0 P R0] (in-plane displacement only), and its likelihood near the optimum is Gaussian with
curvature H (Gauss–Newton) and maximum y. Expectation–maximisation over Σ:

    E:  Λ_i = BᵀHB + Σ⁻¹,   m_i = Λ_i⁻¹ BᵀH y,   p_i = P(not junk | y)
    M:  Σ = (n₀ Σ₀ + Σ_i p_i (m_i m_iᵀ + Λ_i⁻¹)) / (n₀ + Σ_i p_i)

with n₀ pseudo-particles of the starting Σ₀ (an inverse-Wishart floor). Junk lies anywhere in the search, as of
2² Σ₀. In its place Student-t weights (ν = 8; Lange, Little & Taylor 1989, doi:10.1080/01621459.1989.10478852) let a
tenth of junk widen Σ by a fifth, and a motion with long tails lose a quarter of its width.

Σ contains the widths of the motion, its hinge and the hinge's axis: with Σ = [A Cᵀ; C D], d ≈ C A⁻¹ w is a rotation
about the point h with [−h]× = C A⁻¹ as nearly as it can be. docs/explanation/motion-prior.md has the picture.
"""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Sequence, Tuple

import numpy as np

from ..kernels.batches import evenly_spaced
from ..model.pose import cross_matrix, inverse_right_jacobian
from ..records.motion import LearnedMotion

SWEEPS = 15  # at most, in every iteration of a run …
STILL = 2e-3  # … until no element of Σ changes by more, in units of its widths: a tenth of its error at most
PSEUDO_PARTICLES = 1.0  # more pull the hinge to the mask centre: 5 at 7° by 1–2 px of 10 where poses are known to 3°
JUNK_SHARE, JUNK_WIDTH = 0.1, 2.0  # the share expected (it hardly matters), and how far junk lies in widths of Σ₀
MOST_PARTICLES = 4000  # more add nothing to 21 numbers; keeps the cost constant
ROTATION, DISPLACEMENT = slice(0, 3), slice(3, 6)
STRETCH = 2 ** 0.5
WORTH = 0.5  # log likelihood that a stretch must gain
INDIFFERENT = 2.0  # … that may be lost for smaller widths: 95 % of likelihood ratios of one parameter are less than 1.9
MOST_STEPS = 12  # of the widths, by STRETCH each: to 1/64
STRUCTURED = 1.1  # times the noise: images have more than its spectrum says, by 5 to 10 % (docs/explanation/tried.md)
NUMBERS = 3, 6  # that a rotation, or a displacement, must be worth. Measured: docs/explanation/motion-prior.md
NONE = 6.0  # times the smallest width: what `beyond_doubt` leaves of a motion is less
SMALLEST_SIGMA_RAD, SMALLEST_SIGMA_PX = np.deg2rad(0.05), 0.02


@dataclass(frozen=True)
class Evidence:
    """What the likelihood of n images says about their motion.

    rotation0 (n, 3, 3), the poses the motion starts from; curvature H (n, 5, 5) and pull H·y (n, 5) in
    (w in rad, displacement in px of the projected point); weight (n,), with which each counts.
    """

    rotation0: np.ndarray
    curvature: np.ndarray
    pull: np.ndarray
    weight: np.ndarray

    def take(self, index: np.ndarray) -> "Evidence":
        """Of the images of an index (m,), in its order."""
        return Evidence(self.rotation0[index], self.curvature[index], self.pull[index], self.weight[index])

    def some(self, most: int) -> "Evidence":
        """At most so many images, evenly spaced."""
        return self.take(evenly_spaced(len(self.pull), most))

    def with_noise(self, times: float) -> "Evidence":
        """Of images whose noise has so many times the power."""
        return replace(self, curvature=self.curvature / times, pull=self.pull / times)

    def in_body_frame(self) -> Tuple[np.ndarray, np.ndarray]:
        """BᵀHB (n, 6, 6) and BᵀHy (n, 6)."""
        b = seen_in_projection(self.rotation0)
        bt = np.swapaxes(b, 1, 2)
        return bt @ self.curvature @ b, (bt @ self.pull[..., None])[..., 0]



def joined_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several groups of images, one after the other."""
    return Evidence(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Evidence)))


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
    return inverses(b @ covariance @ np.swapaxes(b, 1, 2))


def inverses(matrices: np.ndarray) -> np.ndarray:
    """Inverses (n, k, k) of matrices whose symmetric part is positive."""
    return inverses_and_log_determinants(matrices)[0]


def inverses_and_log_determinants(matrices: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Gauss–Jordan of (n, k, k), all of them at once.

    numpy.linalg.inv hands LAPACK one after the other, and a threaded OpenBLAS starts its threads for each: 7 times
    slower on two cores for 6 × 6, and other last bits with another number of threads.
    """
    out = np.array(np.moveaxis(np.asarray(matrices, dtype=np.float64), 0, -1), order="C")  # (k, k, n): long inner loops
    determinant = np.ones(out.shape[-1])
    for k in range(len(out)):
        pivot, column = out[k, k].copy(), out[:, k].copy()
        row = out[k] / pivot
        out -= column[:, None] * row
        out[k], out[:, k] = row, -column / pivot
        out[k, k] = 1 / pivot
        determinant *= pivot
    return np.array(np.moveaxis(out, -1, 0), order="C"), np.log(determinant)


def evidence_at(rotation0: np.ndarray, w: np.ndarray, shift: np.ndarray, curvature: np.ndarray,
                gradient: np.ndarray, weight: np.ndarray) -> Evidence:
    """Evidence from the likelihood at poses (n,) near its optimum: w (n, 3), shift (n, 2), curvature (n, 5, 5) and
    gradient (n, 5), weight (n,).

    H y = H x + gradient. Both are those of right increments of R; they are carried to w by the right Jacobian. (At the
    optimum of the posterior the gradient is Q x; but there a search stops when the posterior gains no more, and under a
    narrow prior, of large Q, what it leaves over is more than all that one image tells.)
    """
    to_w = np.zeros((len(w), 5, 5))
    to_w[:, :3, :3] = inverses(inverse_right_jacobian(w))
    to_w[:, 3, 3] = to_w[:, 4, 4] = 1
    h = np.swapaxes(to_w, 1, 2) @ curvature @ to_w
    x = np.concatenate([w, shift], axis=1)
    pull = (h @ x[..., None] + np.swapaxes(to_w, 1, 2) @ gradient[..., None])[..., 0]
    return Evidence(rotation0, h, pull, weight)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """`inverses` of one matrix (k, k)."""
    return inverses(matrix[None])[0]


def learn(evidence: Evidence, start: np.ndarray, floor: np.ndarray, isotropic: bool = False,
          least: bool = True) -> np.ndarray:
    """Σ (6, 6) by EM from ``start``; ``floor`` Σ₀ weighs as PSEUDO_PARTICLES particles.

    ``isotropic`` keeps two widths only, one of rotation and one of displacement.

    Where one image tells less than the motion is wide, a sweep changes next to nothing long before it should stop. So
    all widths of rotation, and those of displacement, are made smaller while the likelihood grows (parameter expansion;
    Liu, Rubin & Wu 1998, doi:10.1093/biomet/85.4.755), and at the end by the least that explains the images as well:
    what the images do not show is no reason to leave the input poses. ``least`` False: not so; for the first iteration,
    whose reference is a low-passed one that shows little of anything.
    """
    images = SeenMotion(evidence.some(MOST_PARTICLES), floor)
    covariance = images.swept(start, isotropic)
    for part in (ROTATION, DISPLACEMENT):
        covariance = images.narrowed(covariance, part, WORTH)
    covariance = images.swept(covariance, isotropic)
    for part in (ROTATION, DISPLACEMENT) if least else ():
        covariance = images.narrowed(covariance, part, -INDIFFERENT)
    return floored(covariance)


def beyond_doubt(evidence: Evidence, covariance: np.ndarray, floor: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Σ (6, 6), or next to no rotation, or displacement, in its place.

    Of each, the log likelihood must gain ½ NUMBERS ln n (Schwarz 1978, doi:10.1214/aos/1176344136) over none of it, if
    the noise is STRUCTURED: of images that tell the rotation to 10° each, a tenth more noise looks like a motion of 3°.
    A motion that gains less, of all images together, improves no pose by what it costs where it is not real. Where the
    iteration ``before`` had learned a motion, the poses follow it, and the images show less of it: then the noise is
    taken as it is, for a motion that comes and goes is worse than either.
    """
    evidence = evidence.some(MOST_PARTICLES)
    as_it_is, structured = SeenMotion(evidence, floor), SeenMotion(evidence.with_noise(STRUCTURED), floor)
    images_counted, had = max(float(evidence.weight.sum()), 1.0), principal_widths(before)
    smallest = SMALLEST_SIGMA_RAD, SMALLEST_SIGMA_PX
    for k, (part, numbers) in enumerate(zip((ROTATION, DISPLACEMENT), NUMBERS)):
        images = as_it_is if had[k][0] > NONE * smallest[k] else structured
        scale = np.ones(6)
        scale[part] = STRETCH ** -MOST_STEPS
        none = covariance * np.outer(scale, scale)
        gain = images.log_likelihood(covariance) - images.log_likelihood(none)
        if gain < 0.5 * numbers * np.log(images_counted):
            covariance = none
    return floored(covariance)


def bound(evidence: Evidence, covariance: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(2,) widths of rotation (rad) and of displacement (px), the same in all directions, that the images exclude: in
    the place of those of Σ the first, from Σ's own on by STRETCH, whose log likelihood is less by INDIFFERENT."""
    images, excluded = SeenMotion(evidence.some(MOST_PARTICLES), floor), []
    for part in (ROTATION, DISPLACEMENT):
        tried = covariance.copy()
        tried[part], tried[:, part] = 0, 0
        width = float(np.sqrt(np.trace(covariance[part, part]) / 3))
        allowed = images.log_likelihood(covariance) - INDIFFERENT
        for _ in range(2 * MOST_STEPS):
            tried[part, part] = width ** 2 * np.eye(3)
            if images.log_likelihood(tried) < allowed:
                break
            width *= STRETCH
        excluded.append(width)
    return np.array(excluded)


def learn_of_all(evidence: Evidence, start: np.ndarray) -> np.ndarray:
    """Σ (6, 6) by EM from ``start``, which is that of the core of the motion: of all images by their weights, none of
    which counts as junk because it is far away. The second moment of a motion with long tails."""
    return floored(SeenMotion(evidence.some(MOST_PARTICLES), start, junk=False).swept(start, False))


class SeenMotion:
    """What n images say of a covariance Σ (6, 6) of the motion; ``floor`` Σ₀; without ``junk`` all of them count."""

    def __init__(self, evidence: Evidence, floor: np.ndarray, junk: bool = True):
        self.information, self.pull = evidence.in_body_frame()
        self.weight, self.floor = evidence.weight, floor
        self.of_junk = log_junk(self.information, self.pull, floor) if junk else np.full(len(self.weight), -np.inf)

    def swept(self, covariance: np.ndarray, isotropic: bool) -> np.ndarray:
        """After EM, at most SWEEPS of it."""
        for _ in range(SWEEPS):
            before = covariance
            step = expected(self.information, self.pull, covariance)
            covariance = maximised(step, self.weight * step.probability_not_junk(self.of_junk), self.floor)
            if isotropic:
                rotation, shift = np.trace(covariance[:3, :3]) / 3, np.trace(covariance[3:, 3:]) / 3
                covariance = np.diag([rotation] * 3 + [shift] * 3)
            width = np.sqrt(np.diag(covariance))
            if np.abs((covariance - before) / np.outer(width, width)).max() < STILL:
                break
        return covariance

    def log_likelihood(self, covariance: np.ndarray) -> float:
        """Of all images, junk included."""
        moving = np.log(1 - JUNK_SHARE) + expected(self.information, self.pull, covariance).log_likelihood
        return float((self.weight * np.logaddexp(moving, np.log(JUNK_SHARE) + self.of_junk)).sum())

    def narrowed(self, covariance: np.ndarray, part: slice, gain: float) -> np.ndarray:
        """Σ with the widths of one part made smaller, all correlations kept, as long as each step gains so much log
        likelihood over the highest so far; of a negative ``gain``, loses no more."""
        scale = np.ones(6)
        scale[part] = 1 / STRETCH
        highest = self.log_likelihood(covariance)
        for _ in range(MOST_STEPS):
            tried = covariance * np.outer(scale, scale)
            found = self.log_likelihood(tried)
            if found <= highest + gain:
                break
            covariance, highest = tried, max(highest, found)
        return covariance


class Step(NamedTuple):
    """E step of n particles: m (n, 6), Λ⁻¹ (n, 6, 6), log likelihood of y (n,) but for a term that does not depend
    on Σ."""

    mean: np.ndarray
    spread: np.ndarray
    log_likelihood: np.ndarray

    def probability_not_junk(self, of_junk: np.ndarray) -> np.ndarray:
        """(n,) the probability that a particle is none of the junk."""
        odds = np.log(JUNK_SHARE / (1 - JUNK_SHARE)) + of_junk - self.log_likelihood
        probability: np.ndarray = 1 / (1 + np.exp(np.clip(odds, -50, 50)))
        return probability


def expected(information: np.ndarray, pull: np.ndarray, covariance: np.ndarray) -> Step:
    """E step. The likelihood of y is N(0, BΣBᵀ + H⁻¹), ∝ |Σ|^−½ |Λ|^−½ exp(½ mᵀBᵀHy)."""
    precision, log_precision = inverses_and_log_determinants(covariance[None])
    spread, log_determinant = inverses_and_log_determinants(information + precision)
    mean = (spread @ pull[..., None])[..., 0]
    log_likelihood = 0.5 * (np.einsum("ni,ni->n", mean, pull) - log_determinant - log_precision)
    return Step(mean, spread, log_likelihood)


def log_junk(information: np.ndarray, pull: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Log likelihood (n,) of y if the particles lie anywhere in the search that Σ₀ spans."""
    return expected(information, pull, JUNK_WIDTH ** 2 * floor).log_likelihood


def maximised(step: Step, count: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The M step: Σ (6, 6) from particles that count so much (n,)."""
    # einsum: the sums of a threaded BLAS depend on the number of threads
    total = PSEUDO_PARTICLES * floor + np.einsum("n,nij->ij", count, step.spread)
    total += np.einsum("ni,nj->ij", count[:, None] * step.mean, step.mean)
    result: np.ndarray = total / (PSEUDO_PARTICLES + count.sum())
    return result


def examine(evidence: Evidence, covariance: np.ndarray, floor: np.ndarray) -> LearnedMotion:
    """Errors, mean and shape of the motion whose ``covariance`` (6, 6) was learned from this evidence; floor (6, 6)."""
    evidence = evidence.some(MOST_PARTICLES)
    information, pull = evidence.in_body_frame()
    step = expected(information, pull, covariance)
    count = evidence.weight * step.probability_not_junk(log_junk(information, pull, floor))
    motion, motion_error = mean_motion(step, count, covariance)
    return LearnedMotion(covariance, learning_error(step, count, covariance), motion, motion_error,
                         along_first_axes(step, covariance), count)


def learning_error(step: Step, count: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(21, 21) error of Σ as in LearnedMotion, from the empirical Fisher information.

    In A the score of particle i is ½ (L⁻¹ (m mᵀ + Λ⁻¹) L⁻ᵀ − I), times the probability that it counts, and the
    information the sum of its squares (Meilijson 1989, J. R. Stat. Soc. B 51, 127); what is missing from an image is
    missing from its score. The pseudo-particles count as complete ones.
    """
    whiten = inverse(np.linalg.cholesky(covariance))
    moment = whiten @ (step.mean[:, :, None] * step.mean[:, None] + step.spread) @ whiten.T
    score = 0.5 * count[:, None, None] * (moment - np.eye(6))
    row, column = np.triu_indices(6)
    scores = score[:, row, column] * np.where(row == column, 1, 2)
    information = np.einsum("ni,nj->ij", scores, scores) + PSEUDO_PARTICLES * np.diag(np.where(row == column, 0.5, 1.0))
    return inverse(information)


def mean_motion(step: Step, count: np.ndarray, covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Generalised least squares of the mean motion (6,) and its covariance: y_i ~ N(B μ, B Σ Bᵀ + H⁻¹).

    Bᵀ (BΣBᵀ + H⁻¹)⁻¹ B = Σ⁻¹ − Σ⁻¹ Λ⁻¹ Σ⁻¹, and with y instead of the last B it is Σ⁻¹ m.
    """
    precision = inverse(covariance)
    information = count.sum() * precision - precision @ np.einsum("n,nij->ij", count, step.spread) @ precision
    error = inverse(information + PSEUDO_PARTICLES * precision)
    return error @ precision @ np.einsum("n,ni->i", count, step.mean), error


def along_first_axes(step: Step, covariance: np.ndarray) -> np.ndarray:
    """(n, 2) aᵀm / sqrt(aᵀ(Σ − Λ⁻¹)a) for the first principal axis a of rotation and that of displacement."""
    axes = np.zeros((6, 2))
    axes[:3, 0], axes[3:, 1] = (principal_axes(part)[0] for part in (covariance[:3, :3], covariance[3:, 3:]))
    told = np.einsum("ik,nij,jk->nk", axes, covariance - step.spread, axes)
    return (step.mean @ axes) / np.sqrt(np.maximum(told, 1e-9 * np.einsum("ik,ij,jk->k", axes, covariance, axes)))


def floored(covariance: np.ndarray) -> np.ndarray:
    """Σ (6, 6) with no principal width below a twentieth of a degree or a fiftieth of a pixel."""
    scale = np.array([SMALLEST_SIGMA_RAD] * 3 + [SMALLEST_SIGMA_PX] * 3)
    value, vector = np.linalg.eigh(covariance / np.outer(scale, scale))
    clipped: np.ndarray = (vector * np.maximum(value, 1.0)) @ vector.T * np.outer(scale, scale)
    return clipped


def about_point(covariance: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Σ (6, 6) for the displacement of the point ``offset`` (3,) px away: d' = d + w × offset."""
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


def principal_axes(covariance: np.ndarray) -> np.ndarray:
    """Eigenvectors (3, 3) as rows, of the largest eigenvalue first, each with its largest component positive."""
    axes = np.linalg.eigh(covariance)[1].T[::-1]
    sign = np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])
    oriented: np.ndarray = axes * sign[:, None]
    return oriented


def principal_widths(covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Standard deviations (3,) of rotation (rad) and of displacement (px) on their principal axes, largest first."""
    rotation = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance[:3, :3]), 0))[::-1]
    shift = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance[3:, 3:]), 0))[::-1]
    return rotation, shift
