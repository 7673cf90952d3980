"""Networks of anybody fitted to data: as many outputs as classes, as many input channels, a stem for small images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
RGB = 3
DIMENSIONS = 3  # of an image
_TRIED = 2  # images on which a network is tried
_SIZES = (224, 256, 299, 32, 64, 128, 384, 512)  # of images on which a network is tried that refuses others


def fitted(net: nn.Module, small_images: bool = False, repeat_grey: bool = False) -> nn.Module:
    """Returns `net`, changed in place for other images than those that it was made for.

    Args:
        net: A network for images.
        small_images: Make a stem for images of about 32 x 32, as CIFAR ResNets have it: where the first convolution has
            a stride, a new one of 3 x 3 without stride is put in its place, and the pooling between it and the second
            one is taken out.
        repeat_grey: Show a grey image in all channels of the first convolution, rather than make a convolution of one
            channel. Before training the outputs are the same either way.

    Raises:
        ValueError: Small images for a network that cuts its input into patches, or has no convolution.

    Example:
        >>> from torchvision.models import resnet18
        >>> net = fitted(resnet18(num_classes=10), small_images=True)
        >>> net.conv1, net.maxpool
        (Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), Identity())
    """
    if small_images:
        _fit_stem(net)
    if repeat_grey:
        net.register_forward_pre_hook(_in_all_channels)
        vars(net)["repeats_grey"] = True  # for `fit_to`
    return net


def fit_to(net: nn.Module, num_classes: int | None, shape: Sequence[int] | None) -> list[str]:
    """Fits the first and the last layer of a network to data, in place, where they do not fit.

    A last layer with another number of outputs is replaced by a new one. Of a first convolution with another number of
    channels the weights are adapted: for grey images they are summed over the channels, so that the outputs are those
    for the image repeated in all channels; for colour they are spread evenly over the channels. A fully connected first
    layer with another number of inputs is replaced. What already fits when it is run is left alone.

    Args:
        net: Network from images to logits; its last `Linear` or 1 x 1 `Conv2d`, in the order of `named_modules`, is
            taken for the one that gives them.
        num_classes: Number of classes; None keeps the last layer.
        shape: Shape (C, H, W) of an image; None keeps the first layer.

    Returns:
        What was changed, a line for each.

    Example:
        >>> fit_to(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10)), 4, (1, 8, 8))
        ['layer 0 takes 1 channels instead of 3', 'layer 2 is new, with 4 outputs instead of 10']
    """
    changes = []
    first, last = first_layer(net), output_layer(net)
    if shape is not None and first is not None and not _repeats_grey(net, shape[0]):
        name, layer = first
        if isinstance(layer, nn.Conv2d) and layer.in_channels != shape[0] and layer.groups == 1:
            _put(net, name, with_channels(layer, shape[0]))
            changes.append(f"layer {name} takes {shape[0]} channels instead of {layer.in_channels}")
        elif isinstance(layer, nn.Linear) and layer.in_features != math.prod(shape) and _output(net, shape) is None:
            inputs = math.prod(shape)
            _put(net, name, _like(layer, nn.Linear(inputs, layer.out_features, layer.bias is not None)))
            if _output(net, shape) is None:  # more of it depends on the size, such as a skip connection
                _put(net, name, layer)
            else:
                changes.append(f"layer {name} is new, with {inputs} inputs instead of {layer.in_features}")
            last = output_layer(net)
    if num_classes is None or last is None or outputs_of(last[1]) == num_classes:
        return changes
    if shape is None or _output(net, shape) != (_TRIED, num_classes):  # the last in this order may not be the output
        for name, layer in (last, *_auxiliary_layers(net, last[1])):
            _put(net, name, with_outputs(layer, num_classes))
            changes.append(f"layer {name} is new, with {num_classes} outputs instead of {outputs_of(layer)}")
    return changes


def fit_to_state(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fits the first and the last layer to a state dict that differs in the number of classes or of channels only.

    Args:
        net: The network, changed in place.
        state: Weights of a network of the same kind that was fitted to data.
    """
    first, last = first_layer(net), output_layer(net)
    if first is not None and (weight := state.get(f"{first[0]}.weight")) is not None:
        name, layer = first
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and _differ_in(1, weight, layer.weight):
            _put(net, name, with_channels(layer, weight.shape[1]))
        elif isinstance(layer, nn.Linear) and first != last and _differ_in(1, weight, layer.weight):
            _put(net, name, _like(layer, nn.Linear(weight.shape[1], layer.out_features, layer.bias is not None)))
    if last is not None and (weight := state.get(f"{last[0]}.weight")) is not None:
        name, layer = last
        if _differ_in(0, weight, layer.weight):
            _put(net, name, with_outputs(layer, len(weight)))


