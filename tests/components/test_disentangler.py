import pytest
import torch
from torch import nn

from netprism.components.disentangler import (
    ORDERS,
    DisentanglerNet,
    Disentanglers,
    blocks_of_order,
    halvings,
)
from netprism.gates.record import record_gates

IMAGE, FEATURE = (3, 32, 32), (5, 8, 8)
NARROW = 1 / 64  # 2, 4 and 8 channels


def weighted(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3, 32])
@pytest.mark.parametrize("feature", [FEATURE, (5,)])
def test_has_3m_plus_1_relus_and_3m_plus_2_layers_of_weights(blocks, skip, feature):
    order = 3 * blocks + 1
    net = DisentanglerNet(IMAGE, feature, order, NARROW, skip)
    with record_gates(net) as gates:
        assert net(torch.randn(2, *IMAGE)).shape == (2, *feature)
    assert len(gates.states) == order
    assert len(weighted(net)) == order + 1
    kind = nn.Conv2d if len(feature) == 3 else nn.Linear
    assert all(isinstance(module, kind) for module in weighted(net))


def test_orders_of_the_paper():
    assert [3 * m + 1 for m in (1, 2, 4, 8, 16, 32)] == list(ORDERS)
    assert [blocks_of_order(order) for order in ORDERS] == [1, 2, 4, 8, 16, 32]


def test_channels_of_the_stages():
    net = DisentanglerNet(IMAGE, FEATURE, order=7)
    assert [conv.out_channels for conv in weighted(net)] == [128, 128, 128, 256, 256, 512, 512, 5]
    assert [conv.kernel_size for conv in weighted(net)] == [(3, 3)] * 7 + [(1, 1)]
    assert net.body_channels == 512
    assert DisentanglerNet(IMAGE, FEATURE, order=4, width=0.5).body_channels == 256


@pytest.mark.parametrize(
    ("image", "feature", "strides"),
    [
        ((3, 32, 32), (5, 32, 32), (1, 1, 1)),
        ((3, 32, 32), (5, 16, 16), (1, 2, 1)),
        ((3, 32, 32), (5, 8, 8), (1, 2, 2)),
        ((3, 28, 28), (5, 7, 7), (1, 2, 2)),
        ((1, 32, 32), (5, 4, 4), (2, 2, 2)),
        ((3, 224, 224), (5, 14, 14), (1, 2, 2)),  # after a convolution and a max-pool that divide by four
        ((3, 224, 160), (5, 56, 40), (1, 1, 1)),
    ],
)
def test_strides_follow_from_the_sizes(image, feature, strides):
    net = DisentanglerNet(image, feature, 4, NARROW)
    assert tuple(weighted(stage)[0].stride[0] for stage in net.stages) == strides
    pooled = any(isinstance(module, nn.MaxPool2d) for module in net.modules())
    assert pooled == (image[1] == 224)
    sizes = {}
    net.stages[-1].register_forward_hook(lambda module, args, output: sizes.update(last=output.shape[-2:]))
    net(torch.randn(2, *image))
    assert sizes["last"] == feature[1:], "no averaging where strides suffice"


@pytest.mark.parametrize("feature", [(5, 1, 1), (5, 5, 5), (5, 6, 7), (5, 13, 13)])
def test_a_size_that_is_no_fraction_is_averaged_without_another_relu(feature):
    net = DisentanglerNet((1, 28, 28), feature, 4, NARROW)
    with record_gates(net) as gates:
        assert net(torch.randn(2, 1, 28, 28)).shape == (2, *feature)
    assert len(gates.states) == 4


def test_halvings_round_up():
    assert halvings((7, 7), (2, 2)) == 2
    assert halvings((32, 16), (8, 8)) == 1
    assert halvings((8, 8), (16, 16)) == 0
    assert halvings((1, 1), (1, 1)) == 0


