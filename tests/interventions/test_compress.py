import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn
from torchvision.models import resnet18

from netprism.interventions import layer_sizes, make_permanent, prune, share_weights
from netprism.interventions.compress import compressible_layers, kmeans_of_numbers, nearest, total_bytes


@pytest.fixture
def normal():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 300))
    with torch.no_grad():
        network[0].weight.normal_(0, 0.3)
        network[3].weight.normal_(0, 2.0)
    return network


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0])
def test_pruning_leaves_the_fraction_that_a_normal_distribution_says(normal, s):
    left = prune(normal, s)
    expected = math.erfc(s / math.sqrt(2))
    for layer, count in (("0", 4800), ("3", 19200)):
        assert left[layer] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))
        weight = normal[int(layer)].weight
        assert float((weight != 0).double().mean()) == left[layer]
    assert list(left) == ["0", "3"]


def test_what_is_pruned_stays_pruned_in_training_and_the_state_dict_is_plain(normal):
    names = list(normal.state_dict())
    prune(normal)
    pruned = normal[3].weight == 0
    optimizer = torch.optim.SGD(normal.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = normal[3].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        normal(torch.randn(4, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    normal(torch.randn(4, 3, 5, 5))
    assert torch.equal(normal[3].weight == 0, pruned)
    assert not torch.equal(normal[3].weight, before)
    again = prune(normal)
    assert again["3"] <= float((~pruned).double().mean())
    make_permanent(normal)
    assert sorted(normal.state_dict()) == sorted(names)
    assert (normal[3].weight[pruned] == 0).all()


def test_shared_weights_take_exactly_the_number_of_values(normal):
    values = share_weights(normal, conv_bits=6, linear_bits=5)
    assert [len(v) for v in values.values()] == [64, 32]
    assert len(normal[0].weight.unique()) == 64
    assert len(normal[3].weight.unique()) == 32


def test_zeros_of_a_pruned_layer_stay_zero(normal):
    prune(normal)
    zeros = normal[0].weight == 0
    share_weights(normal, conv_bits=4, linear_bits=4)
    make_permanent(normal)
    assert torch.equal(normal[0].weight == 0, zeros)
    assert len(normal[0].weight.unique()) == 17


def test_sharing_twice_changes_nothing(normal):
    share_weights(normal, 6, 5)
    before = normal[0].weight.clone()
    share_weights(normal, 6, 5)
    assert torch.allclose(normal[0].weight, before, atol=1e-6)


@pytest.mark.parametrize("centres", [2, 8, 32])
def test_k_means_is_that_of_scikit_learn(centres):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.linspace(float(values.min()), float(values.max()), centres, dtype=torch.float64)[:, None].numpy()
    peer = KMeans(centres, init=start, n_init=1, tol=0, max_iter=1000).fit(values[:, None].numpy())
    mine = kmeans_of_numbers(values, centres)
    inertia = float((values - mine[nearest(values, mine)]).square().sum())
    # Where a centre loses its numbers the two move it at different moments, so that the optima may differ.
    assert inertia <= peer.inertia_ * 1.1
    if centres <= 8:
        assert mine.tolist() == pytest.approx(sorted(peer.cluster_centers_[:, 0]), abs=1e-9)


def test_an_outlier_costs_no_value():
    values = torch.cat([torch.linspace(0, 1, 100), torch.tensor([1000.0])])
    found = kmeans_of_numbers(values, 16)
    assert len(values.unique()) >= 16
    assert len(found[nearest(values, found)].unique()) == 16


def test_sizes_are_those_on_paper():
    network = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(512.0).view(8, 64) % 4)  # a quarter is 0; 1, 2, 3 are left
    (size,) = layer_sizes(network)
    assert (size.weights, size.kept, size.values, size.bytes_before) == (512, 384, 3, 2048)
    assert size.bytes_after == (512 + 2 * 384 + 32 * 3) // 8
    assert total_bytes([size], network) == (2048 + 32, size.bytes_after + 32)
    plain = nn.Sequential(nn.Linear(4, 4))
    assert layer_sizes(plain)[0].bytes_after == 64


def test_a_network_nobody_here_wrote():
    network = resnet18().eval()
    names = list(network.state_dict())
    prune(network)
    share_weights(network, conv_bits=5, linear_bits=5)
    make_permanent(network)
    assert sorted(network.state_dict()) == sorted(names)
    assert network(torch.randn(1, 3, 64, 64)).isfinite().all()
    before, after = total_bytes(layer_sizes(network), network)
    assert after < before / 8
    assert len(compressible_layers(network)) == 21


def test_a_layer_that_is_too_small_stays_as_it_is(normal):
    before = normal[0].weight.clone()
    assert list(share_weights(normal, conv_bits=13, linear_bits=5)) == ["3"]
    assert torch.equal(normal[0].weight, before)


def test_bad_input_ends_in_one_line_and_changes_nothing(normal):
    before = {key: value.clone() for key, value in normal.state_dict().items()}
    with pytest.raises(ValueError, match="s is 100, which leaves no weight of layer '0'"):
        prune(normal, 100)
    with pytest.raises(ValueError, match="s is -1"):
        prune(normal, -1)
    with pytest.raises(ValueError, match="no layer '7'"):
        prune(normal, 1.0, ["7"])
    with pytest.raises(ValueError, match="layer '1' is a ReLU; expected a convolution"):
        prune(normal, 1.0, ["1"])
    with pytest.raises(ValueError, match="layers is empty"):
        prune(nn.ReLU())
    with pytest.raises(ValueError, match="layer '0' has 4800 different weights; expected at least 8192"):
        share_weights(normal, conv_bits=13, layers=["0"])
    with pytest.raises(ValueError, match="conv_bits is 13 and linear_bits is 15; expected fewer"):
        share_weights(normal, 13, 15)
    with pytest.raises(ValueError, match="linear_bits is 0"):
        share_weights(normal, linear_bits=0)
    assert all(torch.equal(value, before[key]) for key, value in normal.state_dict().items())
    with torch.no_grad():
        normal[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        prune(normal)
