"""Distillation: a network learns to give the features or the outputs of another one.

Features are compared by their mean squared error, outputs by the Kullback-Leibler divergence of their softmax at a
temperature, or by their mean squared error where they are no logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.components.distillation import mimic_losses
from netprism.components.network_split import SplitNetwork, features_and_output, logits_of
from netprism.module_names import key_of_layer
from netprism.taps import find_layer

OUTPUT, LABELS = "output", "labels"


def output_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over images in nats.

    The factor keeps the size of the gradient about the same for all temperatures.

    Args:
        student: Logits `(N, C)`.
        teacher: Logits `(N, C)`.
        temperature: T.

    Source: Hinton et al. 2015, section 2, https://arxiv.org/abs/1503.02531.
    """
    log_q, log_p = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class Pairs(nn.Module):
    """Which layers of a student mimic which of a teacher, with a learned linear map where their shapes differ.

    A layer that ends with an activation is compared before it, see `netprism.components.SplitNetwork`.

    Args:
        teacher: The network that is mimicked; in eval mode.
        student: The network that mimics.
        targets: {target: where the student gives it}; a target is a layer of the teacher, "output" or "labels". The
            student gives it in a layer, or as its "output".
        example: Images `(n, ...)` from which the shapes are found; the student is left in the mode that it had.
        temperature: Of the outputs; None: they are no logits, and compared as features are.

    Raises:
        ValueError: There is no target, a layer is unknown, a feature cannot be mapped, or outputs do not fit.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        targets: Mapping[str, str],
        example: Tensor,
        temperature: float | None = 4.0,
    ) -> None:
        super().__init__()
        self.targets, self.temperature = dict(targets), temperature
        features = {key: layer for key, layer in self.targets.items() if key not in (OUTPUT, LABELS)}
        # Plain tuples: the networks are not parts of this module.
        self._teacher = tuple(SplitNetwork(teacher, key) for key in features)
        self._student = tuple(SplitNetwork(student, layer) for layer in features.values() if layer != OUTPUT)
        self._networks = teacher, student
        mode = student.training
        with torch.no_grad():
            student.eval()
            for cut in (*self._teacher, *self._student):
                cut.feature(example)
            given, made = self.of_teacher(example), self._run_student(example)
            student.train(mode)
        maps = {key: self._map(key, made[key], given[key]) for key in self.targets if key != LABELS}
        self.maps = nn.ModuleDict({key_of_layer(key): net for key, net in maps.items() if net is not None})

    def of_teacher(self, x: Tensor) -> dict[str, Tensor]:
        """Returns {target: what the teacher gives}, "output" among them, without gradients."""
        with torch.no_grad():
            features, output = _run(self._networks[0], self._teacher, x)
        keys = [key for key in self.targets if key not in (OUTPUT, LABELS)]
        return {**dict(zip(keys, features, strict=True)), OUTPUT: logits_of(output)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns {target: what the student gives}, mapped to the teacher's shape, and its plain "output"."""
        made = self._run_student(x)
        maps = {key: self.maps[key_of_layer(key)] for key in self.targets if key_of_layer(key) in self.maps}
        return {key: maps[key](value) if key in maps else value for key, value in made.items()}

    def losses(
        self, made: Mapping[str, Tensor], given: Mapping[str, Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Returns {target: loss} of a batch, each a mean over its images.

        Raises:
            ValueError: "labels" is a target, and there are none.
        """
        found: dict[str, Tensor] = {}
        for key in self.targets:
            if key == LABELS:
                if labels is None:
                    raise ValueError('targets has "labels", and the batches have none; expected images and labels')
                found[key] = F.cross_entropy(made[OUTPUT].float(), labels)
            elif self.is_feature(key):
                (found[key],) = mimic_losses([made[key]], given[key])
            else:
                assert self.temperature is not None
                found[key] = output_loss(made[key], given[key], self.temperature)
        return found

    def is_feature(self, key: str) -> bool:
        """Whether a target is compared by its mean squared error."""
        return key != LABELS and (key != OUTPUT or self.temperature is None)

    def _run_student(self, x: Tensor) -> dict[str, Tensor]:
        features, output = _run(self._networks[1], self._student, x)
        logits, rest = logits_of(output), iter(features)
        made = {
            key: logits if layer == OUTPUT else next(rest)
            for key, layer in self.targets.items()
            if key not in (OUTPUT, LABELS)
        }
        return {**made, OUTPUT: logits}

    def _map(self, key: str, made: Tensor, given: Tensor) -> nn.Module | None:
        if made.shape == given.shape:
            return None
        shapes = f"{tuple(made.shape[1:])} in the student and {tuple(given.shape[1:])} in the teacher"
        if not self.is_feature(key):
            raise ValueError(f"logits are {shapes}; expected as many classes in both")
        if made.dim() == given.dim() == 4 and made.shape[2:] == given.shape[2:]:
            return nn.Conv2d(made.shape[1], given.shape[1], kernel_size=1).to(made.device)
        if made.dim() == given.dim() in (2, 3) and made.shape[:-1] == given.shape[:-1]:  # vectors, or a row of tokens
            return nn.Linear(made.shape[-1], given.shape[-1]).to(made.device)
        raise ValueError(f"feature {key!r} is {shapes}; expected maps of one size, or vectors in both")


class UnderHead(nn.Module):
    """A body that makes a feature, under the head of a trained network: what becomes of its logits?

    With a body of few ReLUs this is the distilled network of Ren et al. 2020, figure 8.

    Args:
        body: Network from images `(N, ...)` to features.
        teacher: Network whose head follows; a copy of it, frozen and in eval mode.
        head: Names of the teacher's modules that make its logits of the feature, one after the other; a linear layer
            gets vectors.
        activation: Whether a ReLU comes first, as where the layer of the feature ends with one.

    Raises:
        ValueError: The teacher has no such module.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> UnderHead(nn.Linear(4, 3), teacher, ["2"])(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, body: nn.Module, teacher: nn.Module, head: Sequence[str], activation: bool = True) -> None:
        super().__init__()
        self.body = body
        parts = [copy.deepcopy(find_layer(teacher, name)) for name in head]
        self.head = nn.Sequential(*([nn.ReLU()] if activation else []), *parts).requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, ...)` to logits `(N, C)`."""
        value: Tensor = self.body(x)
        for part in self.head:
            value = part(value.flatten(1) if isinstance(part, nn.Linear) else value)
        return value

    def train(self, mode: bool = True) -> Self:
        """Switches the body; the head stays in eval mode."""
        super().train(mode)
        self.head.eval()
        return self


def _run(network: nn.Module, cuts: Sequence[SplitNetwork], x: Tensor) -> tuple[list[Tensor], object]:
    return features_and_output(cuts, x) if cuts else ([], network(x))
