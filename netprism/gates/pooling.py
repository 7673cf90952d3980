"""Gates of a max-pool: which element of each window won."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool_gates(x: Tensor, operation: str, *args: Any, **kwargs: Any) -> Tensor:
    """One-hot of the argmax in every window of a max-pool.

    Args:
        x: Input of the pooling, `(N, C, *spatial)` with one to three spatial dimensions.
        operation: Torch's name of the call, `max_pool2d`, `adaptive_max_pool1d`, ... Adaptive windows differ in size;
            the largest one counts.
        *args: the other arguments of the call, as `torch.nn.functional.max_pool2d` takes them.
        **kwargs: likewise.

    Returns:
        Bool `(N, C, *output, k)`, `k` the elements of a window, exactly one of them true.
    """
    dims = int(operation[-2])
    if x.dim() != dims + 2:
        raise ValueError(f"{operation} of {tuple(x.shape)}: expected samples and channels before {dims} dimensions")
    if operation.startswith("adaptive"):
        (output_size,) = _bind(("output_size",), args, kwargs)
        sizes = [out or size for out, size in zip(_per_dim(output_size, dims), x.shape[2:], strict=True)]
        _, indices = getattr(F, f"adaptive_max_pool{dims}d_with_indices")(x, sizes)
        # torch's rule: window i covers floor(i * size / out) up to ceil((i + 1) * size / out)
        starts = [torch.arange(o, device=x.device) * s // o for o, s in zip(sizes, x.shape[2:], strict=True)]
        windows = [
            max(-(-(i + 1) * s // o) - i * s // o for i in range(o)) for o, s in zip(sizes, x.shape[2:], strict=True)
        ]
        steps = [1] * dims
    else:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        kernel, stride, padding, dilation, ceil_mode = _bind(names, args, kwargs)
        windows, steps = _per_dim(kernel, dims), _per_dim(dilation or 1, dims)
        strides, paddings = _per_dim(stride or kernel, dims), _per_dim(padding or 0, dims)
        pool = getattr(F, f"max_pool{dims}d_with_indices")
        _, indices = pool(x, windows, strides, paddings, steps, bool(ceil_mode))
        outputs = indices.shape[2:]
        starts = [torch.arange(o, device=x.device) * s - p for o, s, p in zip(outputs, strides, paddings, strict=True)]
    return _one_hot_in_window(indices, x.shape[2:], starts, steps, windows)


def _one_hot_in_window(
    indices: Tensor, input_size: Sequence[int], starts: list[Tensor], steps: list[int], windows: list[int]
) -> Tensor:
    """Turns flat indices into the input, `(N, C, *output)`, to one-hot places in the window that starts at `starts`."""
    place = torch.zeros_like(indices)
    remainder = indices
    stride = 1
    for dim in reversed(range(len(windows))):
        coordinate = remainder % input_size[dim]
        remainder = remainder // input_size[dim]
        shape = [-1 if d == dim else 1 for d in range(len(windows))]
        place += (coordinate - starts[dim].view(shape)) // steps[dim] * stride
        stride *= windows[dim]
    return place.unsqueeze(-1) == torch.arange(stride, device=indices.device)


def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The values of the named arguments, None where the call leaves one out."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def _per_dim(value: int | Sequence[int], dims: int) -> list[int]:
    """One number per spatial dimension: torch lets a single one stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
