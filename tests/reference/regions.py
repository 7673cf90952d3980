"""Paper D's regional measures in their plainest form: one pair of samples at a time, float64, autograd."""

import math

import torch


def softmax(values):
    values = values - values.max()
    return values.exp() / values.exp().sum()


def cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def log_similarity(own, other, w, v, kappa):
    """sum_r w^(r) max_r' kappa' sum_k v_k u^(r)_k u'^(r')_k, from the whole K x R x R array; features are (R, K)."""
    u = (own / own.norm(dim=1, keepdim=True)).T[:, :, None]
    u_other = (other / other.norm(dim=1, keepdim=True)).T[:, None, :]
    array = v[:, None, None] * u * u_other
    return kappa * (w * array.sum(dim=0).max(dim=1).values).sum()


def importance(features, logits, sample, draws, kappa, kappa_p=5.0, temperature=4.0, rate=0.05, momentum=0.9):
    """w and v of one sample; features (N, R, K), draws: for each step the samples that it is compared with."""
    outputs = [softmax(row / temperature) for row in logits]
    regions, channels = features.shape[1:]
    w = torch.full((regions,), 1 / regions, dtype=features.dtype)
    v = torch.full((channels,), 1 / channels, dtype=features.dtype)
    speed = [torch.zeros_like(w), torch.zeros_like(v)]
    for drawn in draws:
        others = [i for i in drawn if i != sample]
        w.requires_grad_()
        v.requires_grad_()
        exponents = torch.stack([log_similarity(features[sample], features[i], w, v, kappa) for i in others])
        p = softmax(torch.stack([kappa_p * cosine(outputs[i], outputs[sample]) for i in others]))
        loss = (p * (p.log() - torch.log_softmax(exponents, dim=0))).sum()
        slopes = torch.autograd.grad(loss, (w, v))
        speed = [momentum * old + slope for old, slope in zip(speed, slopes, strict=True)]
        w, v = ((x.detach() - rate * s).abs() for x, s in zip((w, v), speed, strict=True))
        w, v = w / w.sum(), v / v.sum()
    return w, v


def log_vmf_3d(direction, mean, kappa):
    """log of kappa / (4 pi sinh kappa) exp(kappa mu.o), on the sphere in three dimensions."""
    log_sinh = kappa + math.log1p(-math.exp(-2 * kappa)) - math.log(2)
    return math.log(kappa) - math.log(4 * math.pi) - log_sinh + kappa * float(direction @ mean)


def kappa_3d(strength, kappa_max):
    """The kappa with A_3(kappa) = A_3(kappa_max) R_3(strength), by bisection; A_3 = coth k - 1 / k."""

    def length(k):
        return 1 / math.tanh(k) - 1 / k

    x = strength
    blurred = math.sqrt(2 / math.pi) * math.exp(-x * x / 2) / x + (1 - 1 / x**2) * math.erf(x / math.sqrt(2))
    target, low, high = length(kappa_max) * blurred, 1e-9, kappa_max
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) < target else (low, middle)
    return middle


def similarity_loss(projected, features, w, logits, kappa_max, kappa_p=5.0, temperature=4.0):
    """L_similarity in three dimensions; projected (N, R, 3), features (N, R, K)."""
    n, regions, _ = projected.shape
    outputs = [softmax(row / temperature) for row in logits]
    total = 0.0
    for x in range(n):
        others = [i for i in range(n) if i != x]
        log_q = []
        for i in others:
            exponent = 0.0
            for r in range(regions):
                match = max(range(regions), key=lambda s: float(cosine(features[i, r], features[x, s])))
                h, mean = projected[i, r], projected[x, match]
                kappa = kappa_3d(float(h.norm()), kappa_max)
                exponent += float(w[i, r]) * log_vmf_3d(h / h.norm(), mean / mean.norm(), kappa)
            log_q.append(exponent)
        log_q = torch.log_softmax(torch.tensor(log_q, dtype=torch.float64), dim=0)
        p = softmax(torch.stack([kappa_p * cosine(outputs[i], outputs[x]) for i in others]))
        total += float((p * (p.log() - log_q)).sum())
    return total / n


def align_loss(projected, samples, w):
    n, regions, _ = projected.shape
    return -sum(float(w[i, r] * cosine(samples[i], projected[i, r])) for i in range(n) for r in range(regions)) / n


def posterior_3d(h, directions, priors, kappa_max):
    kappa = kappa_3d(float(h.norm()), kappa_max)
    weights = torch.stack(
        [p * torch.exp(kappa * (cosine(h, mu) - 1)) for p, mu in zip(priors, directions, strict=True)]
    )
    return weights / weights.sum()
