"""What monitors and analyses cost on one process, two and four, and what they send.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Monitors: a measurement of ResNet-20 on 32x32x3 images, smaller than by default so that the table is done in minutes.
Analyses: an epoch with its validation on digits. One thread per process, gloo. Bytes: what all ranks together hand to
collectives within it, gathers of objects included, a broadcast counted at its root; what DDP itself sends (gradients,
BatchNorm buffers) goes past Python and is not among them. Memory: how far the peak of rank 0 lies above what it had at
the start of the fit.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from monitors import images
from torch import distributed as dist
from torch.utils.data import DataLoader

from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.datamodules import Digits
from netprism.lightning_modules import (
    Classifier,
    ComplexityPenalizedClassifier,
    Disentangler,
    InputDecoder,
    RegionProjection,
    ReliableDisentangler,
    SampleProjection,
)
from netprism.nets import ResNet

MONITORS = {
    "GatingEntropy, 1000 images": lambda **data: GatingEntropy(num_images=1000, **data),
    "InformationDiscarding": lambda train_data, **_: InformationDiscarding(
        split="train", train_data=train_data, batch_size=4
    ),
    "KnowledgePoints, 200 images": lambda train_data, **_: KnowledgePoints(
        ["layer1", "layer2", "layer3"], images_per_class=20, batch_size=32, train_data=train_data
    ),
    "FeatureComponents, 512 images, 20 steps": lambda **data: FeatureComponents(
        "layer3", (4, 7), num_images=512, steps=20, **data
    ),
}


def net():
    torch.manual_seed(0)
    return ResNet(8, in_channels=1)


ANALYSES = {  # module, digits to train on, batch of all processes
    "Classifier": (lambda: Classifier(net()), 512, 64),
    "ComplexityPenalizedClassifier, widths 32, 64": (
        lambda: ComplexityPenalizedClassifier(net(), widths=(32, 64)), 512, 64
    ),
    "Disentangler": (lambda: Disentangler(net(), "layer3", (4, 7), 1 / 16), 512, 64),
    "ReliableDisentangler": (lambda: ReliableDisentangler([net(), net()], "layer2", (4, 7), 1 / 8), 512, 64),
    "InputDecoder": (lambda: InputDecoder(net(), ["layer1", "layer3"], width=8, blocks=2), 512, 64),
    "SampleProjection": (lambda: SampleProjection(net(), input_shape=(1, 16, 16)), 512, 512),
    "RegionProjection, 256 images": (lambda: RegionProjection(net(), ["layer3"], (1, 16, 16)), 256, 256),
}  # fmt: skip
# methods of a process group that c10d's functions call, and which of their arguments is sent
CALLS = {
    "allreduce": 0,
    "broadcast": 0,
    "allgather": 1,
    "_allgather_base": 1,
    "all_gather_single": 1,
    "all_to_all_single": 1,
}


class Sent:
    """Counts bytes that this rank hands to collectives."""

    def __init__(self):
        self.bytes = 0
        for name, of in CALLS.items():
            setattr(dist.ProcessGroup, name, self._counting(getattr(dist.ProcessGroup, name), of))

    def _counting(self, method, of):
        def run(group, *args):
            options = args[-1] if args else None
            if getattr(options, "rootRank", dist.get_rank()) == dist.get_rank() or method.__name__ != "broadcast":
                tensors = args[of] if isinstance(args[of], list) else [args[of]]
                self.bytes += sum(tensor.nbytes for tensor in tensors)
            return method(group, *args)

        return run


class Meter(pl.Callback):
    """Writes down wall and CPU seconds, bytes and memory of this rank, of a measurement or of an epoch."""

    def __init__(self, folder, monitor=None):
        self.folder, self.monitor = folder, monitor
        if monitor is not None:
            look = monitor.look
            monitor.look = lambda *args, **options: self.metered(lambda: look(*args, **options))

    def metered(self, run):
        self.begin()
        result = run()
        self.end()
        return result

    def begin(self):
        if dist.is_initialized():
            dist.barrier()
        self.sent = Sent() if dist.is_initialized() else None
        self.start = time.perf_counter(), time.process_time()

    def end(self):
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row = {"wall": wall, "cpu": cpu, "bytes": self.sent.bytes if self.sent else 0, "memory": peak - self.before}
        rank = dist.get_rank() if self.sent else 0
        Path(self.folder, f"{rank}.json").write_text(json.dumps(row))

    def on_fit_start(self, trainer, pl_module):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.before = pages * resource.getpagesize()

    def on_train_epoch_start(self, trainer, pl_module):
        if self.monitor is None and trainer.current_epoch == 1:
            self.begin()

    def on_train_end(self, trainer, pl_module):
        if self.monitor is None:
            self.end()


def fit(module, data, processes, callbacks, **options):
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="auto" if processes == 1 else "ddp_fork", callbacks=callbacks,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=tempfile.mkdtemp(), **options,
    )  # fmt: skip
    trainer.fit(module, data)


def rows(name, run):
    """A line of the table for each number of processes; `run` takes it and a folder for the meters."""
    for processes in (1, 2, 4):
        folder = tempfile.mkdtemp()
        # Of its own: the peak of a process is that of all it has done.
        process = multiprocessing.get_context("fork").Process(target=run, args=(processes, folder))
        process.start()
        process.join()
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
        wall, cpu = max(rank["wall"] for rank in ranks), sum(rank["cpu"] for rank in ranks)
        sent, memory = sum(rank["bytes"] for rank in ranks), ranks[0]["memory"]
        print(f"| {name} | {processes} | {wall:.1f} | {cpu:.1f} | {sent:,} | {memory / 2**20:.0f} |", flush=True)


def measure(make, processes, folder):
    monitor = make(train_data=images(5000, seed=0), test_data=images(1000, seed=1))
    monitor.measure_untrained = False
    data = DataLoader(images(128, seed=2), 32)
    fit(Classifier(ResNet(20)), data, processes, [monitor, Meter(folder, monitor)], max_epochs=1, limit_val_batches=0)


def train(make, samples, batch_size, processes, folder):
    data = Digits(train_samples=samples, batch_size=batch_size // processes)
    fit(make(), data, processes, [Meter(folder)], max_epochs=2)


def main():
    print(f"torch {torch.__version__}, one thread per process\n")
    print("| | processes | wall s | CPU s, all ranks | bytes | MiB on rank 0 |\n| --- | --- | --- | --- | --- | --- |")
    for name, make in MONITORS.items():
        rows(name, lambda processes, folder, make=make: measure(make, processes, folder))
    for name, case in ANALYSES.items():
        rows(name, lambda processes, folder, case=case: train(*case, processes, folder))


if __name__ == "__main__":
    main()
