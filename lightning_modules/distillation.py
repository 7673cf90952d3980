"""A student learns to give the features or the outputs of a trained network, or of any frozen one."""

from __future__ import annotations

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from netprism.interventions.distil import LABELS, OUTPUT, Pairs
from netprism.lightning_modules._base import Batch, TeacherModule, check_finite, optimizer_and_schedule
from netprism.metrics import ComponentMetric
from netprism.module_names import key_of_layer


class Distillation(TeacherModule):
    """Trains a student to mimic layers of a teacher, its output, or both.

    The loss is the sum over the targets: for a layer the mean over images and elements of the squared difference, for
    the output T^2 KL of the softmax at temperature T, for "labels" the cross-entropy. The same module trains a network
    to mimic any function: the teacher may be random, and with `temperature` None its output is no logits.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss`, `val/loss` | sum over the targets, with their weights | mixed | 0 up | lower |
    | `train/loss/<target>`, `val/loss/<target>` | loss of a target | of f, squared; nats | 0 up | lower |
    | `val/unexplained/<target>` | E||f - student's||^2 / Var[f], not of logits | 1 | 0 up | lower |
    | `val/accuracy` | fraction of images that the student classifies correctly | 1 | 0 to 1 | higher |
    | `val/agreement` | fraction of images that both give the same class | 1 | 0 to 1 | higher |

    `trainer.test` logs the keys of `val` as those of `test`. Accuracy needs labels; it and the agreement are logged
    unless `temperature` is None. Checkpoints hold both networks; `netprism.runs.teachers.trained` reads the student.

    Cost: a pass of the teacher, and a step of the student.

    Args:
        teacher: Network from images (N, ...) to logits. It is set to eval mode here and never trained.
        student: Network of any class. Where no parameter of it gets gradients, as in one that `trained` has loaded,
            all do, in train mode.
        targets: Layers of the teacher, "output", "labels"; a dict says where the student gives them, `{layer3: body}`,
            a list that it has layers of the same names. A layer that ends with an activation is compared before it.
            Where shapes differ, a linear map of the channels is learned.
        temperature: T of the outputs; None where they are no logits: they are compared as features are.
        weights: Weight of each target; None for 1.
        optimizer: See `Classifier`.
        scheduler: See `Classifier`.
        input_shape: Shape (C, H, W) of an image; None for the data module's `shape`.

    Raises:
        ValueError: A target is unknown (with the list of layers), a feature cannot be mapped, teacher and student share
            parameters, an option is out of range, or a loss is not finite.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; the uses are those of Ren et al. 2020, figure 8, Ma et
    al. 2019, figure 5, and Li et al. 2021, figure 9.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        targets: list[str] | dict[str, str] = [OUTPUT],  # noqa: B006 - jsonargparse shows it
        temperature: float | None = 4.0,
        weights: list[float] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        _check_apart(teacher, student)
        super().__init__(teacher, input_shape)
        self.save_hyperparameters(ignore=["teacher", "student", "optimizer", "scheduler"])
        self.targets = dict(targets) if isinstance(targets, dict) else {key: key for key in targets}
        self.weights = dict(zip(self.targets, weights or [1.0] * len(self.targets), strict=False))
        _check_options(self.targets, temperature, weights)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            student.requires_grad_(True).train()
        self.student, self.temperature = student, temperature
        self.optimizer, self.scheduler = optimizer, scheduler
        self.pairs: Pairs | None = None
        self.meters, self.errors = nn.ModuleDict(), nn.ModuleDict()
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the maps between features, and the metrics."""
        pairs = self.pairs = Pairs(
            self.teacher, self.student, self.targets, self.example(input_shape), self.temperature
        )
        # Metrics, since Lightning's own mean over processes is wrong where they have seen different numbers of images.
        losses = ["loss", *(f"loss/{key}" for key in self.targets)]
        classes = [] if self.temperature is None else ["accuracy", "agreement"]
        names = {"train": losses, "val": losses + classes, "test": losses + classes}
        keys = [f"{stage}/{name}" for stage, of_stage in names.items() for name in of_stage]
        # A NaN stays one; this also switches weights off (torchmetrics 1.9).
        self.meters.update({key_of_layer(key): MeanMetric(nan_strategy="disable") for key in keys})
        compared = [key for key in self.targets if pairs.is_feature(key)]
        self.errors.update({key_of_layer(key): ComponentMetric((1,)) for key in compared})

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, ...) to the student's output."""
        output: Tensor = self.student(x)
        return output

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser of the student and the maps and, if there is one, its schedule."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return optimizer_and_schedule(self.optimizer(trained), self.scheduler)

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the loss of a batch."""
        total, made, _ = self._losses(batch, "train")
        check_finite(self, "train/loss", total)
        # Under DDP every parameter needs a gradient in every step, also behind the layers that are compared.
        return total + 0.0 * made[OUTPUT].sum() if self.trainer.world_size > 1 else total

    def on_validation_epoch_start(self) -> None:
        """Forgets the images of the last validation."""
        for metric in self.errors.values():
            assert isinstance(metric, ComponentMetric)
            metric.reset()

    def validation_step(self, batch: Batch) -> None:
        """Adds a batch to the keys of `val`."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Logs how far the student is from the teacher, over all images of all processes."""
        self._log_unexplained("val")

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the keys of `test`."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Logs how far the student is from the teacher, over all images of all processes."""
        self._log_unexplained("test")

    def _losses(self, batch: Batch, stage: str) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, what the student gives and what the teacher gives."""
        assert self.pairs is not None
        images, labels = self.images(batch), _labels(batch)
        given, made = self.pairs.of_teacher(images), self.pairs(images)
        losses = self.pairs.losses(made, given, labels)
        total = torch.stack([self.weights[key] * loss for key, loss in losses.items()]).sum()
        for key, value in {"loss": total, **{f"loss/{key}": loss for key, loss in losses.items()}}.items():
            self._log(f"{stage}/{key}", value.detach().float().expand(len(images)))
        return total, made, given

    def _evaluate(self, batch: Batch, stage: str) -> None:
        _, made, given = self._losses(batch, stage)
        for key, metric in self.errors.items():
            target = key.replace("|", ".")
            assert isinstance(metric, ComponentMetric)
            metric.update(given[target], [made[target]])
        if self.temperature is not None:
            seen, labels = made[OUTPUT].argmax(1), _labels(batch)
            self._log(f"{stage}/agreement", (seen == given[OUTPUT].argmax(1)).float())
            if labels is not None:
                self._log(f"{stage}/accuracy", (seen == labels).float())

    def _log(self, key: str, values: Tensor) -> None:
        """Adds one value per image to the mean of a key."""
        meter = self.meters[key_of_layer(key)]
        assert isinstance(meter, MeanMetric)
        meter.update(values)
        self.log(key, meter, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(values))

    def _log_unexplained(self, stage: str) -> None:
        for key, metric in self.errors.items():
            assert isinstance(metric, ComponentMetric)
            (value,) = metric.components().unexplained
            # The ranks agree already: a maximum keeps the value bitwise, where a mean may round.
            self.log(f"{stage}/unexplained/{key.replace('|', '.')}", value, sync_dist=True, reduce_fx="max")


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    shared = set(teacher.parameters()) & set(student.parameters())
    for name, parameter in student.named_parameters():
        if parameter in shared:
            raise ValueError(f"student has {name} of the teacher; expected a network with parameters of its own")


def _check_options(targets: dict[str, str], temperature: float | None, weights: list[float] | None) -> None:
    if not targets:
        raise ValueError('targets is empty; expected layers of the teacher, "output" or "labels"')
    if targets.get(OUTPUT, OUTPUT) != OUTPUT:
        raise ValueError(f"targets has output: {targets[OUTPUT]}; expected output: output")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; expected a number > 0, or None for outputs that are no logits")
    if temperature is None and LABELS in targets:
        raise ValueError(
            'targets has "labels" and temperature is None; expected a temperature, since outputs are logits'
        )
    if weights is not None and len(weights) != len(targets):
        raise ValueError(f"weights has {len(weights)} numbers; expected {len(targets)}, one per target")
    for weight in weights or []:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weights is {weights}; expected numbers >= 0")


def _labels(batch: Batch) -> Tensor | None:
    return None if isinstance(batch, Tensor) or len(batch) < 2 else batch[1]
