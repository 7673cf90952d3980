"""What each layer has forgotten of its input, pixel by pixel, after every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import Dataset

from netprism.callbacks._monitor import Monitor, OnError
from netprism.callbacks._view import View, buffers_kept, callable_and_network
from netprism.callbacks._monitor_data import MonitorData, Split, inputs_and_labels
from netprism.discarding.concentration import box_mask, concentration, segment_mask
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sensitivity import jacobian_norms
from netprism.discarding.sid import ALPHA, Method, strict_information_discarding
from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.figures import discarding as figures
from netprism.module_names import module_names
from netprism.runs.checkpoints import read_training

T = TypeVar("T")
Maps = dict[str, Tensor]  # "x", "mask", "SID/<layer>", "RU/<layer>", ... of the same images

_SEEDS = 1000  # between two batches: the functions count on from the one they get


@runtime_checkable
class HasTapPoints(Protocol):
    """A network that says which of its layers are worth looking at, as `netprism.nets` do."""

    tap_points: Sequence[str]


def masks_of(batch: Any, size: tuple[int, int]) -> Tensor | None:  # noqa: ANN401 - a user's batch
    """Where the objects are, bool `(N, 1, H, W)`, if the batch tells.

    That is the third item of a tuple, or `mask` or `box` of a dict: segments `(N, H, W)` or `(N, 1, H, W)` of any size,
    or boxes `(N, 4)` (left, top, right, bottom). Boxes are in pixels of the image that the network gets, or of one of
    `original_size` `(N, 2)` (height, width), a key of the dict. Anything else is no mask: None.
    """
    if isinstance(batch, dict):
        found, original = batch.get("mask", batch.get("box")), batch.get("original_size")
    else:
        found, original = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None, None
    if not isinstance(found, Tensor):
        return None
    if found.dim() == 2 and found.shape[1] == 4:
        return box_mask(found, size, original)
    return segment_mask(found, size) if found.dim() == 3 or (found.dim() == 4 and found.shape[1] == 1) else None


class InformationDiscarding(Monitor):
    """Logs how much of its input each layer has forgotten, and whether that is background rather than object.

    Works on any LightningModule and any network in it, in one process or many, with the same numbers.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `discarding/SID/<layer>` | mean over images and pixels of H_i = log sigma_i + C: how much may be changed of a \
