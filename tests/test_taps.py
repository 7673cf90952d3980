import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from netprism.nets import ResNet
from netprism.taps import layer_names, tap


class TwiceAndInPlace(nn.Module):
    """relu(2 x), overwritten in place, then relu(. - 3): by hand for x = [1, -1, 2]: [2, 0, 4], then [0, 0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(2.0)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(self.scale(x)) - 3)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


X = torch.tensor([[1.0, -1.0, 2.0]])


def hooks_of(model: nn.Module) -> list[object]:
    """Every hook on any module of the model, the tables of flags beside the hooks included."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs",
              "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")  # fmt: skip
    return [hook for module in model.modules() for table in tables for hook in getattr(module, table).items()]


def test_features_are_what_the_layers_return():
    net = ResNet(depth=8, width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    with tap(net, ["layer1", "layer3"]) as features:
        net(x)
    stem = net.relu(net.bn1(net.conv1(x)))
    assert list(features) == ["layer1", "layer3"]
    assert torch.equal(features["layer1"], net.layer1(stem))
    assert torch.equal(features["layer3"], net.layer3(net.layer2(net.layer1(stem))))


@pytest.mark.parametrize("detach", [False, True])
def test_second_call_has_its_own_name_and_in_place_calls_overwrite_nothing(detach):
    model = TwiceAndInPlace()
    with tap(model, ["scale", "relu"], detach=detach) as features:
        out = model(X)
    assert {name: value.tolist() for name, value in features.items()} == {
        "scale": [[2.0, -2.0, 4.0]],
        "relu": [[2.0, 0.0, 4.0]],
        "relu#1": [[0.0, 0.0, 1.0]],
    }
    assert out.tolist() == [[0.0, 0.0, 1.0]]


def test_one_call_of_several_can_be_asked_for():
    model = TwiceAndInPlace()
    with tap(model, ["relu#1"]) as features:
        model(X)
    assert list(features) == ["relu#1"]


@pytest.mark.parametrize("detach", [False, True])
def test_inputs_are_tapped_before_an_in_place_layer_overwrites_them(detach):
    model = TwiceAndInPlace()
    with tap(model, ["relu"], inputs=True, detach=detach) as features:
        model(X)
    assert features["relu"].tolist() == [[2.0, -2.0, 4.0]]
    assert features["relu#1"].tolist() == [[-1.0, -3.0, 1.0]]


def test_input_given_by_keyword_is_tapped():
    class AddOne(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x + 1

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_one = AddOne()

        def forward(self, x: Tensor) -> Tensor:
            return self.add_one(x=2 * x)

    model = Keyword()
    with tap(model, ["add_one"], inputs=True) as features:
        assert model(X).tolist() == [[3.0, -1.0, 5.0]]
    assert features["add_one"].tolist() == [[2.0, -2.0, 4.0]]


def test_gating_layers_of_a_net_can_be_tapped_by_their_names():
    net = ResNet(depth=8, width=2).eval()
    with tap(net, net.gating_layers, inputs=True) as features:
        net(torch.randn(1, 3, 8, 8))
    assert tuple(features) == net.gating_layers


def test_gradient_with_respect_to_a_feature_by_hand():
    model = (
        TwiceAndInPlace()
    )  # out = relu(relu(f) - 3) with f = 2 x = [2, -2, 4]: only the last input gets through both
    x = X.clone().requires_grad_()
    with tap(model, ["scale"]) as features:
        loss = (5 * model(x)).sum()
    by_feature, by_input, by_factor = torch.autograd.grad(loss, [features["scale"], x, model.scale.factor])
    assert by_feature.tolist() == [[0.0, 0.0, 5.0]]
    assert by_input.tolist() == [[0.0, 0.0, 10.0]]
    assert by_factor.item() == 10.0


def test_a_loss_on_a_feature_trains_the_layers_before_it():
    model = TwiceAndInPlace()
    with tap(model, ["scale"]) as features:
        model(X)
    features["scale"].sum().backward()
    assert model.scale.factor.grad.item() == X.sum().item()


def test_detached_features_have_no_gradient_and_no_shared_memory():
    model = TwiceAndInPlace()
    with tap(model, ["scale", "relu"], detach=True) as features:
        out = model(X)
    assert out.requires_grad
    assert not any(value.requires_grad for value in features.values())
    out.detach().fill_(7.0)
    assert features["relu#1"].tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("inputs", [False, True])
def test_weights_gradients_and_outputs_are_bitwise_those_without_a_tap(inputs):
    net = ResNet(depth=8, width=4)
    x, labels = torch.randn(4, 3, 12, 12), torch.arange(4)
    state = {key: value.clone() for key, value in net.state_dict().items()}

    def step() -> list[Tensor]:
        net.load_state_dict(state)
        net.zero_grad()
        logits = net(x)
        F.cross_entropy(logits, labels).backward()
        return [logits.detach(), *(p.grad.clone() for p in net.parameters()), *(b.clone() for b in net.buffers())]

    plain = step()
    with tap(net, ["relu", "layer1.0.bn1", "layer2", "layer3.0.relu"], inputs=inputs):
        tapped = step()
    assert all(torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))


def test_last_pass_is_kept():
    model = TwiceAndInPlace()
    with tap(model, ["scale", "relu"]) as features:
        model(torch.zeros(7, 3))
        model(X)
    assert list(features) == ["scale", "relu", "relu#1"]
    assert features["scale"].tolist() == [[2.0, -2.0, 4.0]]


def test_parts_of_a_model_may_be_called_alone():
    model = TwiceAndInPlace()
    with tap(model, ["scale", "relu"]) as features:
        model.relu(model.scale(X))
    assert list(features) == ["scale", "relu"]


def test_recomputed_activations_are_not_a_second_call():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = TwiceAndInPlace()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    model = Checkpointed()
    with tap(model, ["body.scale"]) as features:
        model(X).sum().backward()
    assert list(features) == ["body.scale"]
    assert model.body.scale.factor.grad.item() == 2.0


def test_inference_mode():
    model = TwiceAndInPlace()
    with torch.inference_mode(), tap(model, ["scale"]) as features:
        model(X)
    assert features["scale"].tolist() == [[2.0, -2.0, 4.0]]


@pytest.mark.parametrize("arguments", [{}, {"detach": True}, {"inputs": True}])
def test_no_hook_is_left(arguments):
    model = TwiceAndInPlace()
    own = model.relu.register_forward_hook(lambda *_: None)
    before = hooks_of(model)
    with tap(model, ["scale", "relu"], **arguments):
        assert len(hooks_of(model)) > len(before)
        model(X)
    assert hooks_of(model) == before
    with pytest.raises(ZeroDivisionError), tap(model, ["scale"], **arguments):
        raise ZeroDivisionError
    assert hooks_of(model) == before
    with pytest.raises(ValueError, match="no layer 'trouble'"), tap(model, ["scale", "trouble"], **arguments):
        pass
    assert hooks_of(model) == before
    own.remove()


def test_wrong_name_is_answered_with_the_right_one():
    with pytest.raises(ValueError, match=r"ResNet has no layer 'layr3', did you mean 'layer3'\?") as error:
        tap(torchvision.models.resnet18(), ["conv1", "layr3"]).__enter__()
    message = str(error.value)
    assert "\n" not in message
    assert " it has conv1, bn1, relu, maxpool, layer1, layer1.0, " in message
    assert message.endswith(f" and {len(layer_names(torchvision.models.resnet18())) - 20} more")


def test_wrong_name_without_a_close_one_in_a_small_model():
    with pytest.raises(ValueError, match=r"^TwiceAndInPlace has no layer 'q'; it has scale, relu$"):
        tap(TwiceAndInPlace(), ["q"]).__enter__()


def test_one_name_may_be_given_as_a_string():
    model = TwiceAndInPlace()
    with tap(model, "scale") as features:
        model(X)
    assert list(features) == ["scale"]


@pytest.mark.parametrize("layer", ["1", "0#1"])
def test_layer_that_never_runs_is_named(layer):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match=f"layer '{layer}' did not run in the last pass of Sequential"):
        with tap(model, ["0", layer]):
            model[0](X)


