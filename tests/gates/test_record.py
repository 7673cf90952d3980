import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from netprism.gates.calls import watch_gates
from netprism.gates.record import record_gates, select_layers


class Paper(nn.Module):
    """x -> relu(x - 1), relu of its negative by the same module, then in place and functional forms."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.block = Block()

    def forward(self, x):
        a = self.relu(x - 1.0)
        b = self.relu(1.0 - x)
        return self.block(a - b)


class Block(nn.Module):
    """Functional, method and in-place ReLUs."""

    def forward(self, x):
        y = F.relu(x)
        z = torch.relu(-x) + (x + 2.0).relu_()
        return y + F.relu(z - 3.0, inplace=True)


def test_reused_functional_and_in_place_gates_on_paper():
    x = torch.tensor([[0.0, 0.5], [1.0, 4.0]])
    model = Paper()
    with record_gates(model) as gates:
        model(x)
    # x - 1 = [[-1, -.5], [0, 3]]; the block gets relu(x - 1) - relu(1 - x) = x - 1
    expected = {
        "relu": [[False, False], [False, True]],
        "relu#1": [[True, True], [False, False]],
        "block:relu#0": [[False, False], [False, True]],
        "block:relu#1": [[True, True], [False, False]],
        "block:relu#2": [[True, True], [True, True]],
        # z = relu(1 - x) + relu(x + 1) = [[2, 2], [2, 5]]
        "block:relu#3": [[False, False], [False, True]],
    }
    assert {name: layer.tolist() for name, layer in gates.states.items()} == expected


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(inplace=True), nn.PReLU(),
        nn.RReLU(),
        nn.ELU(), nn.ELU(inplace=True), nn.SELU(), nn.SELU(inplace=True), nn.CELU(), nn.GELU(), nn.SiLU(),
        nn.SiLU(inplace=True), nn.Mish(), nn.Hardswish(), nn.Hardswish(inplace=True),
    ],
    ids=repr,
)  # fmt: skip
def test_every_activation_module_gates_at_zero(activation):
    net = nn.Sequential(nn.Linear(4, 6), activation)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with record_gates(net) as gates:
        net(x)
    assert list(gates.states) == ["1"]
    assert torch.equal(gates.states["1"], net[0](x) > 0)
    assert gates.layers["1"].kind == "relu"
    assert gates.layers["1"].preceded_by == "linear"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: F.relu(x), "relu"),
        (lambda x: F.relu(input=x), "relu"),
        (lambda x: F.relu_(x), "relu"),
        (lambda x: torch.relu(x), "relu"),
        (lambda x: torch.relu_(x), "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.relu_(), "relu"),
        (lambda x: F.relu6(x), "relu6"),
        (lambda x: F.gelu(x), "gelu"),
        (lambda x: F.silu(x, inplace=True), "silu"),
        (lambda x: F.leaky_relu(x, 0.1), "leaky_relu"),
        (lambda x: F.leaky_relu_(x, 0.1), "leaky_relu"),
        (lambda x: F.elu_(x), "elu"),
        (lambda x: F.hardswish(x), "hardswish"),
        (lambda x: F.prelu(x, torch.ones(1)), "prelu"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x.clamp_min(0), "clamp_min"),
        (lambda x: torch.clip(x, 0), "clip"),
        (lambda x: F.threshold(x, 0, 0), "threshold"),
        (lambda x: F.hardtanh(x, 0.0, 6.0), "hardtanh"),
    ],
)
def test_every_functional_form_is_seen(call, name):
    class Net(nn.Module):
        def forward(self, x):
            return call(x * 2)

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    net = Net()
    with record_gates(net) as gates:
        net(x)
    assert list(gates.states) == [f":{name}#0"]
    assert torch.equal(gates.states[f":{name}#0"], x > 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(max=0),
        F.hardtanh,
        torch.tanh,
        lambda x: x * torch.tensor(1.5).clamp(min=0),
        lambda x: x[torch.arange(-1, 1).clamp(0, 1)],
        lambda x: F.threshold(x, 0.5, 0),
    ],
)
def test_what_does_not_gate_at_zero_is_no_gate(call):
    class Net(nn.Module):
        def forward(self, x):
            return call(x)

    net = Net()
    with pytest.raises(RuntimeError, match="saw no gate"), record_gates(net):
        net(torch.randn(2, 3))


# Gates counted in the papers' sense: calls of an activation in one forward pass.
@pytest.mark.parametrize(
    ("name", "count", "feeds"),
    [
        ("resnet18", 17, {"conv"}),
        ("vgg16", 15, {"conv", "linear"}),
        ("alexnet", 7, {"conv", "linear"}),
        ("mobilenet_v2", 35, {"conv"}),
        ("densenet121", 121, {"conv"}),
        ("googlenet", 57, {"conv"}),
        ("vit_b_16", 12, {"linear"}),
        ("convnext_tiny", 18, {"linear"}),
        ("efficientnet_b0", 49, {"conv"}),
        ("swin_t", 12, {"linear"}),
    ],
)
def test_torchvision_models(name, count, feeds):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    size = 224 if name in ("vit_b_16", "swin_t") else 96
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        alone = model(x)
        with record_gates(model) as gates:
            watched = model(x)
    assert torch.equal(alone, watched)
    assert len(gates.layers) == count
    assert {layer.preceded_by for layer in gates.layers.values()} == feeds
    assert all(len(layer) == 2 for layer in gates.packed.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_resnet_names_are_paths():
    model = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad(), record_gates(model) as gates:
        model(torch.randn(1, 3, 64, 64))
    assert list(gates.layers)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu#1"]
    assert gates.layers["layer4.1.relu#1"].shape == (512, 2, 2)


def test_batches_are_joined_in_order():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    x = torch.randn(7, 1, 6, 6)
    with record_gates(net) as gates:
        for batch in x.split(3):
            net(batch)
    assert torch.equal(gates.states["1"], net[0](x) > 0)
    assert gates.states["1"].shape == (7, 2, 4, 4)
    assert gates.packed["1"].bits.shape == (7, 4)


def test_gates_that_are_taken_are_forgotten():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    model = Paper()
    with record_gates(model) as gates:
        model(x)
    with record_gates(model) as taken:
        parts = [(model(some), taken.take())[1] for some in x.split(4)]
        assert taken.take() == {}
    assert list(parts[0]) == list(gates.packed)
    for name, layer in gates.packed.items():
        assert torch.equal(torch.cat([part[name].bits for part in parts]), layer.bits)
    assert dict(taken.states) == {}


def test_training_goes_on_the_same_to_the_bit():
    def gradients(watch):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(0.5),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 3), nn.AlphaDropout(0.2), nn.RReLU(),
        )  # fmt: skip
        x = torch.randn(5, 1, 8, 8)
        if watch:
            with record_gates(net, kinds=("relu", "max_pool", "dropout")):
                out = net(x)
        else:
            out = net(x)
        out.square().sum().backward()
        return [out, *[p.grad for p in net.parameters()], *net.buffers(), torch.get_rng_state()]

    for watched, alone in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(watched, alone)


@pytest.mark.parametrize(
    "dropout",
    [nn.Dropout(0.4), nn.Dropout(0.4, inplace=True), nn.AlphaDropout(0.4), nn.Dropout(0.0), nn.Dropout(1.0)],
    ids=repr,
)
def test_dropout_gates_are_the_mask_that_was_used(dropout):
    net = nn.Sequential(dropout)
    x = torch.randn(6, 50)
    x[0, :10] = 0.0  # a zero of the input is no dropped gate
    with record_gates(net, kinds=["dropout"]) as gates:
        out = net(x.clone())
    mask = gates.states["0"]
    if isinstance(dropout, nn.AlphaDropout):
        dropped = out[~mask]
        assert torch.equal(dropped, dropped[:1].expand_as(dropped))
        assert (out[mask] != dropped[0]).all()
    else:
        assert torch.equal(out != 0, mask & (x != 0))
    assert 0.45 < mask.float().mean() < 0.75 if dropout.p == 0.4 else mask.all() == (dropout.p == 0)


def test_channel_dropout_closes_whole_channels():
    net = nn.Sequential(nn.Dropout2d(0.5))
    with record_gates(net, kinds=["dropout"]) as gates:
        out = net(torch.ones(4, 8, 3, 3))
    assert torch.equal(gates.states["0"], out > 0)
    assert gates.states["0"].flatten(2).float().std(2).max() == 0


def test_dropout_is_open_in_eval_mode():
    net = nn.Sequential(nn.Dropout(0.9)).eval()
    with record_gates(net, kinds=["dropout"]) as gates:
        net(torch.randn(3, 4))
    assert gates.states["0"].all()


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool2d(2), (6, 8)),
        (nn.MaxPool2d(3, stride=2, padding=1), (7, 7)),
        (nn.MaxPool2d((2, 3), stride=(1, 2), dilation=(2, 1), ceil_mode=True), (9, 8)),
        (nn.MaxPool2d(2, return_indices=True), (6, 6)),
        (nn.MaxPool1d(3, stride=1), (10,)),
        (nn.MaxPool3d(2), (4, 4, 6)),
        (nn.AdaptiveMaxPool2d((3, 2)), (7, 5)),
        (nn.AdaptiveMaxPool2d((None, 1)), (4, 3)),
        (nn.AdaptiveMaxPool1d(4), (9,)),
    ],
    ids=str,
)
def test_max_pool_gates_point_at_the_winner(pool, size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = pool

        def forward(self, x):
            return self.pool(x)

    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    net = Net()
    with record_gates(net, kinds=("max_pool",)) as gates:
        out = net(x)
    out = out[0] if isinstance(out, tuple) else out
    states = gates.states["pool"]
    assert states.shape[:-1] == out.shape
    assert (states.sum(-1) == 1).all()
    # Pooling a picture of places: the winner's place in its window is what the one-hot says.
    if not isinstance(pool, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d) and len(size) == 2:
        k, s, p, d = (value if isinstance(value, tuple) else (value,) * 2 for value in
                      (pool.kernel_size, pool.stride, pool.padding, pool.dilation))  # fmt: skip
        padded = F.pad(x, (p[1], p[1] + 20, p[0], p[0] + 20), value=-torch.inf)
        for i, j in ((0, 0), (out.shape[2] - 1, out.shape[3] - 1)):
            window = padded[:, :, i * s[0] : i * s[0] + d[0] * k[0] : d[0], j * s[1] : j * s[1] + d[1] * k[1] : d[1]]
            assert torch.equal(window.flatten(2).argmax(-1), states[:, :, i, j].int().argmax(-1))


def test_max_pool_on_paper():
    x = torch.tensor([[[[1.0, 2.0, 0.0, 9.0], [4.0, 3.0, 8.0, 7.0]]]])
    net = nn.Sequential(nn.MaxPool2d(2))
    with record_gates(net, kinds=("max_pool",)) as gates:
        net(x)
    assert gates.states["0"].tolist() == [[[[[False, False, True, False], [False, True, False, False]]]]]


def test_kinds_are_recorded_together_in_the_order_of_the_calls():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))
    with record_gates(net, kinds=("dropout", "relu", "max_pool")) as gates:
        net(torch.randn(2, 1, 6, 6))
    assert [(name, layer.kind) for name, layer in gates.layers.items()] == [
        ("1", "relu"),
        ("2", "max_pool"),
        ("3", "dropout"),
    ]


@pytest.mark.parametrize("way", ["torch.compile", "module.compile", "inner"])
def test_compiled_models_are_recorded_eagerly_under_the_same_names(way):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    x = torch.randn(5, 3)
    model = net
    if way == "torch.compile":
        model = torch.compile(net, backend="eager")
    elif way == "module.compile":
        net.compile(backend="eager")
    else:
        net[2] = torch.compile(net[2], backend="eager")
    with torch.no_grad():
        model(x)  # compiled before the first recording
        with record_gates(model) as gates:
            model(x)
        assert list(gates.states) == ["1", "2.1"]
        assert torch.equal(gates.states["1"], net[0](x) > 0)


def test_torchscript_is_named():
    class Net(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return F.relu(self.body(x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still met
        body = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    net = Net(body)
    with pytest.warns(UserWarning, match="gates inside torchscript are not recorded: body"), record_gates(net) as gates:
        net(torch.randn(1, 2))
    assert list(gates.states) == [":relu#0"]


def test_fused_attention_dropout_is_named():
    class Attention(nn.Module):
        def forward(self, x):
            return F.relu(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))

    net = nn.Sequential(Attention())
    with pytest.warns(UserWarning, match="dropout inside fused attention is not recorded: 0"):
        with record_gates(net, kinds=("relu", "dropout")):
            net(torch.randn(1, 2, 4, 8))


def test_dropout_of_multi_head_attention_is_named():
    net = nn.Sequential(nn.ReLU())
    net.attention = nn.MultiheadAttention(8, 2, dropout=0.5)
    net.forward = lambda x: net.attention(net[0](x), x, x)[0]
    with pytest.warns(UserWarning, match="dropout inside fused attention is not recorded: attention"):
        with record_gates(net, kinds=("relu", "dropout")):
            net(torch.randn(3, 2, 8))


def test_a_recorder_around_another_sees_each_call_once():
    net = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))
    with record_gates(net, kinds=("relu", "max_pool", "dropout")) as outer:
        with record_gates(net, kinds=("relu", "max_pool", "dropout")) as inner:
            net(torch.randn(2, 1, 4, 4))
    assert list(outer.states) == list(inner.states) == ["0", "1", "2"]
    assert all(torch.equal(outer.states[name], inner.states[name]) for name in outer.states)


def test_an_empty_batch_adds_nothing():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with record_gates(net) as gates:
        net(torch.randn(2, 2))
        net(torch.randn(0, 2))
    assert gates.states["1"].shape == (2, 3)


def test_max_pool_without_a_batch_is_refused():
    net = nn.Sequential(nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="max_pool2d of .*expected samples and channels before 2 dimensions"):
        with record_gates(net, kinds=["max_pool"]):
            net(torch.randn(3, 8, 8))


def test_transformer_fast_path_is_seen():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    net = nn.TransformerEncoder(layer, 2).eval()
    with torch.no_grad(), record_gates(net) as gates:
        net(torch.randn(3, 5, 8))
    assert list(gates.states) == ["layers.0:gelu#0", "layers.1:gelu#0"]
    assert gates.states["layers.0:gelu#0"].shape == (3, 5, 16)


def test_layers_are_chosen_by_name_module_or_number():
    available = ["relu", "layer1.0.relu", "layer1.0.relu#1", "layer1:relu#0", "layer10.relu"]
    assert select_layers(available, None) == available
    assert select_layers(available, -2) == ["layer1:relu#0", "layer10.relu"]
    assert select_layers(available, 1) == ["relu"]
    assert select_layers(available, ["layer1"]) == ["layer1.0.relu", "layer1.0.relu#1", "layer1:relu#0"]
    assert select_layers(available, ["layer10", "relu"]) == ["relu", "layer10.relu"]
    assert select_layers(available, "layer1.0.relu#1") == ["layer1.0.relu#1"]
    with pytest.raises(ValueError, match=r"no gating layer 'layer2'; there are: relu, layer1\.0\.relu, "):
        select_layers(available, ["relu", "layer2"])
    with pytest.raises(ValueError, match="layers is 0; expected n"):
        select_layers(available, 0)


def test_only_chosen_layers_are_kept():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU())
    with record_gates(net, layers=-1) as gates:
        net(torch.randn(2, 2))
        net(torch.randn(3, 2))
    assert {name: tuple(layer.shape) for name, layer in gates.states.items()} == {"3": (5, 4)}


def test_at_most_so_many_gates_of_a_layer_are_kept_at_the_same_positions_in_every_pass():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU())
    first, second = torch.randn(5, 1, 6, 6), torch.randn(3, 1, 6, 6)
    with torch.no_grad(), record_gates(net) as every:
        net(first), net(second)
    with torch.no_grad(), record_gates(net, max_gates=16, seed=1) as some:
        net(first), net(second)
    with torch.no_grad(), record_gates(net, layers=["1"], max_gates=16, seed=1) as again:
        net(second)
    assert some.layers == every.layers
    positions = some.packed["1"].positions
    assert (positions // 4).tolist() == list(range(16))  # one out of each stretch of four
    assert torch.equal(some.states["1"], every.states["1"].flatten(1)[:, positions])
    assert torch.equal(some.states["4"], every.states["4"])
    assert torch.equal(again.packed["1"].positions, positions)
    with record_gates(net, max_gates=16, seed=2) as other:
        net(second)
    assert not torch.equal(other.packed["1"].positions, positions)
    with (
        pytest.raises(ValueError, match="max_gates is 0; expected a number >= 1, or None"),
        record_gates(net, max_gates=0),
    ):
        pass


def test_an_unknown_layer_lists_the_layers():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(ValueError, match="no gating layer 'fc'; there are: 1"), record_gates(net, layers=["fc"]):
        net(torch.randn(2, 2))
    assert not net[0]._forward_hooks
    with record_gates(net) as gates:
        net(torch.randn(2, 2))
    with pytest.raises(KeyError, match="no gating layer 'fc'; there are: 1"):
        gates.states["fc"]


@pytest.mark.parametrize("kinds", [("tanh",), ("relu", "tanh"), ()])
def test_an_unknown_kind_lists_the_kinds(kinds):
    with pytest.raises(ValueError, match="unknown kind of gate .*; allowed: relu, max_pool, dropout"):
        with record_gates(nn.ReLU(), kinds=kinds):
            pass


def test_kinds_are_a_list():
    with pytest.raises(ValueError, match=r"kinds is the text 'relu'; give a list, such as \['relu'\]"):
        with record_gates(nn.ReLU(), kinds="relu"):
            pass


def test_no_gate_at_all_is_an_error():
    net = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="saw no gate"), record_gates(net):
        net(torch.randn(1, 2))


def test_a_model_that_is_not_called_is_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(RuntimeError, match="the model was not called"), record_gates(net):
        net[1](torch.randn(1, 2))  # a part of it does not count
        F.relu(torch.randn(3))


def test_nan_names_the_layer():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN at the input of gating layer '3'"), record_gates(net):
        net(torch.randn(4, 2))
    with record_gates(net, layers=["1"]) as gates:  # of the layers asked for
        net(torch.randn(4, 2))
    assert list(gates.states) == ["1"]


def test_infinities_are_not_nan():
    net = nn.Sequential(nn.ReLU())
    with record_gates(net) as gates:
        net(torch.tensor([[float("inf"), -float("inf")]]))
    assert gates.states["0"].tolist() == [[True, False]]


def test_layers_that_disagree_on_the_samples_are_named():
    class Windows(nn.Module):
        def forward(self, x):
            return F.relu(F.relu(x).view(8, 2))

    net = Windows()
    with pytest.raises(ValueError, match=r"disagree on the number of samples \(':relu#0' 4, ':relu#1' 8\)"):
        with record_gates(net):
            net(torch.randn(4, 4))
    with record_gates(net, layers=[":relu#0"]) as gates:
        net(torch.randn(4, 4))
    assert gates.states[":relu#0"].shape == (4, 4)


def test_a_shape_that_changes_is_named():
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match=r"'0' changed its shape from \(3,\) to \(4,\)"), record_gates(net):
        net(torch.randn(2, 3))
        net(torch.randn(2, 4))


def test_a_layer_that_is_skipped_once_is_named():
    class Skipping(nn.Module):
        def forward(self, x):
            return F.relu(x) if x.sum() > 0 else F.gelu(x)

    net = Skipping()
    with pytest.raises(ValueError, match="':relu#0' was called in one forward pass and not in another"):
        with record_gates(net):
            net(torch.ones(1, 1))
            net(-torch.ones(1, 1))


@pytest.mark.parametrize("output", [lambda y: (y, y), lambda y: {"logits": y}, lambda y: [y]])
def test_the_output_may_be_anything(output):
    class Net(nn.Module):
        def forward(self, x):
            return output(F.relu(x))

    net = Net()
    with record_gates(net) as gates:
        net(torch.randn(2, 3))
    assert gates.states[":relu#0"].shape == (2, 3)


def test_no_trace_is_left_by_an_exception():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            self.inner(x)
            raise KeyError("mine")

    net = Failing()
    with pytest.raises(KeyError, match="mine"), record_gates(net):
        net(torch.randn(2, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_forward_pass_that_raised_is_not_recorded():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            y = self.inner(x)
            if len(x) == 1:
                raise KeyError("mine")
            return y

    net = Sometimes()
    with record_gates(net) as gates:
        with pytest.raises(KeyError):
            net(torch.randn(1, 2))
        net(torch.randn(3, 2))
    assert gates.states["inner"].shape == (3, 2)


def test_inference_mode():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    x = torch.randn(4, 2)
    with torch.inference_mode(), record_gates(net) as gates:
        net(x)
        net(x)
    assert torch.equal(gates.states["1"], (net[0](x) > 0).repeat(2, 1))


def test_names_relative_to_a_part():
    net = nn.Sequential()
    net.add_module("net", nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    net.add_module("head", nn.ReLU())
    with record_gates(net, relative_to=net.net) as gates:
        net(torch.randn(1, 2))
    assert list(gates.states) == ["1", "head"]


def test_watching_hands_over_the_input_with_its_gradient():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    calls = []
    with watch_gates(net, lambda call: calls.append((call.layer, call.operation, call.input.sigmoid()))):
        net(torch.randn(4, 2))
    (layer, operation, soft) = calls[0]
    assert (layer, operation) == ("1", "relu")
    soft.sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_memory_is_one_bit_a_gate_and_one_batch():
    net = nn.Sequential(nn.Linear(8, 4096), nn.ReLU())
    with torch.no_grad(), record_gates(net) as gates:
        for _ in range(10):
            net(torch.randn(20, 8))
    assert sum(layer.bits.numel() for layer in gates.packed.values()) == 200 * 4096 // 8
