import copy

from netprism.cli.keys import config_key, network_key
from netprism.files import write_text

CONFIG = {
    "seed_everything": 0,
    "ckpt_path": None,
    "trainer": {"max_epochs": 3, "default_root_dir": "runs/a/1", "logger": [{"class_path": "x"}]},
    "best_checkpoint": {"dirpath": "runs/a/1/checkpoints", "monitor": "val/accuracy"},
    "data": {"class_path": "d.Digits", "init_args": {"root": "data", "batch_size": 8, "num_workers": 0}},
    "model": {
        "teacher": {"class_path": "netprism.runs.teachers.trained", "init_args": {"checkpoint": None}},
    },
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


def test_what_changes_no_number_changes_no_key():
    for path, value in [
        ("ckpt_path", "last"),
        ("trainer.default_root_dir", "elsewhere"),
        ("trainer.logger", None),
        ("best_checkpoint.dirpath", "elsewhere"),
        ("data.init_args.root", "/data"),
        ("data.init_args.num_workers", 4),
    ]:
        assert config_key(changed(path, value)) == config_key(CONFIG), path


def test_what_changes_a_number_changes_the_key():
    for path, value in [
        ("seed_everything", 1),
        ("trainer.max_epochs", 4),
        ("best_checkpoint.monitor", "val/loss"),
        ("data.init_args.batch_size", 16),
        ("model.teacher.init_args.checkpoint", "some.ckpt"),
    ]:
        assert config_key(changed(path, value)) != config_key(CONFIG), path


def test_a_run_is_found_again_after_an_option_was_added():
    monitor = {"class_path": "netprism.callbacks.GatingEntropy", "init_args": {"num_images": 100}}
    keys = []
    for added in ({}, {"max_gates": None, "kinds": ["relu"], "alpha": None}, {"max_gates": 64}):
        options = {**monitor, "init_args": {**monitor["init_args"], **added}}
        config = changed("trainer.callbacks", [options])
        config["last_checkpoint"] = {"mode": "min"} if added else {}
        keys.append(config_key(config))
    assert keys[0] == keys[1] != keys[2]
    net = {"class_path": "netprism.nets.ResNet", "init_args": {"depth": 8, "num_classes": 10}}
    nested = changed("model", {"class_path": "netprism.lightning_modules.Classifier", "init_args": {"net": net}})
    before = network_key(nested)
    net["init_args"] |= {"width": 16}
    assert network_key(nested) == before
    net["init_args"] |= {"width": 8}
    assert network_key(nested) != before
    unknown = [config_key(changed("model", {"class_path": "some.Net", "init_args": {"a": a}})) for a in (None, 1)]
    assert unknown[0] != unknown[1]


def test_a_network_counts_as_the_run_that_it_is_of_wherever_that_lies(tmp_path):
    for place, seed in (("here", 0), ("there", 0), ("other", 1)):
        write_text(tmp_path / place / "config.yaml", f"seed_everything: {seed}\n")
    keys = {
        place: config_key(changed("model.teacher.init_args.checkpoint", f"{tmp_path}/{place}/checkpoints/best.ckpt"))
        for place in ("here", "there", "other")
    }
    assert keys["here"] == keys["there"] != keys["other"]
    last = config_key(changed("model.teacher.init_args.checkpoint", f"{tmp_path}/here/checkpoints/last.ckpt"))
    assert last != keys["here"]


def test_the_first_option_of_a_class_changes_no_key_and_true_is_not_one():
    def key(**node):
        return config_key(changed("trainer.callbacks", [{"class_path": "netprism.callbacks.GatingEntropy", **node}]))

    assert key() == key(init_args={}) == key(init_args={"max_gates": None, "measure_untrained": True})
    assert key() != key(init_args={"measure_untrained": 1})
    assert key() != key(init_args={"every_n_epochs": True}), "every epoch is the default"
    assert key() == key(init_args={"every_n_epochs": 1})
