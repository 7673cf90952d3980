"""Attacks: small changes of images that change what a network says about them.

Both attacks leave the network as it was: flags, buffers, gradients and `requires_grad` of its parameters. They run it
in eval mode and draw no random numbers, so that the result of an image depends neither on the others in its batch (but
for rounding) nor on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.components.network_split import logits_of
from netprism.discarding.layer_view import evaluating
from netprism.interventions.pixels import RAW, Pixels

_OfLogits = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of logits and classes: slope in the logits, value

_FIRST_NORM, _NORM_STEP = 1.0, 0.05  # of the decoupled direction and norm attack
_SEARCHES = 12  # halvings of the distance to the border
_TANGENTS = 10  # projections onto the tangent of the border


@dataclass(frozen=True)
class MinimalAttack:
    """The smallest change of each of N images that was found.

    Attributes:
        images: The changed images `(N, ...)`, as the network gets them; the original where none was found.
        distances: l_2 norms of the changes, of pixels in [0, 1], `(N,)`; infinite where none was found.
        success: Whether the network sees the target in the changed image, bool `(N,)`.
    """

    images: Tensor
    distances: Tensor
    success: Tensor


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    eps: float = 1 / 255,
    steps: int = 20,
    step_size: float | None = None,
    targets: Tensor | None = None,
    pixels: Pixels = RAW,
) -> Tensor:
    """Returns images changed by projected gradient descent, by at most `eps` per pixel, in the type of `x`.

    Each step adds `step_size` times the sign of the gradient of the cross-entropy, and goes back into the cube of
    half-width eps about the image and into the range of pixels. The gradient is scaled per image before it goes
    through the network, so that it does not vanish for a sure network or in half precision.

    Cost: a pass forward and back per step.

    Args:
        model: Network from images `(N, ...)` to logits `(N, C)`, or to a mapping with "logits".
        x: Images `(N, ...)` as the network gets them, see `pixels`.
        labels: Classes `(N,)` to lead away from; None for those that the network sees now.
        eps: Largest change of a pixel in [0, 1].
        steps: Number of steps.
        step_size: Change of a pixel per step; None for eps / 10, as in the paper.
        targets: Classes `(N,)` to lead to instead: a targeted attack.
        pixels: The range of the images; by default they are pixels in [0, 1] themselves. `Pixels.of(data_module)`
            takes it from a data module.

    Raises:
        TypeError: Images are not floating, or the network returns no logits.
        ValueError: eps, steps or step_size is not positive; labels or targets do not fit; images are outside of their
            range; the network returns probabilities.

    Source: Madry et al. 2018, https://arxiv.org/abs/1706.06083, with the values of Li et al. 2021, section 4,
    https://arxiv.org/abs/2111.03505.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        >>> changed = pgd(model, torch.full((1, 2), 0.5), torch.tensor([0]), eps=0.1)
        >>> [round(value, 4) for value in changed[0].tolist()]
        [0.4, 0.6]
    """
    *_, last = pgd_steps(model, x, labels, eps=eps, steps=steps, step_size=step_size, targets=targets, pixels=pixels)
    return last


def pgd_steps(
    model: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    eps: float = 1 / 255,
    steps: int = 20,
    step_size: float | None = None,
    targets: Tensor | None = None,
    pixels: Pixels = RAW,
) -> Iterator[Tensor]:
    """Yields the images of `pgd` before the first step and after each: `steps` + 1 times `(N, ...)`."""
    step_size = eps / 10 if step_size is None else step_size
    for name, value in (("eps", eps), ("step_size", step_size), ("steps", steps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a number > 0")
    pixels.check(x)
    low, high = pixels.bounds(x)
    scale = pixels.scale(x)
    origin = x.detach().float().clone()
    lowest = torch.maximum(origin - eps / scale, low)
    highest = torch.minimum(origin + eps / scale, high)
    current = origin.clone()
    classes = _classes(model, x, labels if targets is None else targets)
    sign = 1.0 if targets is None else -1.0
    yield x.detach().clone()
    for _ in range(steps):
        slope = _slope(model, current.to(x.dtype), classes, _cross_entropy_slope)[0]
        current = (current + sign * step_size / scale * slope.sign()).clamp(lowest, highest)
        yield _within(current, lowest, highest, x.dtype)


def minimal_attack(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    steps: int = 100,
    pixels: Pixels = RAW,
) -> MinimalAttack:
    """Finds the smallest change of each image, in the l_2 norm, that makes the network see another class.

    The attack of Rony et al. (2019) decouples direction and norm: the change follows the normalised gradient of the
    difference between the target's logit and the largest other one, and its norm shrinks by 5 % while the target is
    seen and grows by 5 % while it is not. Then the change is shortened until the border of the classes, and moved
    along the tangent of the border to the point next to the image. Only images that the network was seen to take for
    the target count as found.

    Cost: `steps` + 10 passes forward and back, and some 220 forward.

    Args:
        model: Network from images `(N, ...)` to logits `(N, C)`, or to a mapping with "logits".
        x: Images `(N, ...)` as the network gets them, see `pixels`.
        targets: Classes `(N,)` to lead to; see `top_wrong_classes`.
        steps: Number of steps before the shortening.
        pixels: The range of the images, see `pgd`.

    Raises:
        TypeError: Images are not floating, or the network returns no logits.
        ValueError: steps is not positive; targets do not fit; images are outside of their range; the network returns
            probabilities.

    Source: Rony et al. 2019, algorithm 1, https://arxiv.org/abs/1811.09600; the use is that of Ma et al. 2019,
    appendix A, https://openreview.net/forum?id=BygG3hEYvB.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected a number >= 1")
    pixels.check(x)
    targets = _classes(model, x, targets)
    search = _Search(model, x, targets, pixels)
    search.descend(steps)
    search.shorten()
    for _ in range(_TANGENTS):
        search.move_along_border()
        search.shorten()
    return search.result()


