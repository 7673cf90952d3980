"""What a monitor sees of a training while it measures, and that the training does not notice."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

from netprism.callbacks._monitor_data import MonitorData
from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.loggers import is_dry_run

T = TypeVar("T")
Unpack = Callable[[Any], tuple[Any, Tensor | None]]


@dataclass(frozen=True)
class Batch:
    """Samples of a monitor's data.

    Attributes:
        inputs: What the network gets, on its device and in the trainer's precision.
        labels: Integer classes `(n,)` on the network's device, or None.
        raw: What the collate function of the data made.
        number: Position of this batch among all batches of the data.
    """

    inputs: Any
    labels: Tensor | None
    raw: Any
    number: int


class View:
    """A network in the middle of its training, as a monitor sees it.

    Args:
        trainer: The trainer at work.
        pl_module: The module that is trained.
        name: Name of the monitor, shown on progress bars.
        unpack: Function from a batch to (inputs, integer labels or None).
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, unpack: Unpack) -> None:
        self.trainer, self.pl_module, self.name = trainer, pl_module, name
        self._unpack = unpack
        # Normalisation layers are in train mode as well, but draw no random numbers.
        self._stochastic = [m for m in pl_module.modules() if m.training and not isinstance(m, _NormBase)]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.pl_module.device

    @property
    def is_dry_run(self) -> bool:
        """Whether the training is one of Lightning's `fast_dev_run`s."""
        return is_dry_run(self.trainer)

    @property
    def model(self) -> nn.Module:
        """What is called: the LightningModule, or its one network where it has no `forward` of its own."""
        return self._called[0]

    @property
    def network(self) -> nn.Module:
        """The module as seen from which layers are named: see :func:`callable_and_network`."""
        return self._called[1]

    @cached_property
    def _called(self) -> tuple[nn.Module, nn.Module]:
        return callable_and_network(self.pl_module)

    def load(self, data: MonitorData, number: int, size: int | None = None) -> Batch:
        """Loads batch `number`, or its first `size` samples, and seeds what may be drawn for it."""
        raw = data.load(number, size)
        inputs, labels = move_data_to_device(self._unpack(raw), self.device)
        return Batch(self.trainer.precision_plugin.convert_input(inputs), labels, raw, number)

    def forward(self, inputs: Any) -> Any:  # noqa: ANN401 - a model's own
        """Runs the network once without gradients, in the trainer's precision; returns its output."""
        # In train mode some buffers move (an exponential mean): each batch has to meet the network as it was.
        with torch.no_grad(), buffers_kept(self.pl_module), self.precision():
            return self.model(inputs)

    def precision(self) -> Any:  # noqa: ANN401 - the plugin's own context manager
        """The context in which the trainer's precision plugin runs a forward pass."""
        return self.trainer.precision_plugin.forward_context()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Switches on what draws random numbers in training (dropout, the noise of a VAE) within the block."""
        for m in self._stochastic:
            m.training = True
        try:
            yield
        finally:
            for m in self._stochastic:
                m.training = False

    def draws_random_numbers(self, data: MonitorData) -> tuple[bool, str]:
        """Whether the network draws random numbers in train mode, tried on one sample: the same on every rank.

        Returns:
            Whether it does, and why it could not be tried: the error of a network that does not run in train mode with
            its inputs alone (a detector that asks for its targets), or "".
        """
        inputs = self.load(data, 0, 1).inputs
        before, why_not = _random_state(self.device), ""
        try:
            with self.sampling():
                self.forward(inputs)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            why_not = str(error)
        after = _random_state(self.device)
        draws = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        failed = [why for why in all_gather_object(why_not) if why]
        return draws and not failed, failed[0] if failed else ""

    def batches(self, data: MonitorData, what: str, numbers: Container[int] | None = None) -> Iterator[Batch]:
        """The batches of this rank, with a progress bar.

        Args:
            data: Samples of the monitor.
            what: Label of the progress bar.
            numbers: Only these batches; None for all.
        """
        own = data.shard(self.trainer.global_rank, self.trainer.world_size)
        for number in self.progress([n for n in own if numbers is None or n in numbers], what):
            yield self.load(data, number)

    def collect(
        self,
        data: MonitorData,
        look: Callable[[Batch], Mapping[str, Tensor]],
        what: str,
        numbers: Container[int] | None = None,
    ) -> dict[str, Tensor]:
        """What `look` finds in the batches of all ranks, on each rank; where it raises on one, it raises on all.

        Args:
            data: Samples of the monitor.
            look: Function from a batch to tensors `(n, ...)` by name, one row per sample; the same names each time.
            what: Label of the progress bar.
            numbers: Only these batches; None for all.

        Returns:
            The rows of all batches in order, on the CPU.
        """

        def own() -> dict[int, dict[str, Tensor]]:
            return {
                batch.number: {name: rows.detach().cpu() for name, rows in look(batch).items()}
                for batch in self.batches(data, what, numbers)
            }

        found = {number: rows for part in all_gather_object(run_on_all_ranks(own)) for number, rows in part.items()}
        ordered = [found[number] for number in sorted(found)]
        return {name: torch.cat([rows[name] for rows in ordered]) for name in ordered[0]}

    def progress(self, work: Iterable[T], what: str) -> tqdm[T]:
        """A bar over the steps of long work, on rank 0 and where the trainer has one."""
        hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        return tqdm(work, desc=f"{self.name} {what}", leave=False, disable=hidden)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Restores flags, buffers, `requires_grad` and all global random state at the end, also after an exception.

    A generator of somebody's own (a data set's `np.random.default_rng`) is not restored: give a monitor its own data.
    """
    flags = [(m, m.training) for m in module.modules()]
    gradients = [(p, p.requires_grad) for p in module.parameters()]
    random_state = isolate_rng()
    random_state.__enter__()
    try:
        with buffers_kept(module):
            yield
    finally:
        random_state.__exit__(None, None, None)  # as a `with` it would not restore after an exception
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for m, training in flags:
            m.training = training


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restores buffers at the end: their values, the tensors themselves, and which of them there are."""
    kept = [
        (m, dict(m._buffers), [(b, b.detach().clone()) for b in m._buffers.values() if b is not None])
        for m in module.modules()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for m, buffers, values in kept:
                m._buffers.clear()
                m._buffers.update(buffers)
                for buffer, value in values:
                    if not torch.equal(buffer, value):  # an expanded one cannot be written to
                        buffer.copy_(value)


def callable_and_network(pl_module: pl.LightningModule) -> tuple[nn.Module, nn.Module]:
    """Returns what a monitor calls, and the network whose layer names it logs.

    The names leave out the attribute that holds the network, where all parameters are in one: `layer1.0.relu` and not
    `net.layer1.0.relu`. Where a LightningModule has no `forward` of its own, its network is called instead.

    Raises:
        ValueError: The module has no `forward`, and no single network to call instead.
    """
    network = network_of(pl_module)
    if type(pl_module).forward.__qualname__ != "LightningModule.forward":
        return pl_module, network
    if network is pl_module:
        names = ", ".join(name for name, child in pl_module.named_children() if _has_parameters(child)) or "none"
        raise ValueError(f"{type(pl_module).__name__} has no forward, and not one network to call instead ({names})")
    return network, network


def network_of(pl_module: pl.LightningModule) -> nn.Module:
    """Returns the part from which layers are named: the network that has all parameters, otherwise the module."""
    networks = [child for child in pl_module.children() if _has_parameters(child)]
    return networks[0] if len(networks) == 1 else pl_module


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def check_finite(features: Mapping[str, Tensor], name: str) -> None:
    """Refuses features, by layer, from which no number of a monitor would mean anything.

    Raises:
        ValueError: A layer has NaN or infinite values; names the monitor `name` and the first such layer.
    """
    for layer, feature in features.items():
        if not feature.isfinite().all():
            raise ValueError(f"{name}: layer {layer!r} gives values that are NaN or infinite")


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
