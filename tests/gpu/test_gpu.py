"""What can only be seen on a GPU: random state, precisions, NCCL, exact products, the numbers of a CPU."""

import copy
import math
import os

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from small_monitors import MONITORS, Module, shorten
from third_party_modules import images
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from netprism import analyze
from netprism.callbacks import (
    ComplexityPenalty,
    ExactResume,
    FeatureComponents,
    GatingEntropy,
    InformationDiscarding,
    KnowledgePoints,
)
from netprism.callbacks.training.exact_resume import random_state
from netprism.datamodules import Digits
from netprism.gates import ComplexityLoss, pairwise_hamming
from netprism.gates.hamming import distances_to, open_counts
from netprism.gates.packing import PackedGates
from netprism.nets import ResNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:knowledge. layer 'fc1' has one region"),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),  # where NETPRISM_DEVICE is cpu
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.. before"),  # a step that the gradient scaler skips
]
LAYERS = ["layer1", "layer2", "layer3"]


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture
def same_random_numbers(monkeypatch):
    """Draws on the CPU what is drawn from a generator: those of devices differ."""
    generator, randn = torch.Generator, torch.randn
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch, "randn", lambda *size, device=None, **options: randn(*size, **options).to(device))


@pytest.fixture(scope="module")
def trained():
    """A ResNet-8 after two hundred steps on digits, in float64, and its images: features that mean something."""
    data = Digits(train_samples=600)
    data.setup("fit")
    x, y = (torch.stack([torch.as_tensor(item[k]) for item in data.monitor_dataset("train")]) for k in range(2))
    torch.manual_seed(0)
    net = ResNet(8, in_channels=x.shape[1])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(60):
        rows = torch.arange(60 * step, 60 * step + 60) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.double().eval(), x.double(), y


