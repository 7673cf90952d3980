"""What a monitor sees of a training while it measures, and that the training does not notice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device, rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

from netprism.callbacks._calling import (
    Arguments,
    Call,
    Called,
    FunctionOfOne,
    Unpack,
    Way,
    callable_and_network,
    describe,
    first_floating,
    labels_of,
    network_of,
    one_by_one,
    own_name,
    tensors_of,
    unpacked,
    ways,
)
from netprism.callbacks._monitor_data import MonitorData, as_classes
from netprism.distributed import all_gather_object, in_one_line, run_on_all_ranks
from netprism.loggers import is_dry_run
from netprism.module_names import match_name
from netprism.nets import tap_points
from netprism.nets.fitting import wrong_size
from netprism.outline import RanLayer, last_linear_that_ran, outermost_blocks, ran_layers
from netprism.taps import find_layer, layer_names

T = TypeVar("T")
TRIED = 4  # samples on which ways to call the model are tried


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
        unpack: Function from a batch to what the network gets, and labels; None to find out.
        call: Function from the module and a batch to an output, or None.
        network: Name of the network to look at, where there are several; None for the module's `forward`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        name: str,
        unpack: Unpack | None = None,
        call: Call | None = None,
        network: str | None = None,
    ) -> None:
        self.trainer, self.pl_module, self.name = trainer, pl_module, name
        self._unpack, self._call, self._chosen = unpack, call, network
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

    @cached_property
    def model(self) -> nn.Module:
        """What is called, with what :meth:`load` gives as inputs: the LightningModule, or one network in it."""
        return Called(self._target, self.pl_module, self._call)

    @cached_property
    def network(self) -> nn.Module:
        """The module as seen from which layers are named: see :func:`callable_and_network`."""
        return self._callable_and_network[1]

    @property
    def _target(self) -> nn.Module:
        return self._callable_and_network[0]

    @cached_property
    def _callable_and_network(self) -> tuple[nn.Module, nn.Module]:
        if self._call is not None and self._chosen is None:
            return self.pl_module, network_of(self.pl_module)
        return callable_and_network(self.pl_module, self._chosen)

    def prepare(self, data: MonitorData, split: str) -> MonitorData:
        """Finds out how the network is called on samples, by trying it on a few; and warns of augmented ones.

        Raises:
            ValueError: No way fits; names what was tried, and the line to write.
        """
        found = replace(data, way=self._find_way(data))
        first, second = (self.load(replace(found, seed=data.seed + shift), 0, TRIED).inputs for shift in (0, 1))
        pairs = zip(tensors_of(first), tensors_of(second), strict=False)
        if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            rank_zero_warn(
                f"{self.name}: the {split} data are augmented at random: give {split}_data= without augmentation"
            )
        return found

    def _find_way(self, data: MonitorData) -> Way | None:
        """The way that works, None where the user has given one."""
        raw = self._load_raw(data, 0, TRIED)
        if self._call is not None or self._unpack is not None:
            given = "call" if self._call is not None else "unpack"
            try:
                self.forward(self.load(data, 0, TRIED).inputs)
            except (MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:
                raise ValueError(
                    f"{self.name}: {given}= does not fit {type(self._target).__name__} on a batch that is "
                    f"{describe(raw)} ({in_one_line(error)})"
                ) from error
            return None
        tried: list[str] = []
        causes: list[Exception] = []
        for way in ways(raw, self._target.forward):
            try:
                if self.forward(self._on_device(way.inputs(raw))) is None:
                    raise ValueError("it returns None")
            except (MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:
                tried.append(f"{type(self._target).__name__}({way.text})")
                causes.append(error)
                continue
            if not way.is_usual:
                rank_zero_info(f"{self.name}: calls {type(self._target).__name__}({way.text}) on batches of the data")
            return way
        images = first_floating(raw)
        if images is not None and (
            wrong := wrong_size(self._target, images.shape[1:], causes[0], type(self.network).__name__)
        ):
            raise wrong from causes[0]
        kind = type(self.pl_module).__name__
        children = [name for name, child in self.pl_module.named_children() if any(True for _ in child.parameters())]
        other = f", or network='{children[-1]}' (of {', '.join(children)})" if len(children) > 1 else ""
        raise ValueError(
            f"{self.name}: {kind} does not run on a batch that is {describe(raw)}; tried {', '.join(tried)} "
            f"({in_one_line(causes[0])}); write unpack=lambda batch: (what forward gets, labels or None){other}"
        ) from causes[0]

    def layers(self, layers: Sequence[str]) -> list[str]:
        """Returns layers by the names that are logged; full names, as of `named_modules()`, are accepted too."""
        known, owner = layer_names(self.model, self.network), own_name(self.pl_module, self.network)

        def short(name: str) -> str:
            for sign in ("#", ":"):  # a call of a layer, a functional call in it
                start, found, end = name.partition(sign)
                if found:
                    return (owner_or(start) if start else "") + found + end
            return owner_or(name)

        def owner_or(name: str) -> str:
            return match_name(name, known, owner) or ("" if name == owner else name)

        return [short(name) or name for name in ([layers] if isinstance(layers, str) else layers)]

    def gating_layers(self, layers: Sequence[str] | int | None) -> Sequence[str] | int | None:
        """Returns names of gating layers, see :meth:`layers`; a number of them and None are kept."""
        return layers if layers is None or isinstance(layers, int) else self.layers(layers)

    def default_layers(self, data: MonitorData, kind: Literal["any", "maps"] = "any") -> list[str]:
        """Returns the layers to look at where nobody has named any, and says which: see `outermost_blocks`.

        Args:
            data: Samples to run the network on, once.
            kind: "maps" for feature maps only.

        Raises:
            ValueError: There are none; lists the layers.
        """
        if points := tap_points(self.network):
            return list(points)
        found = outermost_blocks(
            self.network, self._ran(data), min(TRIED, len(data.batches[0])), dims=4 if kind == "maps" else None
        )
        if not found:
            listed = ", ".join(name for name in layer_names(self.model, self.network)[:20] if name)
            raise ValueError(
                f"{self.name}: layers is None; expected {'maps' if kind == 'maps' else 'layers'}: "
                f"{listed or f'{type(self.network).__name__} has none in it'}"
            )
        rank_zero_info(f"{self.name}: layers={found}, the outermost blocks of {type(self.network).__name__}")
        return found

    def logits_layer(self, data: MonitorData) -> str:
        """Returns the last fully connected layer that runs.

        Raises:
            ValueError: There is none.
        """
        if (found := last_linear_that_ran(self._ran(data))) is None:
            kind = type(self.network).__name__
            raise ValueError(f"{self.name}: {kind} has no fully connected layer; expected one, or logits_layer=")
        return found

    def _ran(self, data: MonitorData) -> dict[nn.Module, RanLayer]:
        inputs = self.load(data, 0, TRIED).inputs
        return ran_layers(self.model, lambda: self.forward(inputs), self.network)

    def function_of_one(self, batch: Batch, input_layer: str | None = None) -> list[tuple[nn.Module, Tensor]]:
        """Returns the network as a function of one tensor, and this tensor: once, or once per sample.

        Where the network gets several tensors the samples come one by one, since the function may be called on any
        number of rows.

        Args:
            batch: The samples.
            input_layer: Layer whose output is the argument, for inputs that are no floating numbers.

        Raises:
            TypeError: There is no floating tensor.
        """
        if isinstance(batch.inputs, Tensor) and input_layer is None and batch.inputs.dtype != torch.int64:
            return [(self.model, batch.inputs)]  # bytes, too: SID says what it wants of images
        layer = None if input_layer is None else find_layer(self.model, input_layer, self.network)
        tensors = tensors_of(batch.inputs)
        rows = len(tensors[0]) if tensors else 1
        parts = [batch.inputs] if len(tensors) == 1 and layer is None else one_by_one(batch.inputs, rows)
        try:
            functions = [FunctionOfOne(self.model, part, layer) for part in parts]
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error
        with self.precision(), buffers_kept(self.pl_module):
            return [(function, function.start()) for function in functions]

    def load(self, data: MonitorData, number: int, size: int | None = None) -> Batch:
        """Loads batch `number`, or its first `size` samples, and seeds what may be drawn for it."""
        raw = self._load_raw(data, number, size)
        labels: object
        if self._call is not None:
            inputs, labels = raw, labels_of(raw)
        elif self._unpack is not None:
            inputs, labels = unpacked(self._unpack(raw), self._target.forward)
        elif data.way is not None:
            inputs, labels = data.way.inputs(raw), labels_of(raw)
        else:
            return self.load(replace(data, way=self._find_way(data)), number, size)
        classes = as_classes(labels)
        return Batch(self._on_device(inputs), None if classes is None else classes.to(self.device), raw, number)

    def _load_raw(self, data: MonitorData, number: int, size: int | None) -> Any:  # noqa: ANN401 - a user's batch
        try:
            return data.load(number, size)
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise ValueError(
                f"{self.name}: samples have several sizes ({in_one_line(error)}); write batch_size=1"
            ) from error

    def _on_device(self, inputs: Any) -> Any:  # noqa: ANN401 - a user's batch
        """The inputs on the network's device and in the trainer's precision."""

        def moved(value: Any) -> Any:  # noqa: ANN401 - a user's batch
            return self.trainer.precision_plugin.convert_input(move_data_to_device(value, self.device))

        if isinstance(inputs, Arguments):
            return Arguments(moved(inputs.args), moved(inputs.kwargs))
        return moved(inputs)

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
        for name, first in ordered[0].items():
            other = next((rows[name] for rows in ordered if rows[name].shape[1:] != first.shape[1:]), None)
            if other is not None:
                shapes = f"{tuple(first.shape[1:])} and {tuple(other.shape[1:])}"
                raise ValueError(
                    f"{self.name}: {name} of two samples have shapes {shapes}; expected one size of inputs"
                )
        return {name: torch.cat([rows[name] for rows in ordered]) for name in ordered[0]}

    def progress(self, work: Iterable[T], what: str) -> tqdm[T]:
        """A bar over the steps of long work, on rank 0 and where the trainer has one."""
        # A log file would get a line for each refresh.
        hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None or not is_watched()
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


def is_watched() -> bool:
    """Tells whether somebody sees a progress bar: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


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
