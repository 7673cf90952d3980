"""What the monitors add to an epoch of ResNet-20 on 50 000 images of 32x32x3.

    OMP_NUM_THREADS=1 python benchmarks/monitors.py                # ten minutes
    OMP_NUM_THREADS=1 python benchmarks/monitors.py --images 512   # fewer training steps: noisier, sooner
    make bench-gpu                                                 # the same on a GPU, two minutes; not yet run

Trains on a few images, since what a monitor costs does not depend on their number, and counts the epoch of 50 000 as
391 steps of 128, without validation. On a CPU: seconds of the process, so that others on the machine count less; on a
GPU: seconds on the clock, when it has finished. Medians over epochs, of which the first one is left out. Forward
passes: how many images could pass the network in that time, in batches of 128 without gradients. Operators: calls of
torch's, of which a GPU gets about a kernel each, some 5 us to launch; where they are small, that is what they cost
there. Memory: the largest that a measurement has allocated on the GPU, beside what was there before.
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
LAYERS = ["layer1", "layer2", "layer3"]


def seconds(device):
    """On the clock that counts."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Operators(TorchDispatchMode):
    """Counts calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


class Stopwatch(pl.Callback):
    """Seconds of training steps and of every measurement of the monitors; operators and memory of the first one."""

    def __init__(self, monitors, device):
        self.device = device
        self.steps, self.operators, self.memory = [], {}, {}
        self.measurements = {monitor.name: [] for monitor in monitors}
        for monitor in monitors:
            monitor.look = self._timed(monitor.name, monitor.look)

    def _timed(self, name, look):
        def run(*args, **options):
            if name not in self.operators:
                before = self._allocated(reset=True)
                with Operators() as counted:
                    values = look(*args, **options)
                self.operators[name], self.memory[name] = counted.calls, self._allocated() - before
                return values
            start = seconds(self.device)
            values = look(*args, **options)
            self.measurements[name].append(seconds(self.device) - start)
            return values

        return run

    def _allocated(self, reset=False):
        if self.device.type == "cpu":
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = seconds(self.device)

    def on_train_epoch_end(self, trainer, pl_module):  # the first callback: before the monitors
        self.steps.append((seconds(self.device) - self.start) / trainer.num_training_batches)


def images(count, seed):
    """Ten coarse patterns in noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    patterns = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    coarse = patterns[labels] + torch.randn(count, 3, 4, 4, generator=draws)
    x = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return TensorDataset(x + 0.3 * torch.randn(x.shape, generator=draws), labels)


def forward_seconds(net, device):
    """Of one image."""
    x, times = torch.randn(BATCH, 3, 32, 32, device=device), []
    net = net.to(device).eval()
    with torch.no_grad():
        for _ in range(12):
            start = seconds(device)
            net(x)
            times.append((seconds(device) - start) / BATCH)
    return statistics.median(times[2:])


def operators_of_a_step(net):
    x, y = images(BATCH, seed=0).tensors
    net = net.cpu()
    optimizer = torch.optim.Adam(net.train().parameters())
    with Operators() as counted:
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return counted.calls


def measured_every_epoch(images_to_train_on, epochs, names, device, processes):
    train, test = images(5000, seed=0), images(2000, seed=1)
    given = {"train_data": train, "test_data": test, "measure_untrained": True}
    made = {
        "gates": lambda: GatingEntropy(**given),
        "discarding": lambda: InformationDiscarding(**given),
        "knowledge": lambda: KnowledgePoints(LAYERS, train_data=train),
        "components": lambda: FeatureComponents("layer3", every_n_epochs=epochs, **given),
    }
    monitors = [made[name]() for name in names]
    watch, net = Stopwatch(monitors, device), ResNet(20)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator=device.type, devices=processes, callbacks=[watch, *monitors],
        limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tempfile.mkdtemp(), num_sanity_val_steps=0,
    )  # fmt: skip
    batch = BATCH // processes
    trainer.fit(Classifier(net), DataLoader(Subset(train, range(images_to_train_on)), batch, shuffle=True))
    return watch, net, trainer.is_global_zero


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--epochs", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--monitors", default="gates,discarding,knowledge", help="components, too: ten minutes more")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processes", type=int, default=1, help="that share a step of 128; rank 0 is measured")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("skipped, no GPU: torch.cuda.is_available() is False")
        return
    names = options.monitors.split(",")
    watch, net, is_first = measured_every_epoch(options.images, options.epochs, names, device, options.processes)
    if not is_first:
        return
    step, forward = statistics.median(watch.steps[1:]), forward_seconds(net, device)
    epoch, calls = step * EPOCH / BATCH, operators_of_a_step(net) * EPOCH / BATCH
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}; an epoch of {EPOCH}: {epoch:.0f} s,")
    print(f"{epoch / forward:.0f} forward passes of {1e3 * forward:.2f} ms, {calls:.0f} operators\n")
    print("| monitor | seconds | forward passes | operators | share of an epoch | of its operators | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    taken = {name: statistics.median(times[1:] or times) for name, times in watch.measurements.items()}
    for name, spent in taken.items():
        share, part, mib = spent / epoch, watch.operators[name] / calls, watch.memory[name] / 2**20
        cells = f"{spent:.2f} | {spent / forward:.0f} | {watch.operators[name]} | {share:.1%} | {part:.1%}"
        print(f"| {name} | {cells} | {f'{mib:.0f}' if device.type == 'cuda' else ''} |")
    usual = [name for name in taken if name != "components"]
    share, part = sum(taken[name] for name in usual) / epoch, sum(watch.operators[name] for name in usual) / calls
    print(f"| together, with the defaults | | | | {share:.1%} | {part:.1%} | |")


if __name__ == "__main__":
    main()
