"""Exact Hamming distances between bit-packed samples, by integer matrix products over runs of gates.

`D_jk = a_j + a_k - 2 <s_j, s_k>` with `a` the number of ones. int8 products with int32 sums are exact and 4 times as
fast as float32 ones on a CPU with VNNI (`benchmarks/entropy.py`); bfloat16 would round counts above 256.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from netprism.gates.packing import PackedGates

_RUN = 16_384  # gates in one product: 33 MB of int8 for 2000 samples
_ROWS = 512  # samples in a block row of a symmetric product; 250 to 1000 were within 10 % of each other


def hamming(gates: PackedGates) -> Tensor:
    """Numbers of gates that differ between all pairs of samples.

    Cost: n^2 d / 2 integer multiply-adds; memory n^2 int32, and n * 16 kB for a run of gates.

    Returns:
        int32 `(n, n)`.
    """
    n = len(gates)
    gram = torch.zeros(n, n, dtype=torch.int32, device=gates.bits.device)
    for _, run in gates.runs(_RUN):
        _add_gram_(gram, run)
    gram = gram.tril() + gram.tril(-1).T
    ones = gram.diagonal()
    return ones[:, None] + ones - 2 * gram


def hamming_to_independent(
    gates: PackedGates, rates: Tensor, generator: torch.Generator, count: int | None = None
) -> Tensor:
    """Numbers of gates that differ from m synthetic samples, with independent gates of the same activation rates.

    The synthetic gates are drawn with rates rounded to 1/65536, a run at a time, and never stored.

    Cost: n m d integer multiply-adds and m d random numbers of 16 bits; memory as `hamming`.

    Args:
        gates: Gates of n samples.
        rates: Activation rates `(d,)` in [0, 1].
        generator: Generator of the random numbers, on the gates' device.
        count: Number m of independent samples; None: n.

    Returns:
        int32 `(n, m)`: samples by synthetic samples.
    """
    n = len(gates)
    m = n if count is None else count
    common = torch.zeros(n, m, dtype=torch.int32, device=gates.bits.device)
    ones, synthetic_ones = torch.zeros_like(common[:, :1]), torch.zeros_like(common[:1])
    rates = pad(rates, (0, -len(rates) % 8))
    for place, run in gates.runs(_RUN):
        synthetic = _bernoulli(rates[place], m, generator)
        common += _product(run, synthetic)
        # Sums by products with ones: 50 times as fast as torch.sum from int8 to int32.
        one = torch.ones_like(run[:1])
        ones += _product(run, one)
        synthetic_ones += _product(one, synthetic)
    return ones + synthetic_ones - 2 * common


def activation_rates(gates: PackedGates) -> Tensor:
    """The share of the samples on which each gate is open, float32 `(d,)`. Time O(n d / 8) bytes read."""
    counts = torch.zeros(8 * gates.bits.shape[1], dtype=torch.int32, device=gates.bits.device)
    for place, run in gates.runs(_RUN):
        # Sums of at most 255 rows fit in uint8: three times as fast as summing in int32.
        for rows in run.view(torch.uint8).split(255):
            counts[place] += rows.sum(0, dtype=torch.uint8)
    return counts[: gates.size] / len(gates)


def _add_gram_(gram: Tensor, run: Tensor) -> None:
    """Adds `run @ run.T` to the blocks on and below the diagonal of `gram`."""
    for start in range(0, len(run), _ROWS):
        rows = slice(start, start + _ROWS)
        gram[rows, : start + _ROWS] += _product(run[rows], run[: start + _ROWS])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of zeros and ones, int8 `(n, d)` and `(m, d)`, exact: int32 `(n, m)`."""
    if a.device.type == "cpu":
        return torch._int_mm(a, b.T)
    if a.device.type == "cuda":  # asks for more than 16 rows, and for multiples of 8
        n, m, extra = len(a), len(b), -a.shape[1] % 8
        a, b = pad(a, (0, extra, 0, max(-n % 8, 24 - n))), pad(b, (0, extra, 0, -m % 8))
        return torch._int_mm(a, b.T)[:n, :m]
    return (a.float() @ b.float().T).int()  # exact up to 2^24 ones in a run


def _bernoulli(rates: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Independent draws, int8 `(n, d)`: a random int16 is at most `65536 p - 32769` with probability p."""
    d = len(rates)
    words = torch.empty(n, -(-d // 4), dtype=torch.int64, device=rates.device)
    words.random_(-(2**63), None, generator=generator)
    limits = (rates * 65_536 - 32_769).round().clamp_min(-32_768).to(torch.int16)
    return ((words.view(torch.int16)[:, :d] <= limits) & (rates > 0)).view(torch.int8)