def heads_of(output: object) -> tuple[object, tuple[Tensor, ...]]:
    """Returns what the main head of a network gives, and what its auxiliary heads do: none outside of train mode.

    Args:
        output: What the network returned; a named tuple with a field `logits`, as torchvision's GoogLeNet and
            Inception v3 return in train mode, has the auxiliary logits in its other fields.
    """
    if not isinstance(output, tuple) or not hasattr(output, "logits"):
        return output, ()
    auxiliary = (value for name, value in output._asdict().items() if name != "logits")  # type: ignore[attr-defined]
    return output.logits, tuple(value for value in auxiliary if isinstance(value, Tensor))


def size_that_fits(net: nn.Module, shape: Sequence[int]) -> int | None:
    """Returns a size of square images on which a network runs that does not run on `shape`.

    It is tried in its present mode on tensors without data, so that nothing of it changes.

    Args:
        net: The network.
        shape: Shape (C, H, W) of an image.

    Returns:
        The first one of 224, 256, 299, 32, ...; None where the network runs on `shape`, or on none of these either.
    """
    if len(shape) != DIMENSIONS or _runs(net, shape):
        return None
    return next((size for size in _SIZES if _runs(net, (shape[0], size, size))), None)


def wrong_size(net: nn.Module, shape: Sequence[int], error: Exception, name: str | None = None) -> ValueError | None:
    """Returns the error that says on which images a network runs that has raised `error` on others, or None.

    Args:
        net: The network.
        shape: Shape (C, H, W) of the images on which it was run.
        error: What it raised.
        name: Name of the network in the text; by default that of its class.
    """
    if (size := size_that_fits(net, shape)) is None:
        return None
    said = str(error).partition("\n")[0].rstrip(".")
    return ValueError(
        f"images of a batch are {tuple(shape)}; expected {size} x {size}, such as by data.image_size={size}, on which "
        f"{name or type(net).__name__} runs ({said})"
    )


