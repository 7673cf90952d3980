import pytest
import torch
import torchvision
from torch import nn

from netprism.callbacks import GatingEntropy
from netprism.datamodules import Digits
from netprism.lightning_modules import Classifier
from netprism.nets import MLP, ResidualMLP, fit_to, fitted, tap_points
from netprism.nets.fitting import fit_to_state, heads_of, output_layer, size_that_fits, wrong_size
from netprism.outline import ran_layers

# One of each family, the cheapest; the rules are for all of a family.
FAMILIES = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "vgg11": ("features.2", "features.5", "features.10", "features.15", "features.20"),
    "alexnet": ("features.2", "features.5", "features.12"),
    "densenet121": tuple(f"features.denseblock{i}" for i in range(1, 5)),
    "mobilenet_v3_small": ("features.0", "features.1", "features.3", "features.8", "features.12"),
    "convnext_tiny": ("features.1", "features.3", "features.5", "features.7"),
    "vit_b_32": tuple(f"encoder.layers.encoder_layer_{i}" for i in (1, 3, 5, 7, 9, 11)),
    "googlenet": ("inception3b", "inception4e", "inception5b"),
    "squeezenet1_1": (),
}


def model(name):
    """A network without weights of its own: ViT has 88 million."""
    with torch.device("meta"):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **options).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_foreign_networks_are_fitted_and_their_layers_run(name):
    net = model(name)
    size = 224 if name == "vit_b_32" else 64
    fit_to(net, 7, (1, size, size))
    x = torch.zeros(2, 1, size, size, device="meta")
    ran = ran_layers(net, lambda: net(x))
    shapes = {layer.name: layer.shape for layer in ran.values()}
    assert shapes[""] == (2, 7)
    assert tap_points(net) == FAMILIES[name]
    found = [shapes[point] for point in tap_points(net)]
    assert all(shape[0] == 2 and len(shape) in (3, 4) for shape in found)
    assert sorted(list(shapes).index(point) for point in tap_points(net)) == [
        list(shapes).index(point) for point in tap_points(net)
    ]
    assert fit_to(net, 7, (1, size, size)) == []


@pytest.mark.parametrize(
    ("name", "heads"), [("googlenet", ["fc", "aux1.fc2", "aux2.fc2"]), ("inception_v3", ["fc", "AuxLogits.fc"])]
)
def test_auxiliary_heads_are_fitted_and_told_from_the_main_one(name, heads):
    net = model(name)
    changes = fit_to(net, 7, (3, 299, 299))
    assert changes == [f"layer {head} is new, with 7 outputs instead of 1000" for head in heads]
    x = torch.zeros(2, 3, 299, 299, device="meta")
    assert heads_of(net(x))[1] == ()
    output = net.train()(x)
    main, auxiliary = heads_of(output)
    assert main is output.logits
    assert [tuple(head.shape) for head in auxiliary] == [(2, 7)] * (len(heads) - 1)
    assert all(head is not main for head in auxiliary)


def test_a_size_of_images_that_a_network_takes():
    assert size_that_fits(model("vit_b_32"), (3, 64, 64)) == 224
    assert size_that_fits(model("vit_b_32"), (3, 224, 224)) is None
    assert size_that_fits(model("inception_v3").train(), (3, 224, 224)) == 299  # its auxiliary head asks for so much
    assert size_that_fits(MLP(widths=(64, 8, 4)), (8,)) is None
    assert size_that_fits(nn.Linear(5, 5), (3, 64, 64)) is None


def test_a_fitted_convolution_sees_a_grey_image_in_all_channels():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    grey = torch.randn(2, 1, 8, 8)
    expected = conv(grey.expand(-1, 3, -1, -1))
    assert fit_to(conv, 5, (1, 8, 8)) == ["layer 0 takes 1 channels instead of 3"]
    torch.testing.assert_close(conv(grey), expected)
    assert fit_to(conv, 5, (3, 8, 8)) == ["layer 0 takes 3 channels instead of 1"]
    torch.testing.assert_close(conv(grey.expand(-1, 3, -1, -1)), expected)
    repeated = fitted(conv, repeat_grey=True)
    assert fit_to(repeated, 5, (1, 8, 8)) == []
    torch.testing.assert_close(repeated(grey), expected)
    assert repeated[0].in_channels == 3


def test_what_fits_is_left_alone():
    class Odd(nn.Module):
        """Its last layer in the order of registration gives no logits."""

        def __init__(self):
            super().__init__()
            self.pool, self.head, self.auxiliary = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 4), nn.Linear(12, 9)

        def forward(self, x):
            return self.head(self.pool(x).flatten(1))

    net = Odd()
    assert fit_to(net, 4, (3, 16, 16)) == []
    assert net.auxiliary.out_features == 9
    assert fit_to(MLP(widths=(784, 16, 10)), 4, (3, 8, 8)) == [
        "layer fc1 is new, with 192 inputs instead of 784",
        "layer fc2 is new, with 4 outputs instead of 10",
    ]


def test_a_fitted_mlp_runs_and_one_that_cannot_be_fitted_stays_as_it_is():
    net = MLP(widths=(784, 16, 10))
    fit_to(net, 10, (1, 8, 8))
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    residual = ResidualMLP(width=1024, depth=2)  # the skip connection is as wide as the image
    assert fit_to(residual, 10, (1, 8, 8)) == []
    assert residual(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    said = "images of a batch are (1, 8, 8); expected 32 x 32, such as by data.image_size=32, on which mine runs (no)"
    assert str(wrong_size(residual, (1, 8, 8), ValueError("no."), "mine")) == said


def test_small_images_have_a_stem_without_stride():
    net = fitted(model("resnet18"), small_images=True)
    features = ran_layers(net, lambda: net(torch.zeros(2, 3, 32, 32, device="meta")))
    sizes = {layer.name: layer.shape[-1] for layer in features.values() if layer.name.startswith("layer")}
    assert [sizes[f"layer{i}"] for i in range(1, 5)] == [32, 16, 8, 4]
    kept = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2))
    before = kept[0].weight
    assert torch.equal(fitted(kept, small_images=True)[0].weight, before)
    assert isinstance(kept[2], nn.MaxPool2d)
    with pytest.raises(ValueError, match="small_images is true; ConvNeXt cuts its input into patches of 4 x 4"):
        fitted(model("convnext_tiny"), small_images=True)


def test_a_state_dict_of_other_classes_and_channels_is_fitted_to():
    def net(channels, classes):
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))

    mine, other = net(3, 10), net(1, 4)
    fit_to_state(mine, other.state_dict())
    mine.load_state_dict(other.state_dict())
    assert output_layer(mine)[1].out_features == 4
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    fit_to_state(wide, other.state_dict())
    assert (wide[0].in_channels, wide[3].out_features) == (3, 10)  # another network: the loader says so


def test_a_torchvision_network_trains_on_digits_with_monitors_as_it_is(tmp_path):
    import pytorch_lightning as pl

    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1()
    module = Classifier(net)
    monitors = [GatingEntropy(num_images=8)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(fast_dev_run=True, accelerator="cpu", callbacks=monitors, **quiet)
    trainer.fit(module, Digits(batch_size=4))
    assert module.num_classes == 10
    assert output_layer(net)[1].out_channels == 10
    assert 0 < trainer.callback_metrics["gates/entropy"] <= 3
