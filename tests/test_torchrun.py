"""`torchrun -m netprism fit ...` on two processes."""

import csv
import os
import subprocess
import sys


def test_torchrun_trains_on_two_processes_in_one_folder(tmp_path):
    small = (
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false", "--data.init_args.image_size=8", "--data.init_args.train_samples=64",
        "--data.init_args.batch_size=8",
    )  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "netprism", "fit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "NETPRISM_RUNS": str(tmp_path)}
    for name in ("NETPRISM_RUN", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        environment.pop(name, None)
    result = subprocess.run(
        [*command, "--config=quickstart", *small],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows if row["gates/entropy"]] == ["-1", "0"]
    assert "devices: 2" in (folder / "config.yaml").read_text()
