"""Shares of two states from fits at three places."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from localrefine_plugin.engine.finish import state_mixture as mixture
from localrefine_plugin.engine.finish.second_state import CONFIRMS, LEAST_MOVED, TELLS
from localrefine_plugin.engine.finish.state_mixture import Fit, beginning, fitted, log_densities, states_told

NOTHING = 3.5
COVARIANCE = np.array([[1.4, 0.6, 0.7], [0.6, 1.2, 0.4], [0.7, 0.4, 1.2]])
BOTH_COPIES = [[6.0, 3.6, 5.4], [6.2, 5.3, 3.4]]  # z of the two states as in sets of the benchmark
ONE_COPY = [[7.4, 3.6, 3.5], [3.6, 6.8, 3.4]]


def drawn(share, means, count=600, seed=1):
    rng = np.random.default_rng(seed)
    second = rng.random(count) < share
    z = rng.multivariate_normal(np.zeros(3), COVARIANCE, count) + np.array(means)[second.astype(int)]
    return z, second.mean()


@pytest.mark.parametrize("means, most", [(BOTH_COPIES, 0.07), (ONE_COPY, 0.03)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_the_share_is_right_within_its_error(share, means, most):
    z, planted = drawn(share, means)
    told = states_told(z, NOTHING)
    assert told.error < most and abs(told.share - planted) < 2 * max(told.error, 0.015)
    assert told.moved == pytest.approx((means[1][1] - NOTHING) / (means[0][0] - NOTHING), abs=0.15)
    assert told.gain > CONFIRMS


def test_the_error_of_the_share_is_what_shares_scatter_by():
    asked = [(states_told(z, NOTHING), planted) for z, planted in (drawn(0.4, BOTH_COPIES, 300, k) for k in range(12))]
    scatter = np.mean([((told.share - planted) / told.error) ** 2 for told, planted in asked])
    assert 0.3 < scatter < 2.2  # χ² / 12 has the standard deviation 0.4


def test_images_that_fit_nowhere_are_no_second_state():
    """A third of the images is noise: what they fit about the second place is what is found in noise."""
    z, _ = drawn(0.3, [[7.4, 3.5, 3.5], [3.5, 3.5, 3.5]])
    told = states_told(z, NOTHING)
    assert told.gain > CONFIRMS and told.moved < LEAST_MOVED / 2


def test_one_state_explains_images_of_one_state():
    assert states_told(drawn(0.0, ONE_COPY)[0], NOTHING).gain < TELLS
    like_parts = [[7.4, 6.0, 6.0], [7.4, 6.0, 6.0]]
    assert states_told(drawn(0.5, like_parts)[0], NOTHING).gain < TELLS


def test_densities_are_those_of_two_gaussians():
    z, _ = drawn(0.4, BOTH_COPIES, 20)
    of = Fit(0.0, 0.3, np.array(BOTH_COPIES), np.stack([COVARIANCE, 2 * COVARIANCE]))
    known = [share * multivariate_normal(mean, covariance).pdf(z)
             for share, mean, covariance in zip((0.7, 0.3), of.means, of.covariances)]
    np.testing.assert_allclose(np.exp(log_densities(z, of)) / (2 * np.pi) ** 1.5, np.transpose(known))


def test_the_fit_leaves_nothing_to_gain(monkeypatch):
    """Neither another share nor other means are more likely, also against what the means lean on."""
    monkeypatch.setattr(mixture, "STILL", 1e-7)
    monkeypatch.setattr(mixture, "POOLED", 0.0)
    monkeypatch.setattr(mixture, "SWEEPS", 2000)
    z, _ = drawn(0.4, ONE_COPY)
    fit = fitted(z, NOTHING, beginning(z, 0.5))
    expected, precision = mixture.leanings(fit.means, NOTHING)

    def posterior(other):
        likelihood = np.log(np.exp(log_densities(z, other)).sum(axis=1)).sum()
        return likelihood - 0.5 * (precision * (other.means - expected) ** 2).sum()
    best = posterior(fit)
    assert best == pytest.approx(fit.log_posterior, abs=1e-3)
    for step in (-0.02, 0.02):
        assert posterior(fit._replace(share=fit.share + step)) < best
        for state, place in np.ndindex(2, 3):
            means = fit.means.copy()
            means[state, place] += step
            assert posterior(fit._replace(means=means)) < best
