"""Damage: layers of a trained network are replaced, narrowed, cut, or new ones put behind them.

A `Classifier` then retrains the network, and every measure can look at what the damage has done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from netprism.module_names import module_names
from netprism.nets.fitting import conv_like
from netprism.taps import find_layer


def damaged(
    net: nn.Module,
    narrow: Sequence[str] = (),
    keep: float = 0.5,
    kernel_size: int | None = None,
    pool: Sequence[str] = (),
    cut: Sequence[str] = (),
) -> nn.Module:
    """Returns a network with damaged layers, changed in place, in train mode and with gradients.

    In a config it stands around `netprism.runs.teachers.trained`, see `interventions/damaged_digits`.

    Args:
        net: Any network.
        narrow: Convolutions that keep some of their filters, see `narrow_layer`.
        keep: How many: a fraction below 1, or a number of filters.
        kernel_size: Size of new filters in their place; None: the old ones.
        pool: Layers behind which a max-pool of 2 x 2 is put.
        cut: Residual blocks whose shortcut is removed, see `cut_shortcut`.

    Raises:
        ValueError: Nothing is damaged, a layer is unknown or of another kind, or `keep` is out of range.
    """
    if not (narrow or pool or cut):
        raise ValueError("narrow, pool and cut are empty; expected names of layers in one of them")
    for name in narrow:
        narrow_layer(net, name, keep, kernel_size)
    for name in cut:
        cut_shortcut(net, name)
    for name in pool:  # at last: it changes the names of what is inside
        insert_layer(net, name, nn.MaxPool2d(2))
    return net.requires_grad_(True).train()


def narrow_layer(model: nn.Module, name: str, keep: float = 0.5, kernel_size: int | None = None) -> None:
    """Leaves a convolution some of its filters, in place: those whose weights have the largest L1 norm.

    The channels of the others are 0 from now on, so that what follows the layer fits as it is. With `kernel_size` the
    filters are new ones, drawn as torch draws them: Ma et al. have put 4 filters of 7 x 7 in the place of a layer.

    Args:
        model: Any network.
        name: Name of a convolution of one group.
        keep: How many filters stay: a fraction below 1, or a number.
        kernel_size: Size of new filters, odd; None: the old ones stay.

    Raises:
        ValueError: There is no such convolution, the network has it in several places, or an option is out of range.

    Source: Ma et al. 2019, section 4, https://openreview.net/forum?id=BygG3hEYvB; the norm is that of Li et al. 2017,
    https://arxiv.org/abs/1608.08710.
    """
    layer = find_layer(model, name)
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise ValueError(f"layer {name!r} is {layer}; expected a convolution of one group")
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size is {kernel_size}; expected an odd number, or None for the old filters")
    count = max(round(keep * layer.out_channels), 1) if keep < 1 else int(keep)
    if keep <= 0 or count >= layer.out_channels or (keep > 1 and count != keep):
        raise ValueError(f"keep is {keep}; expected a fraction below 1, or 1 to {layer.out_channels - 1} filters")
    replace_layer(model, name, _FewerFilters(layer, count, kernel_size))


def cut_shortcut(model: nn.Module, name: str) -> None:
    """Removes the shortcut of a residual block, in place: what it adds to the main path is 0.

    Args:
        model: Any network.
        name: Name of a block with a module `shortcut`, as netprism's, or an attribute `downsample`, as torchvision's
            and timm's.

    Raises:
        ValueError: There is no such block.
    """
    block = find_layer(model, name)
    attribute = next((key for key in ("shortcut", "downsample") if hasattr(block, key)), None)
    if attribute is None:
        raise ValueError(
            f"layer {name!r} is a {type(block).__name__}; expected a residual block with `shortcut` or `downsample`"
        )
    setattr(block, attribute, _Nothing())


def replace_layer(model: nn.Module, name: str, new: nn.Module | Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Puts another module in the place of a layer, in place; returns the layer that was there.

    Args:
        model: Any network.
        name: A name out of `netprism.taps.layer_names(model)`.
        new: The module, or a function from the layer to it.

    Raises:
        ValueError: There is no such layer, or the network has it in several places.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_layer(model, "1", nn.Tanh())
        ReLU()
        >>> model[1]
        Tanh()
    """
    old = find_layer(model, name)
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]
    if len(places) != 1:
        names = module_names(model)
        where = ", ".join(f"{names[parent]}.{key}".lstrip(".") for parent, key in places)
        raise ValueError(f"layer {name!r} is in {len(places)} places ({where}); expected one")
    parent, key = places[0]
    setattr(parent, key, new if isinstance(new, nn.Module) else new(old))
    return old


def insert_layer(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module behind a layer, in place: an extra max-pool, a normalisation, noise.

    Args:
        model: Any network.
        name: A name out of `netprism.taps.layer_names(model)`; the layer is then `name.0` and the new one `name.1`.
        new: The module; it gets what the layer returns.

    Raises:
        ValueError: There is no such layer, or the network has it in several places.
    """
    replace_layer(model, name, lambda old: nn.Sequential(old, new))


class _FewerFilters(nn.Module):
    """A convolution with some of the filters of another one, and zeros in the channels of the others."""

    kept: Tensor

    def __init__(self, old: nn.Conv2d, count: int, kernel_size: int | None) -> None:
        super().__init__()
        norms = old.weight.detach().abs().sum(dim=(1, 2, 3))
        self.channels = old.out_channels
        self.register_buffer("kept", norms.argsort(descending=True, stable=True)[:count].sort().values)
        other = {} if kernel_size is None else {"kernel_size": kernel_size, "padding": kernel_size // 2, "dilation": 1}
        self.conv = conv_like(old, out_channels=count, **other)
        if kernel_size is None:
            with torch.no_grad():
                self.conv.weight.copy_(old.weight[self.kept])
                if old.bias is not None and self.conv.bias is not None:
                    self.conv.bias.copy_(old.bias[self.kept])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        out = made.new_zeros(made.shape[0], self.channels, *made.shape[2:])
        return torch.index_copy(out, 1, self.kept, made)


class _Nothing(nn.Module):
    """What is left of a shortcut: a zero, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())
