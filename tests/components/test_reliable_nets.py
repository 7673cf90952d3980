import pytest
import torch

from netprism.components.reliable_nets import ReliableNets, WideDisentangler
from netprism.gates.record import record_gates

SHAPES = [(4, 8, 8), (6, 8, 8)]


def test_psi_has_as_many_relus_as_the_order_and_all_its_channels():
    net = WideDisentangler((3, 16, 16), SHAPES, order=7, width=1 / 32)
    x = torch.randn(2, 3, 16, 16)
    with record_gates(net, kinds=("relu",)) as gates:
        psi = net(x)
    assert psi.shape == (2, 16, 8, 8)
    assert len(gates.states) == 7
    assert [mimic.shape for mimic in net.mimics(psi)] == [(2, 4, 8, 8), (2, 6, 8, 8)]


def test_readouts_are_linear_and_have_no_bias():
    net = WideDisentangler((3, 16, 16), SHAPES, order=4, width=1 / 32)
    psi = torch.randn(2, 16, 8, 8)
    for readout in net.readouts:
        torch.nn.init.normal_(readout)
    for mimic, double, readout in zip(net.mimics(psi), net.mimics(2 * psi), net.readout_matrices, strict=True):
        torch.testing.assert_close(double, 2 * mimic)
        torch.testing.assert_close(mimic, torch.nn.functional.conv2d(psi, readout[:, :, None, None]))


def test_vectors():
    net = WideDisentangler((3, 4, 4), [(5,), (3,)], order=4, width=1 / 32)
    assert [mimic.shape for mimic in net.mimics(net(torch.randn(2, 3, 4, 4)))] == [(2, 5), (2, 3)]


def test_every_parameter_is_used():
    """DDP asks for a gradient of each."""
    nets = ReliableNets((3, 8, 8), [(4, 8, 8), (5, 8, 8)], (4, 7), width=1 / 32)
    psi, phi = nets(torch.randn(4, 3, 8, 8))
    loss = sum(part.square().sum() for part in phi)
    for value, net in zip(psi, nets.wide, strict=True):
        loss = loss + sum(mimic.square().sum() for mimic in net.mimics(value))
    loss.backward()
    assert all(parameter.grad is not None for parameter in nets.parameters())


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"^feature 1 has shape \(6, 4, 4\); expected the size of the target's \(4, 8, 8\)"
    ):
        WideDisentangler((3, 16, 16), [(4, 8, 8), (6, 4, 4)], order=4, width=1 / 32)
    with pytest.raises(ValueError, match="^the number of psi's channels is 16; expected more than the 16 of a target"):
        WideDisentangler((3, 16, 16), [(4, 8, 8), (16, 8, 8)], order=4, width=1 / 32)
