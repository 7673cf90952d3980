"""The device, and one table of what was measured on it.

make test-gpu                         # on the first GPU; skipped with the reason where there is none
make test-gpu NETPRISM_DEVICE=cpu     # the same code on a CPU, to see that it runs
"""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("NETPRISM_DEVICE", "cuda"))
HAS_DEVICE = DEVICE.type != "cuda" or torch.cuda.is_available()
ROWS = pytest.StashKey[list[tuple[str, str]]]()


def pytest_collection_modifyitems(config):
    """Ends `make test-gpu` in one line, and not in one per test."""
    if config.getoption("markexpr") == "gpu" and not HAS_DEVICE:
        pytest.exit("skipped, no GPU: torch.cuda.is_available() is False", returncode=0)


@pytest.fixture
def device():
    """The device of the tests, with full float32 products (TF32 has three digits) and the same kernels each time."""
    if not HAS_DEVICE:
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = False, True, False
    yield DEVICE
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = before


@pytest.fixture
def note(request):
    """Adds a row to the table at the end: what, and what was found."""
    return lambda what, found: request.config.stash.setdefault(ROWS, []).append((what, found))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    terminalreporter.write_line(f"\ntorch {torch.__version__}, {name}\n\n| what | found |\n| --- | --- |")
    for what, found in rows:
        terminalreporter.write_line(f"| {what} | {found} |")
