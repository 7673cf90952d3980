"""Layers of a model as functions of its input: what SID and RU have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from netprism.taps import tap


@dataclass(frozen=True)
class LayerView:
    """Some layers of a model, as functions of its input.

    Args:
        model: The network; it is called as `model(x)`.
        layers: Names as `netprism.taps.tap` takes them, one or several; several share the forward passes.
        chunk_size: Largest number of rows, images or noisy copies, in a forward pass; it bounds the memory.
        relative_to: Part of the model as seen from which layers may be named.

    Raises:
        ValueError: `chunk_size` is below 1.
    """

    model: nn.Module
    layers: str | Sequence[str]
    chunk_size: int = 64
    relative_to: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}; expected a number >= 1")

    def layer(self, name: str) -> LayerView:
        """Returns the view of one layer, or of one of its calls, such as `relu#1`."""
        return replace(self, layers=name)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Returns features {layer: `(N, ...)`} of images `(N, ...)`, part of the graph.

        Raises:
            TypeError: Features are not floating.
            ValueError: Features are not finite, or do not have one row per image.
        """
        with tap(self.model, self.layers, relative_to=self.relative_to) as features:
            self.model(x)
        for name, feature in features.items():
            if not feature.is_floating_point():
                raise TypeError(f"layer {name!r} gives {feature.dtype}; expected floating features")
            if feature.dim() == 0 or len(feature) != len(x):
                raise ValueError(
                    f"layer {name!r} gives {tuple(feature.shape)} for {len(x)} images; expected one row each"
                )
            if not feature.isfinite().all():
                raise ValueError(f"layer {name!r} gives features that are not finite")
        return dict(features)

    def feature(self, x: Tensor) -> Tensor:
        """Returns the features `(N, ...)` of the only layer; of its first call where it runs several times."""
        return self.features(x)[self.layers if isinstance(self.layers, str) else self.layers[0]]

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns the context in which the model is measured."""
        return evaluating(self.model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches to eval mode with gradients, in full precision and outside inference mode; then restores each flag.

    Autocast is off because bfloat16 rounding is as large as the feature change that is measured (1 %).
    """
    flags = [(module, module.training) for module in model.modules()]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    try:
        model.eval()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in flags:
            module.training = training


def as_images(x: Tensor) -> Tensor:
    """Returns `x` itself, checked; inside `torch.inference_mode` a copy that takes part in autograd.

    Raises:
        TypeError: `x` is not a floating tensor.
        ValueError: `x` has no rows or no units, or values that are not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images are {kind}; expected float images as the network gets them: normalised, not bytes")
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"images have shape {tuple(x.shape)}; expected (N, ...) with at least one image")
    if not x.isfinite().all():
        raise ValueError("images hold NaN or infinity; expected finite values")
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()
