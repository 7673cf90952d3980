"""What functions ask of their numbers and tensors, and the line in which they say what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def check_number(name: str, value: float, *, least: float | None = None, above: float | None = None) -> None:
    """Refuses a number that is NaN, infinite or too small.

    Raises:
        ValueError: It is.
    """
    allowed = (
        "finite number" if least is above is None else f"number >= {least}" if above is None else f"number > {above}"
    )
    if not math.isfinite(value) or (least is not None and value < least) or (above is not None and value <= above):
        raise ValueError(f"{name} is {value}; expected a {allowed}")


def check_tensor(
    name: str,
    values: Tensor,
    shape: Sequence[int | str] | None = None,
    *,
    least: float = -math.inf,
    finite: bool = True,
) -> None:
    """Refuses a tensor whose numbers a formula of real numbers cannot take. Cost: two passes, and a wait for a GPU.

    Args:
        name: Its name in the message.
        values: The tensor.
        shape: What its shape has to be: a number for a size that is known, a word for any other; None for any shape.
        least: The smallest number allowed.
        finite: Whether infinity is refused; NaN always is.

    Raises:
        TypeError: It is not floating: results in its type would be rounded to whole numbers.
        ValueError: It has another shape, or a number is NaN, infinite or too small.
    """
    if not values.is_floating_point():
        raise TypeError(f"{name} is {values.dtype}; expected floating numbers")
    if shape is not None:
        fits = (size == wanted or isinstance(wanted, str) for size, wanted in zip(values.shape, shape, strict=False))
        if values.dim() != len(shape) or not all(fits):
            expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
            raise ValueError(f"shape of {name} is {tuple(values.shape)}; expected ({expected})")
    bad = ~(values.isfinite() if finite else ~values.isnan()) | (values < least)
    if bad.any():
        kind = "finite numbers" if finite else "numbers"
        allowed = kind if least == -math.inf else f"{kind} >= {least:g}"
        raise ValueError(f"{name} has {values[bad][0].item():g} in it; expected {allowed}")


def check_optimizer(optimizer: object) -> None:
    """Refuses what cannot make an optimizer of parameters, such as the null of a config.

    Raises:
        ValueError: It cannot be called.
    """
    if not callable(optimizer):
        raise ValueError(f"optimizer is {optimizer}; expected a class of torch.optim")


def check_labels(labels: Tensor, samples: int, classes: int) -> None:
    """Refuses labels that are not one class per sample.

    Raises:
        TypeError: They are not integers.
        ValueError: They have another shape than `(samples,)`, or one is outside of 0 to classes - 1.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels is {labels.dtype}; expected integers")
    if labels.shape != (samples,):
        raise ValueError(f"shape of labels is {tuple(labels.shape)}; expected ({samples},)")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"a label is {int(wrong[0])}; expected 0 to {classes - 1}")
