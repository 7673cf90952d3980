"""What recording costs: forward passes of torchvision models with and without `record_gates`.

    python benchmarks/gates.py

Best of six, alternating, so that both see the same machine. The share is high where a network does little
arithmetic per activation (MobileNet, DenseNet): each costs one comparison, one NaN check and one packing.
"""

import math
import time

import torch
import torchvision

from netprism.gates.record import record_gates

MODELS = ("resnet18", "vgg16", "alexnet", "densenet121", "mobilenet_v2", "googlenet", "vit_b_16", "convnext_tiny")


def forward_seconds(model, x):
    start = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(batch=8):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"batch {batch} of 224x224, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| model | gating layers | forward, ms | recorded, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name in MODELS:
        options = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options).eval().to(device)
        x = torch.randn(batch, 3, 224, 224, device=device)
        plain = recorded = math.inf
        with torch.inference_mode():
            for _ in range(6):
                plain = min(plain, forward_seconds(model, x))
                with record_gates(model) as gates:
                    recorded = min(recorded, forward_seconds(model, x))
        print(f"| {name} | {len(gates.layers)} | {1e3 * plain:.0f} | {1e3 * recorded:.0f} | {recorded / plain:.2f} |")


if __name__ == "__main__":
    main()
