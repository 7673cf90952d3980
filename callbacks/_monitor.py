"""What every per-epoch measurement shares: when it runs, and that it leaves no trace in the training."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device, rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import Dataset
from tqdm import tqdm

from netprism.callbacks._monitor_data import MonitorData, Split, monitor_data
from netprism.distributed import all_gather_object, in_one_line, is_reported, run_on_all_ranks
from netprism.loggers import is_dry_run, publish

T = TypeVar("T")
OnError = Literal["raise", "warn"]  # what an error in a measurement does: end the training, or cost its numbers alone
log = logging.getLogger(__name__)
DRY_RUN_SAMPLES = 32


class Monitor(pl.Callback):
    """Measures a network at the end of training epochs, and logs the same numbers on all ranks.

    A subclass implements `measure`; it finds everything in eval mode, and in `stochastic_modules` what may draw random
    numbers in training (dropout, a VAE). Training goes on as if the monitor had not run: random state, buffers
    (BatchNorm's running statistics), train and eval flags and `requires_grad` are put back, also when the measurement
    raises. Under DDP all ranks measure rank 0's network: the parameters are equal anyway, the buffers are made so.

    Args:
        name: prefix of the logged keys; two monitors of a kind need two names.
        every_n_epochs: measure after every n-th epoch, and after the last one unless EarlyStopping makes it the last.
        measure_untrained: also measure before the first step, logged as epoch -1.
        on_error: "raise" ends the training; "warn" says it in a line, logs nothing, and tries again the next time.
    """

    def __init__(
        self, name: str, every_n_epochs: int = 1, measure_untrained: bool = True, on_error: OnError = "raise"
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs is {every_n_epochs}; expected a number >= 1")
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; allowed: {', '.join(get_args(OnError))}")
        self.name, self.every_n_epochs, self.measure_untrained, self.on_error = (
            name,
            every_n_epochs,
            measure_untrained,
            on_error,
        )
        self.stochastic_modules: list[nn.Module] = []  # in train mode while training, but for normalisation
        self.history: list[dict[str, float]] = []  # one row a measurement: epoch, and the values without the prefix
        self._data: dict[Split, MonitorData | None] = {}

    @property
    def state_key(self) -> str:
        """Tells two monitors of a kind apart in a checkpoint."""
        return f"{type(self).__qualname__}[{self.name}]"

    @abstractmethod
    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        """Returns what to log, without the prefix: the same keys and values on every rank.

        It runs within `netprism.distributed.run_on_all_ranks`, which says how ranks are to talk so that an error hangs none.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        self._data = {}
        if stage == "fit" and trainer.global_step == 0:
            self.history = []

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped."""
        self.history = state_dict["history"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the untrained network. `log` would merge it with the first epoch, so the loggers get it directly."""
        if self.measure_untrained and trainer.global_step == 0:
            values = self._measure(trainer, pl_module, epoch=-1)
            for logger in trainer.loggers if values else []:
                logger.log_metrics({**values, "epoch": -1}, step=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and logs."""
        finished = trainer.current_epoch + 1
        is_last = trainer.should_stop or finished == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if finished % self.every_n_epochs == 0 or is_last:
            values = self._measure(trainer, pl_module, trainer.current_epoch)
            # The ranks agree already: a maximum keeps the value to the bit, where a mean over three ranks may round.
            pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max")

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        """What to log: nothing after an error that is not to end the training."""
        before = copy.deepcopy(self.state_dict()) if self.on_error == "warn" else {}
        try:
            values = run_on_all_ranks(partial(self._measure_undisturbed, trainer, pl_module, epoch))
        except Exception as error:
            if self.on_error == "raise" or not is_reported(error):
                raise
            self.load_state_dict(before)  # the ranks may have come to different points
            if trainer.is_global_zero:
                log.warning(f"{self.name}: no values in epoch {epoch}, the training goes on ({in_one_line(error)})")
            return {}
        # A resumed run measures the epoch it was stopped in once more.
        self.history = [row for row in self.history if row["epoch"] < epoch] + [{"epoch": epoch, **values}]
        return {f"{self.name}/{key}": value for key, value in values.items()}

    def _measure_undisturbed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        with undisturbed(pl_module):
            all_gather_object(
                None
            )  # all have come so far: nobody waits in a broadcast for one whose memory has run out
            _take_buffers_of_rank_0(pl_module)
            self.stochastic_modules = [m for m in pl_module.modules() if m.training and not isinstance(m, _NormBase)]
            pl_module.eval()
            return self.measure(trainer, pl_module, epoch)

    def choose_data(
        self, trainer: pl.Trainer, split: Split, samples: int, batch_size: int, seed: int, given: Dataset[Any] | None
    ) -> MonitorData | None:
        """The samples to look at, the same ones in every epoch; fewer in a dry run. See `monitor_data`."""
        if self._data.get(split) is None:  # validation may begin late
            wanted = min(samples, DRY_RUN_SAMPLES) if is_dry_run(trainer) else samples
            data = monitor_data(trainer, split, wanted, batch_size, seed, given)
            if data is not None and len(data) < wanted:
                rank_zero_info(f"{self.name}: {len(data)} {split} samples: {wanted} were asked for, there are no more")
            self._data[split] = data
        return self._data[split]

    def publish(
        self,
        trainer: pl.Trainer,
        draw: Callable[[Path], Sequence[Path]],
        kind: str = "figures",
        epoch: int | None = None,
    ) -> None:
        """Draws on rank 0, see `netprism.loggers.publish`; with `on_error="warn"` an error costs the pictures alone."""

        def drawn(folder: Path) -> Sequence[Path]:
            try:
                return draw(folder)
            except Exception as error:
                if self.on_error == "raise" or isinstance(error, OSError):
                    raise
                log.warning(f"{self.name}: no {kind} ({in_one_line(error)})")
                return []

        publish(trainer, drawn, kind, epoch)

    def progress(self, trainer: pl.Trainer, work: Iterable[T], what: str) -> tqdm[T]:
        """A bar over the steps of long work, on rank 0 and where the trainer has one."""
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        return tqdm(work, desc=f"{self.name} {what}", leave=False, disable=hidden)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Puts flags, buffers, `requires_grad` and all global random state back as they were, also after an exception.

    What draws from a generator of its own (a data set's `np.random.default_rng`) goes on drawing: give a monitor its own.
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
    """Puts buffers back as they were: their values, the tensors themselves, and which of them there are."""
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


def _take_buffers_of_rank_0(module: nn.Module) -> None:
    """BatchNorm's running statistics differ between ranks at the end of an epoch; the weights do not."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def forward(trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Any) -> Any:  # noqa: ANN401 - a model's own
    """Runs the network once without gradients, on its device and in the trainer's precision; returns its output."""
    model, _ = callable_and_network(pl_module)
    inputs = trainer.precision_plugin.convert_input(move_data_to_device(inputs, pl_module.device))
    # In train mode some buffers move (an exponential mean): each batch has to meet the network as it was.
    with torch.no_grad(), buffers_kept(pl_module), trainer.precision_plugin.forward_context():
        return model(inputs)


@contextmanager
def switched_to_train(modules: list[nn.Module]) -> Iterator[None]:
    """These modules themselves in train mode, not what is in them; then in eval mode."""
    for m in modules:
        m.training = True
    try:
        yield
    finally:
        for m in modules:
            m.training = False


def draws_random_numbers(run: Callable[[], object], device: torch.device) -> bool:
    """Whether running something moves torch's random state on."""
    before = _random_state(device)
    run()
    return any(not torch.equal(a, b) for a, b in zip(before, _random_state(device), strict=True))


def check_finite(features: Mapping[str, Tensor], monitor: str) -> None:
    """Refuses features, by layer, from which no number of a monitor would mean anything.

    Raises:
        ValueError: NaN or infinite values, with the first such layer.
    """
    for layer, feature in features.items():
        if not feature.isfinite().all():
            raise ValueError(f"{monitor}: layer {layer!r} gives values that are NaN or infinite")


def callable_and_network(pl_module: pl.LightningModule) -> tuple[nn.Module, nn.Module]:
    """What a monitor calls, and the network whose names it logs.

    The names leave out the attribute that holds the network, where all parameters are in one: `layer1.0.relu` and not
    `net.layer1.0.relu`. A LightningModule without a `forward` of its own is passed by and its network called.

    Raises:
        ValueError: no `forward`, and no single network to call in its place.
    """
    networks = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    network = networks[0] if len(networks) == 1 else pl_module
    if type(pl_module).forward.__qualname__ != "LightningModule.forward":
        return pl_module, network
    if network is pl_module:
        names = ", ".join(name for name, child in pl_module.named_children() if child in networks) or "none"
        raise ValueError(
            f"{type(pl_module).__name__} has no forward, and not one network to call in its place ({names})"
        )
    return network, network


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
