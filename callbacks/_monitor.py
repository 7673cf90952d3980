"""What every per-epoch measurement shares: when it runs, on which samples, and where its numbers and pictures go."""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, overload

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import nn
from torch.utils.data import Dataset

from netprism.callbacks._calling import Call, Unpack
from netprism.callbacks._handed_back import fit_into_pipe
from netprism.callbacks._monitor_data import MonitorData, Split, monitor_data
from netprism.callbacks._view import View, undisturbed
from netprism.distributed import all_gather_object, in_one_line, is_reported, run_on_all_ranks
from netprism.loggers import publish
from netprism.outline import evenly

OnError = Literal["raise", "warn"]  # what an error in a measurement does: end the training, or cost its numbers alone
log = logging.getLogger(__name__)
MOST_LAYERS_LOGGED = 24  # ten keys each; ResNet-50 would log 500 and DenseNet-121 1 220


class Monitor(pl.Callback):
    """Measures a network at the end of training epochs, and logs the same numbers on all ranks.

    A subclass implements `measure`, and `draw` if it has pictures. `measure` finds the network in eval mode. Training
    continues as if the monitor had not run: random state, buffers (BatchNorm's running statistics), train and eval
    flags and `requires_grad` are restored, also when the measurement raises. Under DDP all ranks measure rank 0's
    network: the parameters are equal anyway, the buffers are made equal for the measurement.

    Args:
        name: Prefix of the logged keys; two monitors of a kind need two names.
        num_images: Samples of each split, the same number per class as far as possible; all if there are fewer.
        batch_size: Samples in a forward pass; they are loaded in the training process.
        seed: Seed of the choice of samples, and of all random numbers of the measurement.
        every_n_epochs: Measure after every n-th epoch, and after the last one unless EarlyStopping makes it the last.
        measure_untrained: Also measure before the first step, logged as epoch -1.
        on_error: "raise" ends the training after an error, with the epoch's checkpoints; "warn" reports it in a line,
            logs nothing for this epoch, and tries again the next time.
        train_data: A map-style data set to use instead of the trainer's training data.
        test_data: A map-style data set to use instead of the data module's test set or the first validation loader's.
        unpack: Function from a batch to `(inputs, labels or None)` or `(args, kwargs, labels or None)`; inputs that are
            a tuple are several arguments, a dict gives keywords. By default it is found by trying, on four samples:
            the keywords of a dict that `forward` takes, its image, the first item of a tuple, or as many as `forward`
            asks for, the first of several views, the flattened image. Lightning's batch transfer hooks are not called,
            since they may augment: normalise here what they would.
        test_loader: Name or number of the validation loader whose samples are the test set; None for the first.
        per_layer: Whether to log the keys of single layers; or of how many layers at most, at even distances through
            the network. The figures have all.
        call: Function from the LightningModule and a batch, on its device, to an output, in place of `unpack`.
        network: Name of the part to look at, such as "discriminator"; it is called itself. None for the module.
    """

    dry_run_samples = 32  # of each split, at most, in a `fast_dev_run`

    def __init__(
        self,
        name: str,
        *,
        num_images: int = 2000,
        batch_size: int = 128,
        seed: int = 0,
        every_n_epochs: int = 1,
        measure_untrained: bool = True,
        on_error: OnError = "raise",
        # Of a `Dataset[Any]` jsonargparse (4.53) accepts no init_args.
        train_data: Dataset | None = None,  # type: ignore[type-arg]
        test_data: Dataset | None = None,  # type: ignore[type-arg]
        unpack: Unpack | None = None,
        call: Call | None = None,
        network: str | None = None,
        test_loader: str | int | None = None,
        per_layer: bool | int = MOST_LAYERS_LOGGED,
    ) -> None:
        check_at_least(num_images=(num_images, 1), batch_size=(batch_size, 1), every_n_epochs=(every_n_epochs, 1))
        if seed is None or not 0 <= seed < 2**32:  # null of a config is not None to its parser
            raise ValueError(f"seed is {seed}; expected 0 to {2**32 - 1}")
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; expected {' or '.join(get_args(OnError))}")
        self.name, self.every_n_epochs, self.measure_untrained = name, every_n_epochs, measure_untrained
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        if unpack is not None and call is not None:
            raise ValueError("unpack and call are both given; expected one of them")
        self.test_loader, self.per_layer = test_loader, per_layer
        self.on_error, self.unpack, self.call, self.network = on_error, unpack, call, network
        self.history: list[dict[str, float]] = []  # one row per measurement: epoch, and the values without the prefix
        self._given: dict[Split, Dataset[Any] | None] = {"train": train_data, "test": test_data}
        self._data: dict[Split, MonitorData | None] = {}
        self._is_drawn = False
        self._has_said = False  # that not all layers are logged

    @abstractmethod
    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """Returns what to log, without the prefix: the same keys and values on every rank.

        It runs within :func:`netprism.distributed.run_on_all_ranks`, which states how ranks may communicate so that an
        error on one of them leaves none waiting.
        """

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures of the training with `publish`; called once on all ranks, at its end or after Ctrl-C."""

    @property
    def state_key(self) -> str:
        """Key of this monitor in a checkpoint; two monitors of a kind have two."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        self._data, self._is_drawn = {}, False
        if stage == "fit" and trainer.global_step == 0:
            self.history = []

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped."""
        self.history = state_dict["history"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the untrained network. `log` would merge it with the first epoch, so the loggers get it directly."""
        if self.measure_untrained and trainer.global_step == 0:
            values = self.look(trainer, pl_module, epoch=-1)
            for logger in trainer.loggers if values else []:
                logger.log_metrics({**values, "epoch": -1}, step=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and logs."""
        finished = trainer.current_epoch + 1
        is_last = trainer.should_stop or finished == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if finished % self.every_n_epochs == 0 or is_last:
            try:
                values = self.look(trainer, pl_module, trainer.current_epoch)
            except Exception as error:
                if is_reported(error):
                    _save_epoch(trainer, pl_module)
                raise
            # The ranks agree already: a maximum keeps the value bitwise, where a mean over three ranks may round.
            pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the figures."""
        self._is_drawn = True
        self.draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws them where a resumed run had nothing left to train, since Lightning then skips `on_train_end`."""
        if not self._is_drawn:
            self.on_train_end(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keeps a training with forked ranks from hanging where it ends."""
        if stage == "fit":
            fit_into_pipe(trainer, f"{self.name}/")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draws them also for a training that Ctrl-C or an error, of another monitor for instance, has ended."""
        stopped = isinstance(exception, KeyboardInterrupt) and trainer.world_size == 1
        failed = isinstance(exception, Exception) and is_reported(exception)
        if stopped or (failed and self.history and not self._is_drawn):
            try:
                self.on_train_end(trainer, pl_module)
            except Exception as error:  # the first error is the one to be seen
                log.warning(f"{self.name}: no figures ({in_one_line(error)})")

    @overload
    def choose_data(self, view: View, split: Literal["train"]) -> MonitorData: ...

    @overload
    def choose_data(self, view: View, split: Split) -> MonitorData | None: ...

    def choose_data(self, view: View, split: Split) -> MonitorData | None:
        """The samples to look at, the same ones in every epoch; fewer in a dry run; None where there is no test set.

        Raises:
            ValueError: There are no training images, see `monitor_data`.
        """
        if self._data.get(split) is None:  # validation may begin late
            wanted = min(self.num_images, self.dry_run_samples) if view.is_dry_run else self.num_images
            choice = wanted, self.batch_size, self.seed, self._given[split], self.test_loader, self.name
            data = monitor_data(view.trainer, split, *choice)
            if data is not None and len(data) < wanted:
                rank_zero_info(f"{self.name}: {len(data)} {split} samples; num_images is {wanted}, there are no more")
            self._data[split] = None if data is None else view.prepare(data, split)
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

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        """Measures now and keeps it in the history; returns what to log, nothing after an error that ends no training.

        The network stays as it is. Every rank has to call it.
        """
        before = copy.deepcopy(self.state_dict()) if self.on_error == "warn" else {}
        try:
            values = run_on_all_ranks(partial(self._measure_undisturbed, trainer, pl_module, epoch))
        except Exception as error:
            if self.on_error == "raise" or not is_reported(error):
                raise
            self.load_state_dict(before)  # the ranks may have reached different points
            if trainer.is_global_zero:
                log.warning(f"{self.name}: no values in epoch {epoch}, the training continues ({in_one_line(error)})")
            return {}
        # A resumed run measures the epoch it was stopped in once more.
        self.history = [row for row in self.history if row["epoch"] < epoch] + [{"epoch": epoch, **values}]
        return {f"{self.name}/{key}": values[key] for key in self._logged(list(values))}

    def _logged(self, keys: list[str]) -> list[str]:
        """The keys without those of layers above `per_layer`, which is said once."""
        layers = list(dict.fromkeys(filter(None, map(_layer_of, keys))))
        most = len(layers) if self.per_layer is True else int(self.per_layer)
        if len(layers) <= most:
            return keys
        chosen = set(evenly(layers, most)) if most else set()
        if most and not self._has_said:
            rank_zero_info(f"{self.name}: logs {most} of {len(layers)} layers; per_layer=True logs all, False none")
            self._has_said = True
        return [key for key in keys if _layer_of(key) in {"", *chosen}]

    def _measure_undisturbed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        with undisturbed(pl_module):
            all_gather_object(None)  # all ranks have come this far: none waits in a broadcast for one out of memory
            _take_buffers_of_rank_0(pl_module)
            view = View(trainer, pl_module, self.name, self.unpack, self.call, self.network)
            pl_module.eval()
            return self.measure(view, epoch)


def _layer_of(key: str) -> str:
    """`layer1` of `entropy/layer1` and of `test/entropy/layer1`; "" of a key of the whole network."""
    return key.removeprefix("test/").partition("/")[2]


def _save_epoch(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Writes the checkpoints of an epoch that is trained before an error in its measurement ends the training."""
    for checkpoint in trainer.checkpoint_callbacks:
        try:
            checkpoint.on_train_epoch_end(trainer, pl_module)
        except Exception as error:  # that in the measurement is the one to be seen
            log.warning(f"no checkpoint of this epoch ({in_one_line(error)})")


def check_at_least(**options: tuple[float, float]) -> None:
    """Refuses options below their least value, and NaN and infinity.

    Raises:
        ValueError: Names the first such option.
    """
    for option, (value, least) in options.items():
        if not least <= value < math.inf:
            raise ValueError(f"{option} is {value}; expected a number >= {least}")


def _take_buffers_of_rank_0(module: nn.Module) -> None:
    """BatchNorm's running statistics differ between ranks at the end of an epoch; the weights do not."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
