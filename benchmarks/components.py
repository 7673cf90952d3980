"""Times all orders in one training against a training for each order, in one run on one machine.

    python benchmarks/components.py [--steps 8] [--repeats 2] [--width 0.015625]

Digits of 32 x 32, batches of 64, the feature `layer3` of a ResNet-8, orders 4, 7, 13, 25, 49 and 97; the same number of
steps for all, with the data and the trainer as users run them. The one training is timed twice: with all orders from
the first step, where only the teacher, the data and the trainer are shared and the nets' arithmetic is the same; and
with the default warm start, where deep orders start late from a shallower net.
"""

import argparse
import logging
import time
import warnings

import pytorch_lightning as pl
import torch

from netprism.components.disentangler import ORDERS
from netprism.datamodules import Digits
from netprism.lightning_modules import Disentangler
from netprism.nets import ResNet


class Clock(pl.Callback):
    """Seconds from the end of the first step to the end of the last."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.perf_counter()
        self.seconds = now - self.start if batch_idx else 0.0
        self.start = self.start if batch_idx else now


def seconds(teacher, orders, steps, width, warm_start=False):
    """Returns the seconds of `steps` steps, after one that is not counted."""
    torch.manual_seed(0)
    module = Disentangler(teacher, "layer3", orders, width, warm_start=warm_start, input_shape=(1, 32, 32))
    clock = Clock()
    trainer = pl.Trainer(
        max_steps=steps + 1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, Digits(batch_size=64))
    return clock.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--width", type=float, default=1 / 64)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    teacher = ResNet(8, in_channels=1)
    case = (options.steps, options.width)
    separate, together, warm = {order: [] for order in ORDERS}, [], []
    for _ in range(options.repeats):  # in turn, so that all meet the same machine
        together.append(seconds(teacher, ORDERS, *case))
        warm.append(seconds(teacher, ORDERS, *case, warm_start=True))
        for order, times in separate.items():
            times.append(seconds(teacher, (order,), *case))
    six = sum(min(times) for times in separate.values())
    threads = torch.get_num_threads()
    print(
        f"{options.steps} steps of 64 images, stages of {128 * options.width:.0f} channels and up, {threads} threads\n"
    )
    print("| what | seconds | separate trainings take |\n| --- | --- | --- |")
    print(f"| six trainings | {six:.2f} | |")
    for name, times in (("one, all orders from the start", together), ("one, warm start", warm)):
        print(f"| {name} | {min(times):.2f} | {six / min(times):.2f} times as long |")


if __name__ == "__main__":
    main()
