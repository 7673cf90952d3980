"""Sweeps of W&B ask for options that their experiments have."""

from dataclasses import replace

import pytest
import yaml

from netprism.cli.early import check_options
from netprism.cli.errors import UsageError
from netprism.cli.main import find_config
from netprism.studies.study import STUDIES, find_study

SWEEPS = STUDIES.parent / "sweep"
FILES = sorted(SWEEPS.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SWEEPS).as_posix())
def test_the_options_are_those_of_the_experiment_and_of_the_study(file):
    sweep = yaml.safe_load(file.read_text())
    study = replace(find_study(file.relative_to(SWEEPS).with_suffix("").as_posix()), waits_for="")
    assert sweep["command"] == ["${env}", "netprism", "fit", f"--config={study.experiment}", "${args}"]
    values = {name: found.get("value", (found.get("values") or [found.get("min")])[0])
              for name, found in sweep["parameters"].items()}  # fmt: skip
    # ${args} of W&B: --name=value for each parameter
    args = [f"--{name}={value}" for name, value in values.items()]
    config = find_config(study.experiment)
    check_options("fit", args, [config])
    with pytest.raises(UsageError, match=r"weigth=1; close: --model.weight"):
        check_options("fit", ["--model.weigth=1"], [config])
    varied = {name for setting in study.settings() for name in setting} - {"seed", "label"}
    assert varied | {"seed_everything"} == {name for name, found in sweep["parameters"].items() if "value" not in found}
    assert study.overrides.keys() == {name for name, found in sweep["parameters"].items() if "value" in found}
    assert sweep["metric"]["name"] in study.read.values()


def test_there_is_a_sweep():
    assert FILES