def top_wrong_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Returns the `count` most probable wrong classes of each image, int64 `(N, count)`.

    Args:
        logits: Logits `(N, C)`.
        labels: True classes `(N,)`.
        count: Number of classes; all C - 1 if there are fewer.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected a number >= 1")
    others = logits.scatter(1, labels[:, None].to(logits.device), -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def adversarial_distances(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    num_classes: int = 20,
    steps: int = 100,
    pixels: Pixels = RAW,
) -> Tensor:
    """Returns the smallest l_2 distances from images to their most probable wrong classes: how robust a network is.

    The mean over images and classes is the robustness of Ma et al. 2019, appendix A,
    https://openreview.net/forum?id=BygG3hEYvB. An image that the network takes for that wrong class already has 0.

    Args:
        model: Network from images to logits.
        batches: Images `(n, ...)` and true classes `(n,)`.
        num_classes: Number of wrong classes per image; all if there are fewer.
        steps: Steps of `minimal_attack`.
        pixels: The range of the images, see `pgd`.

    Returns:
        `(N, num_classes)`, of pixels in [0, 1]; infinite where no change was found.

    Raises:
        ValueError: There is no image; otherwise see `minimal_attack`.
    """
    found = []
    for x, labels in batches:
        with evaluating(model), torch.no_grad():
            logits = checked_logits(model, x)
        wrong = top_wrong_classes(logits, labels, num_classes)
        columns = [minimal_attack(model, x, t, steps=steps, pixels=pixels).distances for t in wrong.unbind(1)]
        found.append(torch.stack(columns, dim=1).cpu())
    if not found:
        raise ValueError("batches hold no image; expected at least one")
    return torch.cat(found)


def checked_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the logits `(N, C)` of images.

    Raises:
        TypeError: The network returns no logits.
        ValueError: They are not (N, C), not finite, or already probabilities.
    """
    logits = logits_of(model(x))
    if logits.dim() != 2 or len(logits) != len(x):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (N, C) with N = {len(x)}")
    if not logits.isfinite().all():
        raise ValueError("logits are NaN or infinite; expected finite values")
    values = logits.detach().float()
    if (values >= 0).all() and torch.allclose(values.sum(1), values.new_ones(()), atol=1e-3):
        raise ValueError("logits are already probabilities, >= 0 with sum 1; expected the input of the softmax")
    return logits


class _Search:
    """The state of a search for the nearest image of another class, in float32 and in units of pixels."""

    def __init__(self, model: nn.Module, x: Tensor, targets: Tensor, pixels: Pixels) -> None:
        self.model, self.targets, self.dtype = model, targets, x.dtype
        self.given = x.detach()
        self.scale, (self.low, self.high) = pixels.scale(x), pixels.bounds(x)
        self.origin = self.given.float()
        self.best = torch.zeros_like(self.origin)  # the changes of pixels
        self.distance = self.origin.new_full((len(x),), torch.inf)
        self.shape = (-1, *[1] * (x.dim() - 1))

    def image(self, change: Tensor) -> Tensor:
        """The image with a change, within the range, in the type that the network takes."""
        return (self.origin + change / self.scale).clamp(self.low, self.high).to(self.dtype)

    def change(self, image: Tensor) -> Tensor:
        return (image.float() - self.origin) * self.scale

    def take(self, change: Tensor, seen: Tensor) -> None:
        """Keeps the changes that lead to the target with a smaller norm."""
        norm = _norms(change)
        better = seen & (norm < self.distance)
        self.distance = torch.where(better, norm, self.distance)
        self.best = torch.where(better.view(self.shape), change, self.best)

    def sees_target(self, change: Tensor) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            return checked_logits(self.model, self.image(change)).argmax(1) == self.targets

    def descend(self, steps: int) -> None:
        """Decoupled direction and norm."""
        change = torch.zeros_like(self.origin)
        norm = self.distance.new_full(self.distance.shape, _FIRST_NORM)
        for step in range(steps):
            change = self.change(self.image(change))
            slope, margin = _slope(self.model, self.image(change), self.targets, _margin_slope)
            seen = margin > 0
            self.take(change, seen)
            length = _FIRST_NORM * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
            direction = slope / self.scale
            direction = direction / _norms(direction).clamp(min=1e-20).view(self.shape)
            change = change + length * direction
            norm = norm * torch.where(seen, 1 - _NORM_STEP, 1 + _NORM_STEP)
            change = change * (norm / _norms(change).clamp(min=1e-20)).view(self.shape)
        change = self.change(self.image(change))
        self.take(change, self.sees_target(change))

    def shorten(self) -> None:
        """Halves the interval between image and changed image in which the border lies."""
        low, high = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        start = self.best
        for _ in range(_SEARCHES):
            middle = (low + high) / 2
            change = self.change(self.image(start * middle.view(self.shape)))
            seen = self.sees_target(change)
            self.take(change, seen)
            low, high = torch.where(seen, low, middle), torch.where(seen, middle, high)

    def move_along_border(self) -> None:
        """Tries the point next to the image on the tangent of the border, and points on the way to it."""
        slope, margin = _slope(self.model, self.image(self.best), self.targets, _margin_slope)
        normal = slope / self.scale
        square = normal.flatten(1).square().sum(1)
        # The half-space margin + <normal, change - best> >= 0, of which the tangent of the border is the face.
        offset = (normal * self.best).flatten(1).sum(1) - margin
        nearest = normal * (offset / square.clamp(min=1e-30)).view(self.shape)
        start = self.best
        for way in (1.0, 0.5, 0.25, 0.1):
            tried = start + way * (nearest - start)
            for longer in (1.0, 1.02):
                change = self.change(self.image(longer * tried))
                self.take(change, self.sees_target(change))

    def result(self) -> MinimalAttack:
        success = self.distance.isfinite()
        images = torch.where(success.view(self.shape), self.image(self.best), self.given)
        return MinimalAttack(images, self.distance, success)


def _norms(change: Tensor) -> Tensor:
    norms: Tensor = change.flatten(1).norm(dim=1)
    return norms


def _classes(model: nn.Module, x: Tensor, given: Tensor | None) -> Tensor:
    """The classes `(N,)` on the images' device, checked; those that the network sees where none are given."""
    with evaluating(model), torch.no_grad():
        logits = checked_logits(model, x)
    if given is None:
        return logits.argmax(1)
    classes = given.to(x.device)
    if classes.shape != (len(x),) or classes.is_floating_point():
        raise ValueError(f"classes are {classes.dtype} {tuple(classes.shape)}; expected integers ({len(x)},)")
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise ValueError(
            f"classes are {int(classes.min())} to {int(classes.max())}; expected 0 to {logits.shape[1] - 1}"
        )
    return classes


def _slope(model: nn.Module, x: Tensor, classes: Tensor, of_logits: _OfLogits) -> tuple[Tensor, Tensor]:
    """Gradient in x, float32 `(N, ...)`, of what has the slope `of_logits` in the logits; and its value `(N,)`."""
    with evaluating(model):
        images = x.detach().clone().requires_grad_()
        logits = checked_logits(model, images)
        upstream, value = of_logits(logits.detach(), classes)
        if not logits.requires_grad:
            return torch.zeros_like(x, dtype=torch.float32), value
        (slope,) = torch.autograd.grad(logits, images, upstream.to(logits.dtype), allow_unused=True)
    return torch.zeros_like(x, dtype=torch.float32) if slope is None else slope.float(), value


def _cross_entropy_slope(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """P - e_y, divided by its largest entry: the direction of the cross-entropy's slope, never too small for a type."""
    log_p = logits.double().log_softmax(1)
    truth = F.one_hot(classes, logits.shape[1]).bool()
    log_others = log_p.masked_fill(truth, -torch.inf)
    log_sum = log_others.logsumexp(1, keepdim=True)  # 1 - p_y without cancellation
    slope = (log_others - log_sum).exp()
    return slope - truth.double(), -log_p[truth]


def _margin_slope(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The target's logit minus the largest other one, and its slope."""
    truth = F.one_hot(classes, logits.shape[1]).bool()
    others = logits.float().masked_fill(truth, -torch.inf)
    rival = F.one_hot(others.argmax(1), logits.shape[1])
    margin: Tensor = logits.float()[truth] - others.amax(1)
    return truth.to(logits.dtype) - rival.to(logits.dtype), margin


def _within(image: Tensor, lowest: Tensor, highest: Tensor, dtype: torch.dtype) -> Tensor:
    """The image in a type of fewer bits, still within the bounds: where rounding leaves them, one number inwards."""
    rounded = image.to(dtype)
    if dtype in (torch.float32, torch.float64):
        return rounded
    inwards = torch.where(rounded.float() > highest, -torch.inf, torch.inf).to(dtype)
    outside = (rounded.float() > highest) | (rounded.float() < lowest)
    return torch.where(outside, torch.nextafter(rounded, inwards), rounded)
