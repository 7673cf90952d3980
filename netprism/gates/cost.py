"""What the entropy of many samples will cost, said before it begins: memory and time grow as n^2."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from netprism.gates.hamming import BLOCKS, block_rows, hamming
from netprism.gates.packing import PackedGates
from netprism.gates.pair_sums import DISTANCES

MANY = 10_000  # samples from which it is said: .4 GB of distances
_RUN = 33_000  # bytes of a sample while a run of gates is unpacked
_SUMS = 16 * BLOCKS  # bytes of a sample and layer: two bandwidths, with classes, half of each block's columns, float64
_KERNEL = 1.5e-8  # seconds for the kernel of a pair of samples, on one core
_PROBE = 512, 16_384  # samples and gates whose distances are timed: .03 s on one core without AVX-512
log = logging.getLogger(__name__)


def needed_bytes(samples: int, layers: int, ranks: int = 1) -> int:
    """Returns the memory of `transformation_complexity` beside the packed gates.

    Distances that are found at a time, sent to other ranks, and of layers behind; a block's kernel; a run of gates; and
    the sums of each block and layer.
    """
    of_a_block: int = 4 * block_rows(samples)[0].stop * samples
    of_a_layer = 2 * samples * samples
    found = min(of_a_layer * layers, max(DISTANCES, of_a_block))
    behind = min(of_a_layer, max(DISTANCES, of_a_block)) // ranks
    return (1 if ranks == 1 else 2) * found + behind + 6 * of_a_block + (_RUN + _SUMS * layers) * samples


def announce(samples: int, gates: int, layers: int, device: torch.device, ranks: int = 1) -> None:
    """Says in a line what the distances of many samples will take; nothing for fewer than `MANY`.

    Args:
        samples: Number n of samples.
        gates: Number d of gates of all layers.
        layers: Number of layers.
        device: Where they are.
        ranks: Number of processes that share the work.

    Raises:
        ValueError: They need more memory than is free, where that is known: on a CPU under Linux. Otherwise the kernel
            would end the process without a word.
    """
    if samples < MANY:
        return
    needed, free = needed_bytes(samples, layers, ranks), free_bytes() if device.type == "cpu" else None
    what = f"distances of {samples} samples need {needed / 1e9:.1f} GB"
    if free is not None and needed > free:
        raise ValueError(f"{what} and {free / 1e9:.1f} GB are free; expected fewer samples, such as num_images=2000")
    minutes = samples**2 * (gates * _seconds_per_gate(device) + _KERNEL * layers) / 60 / ranks
    log.warning(f"{what} and, of {gates} gates, about {max(minutes, 1):.0f} minutes")


def free_bytes() -> int | None:
    """Returns the memory that can be had without swapping, of this machine and of its container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or "max"
        return available
    return limit - used if available is None else min(available, limit - used)


def _seconds_per_gate(device: torch.device) -> float:
    """Seconds for one gate in the distances of n samples, divided by n^2; the least of three, others may be at work."""
    n, d = _PROBE
    gates = PackedGates(torch.zeros(n, d // 8, dtype=torch.uint8, device=device), (d,))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        int(hamming(gates)[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / n**2 / d
