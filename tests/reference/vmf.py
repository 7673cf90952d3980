"""The von Mises-Fisher distribution and its noise, in mpmath or by Monte Carlo."""

import mpmath
import numpy as np

mpmath.mp.dps = 40


def mean_resultant_length(kappa, d):
    kappa, nu = mpmath.mpf(kappa), mpmath.mpf(d) / 2 - 1
    return mpmath.besseli(nu + 1, kappa) / mpmath.besseli(nu, kappa)


def mean_resultant_slope(kappa, d):
    """A' = 1 - A^2 - (d - 1) A / kappa, which needs the forty digits."""
    length = mean_resultant_length(kappa, d)
    return 1 - length**2 - (d - 1) * length / mpmath.mpf(kappa)


def log_normalizer(kappa, d):
    kappa, nu = mpmath.mpf(kappa), mpmath.mpf(d) / 2 - 1
    return (
        nu * mpmath.log(kappa) - mpmath.mpf(d) / 2 * mpmath.log(2 * mpmath.pi) - mpmath.log(mpmath.besseli(nu, kappa))
    )


def projected_normal_length(x, d):
    x, half = mpmath.mpf(x), mpmath.mpf(d) / 2
    kummer = mpmath.hyp1f1(mpmath.mpf(1) / 2, half + 1, -(x**2) / 2)
    return x / mpmath.sqrt(2) * mpmath.gamma(half + mpmath.mpf(1) / 2) / mpmath.gamma(half + 1) * kummer


def projected_normal_slope(x, d):
    x, half = mpmath.mpf(x), mpmath.mpf(d) / 2
    kummer = mpmath.hyp1f1(mpmath.mpf(3) / 2, half + 1, -(x**2) / 2)
    return mpmath.gamma(half + mpmath.mpf(1) / 2) / mpmath.gamma(half + 1) / mpmath.sqrt(2) * kummer


def sample(direction, kappa, count, rng):
    """Unit vectors by Wood's rejection method (Communications in Statistics, 1994)."""
    d = len(direction)
    b = (d - 1) / (2 * kappa + np.sqrt(4 * kappa**2 + (d - 1) ** 2))
    x = (1 - b) / (1 + b)
    along = np.empty(0)
    while len(along) < count:
        z = rng.beta((d - 1) / 2, (d - 1) / 2, size=count)
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        log_odds = kappa * (w - x) + (d - 1) * np.log((1 - x * w) / (1 - x**2))
        along = np.concatenate([along, w[log_odds >= np.log(rng.uniform(size=count))]])
    across = rng.normal(size=(count, d))
    across -= np.outer(across @ direction, direction)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    along = along[:count, None]
    return along * direction + np.sqrt(1 - along**2) * across


def blurred_length(strength, d, kappa_max, count, rng):
    """Mean resultant length of the directions of strength * vMF(e_1, kappa_max) + N(0, I)."""
    features = strength * sample(np.eye(d)[0], kappa_max, count, rng) + rng.normal(size=(count, d))
    return np.linalg.norm((features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0))