def fit(device, folder, *callbacks, module=None, epochs=2, monitored=True, ckpt_path=None, **options):
    """Trains the module of a stranger; returns the trainer."""
    monitors = [make(measure_untrained=True) for make in MONITORS.values()] if monitored else []
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=[*callbacks, *monitors], **options,
    )  # fmt: skip
    loader = DataLoader(images(), batch_size=16)
    trainer.fit(module or Module(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def weights(trainer):
    return [p.detach().cpu() for p in trainer.lightning_module.parameters()]


# Products and distances


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (17, 1000), (33, 4097), (601, 20), (1030, 17_000)])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_distances_are_exact(device, n, d, dtype):
    gates = torch.rand(n, d, generator=torch.Generator().manual_seed(0)) < 0.4
    classes = torch.arange(n) % 3
    expected = pairwise_hamming(gates), open_counts(PackedGates.pack(gates), classes)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        found = pairwise_hamming(gates.to(device)), open_counts(PackedGates.pack(gates.to(device)), classes.to(device))
        others = distances_to(gates.to(device).view(torch.int8), gates[: n // 2 + 1].to(device).view(torch.int8))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(others.cpu(), expected[0][:, : n // 2 + 1])


def test_half_products_are_exact_to_2048_gates(device):
    """What a device without int8 products would take: sums are float32, results above 2048 round."""
    gates = torch.rand(200, 2048, generator=torch.Generator().manual_seed(0)) < 0.9
    half = gates.to(device).half() @ gates.to(device).half().T
    assert torch.equal(half.cpu().int(), (gates.float() @ gates.float().T).int())


# The numbers of a CPU


def half_of(batch, size):
    """The left half of every image as its object."""
    mask = torch.zeros(len(batch[0]), 1, *size, dtype=torch.bool)
    mask[..., : size[1] // 2] = True
    return mask


def monitor(name):
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.ConvTranspose2d(64, 1, 4, stride=4)).double()
    return {
        "gates": lambda: GatingEntropy(num_images=300),
        "discarding": lambda: InformationDiscarding(
            LAYERS, 4, {"layer3": decoder}, half_of, num_scale_images=8, num_shown=0
        ),
        "knowledge": lambda: KnowledgePoints(LAYERS, images_per_class=50),
        "components": lambda: FeatureComponents("layer3", (4, 7), width=1 / 32, steps=4, num_images=64),
    }[name]()


@pytest.mark.usefixtures("same_random_numbers")
@pytest.mark.parametrize("name", ["gates", "discarding", "knowledge", "components"])
def test_measures_agree_with_the_cpu(device, note, trained, name):
    net, x, y = trained
    values = []
    for where in (torch.device("cpu"), device):
        made = monitor(name)
        for decoder in getattr(made, "_decoders", {}).values():
            decoder.to(where)
        (found,) = analyze(copy.deepcopy(net).to(where), (x, y), [made]).values.values()
        values.append(found)
    assert values[0].keys() == values[1].keys()
    assert len(values[0]) > 6
    apart = {
        key: abs(a - b) / max(abs(a), 1.0) for (key, a), b in zip(values[0].items(), values[1].values(), strict=True)
    }
    worst = max(apart, key=apart.__getitem__)
    note(f"{name}: {len(apart)} numbers, apart from the CPU's", f"{apart[worst]:.1e} at most, {worst}")
    assert apart[worst] < 1e-4


@pytest.mark.parametrize("estimator", ["prior", "energy", "kernel"])
def test_losses_agree_with_the_cpu(device, note, trained, estimator):
    net, x, _ = trained
    found = []
    for where in (torch.device("cpu"), device):
        there = copy.deepcopy(net).float().to(where)
        loss = ComplexityLoss(there, layers=-2, estimator=estimator, widths=(8, 8))
        torch.manual_seed(0)
        with loss.watch() as gates:
            there(x[:64].float().to(where))
        value = loss(gates)
        value.backward()
        found.append((value.item(), there.conv1.weight.grad.cpu()))
    (a, slope_a), (b, slope_b) = found
    apart = max(abs(a - b) / abs(a), float((slope_a - slope_b).norm() / slope_a.norm()))
    note(f"complexity loss, {estimator}: value and gradient, apart from the CPU's", f"{apart:.1e}")
    assert apart < 1e-4


# Precisions


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.usefixtures("short")
def test_all_monitors_and_the_loss_in_every_precision(device, note, tmp_path, precision):
    trainer = fit(
        device, tmp_path, ComplexityPenalty(1e-3, layers=-1, estimator="energy", widths=(8, 8)), precision=precision
    )
    values = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {key.partition("/")[0] for key in values} >= {*MONITORS, "penalty"}
    undefined = [key for key, value in values.items() if not math.isfinite(value) and "knowledge" not in key]
    assert not undefined
    assert all(weight.isfinite().all() for weight in weights(trainer))
    untrained = {
        m.name: m.history[0] for m in trainer.callbacks if hasattr(m, "history") and m.history[0]["epoch"] == -1
    }
    note(f"{precision}: H of the untrained network's gates, SID", f"{untrained['gates']['entropy']:.3f} bits, "
         f"{untrained['discarding']['SID/conv']:.3f} nats")  # fmt: skip


# Random state


class Interrupted(Exception):
    pass


class Stop(Checkpoint):
    """Saves a checkpoint in the second epoch and breaks off."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            raise Interrupted


@pytest.mark.usefixtures("short")
def test_a_resumed_training_draws_what_the_uninterrupted_one_draws(device, tmp_path):
    def run(*callbacks, **options):
        pl.seed_everything(3, verbose=False)
        trainer = fit(device, tmp_path, ExactResume(), *callbacks, epochs=3, monitored=False, **options)
        return weights(trainer), random_state(device)

    whole, state = run()
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(Interrupted):
        run(Stop(path))
    torch.rand(7, device=device)
    resumed, resumed_state = run(ckpt_path=path)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert torch.equal(state["torch"], resumed_state["torch"])
    if device.type == "cuda":
        assert torch.equal(state["cuda"], resumed_state["cuda"])


@pytest.mark.usefixtures("short")
def test_training_with_the_monitors_is_bitwise_the_same(device, tmp_path):
    found = []
    for monitored in (True, False):
        pl.seed_everything(3, verbose=False)
        trainer = fit(device, tmp_path, monitored=monitored)
        found.append([*weights(trainer), torch.rand(3, device=device).cpu(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# NCCL


class Backend(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        self.found = dist.get_backend()


@pytest.mark.usefixtures("short")
def test_monitors_and_loss_in_a_process_group(device, tmp_path, monkeypatch):
    """On one device, which is what NCCL can do with it: every collective runs, and the numbers stay."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the launcher writes the address of the group
    values, backend = [], Backend()
    for strategy in ("auto", "ddp"):
        pl.seed_everything(3, verbose=False)
        module = Module()
        module.model.dropout = 0.0  # the start of a group draws random numbers
        penalty = ComplexityPenalty(1e-3, layers=-1, estimator="energy", widths=(8, 8))
        callbacks = [penalty] if strategy == "auto" else [penalty, backend]
        try:
            trainer = fit(device, tmp_path, *callbacks, module=module, strategy=strategy)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        values.append({key: float(value) for key, value in trainer.callback_metrics.items()})
    assert backend.found == ("nccl" if device.type == "cuda" else "gloo")
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-5, nan_ok=True)
