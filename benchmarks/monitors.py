"""What the monitors add to an epoch of ResNet-20 on 50 000 images of 32x32x3.

    OMP_NUM_THREADS=1 python benchmarks/monitors.py                # ten minutes
    OMP_NUM_THREADS=1 python benchmarks/monitors.py --images 512   # fewer training steps: noisier, sooner

Trains on a few images, since what a monitor costs does not depend on their number, and counts the epoch of 50 000 as
391 steps of 128, without validation. CPU seconds of the process, so that others on the machine count less; medians over
epochs, of which the first one is left out. Forward passes: how many images could pass the network in that time, in
batches of 128 without gradients. Operators: calls of torch's, of which a GPU gets about a kernel each, some 5 us to
launch; where they are small, that is what they cost there.
"""

import argparse
import statistics
import tempfile
import time

import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Subset, TensorDataset

from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.lightning_modules import Classifier
from netprism.nets import ResNet

BATCH, EPOCH = 128, 50_000
LEAN = {"gates": 3}  # every_n_epochs where it is not the default: with it all monitors cost about 5 %


class Operators(TorchDispatchMode):
    """Counts calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


class Stopwatch(pl.Callback):
    """CPU seconds of training steps and of every measurement of the monitors; operators of the first measurement."""

    def __init__(self, monitors):
        self.steps, self.operators = [], {}
        self.measurements = {monitor.name: [] for monitor in monitors}
        for monitor in monitors:
            monitor._measure = self._timed(monitor.name, monitor._measure)

    def _timed(self, name, measure):
        def run(*args, **options):
            if name not in self.operators:
                with Operators() as counted:
                    values = measure(*args, **options)
                self.operators[name] = counted.calls
                return values
            start = time.process_time()
            values = measure(*args, **options)
            self.measurements[name].append(time.process_time() - start)
            return values

        return run

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer, pl_module):  # the first callback: before the monitors
        self.steps.append((time.process_time() - self.start) / trainer.num_training_batches)


def images(count, seed):
    """Ten coarse patterns in noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    patterns = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    coarse = patterns[labels] + torch.randn(count, 3, 4, 4, generator=draws)
    x = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return TensorDataset(x + 0.3 * torch.randn(x.shape, generator=draws), labels)


def forward_seconds(net):
    """Of one image."""
    x, times = torch.randn(BATCH, 3, 32, 32), []
    with torch.no_grad():
        for _ in range(12):
            start = time.process_time()
            net.eval()(x)
            times.append((time.process_time() - start) / BATCH)
    return statistics.median(times[2:])


def operators_of_a_step(net):
    x, y = images(BATCH, seed=0).tensors
    optimizer = torch.optim.Adam(net.train().parameters())
    with Operators() as counted:
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return counted.calls


def measured_every_epoch(images_to_train_on, epochs, components):
    train, test = images(5000, seed=0), images(2000, seed=1)
    monitors = [
        GatingEntropy(train_data=train, test_data=test),
        InformationDiscarding(test_data=test),
        KnowledgePoints(["layer1", "layer2", "layer3"], every_n_epochs=1, train_data=train),
    ]
    if components:
        given = {"train_data": train, "test_data": test, "measure_untrained": True}
        monitors.append(FeatureComponents("layer3", every_n_epochs=epochs, **given))
    watch, net = Stopwatch(monitors), ResNet(20)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[watch, *monitors], limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(), num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Classifier(net), DataLoader(Subset(train, range(images_to_train_on)), BATCH, shuffle=True))
    return watch, net


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--epochs", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--components", action="store_true", help="FeatureComponents, too: ten minutes more")
    options = parser.parse_args()
    watch, net = measured_every_epoch(options.images, options.epochs, options.components)
    step, forward = statistics.median(watch.steps[1:]), forward_seconds(net)
    epoch, calls = step * EPOCH / BATCH, operators_of_a_step(net) * EPOCH / BATCH
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; an epoch of {EPOCH}: {epoch:.0f} CPU s,")
    print(f"{epoch / forward:.0f} forward passes of {1e3 * forward:.2f} ms, {calls:.0f} operators\n")
    print("| monitor | CPU seconds | forward passes | operators | share of an epoch | of its operators |")
    print("| --- | --- | --- | --- | --- | --- |")
    taken = {name: statistics.median(times[1:] or times) for name, times in watch.measurements.items()}
    for name, seconds in taken.items():
        share, part = seconds / epoch, watch.operators[name] / calls
        print(
            f"| {name} | {seconds:.1f} | {seconds / forward:.0f} | {watch.operators[name]} | {share:.1%} | {part:.1%} |"
        )
    default = {"gates": 1, "discarding": 1, "knowledge": KnowledgePoints(["layer1"]).every_n_epochs}
    for what, every in (("defaults", default), (f"gates every {LEAN['gates']} epochs", default | LEAN)):
        share = sum(taken[name] / n for name, n in every.items()) / epoch
        part = sum(watch.operators[name] / n for name, n in every.items()) / calls
        print(f"| together, {what} | | | | {share:.1%} | {part:.1%} |")


if __name__ == "__main__":
    main()