pixel before the layer notices | nat | to log max_sigma + C | |
    | `discarding/RU/<layer>` | the same for what a decoder rebuilds from the layer | nat | | |
    | `discarding/concentration/<layer>` | mean H_i of the background - of the object | nat | | higher |

    RU where there are decoders, concentration where the images come with boxes or segments; images whose mask is all or
    nothing do not count. Higher SID: more is forgotten; untouched by how layers are scaled, so layers compare.

    After each measurement `<log_dir>/maps` gets the pictures `<name>_SID.png` (and `_RU`): images and one map for each
    layer, in one colour scale. After the training `<log_dir>/figures/<name>_curves.png`.

    Cost of a measurement: for each layer images x products backward passes of one image, as far as the layer is from
    the input; `num_scale_images` passes forward and back. 15 % of an epoch of ResNet-8 on digits, see docs/discarding.md.

    Args:
        layers: names of layers; None for the `tap_points` of a network of ours.
        images: how many to look at, equally many of each class as far as there are.
        decoders: {layer: decoder of its features}, or the checkpoint of an `InputDecoder` of this very network; RU
            says something only as long as the network is the one that they were trained for.
        masks: (batch, (H, W)) -> bool `(N, 1, H, W)`, the objects, or None; by default :func:`masks_of`.
        method: "linear" or "optimized", see `netprism.discarding.strict_information_discarding`.
        every_n_epochs: measure after every n-th epoch, and after the last one unless EarlyStopping makes it the last.
        measure_untrained: also measure before the first step, logged as epoch -1.
        alpha: how far the features may move, as a share of their scale.
        share_channels: one sigma for a pixel and not for each of its channels.
        products: vector-Jacobian products for each image and layer. A single H_i is then known to 1 / sqrt(2 products),
            .25 nats for 8, and the mean far better: enough for curves; 64 for maps to be looked at closely.
        num_scale_images: over how many images delta_f^2 is averaged; the measured ones are among them.
        max_sigma: the cap of sigma, in units of the input.
        shown: how many of the images are in the pictures; 0: no pictures, which take about .3 s to draw.
        split: "test" or "train": which images; training images where there is no test set.
        batch_size: images in a forward pass.
        seed: of the choice of images and of all random vectors.
        name: prefix of the keys; give each of several instances its own.
        on_error: "raise" or "warn": whether an error ends the training, or costs this measurement and a line.
        data: a map-style data set to use in place of the trainer's.
        unpack: batch -> (images, integer labels or None).

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond".
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        images: int = 16,
        decoders: Mapping[str, nn.Module] | str | None = None,
        masks: Callable[[Any, tuple[int, int]], Any] | None = None,
        method: Method = "linear",
        every_n_epochs: int = 1,
        measure_untrained: bool = True,
        alpha: float = ALPHA,
        share_channels: bool = False,
        products: int = 8,
        num_scale_images: int = 32,
        max_sigma: float = 1.0,
        shown: int = 8,
        split: Split = "test",
        batch_size: int = 8,
        seed: int = 0,
        name: str = "discarding",
        on_error: OnError = "raise",
        data: Dataset[Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Tensor | None]] = inputs_and_labels,
    ) -> None:
        super().__init__(
            name, num_images=max(images, num_scale_images), batch_size=batch_size, seed=seed, every_n_epochs=every_n_epochs,
            measure_untrained=measure_untrained, on_error=on_error, train_data=data, test_data=data, unpack=unpack,
        )  # fmt: skip
        counts = {
            "images": images,
            "products": products,
            "num_scale_images": num_scale_images,
            "batch_size": batch_size,
        }
        for option, value in counts.items():
            if value < 1:
                raise ValueError(f"{option} is {value}; expected a number >= 1")
        if method not in get_args(Method):
            raise ValueError(f"unknown method {method!r}; allowed: {', '.join(get_args(Method))}")
        self.layers, self.images, self.decoders, self.masks = layers, images, decoders, masks or masks_of
        self.num_scale_images, self.split, self.batch_size, self.seed = (
            max(images, num_scale_images),
            split,
            batch_size,
            seed,
        )
        self.unpack, self.data = unpack, data
        self.options: dict[str, Any] = {"alpha": alpha, "method": method, "products": products, "max_sigma": max_sigma}
        self.share_channels, self.shown = share_channels, shown

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above; every rank measures its batches, and all get the numbers of all."""
        self._view, trainer, pl_module = view, view.trainer, view.pl_module
        data = self._choose(view)
        norms = _gather(run_on_all_ranks(partial(self._norms, trainer, pl_module, data)))
        scale = {layer: float(norm.mean()) for layer, norm in norms.items()}
        maps = _gather(run_on_all_ranks(partial(self._maps, trainer, pl_module, data, scale)))
        values = run_on_all_ranks(partial(_means, maps))
        if self.shown > 0:
            self.publish(trainer, partial(self._draw, maps), kind="maps", epoch=epoch)
        return values

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the curves, into the run's folder and to W&B."""

        def draw(folder: Path) -> list[Path]:
            path = figures.curves(self.history, folder / f"{self.name}_curves.png")
            return [] if path is None else [path]

        if self.history:
            self.publish(trainer, draw)

    def _choose(self, view: View) -> MonitorData:
        """The images that give the scale; those to be measured come first."""
        splits: tuple[Split, ...] = (self.split, "train")
        for split in splits:
            data = self.choose_data(view, split)
            if data is not None:
                return data
        raise AssertionError("choose_data raises where there are no training images")

    def _norms(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData) -> dict[int, Maps]:
        """||J||_F^2 of all images, batch by batch."""
        model, layers = self._layers(pl_module)
        found: dict[int, Maps] = {}
        for number in data.shard(trainer.global_rank, trainer.world_size):
            x, _ = self._load(trainer, pl_module, data, number)
            with buffers_kept(pl_module):
                norms = jacobian_norms(model, list(layers.values()), x, seed=self.seed + _SEEDS * number)
            found[number] = {name: norms[layers[name]].cpu() for name in layers}
        return found

    def _maps(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData, scale: Mapping[str, float]
    ) -> dict[int, Maps]:
        """Entropy maps of the images to be measured, batch by batch."""
        model, layers = self._layers(pl_module)
        decoders = self._decoders(pl_module)
        scales = {layers[name]: value for name, value in scale.items()}
        found: dict[int, Maps] = {}
        numbers = [n for n in data.shard(trainer.global_rank, trainer.world_size) if n * self.batch_size < self.images]
        for number in self._view.progress(numbers, "maps"):
            x, mask = self._load(trainer, pl_module, data, number)
            x = x[: self.images - number * self.batch_size]
            seed = self.seed + _SEEDS * number
            with buffers_kept(pl_module):
                results = strict_information_discarding(
                    model, list(layers.values()), x, scale=scales, share_channels=self.share_channels, seed=seed,
                    measure_ratio=False, **self.options,
                )  # fmt: skip
                found[number] = {"x": x.cpu()} if mask is None else {"x": x.cpu(), "mask": mask[: len(x)].cpu()}
                found[number] |= {f"SID/{name}": results[layers[name]].entropy_map.cpu() for name in layers}
                for name, decoder in decoders.items():
                    uncertain = self._uncertainty(model, layers[name], decoder.to(x.device), x, scale[name], seed)
                    found[number][f"RU/{name}"] = uncertain.cpu()
        return found

    def _uncertainty(
        self, model: nn.Module, layer: str, decoder: nn.Module, x: Tensor, scale: float, seed: int
    ) -> Tensor:
        """Map of RU; NaN for a layer that no image reaches, since that is no reason to end a training."""
        if scale == 0:
            return torch.full_like(x, torch.nan)
        return reconstruction_uncertainty(model, layer, decoder, x, scale=scale, seed=seed, **self.options).entropy_map

    def _layers(self, pl_module: pl.LightningModule) -> tuple[nn.Module, dict[str, str]]:
        """What to call, and {name as it is logged: name as seen from there}."""
        model, network = callable_and_network(pl_module)
        names = self.layers
        if names is None and isinstance(network, HasTapPoints):
            names = list(network.tap_points)
        if not names:
            raise ValueError(f"{self.name}: layers is {self.layers}; name the layers of {type(network).__name__}")
        prefix = module_names(model)[network]
        return model, {name: f"{prefix}.{name}" if prefix else name for name in names}

    def _decoders(self, pl_module: pl.LightningModule) -> Mapping[str, nn.Module]:
        if isinstance(self.decoders, str):
            # Not above: the analyses in there import callbacks in their turn.
            from netprism.lightning_modules import InputDecoder

            _, network = callable_and_network(pl_module)
            read_training(self.decoders)  # what is wrong with the file in one line; Lightning says it in pages
            trained = InputDecoder.load_from_checkpoint(
                self.decoders, teacher=copy.deepcopy(network), weights_only=True
            )
            self.decoders = {layer: trained.decoder(layer) for layer in trained.layers}
        decoders = self.decoders or {}
        _, layers = self._layers(pl_module)
        for layer in decoders:
            if layer not in layers:
                raise ValueError(f"{self.name}: a decoder of layer {layer!r}, but the layers are {', '.join(layers)}")
        return decoders

    def _load(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData, number: int
    ) -> tuple[Tensor, Tensor | None]:
        """Images of a batch on the network's device in its precision, and their masks."""
        batch = data.load(number)
        x, _ = self.unpack(batch)
        x = trainer.precision_plugin.convert_input(move_data_to_device(x, pl_module.device))
        is_image = isinstance(x, Tensor) and x.dim() == 4
        return x, self.masks(batch, (x.shape[2], x.shape[3])) if is_image else None

    def _draw(self, maps: Maps, folder: Path) -> list[Path]:
        """A picture for each quantity, where there are images."""
        paths = []
        for quantity in ("SID", "RU"):
            chosen = {key.partition("/")[2]: value for key, value in maps.items() if key.startswith(f"{quantity}/")}
            if chosen and maps["x"].dim() == 4:
                path = folder / f"{self.name}_{quantity}.png"
                paths.append(figures.maps(maps["x"], chosen, path, f"{quantity}, nats", self.shown))
        return paths


def _means(maps: Maps) -> dict[str, float]:
    """The logged quantities."""
    values: dict[str, float] = {}
    for key, entropies in maps.items():
        if key.startswith(("SID/", "RU/")):
            values[key] = float(entropies.double().mean())
        if key.startswith("SID/") and "mask" in maps:
            each = concentration(entropies.double(), maps["mask"])
            values[f"concentration/{key.removeprefix('SID/')}"] = float(each.nanmean())
    return values


def _gather(own: dict[int, Maps]) -> Maps:
    """The batches of all ranks, put together in their order."""
    batches = {number: maps for share in all_gather_object(own) for number, maps in share.items()}
    ordered = [batches[number] for number in sorted(batches)]
    return {key: torch.cat([maps[key] for maps in ordered]) for key in ordered[0]}
