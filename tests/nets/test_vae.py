import pytest
import torch
from torch.distributions import Normal, kl_divergence

from netprism.gates import record_gates
from netprism.lightning_modules import VariationalAutoEncoder
from netprism.lightning_modules.variational_auto_encoder import divergence
from netprism.nets import VAE, ConvVAE, fit_to
from netprism.nets.vae import Coded


@pytest.mark.parametrize("kind", [VAE, ConvVAE])
def test_images_are_coded_and_the_code_is_classified(kind):
    torch.manual_seed(0)
    net = kind(num_classes=4, shape=(2, 16, 8), latent=3, hidden=16)
    x = torch.randn(5, 2, 16, 8)
    coded = net.coded(x)
    assert (coded.rebuilt.shape, coded.mean.shape, coded.logits.shape) == (x.shape, (5, 3), (5, 4))
    assert not torch.equal(net(x), net(x)), "a sample in train mode"
    net.eval()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x), net.classifier(net.coded(x).mean))
    with record_gates(net, layers=net.gating_layers) as gates:
        net(x)
    assert list(gates.states) == list(net.gating_layers)
    assert fit_to(net, 7, None) == ["layer classifier.fc3 is new, with 7 outputs instead of 4"]


def test_the_sample_has_mean_and_variance_of_the_code():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([[1.0, -2.0]]).expand(20000, 2), torch.tensor([[0.0, -2.0]]).expand(20000, 2)
    drawn = VAE().sample(mean, log_variance)
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.var(0), log_variance[0].exp(), atol=0.03, rtol=0)


def test_divergence_is_that_of_torch_s_distributions():
    mean, log_variance = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_the_loss_is_the_sum_of_its_parts():
    net = VAE(shape=(1, 4, 4), num_classes=3, latent=2, hidden=8).eval()  # no sample
    module = VariationalAutoEncoder(net, noise=0.5, kl_weight=2.0, class_weight=3.0)
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    coded = Coded(*(each.detach() for each in net.coded(images)))
    module.log_dict = lambda *args, **options: None
    squared = (coded.rebuilt - images).square().sum() / 6
    classes = torch.nn.functional.cross_entropy(coded.logits, labels)
    expected = squared / (2 * 0.25) + 2 * divergence(coded.mean, coded.log_variance).mean() + 3 * classes
    torch.testing.assert_close(module._step((images, labels), module.val_meters), expected)
    assert module.val_meters["mse"].compute() == pytest.approx(
        float((coded.rebuilt - images).square().mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"noise": 0}, "noise is 0; expected a number > 0"),
        ({"kl_weight": -1}, "kl_weight is -1; expected a number >= 0"),
        ({"class_weight": float("nan")}, "class_weight is nan; expected a number >= 0"),
    ],
)
def test_impossible_numbers_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        VariationalAutoEncoder(VAE(), **options)


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"images are \(1, 8, 8\); expected \(1, 28, 28\), the shape of VAE"):
        VariationalAutoEncoder(VAE()).training_step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"shape is \(1, 28, 28\); expected height and width to be multiples of 8"):
        ConvVAE(shape=(1, 28, 28))
