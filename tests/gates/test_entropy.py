import math

import numpy as np
import pytest
import torch
from reference import entropy as reference
from sklearn.datasets import load_digits
from sklearn.neighbors import KernelDensity
from torch.utils._python_dispatch import TorchDispatchMode

from netprism.gates.entropy import kde_entropy, pairwise_hamming, transformation_complexity
from netprism.gates.packing import PackedGates
from netprism.metrics import TransformationComplexity


@pytest.fixture
def network():
    """Two gating layers, correlated, of 40 samples in 4 classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    hidden = torch.randn(4, 6, generator=generator)[labels] + 0.5 * torch.randn(40, 6, generator=generator)
    conv = (hidden @ torch.randn(6, 48, generator=generator) > 0).view(40, 3, 4, 4)
    linear = hidden @ torch.randn(6, 10, generator=generator) > 0
    return {"conv": conv, "linear": linear}, labels


def flat(gates):
    return gates.flatten(1).numpy()


def test_every_quantity_against_the_reference(network):
    gates, labels = network
    result = transformation_complexity(gates, labels)
    widths = {"conv": 0.04 * 48, "linear": 0.01 * 10}
    both = np.concatenate([flat(gates["conv"]), flat(gates["linear"])], axis=1)
    joint_width = sum(widths.values())
    y = labels.numpy()
    for name, width in widths.items():
        h = reference.kde_entropy(flat(gates[name]), width)
        conditional = reference.conditional_entropy(flat(gates[name]), y, width)
        assert result.entropy[name] == pytest.approx(h, abs=1e-10)
        assert result.conditional[name] == pytest.approx(conditional, abs=1e-10)
        assert result.class_information[name] == pytest.approx(h - conditional, abs=1e-10)
        assert result.saturation[name] == pytest.approx(h / math.log2(40), abs=1e-10)
    assert result.joint_entropy == pytest.approx(reference.kde_entropy(both, joint_width), abs=1e-10)
    assert result.joint_saturation == pytest.approx(result.joint_entropy / math.log2(40))
    assert result.suffix_entropy["conv"] == result.joint_entropy
    suffix = reference.kde_entropy(flat(gates["linear"]), joint_width)
    assert result.suffix_entropy["linear"] == pytest.approx(suffix, abs=1e-10)
    conditional = reference.conditional_entropy(both, y, joint_width)
    assert result.joint_conditional == pytest.approx(conditional, abs=1e-10)
    assert result.joint_class_information == pytest.approx(result.joint_entropy - conditional, abs=1e-10)


def test_total_correlation_against_the_reference(network):
    gates, labels = network
    result = transformation_complexity({"conv": gates["conv"]}, labels, alpha=1.0)  # so wide that nothing is corrected
    states, y = flat(gates["conv"]), labels.numpy()

    def expected(states):
        return reference.independent_entropy(states, 48.0) - reference.leave_one_out_entropy(states, 48.0)

    assert result.total_correlation["conv"] == pytest.approx(expected(states), abs=1e-10)
    of_classes = sum((y == m).mean() * expected(states[y == m]) for m in range(4))
    assert result.conditional_total_correlation["conv"] == pytest.approx(of_classes, abs=1e-10)
    assert result.joint_total_correlation == result.total_correlation["conv"]
    assert result.joint_conditional_total_correlation == result.conditional_total_correlation["conv"]


def test_total_correlation_is_what_synthetic_samples_give_on_average():
    # Narrow kernels: the correction of .4 bits is at work. 12 draws have a standard error of .04 bits.
    hidden = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    gates = hidden @ torch.randn(3, 12, generator=torch.Generator().manual_seed(1)) > 0
    draws = np.random.default_rng(0)
    sampled = [reference.sampled_total_correlation(gates.numpy(), 0.5, draws) for _ in range(12)]
    found = transformation_complexity({"a": gates}, alpha=0.5 / 12).total_correlation["a"]
    assert found == pytest.approx(np.mean(sampled), abs=0.3)


@pytest.mark.parametrize("alpha", [0.01, 0.04, 0.2])
@pytest.mark.parametrize("d", [64, 512])
def test_independent_gates_have_no_total_correlation(d, alpha):
    gates = {"a": torch.rand(1000, d, generator=torch.Generator().manual_seed(d)) < 0.4}
    result = transformation_complexity(gates, torch.arange(1000) % 4, alpha=alpha)
    assert result.total_correlation["a"] == pytest.approx(0.0, abs=0.1)
    assert result.conditional_total_correlation["a"] == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize(("alpha", "expected"), [(0.01, 28.5), (0.04, 7.6), (0.2, 0.9)])
def test_one_bit_copied_64_times(alpha, expected):
    # On paper, but for the correction: 64 log2(2 / (1 + e)) - 1 with e = exp(-1 / (128 alpha)) is 28.2, 7.58, .94.
    gates = (torch.rand(2000, 1, generator=torch.Generator().manual_seed(1)) < 0.5).expand(2000, 64)
    assert transformation_complexity({"a": gates}, alpha=alpha).joint_total_correlation == pytest.approx(expected, 0.05)


def test_a_class_that_is_one_gate_has_no_correlation_given_it():
    # Gates that only tell the class: dependent over all samples, constant in each class.
    labels = torch.arange(400) % 4
    result = transformation_complexity({"a": torch.nn.functional.one_hot(labels).bool().repeat(1, 16)}, labels)
    assert result.total_correlation["a"] > 10
    assert result.conditional_total_correlation["a"] == pytest.approx(0.0, abs=1e-9)


def test_samples_without_a_neighbour_have_no_total_correlation():
    gates = {"a": torch.eye(64, dtype=torch.bool)}
    result = transformation_complexity(gates, alpha=1e-5)
    assert result.total_correlation == {}
    assert result.joint_total_correlation is None
    assert "total_correlation" not in result.quantities()
    assert all(math.isfinite(value) for value in result.quantities().values())


def test_256_patterns_of_100_gates_have_eight_bits_and_less_after_smoothing():
    generator = torch.Generator().manual_seed(0)
    patterns = (torch.rand(256, 100, generator=generator) < 0.5).repeat(8, 1)
    wide, narrow = (transformation_complexity({"a": patterns}, alpha=alpha).entropy["a"] for alpha in (0.04, 0.01))
    assert wide < narrow < 8.0
    assert transformation_complexity({"a": patterns}, alpha=1e-4).entropy["a"] == pytest.approx(8.0)


def test_marginal_entropy_and_suffix_class_information(network):
    gates, labels = network
    result = transformation_complexity(gates, labels)
    for name in gates:
        rates = flat(gates[name]).mean(0)
        bits = sum(-p * math.log2(p) for rate in rates for p in (rate, 1 - rate) if p > 0)
        assert result.marginal_entropy[name] == pytest.approx(bits, abs=1e-4)  # rates are float32
    assert result.joint_marginal_entropy == pytest.approx(sum(result.marginal_entropy.values()))
    width = 0.04 * 48 + 0.01 * 10
    states = flat(gates["linear"])
    expected = reference.kde_entropy(states, width) - reference.conditional_entropy(states, labels.numpy(), width)
    assert result.suffix_class_information["linear"] == pytest.approx(expected, abs=1e-10)
    assert result.suffix_class_information["conv"] == result.joint_class_information


def test_total_correlation_is_that_of_a_known_law():
    # Two equal fair gates: TC = 1 bit. A narrow kernel smooths nothing away.
    gates = (torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) < 0.5).expand(4000, 2)
    result = transformation_complexity({"a": gates}, alpha=0.01)
    assert result.entropy["a"] == pytest.approx(1.0, abs=0.01)
    assert result.total_correlation["a"] == pytest.approx(1.0, abs=0.06)


def test_gates_of_real_images_against_an_independent_density_estimator():
    # scikit-learn's Gaussian kernel density, with its normalisation taken off, is the same sum by other people's code.
    images = torch.as_tensor(load_digits().data[:500], dtype=torch.float32)
    weights = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    gates = (images - images.mean(0)) @ weights > 0
    width = 0.01 * 300
    points = gates.numpy().astype(float)
    density = KernelDensity(bandwidth=math.sqrt(width), kernel="gaussian").fit(points)
    log_kernel_mean = density.score_samples(points) + 300 / 2 * math.log(2 * math.pi * width)
    expected = -log_kernel_mean.mean() / math.log(2)
    assert transformation_complexity({"fc": gates}).entropy["fc"] == pytest.approx(expected, abs=1e-6)
    assert float(kde_entropy(pairwise_hamming(gates), width)) == pytest.approx(expected, abs=1e-6)


def test_variance_bandwidth_is_alpha_times_the_variance(network):
    gates, _ = network
    result = transformation_complexity(gates, bandwidth="variance", alpha=0.3)
    points = flat(gates["conv"]).astype(float)
    variance = ((points - points.mean(0)) ** 2).sum(1).mean()
    assert result.entropy["conv"] == pytest.approx(reference.kde_entropy(flat(gates["conv"]), 0.3 * variance), abs=1e-6)


def test_suffix_entropies_fall_with_depth(network):
    gates, _ = network
    suffixes = list(transformation_complexity(gates).suffix_entropy.values())
    assert suffixes == sorted(suffixes, reverse=True)


def test_a_single_layer_is_its_own_joint(network):
    gates, labels = network
    result = transformation_complexity({"conv": gates["conv"]}, labels)
    assert result.joint_entropy == result.entropy["conv"] == result.suffix_entropy["conv"]
    assert result.joint_class_information == result.class_information["conv"]


def test_packed_gates_give_the_same(network):
    gates, labels = network
    packed = {name: PackedGates.pack(layer) for name, layer in gates.items()}
    plain = transformation_complexity(gates, labels)
    result = transformation_complexity(packed, labels)
    assert result.entropy == plain.entropy
    assert result.joint_total_correlation == plain.joint_total_correlation
    assert all(torch.equal(result.open_on[name], plain.open_on[name]) for name in gates)
    for name, layer in gates.items():  # gates that fill up the last byte are not among them
        assert torch.equal(result.open_on[name], layer.flatten(1).sum(0).bincount(minlength=len(layer) + 1))


def test_a_gate_that_stands_for_others_counts_as_often(network):
    gates, labels = network
    times = {"conv": 3, "linear": 2}
    every = {name: layer.flatten(1).repeat_interleave(times[name], dim=1) for name, layer in gates.items()}
    some = {
        name: PackedGates.pack(layer, torch.arange(0, layer.shape[1], times[name])) for name, layer in every.items()
    }
    alpha = {"conv": 0.04, "linear": 0.01}
    result, plain = (transformation_complexity(of, labels, alpha=alpha).quantities() for of in (some, every))
    assert result == pytest.approx(plain, abs=1e-9)
    metric = TransformationComplexity(alpha=alpha)
    metric.update(some, labels)
    assert {name: value.item() for name, value in metric.compute().items()} == result


def test_order_of_the_samples_does_not_matter(network):
    gates, labels = network
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = transformation_complexity({name: layer[order] for name, layer in gates.items()}, labels[order])
    plain = transformation_complexity(gates, labels)
    assert shuffled.joint_entropy == pytest.approx(plain.joint_entropy, abs=1e-12)
    assert shuffled.joint_class_information == pytest.approx(plain.joint_class_information, abs=1e-12)
    assert shuffled.joint_total_correlation == pytest.approx(plain.joint_total_correlation, abs=1e-12)


def test_labels_may_be_any_integers(network):
    gates, labels = network
    renamed = transformation_complexity(gates, 1000 - 7 * labels)
    assert renamed.class_information == transformation_complexity(gates, labels).class_information


def test_class_information_of_gates_that_are_the_class():
    labels = torch.arange(32) % 4
    gates = {"a": torch.nn.functional.one_hot(labels).bool()}
    result = transformation_complexity(gates, labels, alpha=0.001)
    assert result.class_information["a"] == pytest.approx(2.0)  # H(Y) = log2 4
    assert result.conditional["a"] == 0.0


@pytest.mark.parametrize("bandwidth", ["dim", "variance"])
def test_equal_gates_have_no_entropy(bandwidth):
    labels = torch.arange(12) % 3
    result = transformation_complexity({"a": torch.ones(12, 5, dtype=torch.bool)}, labels, bandwidth=bandwidth)
    assert result.joint_entropy == result.entropy["a"] == result.saturation["a"] == result.joint_saturation == 0.0
    assert result.joint_class_information == 0.0
    assert result.total_correlation["a"] == 0.0


def test_one_sample_has_no_entropy_and_no_saturation():
    result = transformation_complexity({"a": torch.tensor([[True, False]])}, torch.tensor([3]))
    assert (result.joint_entropy, result.joint_saturation, result.joint_class_information) == (0.0, 0.0, 0.0)
    assert result.joint_total_correlation is None


def test_one_class_tells_nothing(network):
    gates, _ = network
    result = transformation_complexity(gates, torch.zeros(40, dtype=torch.int64))
    assert result.joint_class_information == 0.0


def test_all_different_saturates():
    gates = torch.eye(16, dtype=torch.bool)
    assert transformation_complexity({"a": gates}, alpha=1e-4).saturation["a"] == pytest.approx(1.0)


def test_without_labels_and_total_correlation(network):
    gates, _ = network
    result = transformation_complexity(gates, total_correlation=False)
    assert (result.conditional, result.class_information, result.total_correlation) == ({}, {}, {})
    assert result.joint_class_information is None
    assert result.joint_total_correlation is None


def test_zero_bandwidth_counts_equal_samples():
    # Two pairs of equal samples: 1 bit.
    distances = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 5], [5, 5, 0, 0], [5, 5, 0, 0]])
    assert float(kde_entropy(distances, 0.0)) == 1.0


def test_a_bandwidth_too_small_for_a_number_is_zero():
    distances = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 5], [5, 5, 0, 0], [5, 5, 0, 0]])
    assert float(kde_entropy(distances, 1e-310)) == float(kde_entropy(distances, 1e-299)) == 1.0


def test_pairwise_hamming_on_paper():
    gates = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    assert pairwise_hamming(gates).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": {}}, "gates are empty; expected at least one layer"),
        ({"gates": {"a": torch.zeros(2, 3)}}, r"layer 'a': gates are torch\.float32; expected torch\.bool"),
        ({"gates": {"a": torch.zeros(0, 3, dtype=torch.bool)}}, "layer 'a' has no samples"),
        ({"gates": {"a": torch.zeros(3, 0, dtype=torch.bool)}}, r"layer 'a': gates have shape \(3, 0\); expected"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels have shape \(3,\); expected \(40,\)"),
        ({"labels": torch.zeros(40)}, r"labels are torch\.float32; expected integer classes"),
        ({"bandwidth": "silverman"}, "bandwidth is 'silverman'; expected dim or variance"),
        ({"alpha": 0.0}, "alpha of 'every layer' is 0.0; expected a number > 0"),
        ({"alpha": {"conv": 0.1, "linear": -1.0}}, "alpha of 'linear' is -1.0"),
        ({"alpha": {"conv": 0.1}}, "alpha has no layer 'linear'; it has conv"),
    ],
)
def test_bad_input_is_named(network, change, message):
    gates, labels = network
    arguments = {"gates": gates, "labels": labels} | change
    with pytest.raises((ValueError, TypeError), match=message):
        transformation_complexity(**arguments)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operator has returned."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


def test_no_tensor_is_larger_than_one_float64_per_gate_whatever_the_number_of_classes():
    d = 2**17
    bits = torch.randint(256, (8, d // 8), dtype=torch.uint8)
    gates = {name: PackedGates(bits, (d // 2**8, 16, 16), "conv") for name in "ab"}
    with Largest() as largest:
        found = transformation_complexity(gates, torch.arange(8) % 4)
    assert found.joint_conditional_total_correlation is not None
    assert d < largest.bytes <= 8 * 2 * d


def test_layers_with_different_samples_are_named(network):
    gates, _ = network
    with pytest.raises(ValueError, match="layer 'linear' has 39 samples; expected 40"):
        transformation_complexity({"conv": gates["conv"], "linear": gates["linear"][1:]})


@pytest.mark.parametrize(
    ("distances", "bandwidth", "message"),
    [
        (torch.zeros(2, 3), 1.0, r"shape \(2, 3\); expected \(n, n\)"),
        (torch.zeros(0, 0), 1.0, "expected"),
        (torch.full((2, 2), float("nan")), 1.0, "distances has nan in it; expected finite numbers"),
        (torch.zeros(2, 2), -1.0, "bandwidth is -1.0; expected a variance >= 0"),
        (torch.zeros(2, 2), float("nan"), "bandwidth is nan"),
    ],
)
def test_bad_distances_are_named(distances, bandwidth, message):
    with pytest.raises(ValueError, match=message):
        kde_entropy(distances, bandwidth)
