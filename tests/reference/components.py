"""The measures of feature components, sample by sample in float64 Python numbers."""

import math
from itertools import pairwise

from reference.shapley import shapley_values


def variance(samples):
    """E||x - E x||^2 of a list of lists of numbers."""
    means = [sum(column) / len(samples) for column in zip(*samples, strict=True)]
    return sum((x - m) ** 2 for sample in samples for x, m in zip(sample, means, strict=True)) / len(samples)


def components(approximations):
    """c^(l) of Phi^(l), each a list of samples."""
    zero = [[0.0] * len(approximations[0][0]) for _ in approximations[0]]
    return [difference(deep, shallow) for shallow, deep in pairwise([zero, *approximations])]


def difference(a, b):
    return [[x - y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def cross_entropy(logits, label):
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def contributions(head, feature, approximations, labels):
    """Shapley values of v(S) = E[loss(rest) - loss(rest + sum of c in S)], by permutations.

    Args:
        head: Function from one sample's feature (list) to its logits (list).
        feature: List of samples.
        approximations: One such list per order.
        labels: List of classes.
    """
    parts, rest = components(approximations), difference(feature, approximations[-1])

    def loss(inside):
        total = 0.0
        for n, label in enumerate(labels):
            sample = list(rest[n])
            for i in inside:
                sample = [x + y for x, y in zip(sample, parts[i][n], strict=True)]
            total += cross_entropy(head(sample), label)
        return total / len(labels)

    return shapley_values(lambda inside: loss([]) - loss(inside), len(parts))