def first_layer(net: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    """Returns the first convolution or fully connected layer of a network and its name, or None."""
    return next(iter(_layers(net)), None)


def output_layer(net: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    """Returns the last fully connected layer or 1 x 1 convolution of a network and its name, or None."""
    found = _layers(net)
    if not found or (isinstance(found[-1][1], nn.Conv2d) and found[-1][1].kernel_size != (1, 1)):
        return None
    return found[-1]


def outputs_of(layer: nn.Linear | nn.Conv2d) -> int:
    """Returns the number of outputs or channels that a layer gives."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def with_outputs(layer: nn.Linear | nn.Conv2d, outputs: int) -> nn.Linear | nn.Conv2d:
    """Returns a new layer like this one, with another number of outputs."""
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return _like(layer, nn.Linear(layer.in_features, outputs, has_bias))
    return _like(layer, nn.Conv2d(layer.in_channels, outputs, kernel_size=1, bias=has_bias))


def with_channels(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Returns the same convolution for another number of channels, see `fit_to`."""
    made = conv_like(layer, in_channels=channels)
    with torch.no_grad():
        weight = layer.weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
        made.weight.copy_(weight)
        if layer.bias is not None and made.bias is not None:
            made.bias.copy_(layer.bias)
    return made


def conv_like(layer: nn.Conv2d, **changed: Any) -> nn.Conv2d:  # arguments of nn.Conv2d
    """Returns a new convolution like this one, with other arguments where they are given."""
    kept: dict[str, Any] = {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
    }
    return _like(layer, nn.Conv2d(**{**kept, **changed}))


def _fit_stem(net: nn.Module) -> None:
    convs = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise ValueError(f"small_images is true; expected a network with convolutions, not {type(net).__name__}")
    name, first = convs[0]
    if first.stride == (1, 1):
        return
    if first.stride == first.kernel_size:
        raise ValueError(
            f"small_images is true; {type(net).__name__} cuts its input into patches of "
            f"{first.kernel_size[0]} x {first.kernel_size[1]}: expected a network that starts with a convolution"
        )
    new = conv_like(first, kernel_size=3, stride=1, padding=1)
    if first.kernel_size == (3, 3):
        new.load_state_dict(first.state_dict())
    else:
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    _put(net, name, new)
    for pool, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d) and module is not new:
            break
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            _put(net, pool, nn.Identity())
            break


def _auxiliary_layers(net: nn.Module, last: nn.Linear | nn.Conv2d) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The last layers of children called `aux...` that have as many outputs as the last layer of the network had."""
    found = []
    for child, module in net.named_children():
        head = output_layer(module) if child.lower().startswith("aux") else None
        if head is not None and head[1] is not last and outputs_of(head[1]) == outputs_of(last):
            found.append((f"{child}.{head[0]}".rstrip("."), head[1]))
    return found


def _runs(net: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the network runs on images of this shape, tried without data."""
    try:
        state = {name: value.to("meta") for name, value in (*net.named_parameters(), *net.named_buffers())}
        with torch.no_grad():
            functional_call(net, state, (torch.empty(_TRIED, *shape, device="meta"),))
    except Exception:  # whatever a network of somebody else raises
        return False
    return True


def _layers(net: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    return [
        (name, m)
        for name, m in net.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and not isinstance(m.weight, nn.UninitializedParameter)
    ]


def _output(net: nn.Module, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of the logits of two empty images, or None where the network does not take such or gives something else."""
    parameter = next(net.parameters())
    flags = [(m, m.training) for m in net.modules()]
    try:
        with torch.no_grad():
            output = net.eval()(torch.zeros(_TRIED, *shape, device=parameter.device, dtype=parameter.dtype))
    except (RuntimeError, ValueError, AssertionError):  # the last one of a ViT, for images of another size
        return None
    finally:
        for module, training in flags:
            module.training = training
    return tuple(output.shape) if isinstance(output, Tensor) else None


def _differ_in(dim: int, a: Tensor, b: Tensor) -> bool:
    """Whether two weights differ in this dimension and in no other one."""
    sizes = enumerate(zip(a.shape, b.shape, strict=False))
    return a.dim() == b.dim() and [i for i, (x, y) in sizes if x != y] == [dim]


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    if not name:
        raise ValueError(f"the network is one {type(net).__name__}; expected a module that has it inside")
    setattr(net.get_submodule(owner), last, module)


def _like(layer: nn.Module, made: Layer) -> Layer:
    """The new layer on the device and in the precision of an old one."""
    weight = next(layer.parameters())
    return made.to(device=weight.device, dtype=weight.dtype).train(layer.training)


def _in_all_channels(net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Repeats a grey image."""
    x, *others = args
    is_grey = isinstance(x, Tensor) and x.dim() == DIMENSIONS + 1 and x.shape[1] == 1
    return (x.expand(-1, RGB, -1, -1) if is_grey else x, *others)


def _repeats_grey(net: nn.Module, channels: int) -> bool:
    return channels == 1 and bool(getattr(net, "repeats_grey", False))