def test_layer_that_ran_in_an_earlier_pass_only_is_named():
    class AuxiliaryInTraining(TwiceAndInPlace):
        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x) if self.training else x

    def train_then_validate(model: nn.Module) -> None:
        with tap(model, ["scale"]):
            model.train()(X)
            model.eval()(X)

    with pytest.raises(RuntimeError, match="layer 'scale' did not run in the last pass"):
        train_then_validate(AuxiliaryInTraining())


def test_error_of_the_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), tap(TwiceAndInPlace(), ["relu"]):
        raise ZeroDivisionError


def test_output_that_is_not_one_tensor_is_described():
    model = nn.Sequential(nn.MultiheadAttention(2, 1))
    x = torch.zeros(3, 1, 2)
    with tap(model, ["0"]) as features:
        out, nothing = model[0](x, x, x, need_weights=False)
    assert torch.equal(features["0"], out)  # the first of a tuple
    assert nothing is None
    with pytest.raises(TypeError, match=r"layer '0' takes tuple of \(Tensor, Tensor, Tensor, bool\), not one tensor"):
        with tap(model, ["0"], inputs=True):
            model[0](x, x, x, need_weights=False)


def test_dictionary_and_nothing_are_described():
    class Gives(nn.Module):
        def __init__(self, what: object) -> None:
            super().__init__()
            self.what = what

        def forward(self, x: Tensor) -> object:
            return self.what

    for what, words in (([X, X], r"list of \(Tensor, Tensor\)"), ({"b": 1}, r"dict of \(int\)"), (None, "NoneType")):
        model = nn.Sequential(Gives(what))
        with pytest.raises(TypeError, match=f"layer '0' returns {words}, not one tensor"), tap(model, ["0"]):
            model(X)


