"""torchrun on two processes: its agent, whose ranks are forked here, since each has ten seconds of imports otherwise.

`faults/test_ranks.py` has the command `torchrun -m netprism fit` itself.
"""

import csv

from deadline import deadline
from small_runs import environment_of_a_desk
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from netprism.cli.main import main


def test_torchrun_trains_on_two_processes_in_one_folder(tmp_path, monkeypatch):
    small = (
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false", "--data.init_args.image_size=8", "--data.init_args.train_samples=64",
        "--data.init_args.batch_size=8",
    )  # fmt: skip
    environment_of_a_desk(monkeypatch, tmp_path)
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test", "max_restarts": 0}
    agent = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **options)
    with deadline():
        assert elastic_launch(agent, main)(["fit", "--config=quickstart", *small]) == {0: None, 1: None}
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows if row["gates/entropy"]] == ["-1", "0"]
    assert "devices: 2" in (folder / "config.yaml").read_text()
