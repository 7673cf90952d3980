"""What each layer discards of its input, pixel by pixel, after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from netprism.callbacks._entropy_maps import decoders_of, draw_maps, joined, maps_of, masks_of, mean_values, per_image
from netprism.callbacks._monitor import Monitor, check_at_least
from netprism.callbacks._monitor_data import MonitorData, Split
from netprism.callbacks._view import Batch, View, buffers_kept
from netprism.discarding.constants import ALPHA, Method
from netprism.discarding.layer_view import LayerView
from netprism.discarding.sensitivity import jacobian_norms
from netprism.figures import discarding as figures

_SEEDS = 1000  # distance of the seeds of two batches: the functions count on from theirs


class InformationDiscarding(Monitor):
    """Logs how much of its input each layer discards, and whether that is background rather than object.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `discarding/SID/<layer>` | mean over images and pixels of H_i = log sigma_i + C: how much a pixel may change \
before the layer reacts | nat | to log max_sigma + C | |
    | `discarding/unseen/<layer>` | fraction of pixels on which the layer does not depend | 1 | 0 to 1 | |
    | `discarding/RU/<layer>` | the same for the reconstruction by a decoder of the layer | nat | | |
    | `discarding/concentration/<layer>` | mean H_i of the background - of the object | nat | | higher |

    RU is logged where there are decoders, concentration where images come with boxes or segments that are neither all
    nor nothing. Higher SID: more is discarded; layers and networks compare if few pixels are unseen: their H_i
    is the cap. Maps are in `<log_dir>/maps/<epoch>/<name>_SID.png` (and `_RU`), curves in `<log_dir>/figures`.

    Cost per measurement and layer: images x num_vjps backward passes of one image to the input, and `num_scale_images`
    passes forward and back. 15 % of an epoch of ResNet-8 on digits, see docs/discarding.md.

    Args:
        layers: Names of layers; None for the `tap_points` of a netprism network, or the outermost blocks of another.
        num_images: Number of measured images, equally many per class as far as possible.
        decoders: {layer: decoder of its features}, the checkpoint of an `InputDecoder`, or "own" while one is trained.
            RU is meaningful only for the very network for which the decoders were trained.
        masks: Function from a batch and (H, W) to the objects, bool `(N, 1, H, W)`, or None; by default `masks_of`.
        method: "linear" or "optimized", see `netprism.discarding.strict_information_discarding`.
        alpha: How far the features may move, as a fraction of their scale.
        share_channels: One sigma per pixel, not one per pixel and channel.
        num_vjps: Number of vector-Jacobian products per image and layer. The standard error of a single H_i is
            1 / sqrt(2 num_vjps), .25 nats for 8, and that of the mean far smaller: 8 for curves, 64 for maps.
        num_scale_images: Number of images over which delta_f^2 is averaged, the measured ones among them.
        max_sigma: Cap of sigma, in units of the input.
        num_shown: Number of images in the pictures, which take about .3 s to draw; 0: no pictures.
        split: "test" or "train": which images; training images where there is no test set.
        batch_size: Number of images in a forward pass.
        input_layer: Layer whose output is the input x, for a network that gets integers: its embedding.
        name: Prefix of the logged keys.
        options: The other options are those of `Monitor`.

    Source: Ma et al. 2019, https://openreview.net/forum?id=BygG3hEYvB.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        num_images: int = 16,
        decoders: Mapping[str, nn.Module] | str | None = None,
        masks: Callable[[Any, tuple[int, int]], Any] | None = None,
        method: Method = "linear",
        alpha: float = ALPHA,
        share_channels: bool = False,
        num_vjps: int = 8,
        num_scale_images: int = 32,
        max_sigma: float = 1.0,
        num_shown: int = 8,
        split: Split = "test",
        batch_size: int = 8,
        input_layer: str | None = None,
        name: str = "discarding",
        **options: Any,
    ) -> None:
        check_at_least(num_images=(num_images, 1), num_vjps=(num_vjps, 1), num_scale_images=(num_scale_images, 1))
        if method not in get_args(Method):
            raise ValueError(f"method is {method!r}; expected {' or '.join(get_args(Method))}")
        super().__init__(name, num_images=max(num_images, num_scale_images), batch_size=batch_size, **options)
        self.layers, self.decoders, self.masks, self.split = layers, decoders, masks or masks_of, split
        self.input_layer, self.dry_run_samples = input_layer, 2  # each costs as much as 100 forward passes per layer
        self._decoders: dict[str, nn.Module] = {}
        self._blind: list[str] = []  # layers that the input does not reach, each said once
        self.num_measured, self.num_shown, self.share_channels = num_images, num_shown, share_channels
        self.images: dict[str, Tensor] = {}  # of the last measurement, see `per_image`
        self.indices: list[int] = []  # which samples of the data set these images are
        self.measuring: dict[str, Any] = dict(alpha=alpha, method=method, num_vjps=num_vjps, max_sigma=max_sigma)

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above; every rank measures its batches, and all get the numbers of all."""
        data = self.choose_data(view, self.split) or self.choose_data(view, "train")
        layers = self._layers(view, data)
        norms = view.collect(data, partial(self._norms, view, layers), "scale")
        scale = {layer: float(norm.mean()) for layer, norm in norms.items()}
        if blind := [layer for layer, value in scale.items() if value == 0 and layer not in self._blind]:
            self._blind += blind
            rank_zero_warn(f"{self.name}: the input does not reach {', '.join(blind)} in epoch {epoch}; SID is its cap")
        numbers = range(-(-self.num_measured // self.batch_size))  # the measured images come first
        self.images = view.collect(data, partial(self._maps, view, scale), "maps", numbers)
        self.indices = [i for indices in data.batches for i in indices][: self.num_measured]
        if self.num_shown > 0:
            self.publish(view.trainer, partial(draw_maps, self.images, self.name), kind="maps", epoch=epoch)
        return mean_values(self.images)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the curves into the run's folder and to W&B."""
        if self.history:
            self.publish(trainer, lambda folder: figures.draw(self.history, folder, self.name))

    def _layers(self, view: View, data: MonitorData) -> list[str]:
        if self.layers is None:
            self.layers = view.default_layers(data)
        layers = view.layers(self.layers)
        if self.decoders == "own" or not self._decoders:
            self._decoders = decoders_of(self.decoders, layers, view.pl_module)
        return layers

    def _norms(self, view: View, layers: list[str], batch: Batch) -> dict[str, Tensor]:
        """||J||_F^2 of the images of a batch."""
        seed, functions = self.seed + _SEEDS * batch.number, view.function_of_one(batch, self.input_layer)
        with buffers_kept(view.pl_module):
            return joined(
                jacobian_norms(LayerView(model, layers, relative_to=view.network), x, seed=seed + i)
                for i, (model, x) in enumerate(functions)
            )

    def _maps(self, view: View, scale: dict[str, float], batch: Batch) -> dict[str, Tensor]:
        """Numbers and maps of the measured images of a batch, see `per_image`."""
        number = self.num_measured - batch.number * self.batch_size
        functions = [(model, x[:number]) for model, x in view.function_of_one(batch, self.input_layer)[:number]]
        seed, options = self.seed + _SEEDS * batch.number, self.measuring | {"relative_to": view.network}
        with buffers_kept(view.pl_module):
            found = joined(
                maps_of(model, x, scale, self._decoders, self.share_channels, options | {"seed": seed + i})
                for i, (model, x) in enumerate(functions)
            )
        x = found["x"]
        mask = self.masks(batch.raw, (x.shape[2], x.shape[3])) if x.dim() == 4 else None
        shown = max(0, self.num_shown - batch.number * self.batch_size)
        return per_image(found, None if mask is None else mask[: len(x)], shown)