@pytest.mark.parametrize("feature", [FEATURE, (5,)])
def test_residual_and_stacked_blocks(feature):
    # With all weights zero a stacked block returns relu(bn(0)) = 0, a residual one its input.
    for skip in (True, False):
        net = DisentanglerNet((3, 8, 8), (5, 8, 8) if len(feature) == 3 else feature, 4, NARROW, skip).eval()
        block = net.stages[0][0]
        nn.init.zeros_(block.layer.weight)
        x = torch.rand(2, 2, 8, 8) if len(feature) == 3 else torch.rand(2, 2)
        torch.testing.assert_close(block(x), x if skip else torch.zeros_like(x))


def test_body_and_out_make_the_net():
    net = DisentanglerNet(IMAGE, FEATURE, 4, NARROW).eval()
    x = torch.randn(2, *IMAGE)
    assert net.body(x).shape == (2, 8, 8, 8)
    assert (net.body(x) >= 0).all()
    assert (net(x) == 0).all(), "the first guess"
    nn.init.normal_(net.out.weight)
    torch.testing.assert_close(net.out(net.body(x)), net(x))


@pytest.mark.parametrize("feature", [FEATURE, (5,)])
def test_a_warm_started_residual_net_begins_as_the_shallower_one(feature):
    shallow, deep = (DisentanglerNet(IMAGE, feature, order, NARROW) for order in (7, 13))
    for _ in range(3):  # so that BatchNorm has statistics of its own
        shallow(torch.randn(8, *IMAGE))
    nn.init.normal_(shallow.out.weight)
    deep.start_from(shallow)
    x = torch.randn(4, *IMAGE)
    torch.testing.assert_close(deep.eval()(x), shallow.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(deep.train()(x), shallow.train()(x), rtol=0, atol=0)


def test_warm_start_copies_block_by_block_and_shares_nothing():
    shallow, deep = (DisentanglerNet(IMAGE, FEATURE, order, NARROW, skip=False) for order in (4, 10))
    nn.init.normal_(shallow.out.weight)
    own = deep.stages[1][1].layer.weight.clone()
    deep.start_from(shallow)
    for stage, source in zip(deep.stages, shallow.stages, strict=True):
        assert torch.equal(stage[0].layer.weight, source[0].layer.weight)
        assert torch.equal(stage[0].bn.running_var, source[0].bn.running_var)
    assert torch.equal(deep.stages[1][1].layer.weight, own), "stacked: new blocks stay as they were drawn"
    assert deep.stages[1][1].bn.weight.eq(1).all()
    assert torch.equal(deep.out.weight, shallow.out.weight)
    assert deep.out.weight.data_ptr() != shallow.out.weight.data_ptr()


def test_all_orders_of_one_feature():
    nets = Disentanglers(IMAGE, FEATURE, (4, 10), NARROW)
    assert [phi.shape for phi in nets(torch.randn(2, *IMAGE))] == [(2, *FEATURE)] * 2
    assert len(nets) == 2
    assert [net.order for net in nets.nets] == [4, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": (5,)}, r"order is 5; expected 3m \+ 1 with m >= 1"),
        ({"orders": (1,)}, "order is 1; expected"),
        ({"orders": ()}, r"orders is \(\)"),
        ({"orders": (7, 4)}, r"orders is \(7, 4\); expected one or more that rise"),
        ({"orders": (4, 4)}, "rise"),
        ({"width": 0.3}, "width is 0.3; expected n / 128"),
        ({"width": 0.0}, "width is 0.0"),
        ({"feature_shape": (5, 8)}, r"feature_shape is \(5, 8\) for inputs of shape \(3, 32, 32\); expected"),
        ({"input_shape": (64,)}, r"feature_shape is \(5, 8, 8\) for inputs of shape \(64,\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Disentanglers(**({"input_shape": IMAGE, "feature_shape": FEATURE} | options))


@pytest.mark.parametrize("change", [{"width": 1 / 32}, {"skip": False}, {"order": 13}, {"feature_shape": (6, 8, 8)}])
def test_a_net_of_another_kind_cannot_be_taken_over(change):
    options = {"input_shape": IMAGE, "feature_shape": FEATURE, "order": 7, "width": NARROW}
    with pytest.raises(ValueError, match=f"^{next(iter(change))} of the shallower net is "):
        DisentanglerNet(**options).start_from(DisentanglerNet(**(options | change)))
