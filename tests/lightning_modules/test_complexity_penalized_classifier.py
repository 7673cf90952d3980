import pytest
import pytorch_lightning as pl
import torch

from netprism.callbacks import ComplexityPenalty
from netprism.datamodules import Digits
from netprism.lightning_modules import Classifier, ComplexityPenalizedClassifier
from netprism.nets import MLP


def trained(classifier, folder, **options):
    torch.manual_seed(0)
    module = classifier(MLP((64, 24, 16, 10)), **options)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, Digits(image_size=8, train_samples=80, batch_size=16))
    return module, trainer


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.net.parameters(), b.net.parameters(), strict=True))


def test_is_a_classifier_with_the_penalty(tmp_path):
    options = {"weight": 0.05, "layers": -1, "widths": (8,), "chains": 8, "estimator": "energy"}
    module, trainer = trained(ComplexityPenalizedClassifier, tmp_path, **options)
    assert "penalty/energy_gap/relu2" in trainer.callback_metrics
    assert "train/loss" in trainer.callback_metrics
    torch.manual_seed(0)
    plain = Classifier(MLP((64, 24, 16, 10)))
    beside = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[ComplexityPenalty(**options)],
    )  # fmt: skip
    beside.fit(plain, Digits(image_size=8, train_samples=80, batch_size=16))
    assert equal(module, plain)
    assert set(module.state_dict()) == set(plain.state_dict())


def test_lambda_0_is_a_plain_classifier_to_the_bit(tmp_path):
    twin, _ = trained(ComplexityPenalizedClassifier, tmp_path, weight=0.0, widths=(8,), chains=8)
    plain, _ = trained(Classifier, tmp_path)
    assert equal(twin, plain)


def test_its_checkpoint_is_a_classifiers(tmp_path):
    module, trainer = trained(ComplexityPenalizedClassifier, tmp_path, estimator="prior")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for classifier in (Classifier, ComplexityPenalizedClassifier):
        loaded = classifier.load_from_checkpoint(tmp_path / "last.ckpt", net=MLP((64, 24, 16, 10)), weights_only=True)
        assert equal(loaded, module)


def test_wrong_options_are_named_at_once():
    with pytest.raises(ValueError, match="weight is -1; expected a number >= 0"):
        ComplexityPenalizedClassifier(MLP((64, 10)), weight=-1)
