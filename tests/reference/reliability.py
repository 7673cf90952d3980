"""Round trips typed again: no covariance, least squares over the samples themselves, one round after the other."""

import numpy as np


def round_trips(psi, readouts, rounds, refit=False):
    """psi_r for r = 0..R; psi is (n, d) about its mean, h_k the least-squares regression of psi on g_k(psi).

    Directions with less than 1e-10 of the largest variance are left out.
    """
    trips, maps = [psi], None
    for _ in range(rounds):
        if refit or maps is None:
            maps = [np.linalg.lstsq(trips[-1] @ readout.T, trips[-1], rcond=1e-5)[0] for readout in readouts]
        back = [trips[-1] @ readout.T @ h for readout, h in zip(readouts, maps, strict=True)]
        trips.append(sum(back) / len(back))
    return trips


def reliable_parts(psi, readouts, rounds, refit=False):
    """g_k(psi_R), psi about its mean and the mean put back."""
    mean = psi.mean(axis=0)
    last = round_trips(psi - mean, readouts, rounds, refit)[-1] + mean
    return [last @ readout.T for readout in readouts]


def variance(features):
    """The sum over feature dimensions of the variance over samples: (n, ...) to a number."""
    flat = features.reshape(len(features), -1).astype(float)
    return sum(float(((flat[:, i] - flat[:, i].mean()) ** 2).mean()) for i in range(flat.shape[1]))