def compile_whole(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def compile_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def compile_part(net: nn.Module) -> nn.Module:
    net.layer3 = torch.compile(net.layer3, backend="eager")
    return net


@pytest.mark.parametrize("compiled", [compile_whole, compile_in_place, compile_part])
@torch.no_grad()  # dynamo looks at .grad of the compiled part's non-leaf input, and warnings are errors here
def test_compiled_model_is_read_after_its_first_compiled_call(compiled):
    net = ResNet(depth=8, width=2).eval()
    names, x = layer_names(net), torch.randn(2, 3, 8, 8)
    with tap(net, ["layer3", "layer3.0.bn2"]) as expected:
        net(x)
    model = compiled(net)
    model(x)
    assert layer_names(model) == names
    with tap(model, ["layer3", "layer3.0.bn2"]) as features:
        model(x)
    for name, value in features.items():
        assert torch.equal(value, expected[name])
    assert not hooks_of(model)


def test_compiled_model_runs_compiled_again_after_the_block():
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        def run(*args: Tensor) -> object:
            calls.append("compiled")
            return graph.forward(*args)

        return run

    model = torch.compile(TwiceAndInPlace(), backend=backend)
    model(X)
    with tap(model, ["relu"]):
        model(X)
    assert calls == ["compiled"]
    model(X)
    assert calls == ["compiled", "compiled"]


def test_layer_names_are_those_of_named_modules():
    net = ResNet(depth=8)
    assert layer_names(net) == [name for name, _ in net.named_modules() if name]


def test_layers_behind_ddp_have_their_own_names(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(TwiceAndInPlace())
        assert layer_names(model) == ["scale", "relu"]
        with tap(model, ["scale"]) as features:
            model(X)
            model(X)
        assert list(features) == ["scale"]
    finally:
        torch.distributed.destroy_process_group()
