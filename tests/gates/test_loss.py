import gc
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from netprism.gates.loss import ComplexityLoss

NARROW = (8, 8)
BATCH = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(seed=0, batch=BATCH, features=5):
    return torch.randn(batch, features, generator=generator(seed))


class Net(nn.Module):
    """fc1, a ReLU module in place, fc2, a functional ReLU, fc3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 7), nn.Linear(7, 4), nn.Linear(4, 2)
        self.relu1 = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(self.relu1(self.fc1(x)))))

    def gate_inputs(self, x):
        first = self.fc1(x)
        return first, self.fc2(first.relu())


def seen(net, x, **options):
    loss = ComplexityLoss(net, **({"estimator": "energy", "widths": NARROW} | options))
    with loss.watch() as gates:
        net(x)
    return loss, gates


def value_of(net, x, **options):
    loss, gates = seen(net, x, **options)
    return loss(gates)


def energies(loss):
    return list(loss._models.by_layer.values())


def test_is_the_sum_over_layers_of_the_mean_surprise():
    net = Net()
    loss, gates = seen(net, inputs())
    value = loss(gates)
    assert loss.layers == ("relu1", ":relu#0")
    expected = 0.0
    for energy, x in zip(energies(loss), net.gate_inputs(inputs()), strict=True):
        expected -= energy.log_prob_unnormalized(torch.sigmoid(100 * x)).mean().item()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics["complexity"] == value
    assert value.item() == pytest.approx(sum(loss.metrics[f"complexity/{layer}"].item() for layer in loss.layers))


def test_with_closed_form_gates():
    # One unit, inputs 0: soft gates .5 and log q = log .5 whatever p is; the prior alone.
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    nn.init.zeros_(net[0].bias)
    assert value_of(net, torch.zeros(3, 1), estimator="prior").item() == pytest.approx(math.log(2))


def test_the_gradient_goes_through_the_soft_gates_and_nothing_else():
    net = Net()
    loss, gates = seen(net, inputs())
    loss(gates).backward()
    got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert set(got) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    net.zero_grad()
    frozen = [energy.requires_grad_(False) for energy in energies(loss)]
    terms = [
        -energy.log_prob_unnormalized(torch.sigmoid(100 * x)).mean()
        for energy, x in zip(frozen, net.gate_inputs(inputs()), strict=True)
    ]
    sum(terms).backward()
    for name, gradient in got.items():
        assert torch.allclose(gradient, net.get_parameter(name).grad, rtol=1e-4, atol=1e-6), name


def test_the_network_and_the_energies_teach_each_other_nothing_by_accident():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    loss, gates = seen(net, inputs())
    value = loss(gates)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)), "the network is frozen"
    assert all(p.grad is None for p in net.parameters())
    fitted = [p.detach().clone() for energy in energies(loss) for p in energy.parameters()]
    value.backward()
    after = [p for energy in energies(loss) for p in energy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(fitted, after, strict=True))
    assert all(p.grad is None for p in after)


def test_the_energies_learn_with_each_call_in_train_mode_only():
    net = Net()
    loss, gates = seen(net, inputs())
    loss(gates)
    kept = [p.detach().clone() for p in energies(loss)[0].parameters()]
    for mode, moves in ((False, False), (True, True)):
        loss.train(mode)
        with loss.watch() as gates:
            net(inputs(1))
        loss(gates)
        now = list(energies(loss)[0].parameters())
        assert any(not torch.equal(a, b) for a, b in zip(kept, now, strict=True)) == moves


def test_lowers_the_surprise_of_the_gates():
    net = Net()
    loss = ComplexityLoss(net, estimator="prior")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    values = []
    for step in range(60):
        with loss.watch() as gates:
            net(inputs(step, 32))
        optimizer.zero_grad()
        value = loss(gates)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


@pytest.mark.parametrize("estimator", ["prior", "energy", "kernel"])
def test_where_rates_are_one_half_whatever_the_weights_the_prior_is_blind(estimator):
    """Ten gates without bias on symmetric inputs: each opens half of the time, so only joint patterns can change."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 10, bias=False), nn.ReLU())
    loss = ComplexityLoss(net, layers=-1, estimator=estimator)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    before = bits(net)
    for step in range(150):
        with loss.watch() as gates:
            net(inputs(step, 128, 4))
        optimizer.zero_grad()
        loss(gates).backward()
        optimizer.step()
    assert before > 6
    assert (bits(net) > 5) if estimator == "prior" else (bits(net) < 4)  # four seeds: 5.7 to 6.6, and 1.3 to 3.0


def bits(net):
    """The entropy of ten gates, by counting their patterns."""
    patterns = ((net[0](inputs(1000, 5000, 4)) > 0).long() * 2 ** torch.arange(10)).sum(1)
    rates = patterns.bincount() / len(patterns)
    return -torch.special.xlogy(rates, rates).sum().item() / math.log(2)


def test_no_optimiser_of_the_network_meets_the_energies():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.complexity = ComplexityLoss(self.net, widths=NARROW, estimator="energy")

    owner = Owner()
    with owner.complexity.watch() as gates:
        owner.net(inputs())
    owner.complexity(gates)
    assert set(owner.state_dict()) == {*(f"net.{key}" for key in Net().state_dict()), "complexity._extra_state"}
    assert len(list(owner.parameters())) == 6
    assert not owner.complexity.state_dict()["_extra_state"]["energies"]["relu1"]["net.0.weight"].requires_grad


def train(net, loss, steps):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in steps:
        with loss.watch() as gates:
            net(inputs(step))
        optimizer.zero_grad()
        (0.1 * loss(gates)).backward()
        optimizer.step()


def test_goes_on_from_its_state_dict_to_the_bit(tmp_path):
    whole = ComplexityLoss(Net(), widths=NARROW, estimator="energy")
    train(whole._model[0], whole, range(3))
    torch.save(whole.state_dict(), tmp_path / "loss.pt")
    other = ComplexityLoss(Net(), widths=NARROW, estimator="energy")
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert other.state_dict()["_extra_state"].keys() == whole.state_dict()["_extra_state"].keys(), "before any batch"
    net = Net()
    net.load_state_dict(whole._model[0].state_dict())
    resumed = ComplexityLoss(net, widths=NARROW, estimator="energy")
    resumed.load_state_dict(other.state_dict())
    train(whole._model[0], whole, range(3, 6))
    train(net, resumed, range(3, 6))
    for a, b in zip(energies(whole), energies(resumed), strict=True):
        assert torch.equal(a.chains, b.chains)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(whole._model[0].parameters(), net.parameters(), strict=True))


def test_a_checkpoint_of_other_layers_is_an_error():
    state = seen_and_called(Net(), layers=[":relu"]).state_dict()
    net = Net()
    loss = ComplexityLoss(net, layers=["relu1"], widths=NARROW, estimator="energy")
    loss.load_state_dict(state)
    with loss.watch() as gates:
        net(inputs())
    with pytest.raises(ValueError, match="models of the gates of layers :relu#0; those chosen are relu1"):
        loss(gates)


def seen_and_called(net, **options):
    loss, gates = seen(net, inputs(), **options)
    loss(gates)
    return loss


def test_an_in_place_relu_is_seen_before_it_overwrites():
    plain = Net()
    plain.relu1 = nn.ReLU()
    values, gradients = [], []
    for net in (Net(), plain):
        value = value_of(net, inputs())
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, net.fc1.weight)[0])
    assert values[0] == values[1]
    assert torch.equal(*gradients)


def test_watching_changes_no_output_and_no_gradient():
    net = Net()
    expected = torch.autograd.grad(net(inputs()).square().sum(), list(net.parameters()))
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with loss.watch() as gates:
        out = net(inputs())
    loss(gates)
    assert torch.equal(torch.get_rng_state(), before)
    got = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_several_passes_count_as_one_with_all_samples():
    net = Net()
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    with loss.watch() as gates:
        net(inputs(1))
        with torch.no_grad():
            net(inputs(9))
        net(inputs(2))
    assert loss(gates) == value_of(net, torch.cat([inputs(1), inputs(2)]))
    assert loss.samples == 2 * BATCH


class Checkpointed(Net):
    reentrant = False

    def forward(self, x):
        hidden = checkpoint(lambda x: self.relu1(self.fc1(x)), x, use_reentrant=self.reentrant)
        return self.fc3(F.relu(self.fc2(hidden)))


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for net in (Net(), Checkpointed()):
        loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
        with loss.watch() as gates:
            out = net(inputs())
        (out.square().mean() + loss(gates)).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_layers_in_reentrant_checkpointing_run_without_gradients():
    net = Checkpointed()
    net.reentrant = True
    x = inputs().requires_grad_()
    assert seen(net, x)[0].layers == (":relu#0",)
    with pytest.raises(ValueError, match="'relu1' runs without gradients.*use_reentrant=False"):
        seen(net, x, layers=["relu1"])


@pytest.mark.parametrize("called", [False, True])
def test_no_tensor_stays_alive_without_a_backward_pass(called, request):
    gc.freeze()  # half a million objects of other tests: to look through them takes seconds
    request.addfinalizer(gc.unfreeze)
    net, alive = Net(), []
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    for _ in range(6):
        with loss.watch() as gates:
            net(inputs())
        if called:
            loss(gates)
        gc.collect()
        alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert alive[2] == alive[-1]


def test_passes_without_gradients_take_no_number():
    net = nn.Sequential(nn.Linear(5, 4), relu := nn.ReLU(), nn.Linear(4, 5), relu)

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with torch.no_grad():
                self.net(x)
            return self.net(x)

    looking, gates = seen(Looks(), inputs())
    assert looking.layers == ("net.1", "net.1#1")
    assert looking(gates) == value_of(net, inputs())


def test_a_layer_left_out_sends_no_nan():
    net = Net()
    loss = seen_and_called(net)
    broken = inputs()
    broken[0, 0] = float("nan")
    with loss.watch() as gates:
        net(broken)
    gradients = torch.autograd.grad(loss(gates), [net.fc1.bias, net.fc2.bias])
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@pytest.mark.parametrize("trained", [False, True])
def test_a_value_without_gradients_in_eval_mode(trained):
    net = Net()
    loss = seen_and_called(net) if trained else ComplexityLoss(net, widths=NARROW, estimator="energy")
    fits = [energy.num_updates for energy in energies(loss)]
    values = []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        loss.eval()
        with context():
            with loss.watch() as gates:
                net(inputs(3))
            values.append(loss(gates).item())
    assert values[0] == values[1] == values[2]
    assert trained or values[0] == pytest.approx(11 * math.log(2), rel=1e-3), "the prior of 7 + 4 gates"
    assert [energy.num_updates for energy in energies(loss)] == fits
    loss.train()
    with loss.watch() as gates:
        net(inputs())
    assert loss(gates).requires_grad


def test_a_resumed_fit_takes_the_new_rate_and_refuses_other_models():
    state = seen_and_called(Net(), energy_lr=0.1).state_dict()

    def resumed(**options):
        loss = ComplexityLoss(net := Net(), **({"widths": NARROW, "estimator": "energy"} | options))
        loss.load_state_dict(state)
        with loss.watch() as gates:
            net(inputs())
        loss(gates)
        return loss

    assert resumed(energy_lr=1e-4)._models._optimizer.param_groups[0]["lr"] == 1e-4
    for options in ({"widths": (4, 4)}, {"chains": 3}):
        with pytest.raises(ValueError, match="model of layer 'relu1' does not fit: give the estimator, widths"):
            resumed(**options)


def test_a_checkpoint_from_before_the_loss_was_added():
    owner = nn.Module()
    owner.net = Net()
    state = owner.state_dict()
    owner.complexity = ComplexityLoss(owner.net, widths=NARROW, estimator="energy")
    owner.load_state_dict(state)


def test_tokens_that_are_not_contiguous():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x):
            return F.relu(self.linear(x).transpose(1, 2))

    assert value_of(Tokens(), torch.randn(3, 6, 5, generator=generator())).isfinite()


def test_a_frozen_network_is_refused():
    with pytest.raises(ValueError, match="no parameter that trains is before the gating layers relu1, :relu#0"):
        seen(Net().requires_grad_(False), inputs())


def test_a_compiled_network_is_seen():
    net = Net()
    compiled = torch.compile(net, backend="eager")
    compiled(inputs())
    loss = ComplexityLoss(compiled, widths=NARROW, estimator="energy")
    with loss.watch() as gates:
        compiled(inputs())
    assert loss(gates) == value_of(Net(), inputs())
    assert loss.layers == ("relu1", ":relu#0")


def test_energies_are_float32_under_autocast():
    net = Net()
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    with torch.autocast("cpu", torch.bfloat16):
        with loss.watch() as gates:
            out = net(inputs())
        value = loss(gates)
    assert out.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in energies(loss)[0].parameters())
    value.backward()
    assert net.fc1.weight.grad.abs().sum() > 0


def test_maps_tokens_and_single_numbers_have_energies():
    class Shapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, generator=generator()))

        def forward(self, x):
            for shape in ((4, 24), (4, 2, 3, 4), (4, 6, 4), (96,)):
                x = F.gelu(x.view(shape) * self.weight)
            return x

    net = Shapes()
    loss = ComplexityLoss(net, None, widths=NARROW, estimator="energy")
    with loss.watch() as gates:
        net(torch.randn(4, 24, generator=generator()))
    loss(gates)
    assert [energy.shape for energy in energies(loss)] == [(24,), (2, 3, 4), (6, 4), (1,)]


def test_what_cannot_be_is_said_in_a_line():
    net = Net()
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    with pytest.raises(RuntimeError, match=r"no forward pass with gradients was seen: call the model inside watch"):
        with loss.watch() as gates:
            pass
        loss(gates)
    with pytest.raises(ValueError, match="no gating layer 'relu7'; there are: relu1, :relu#0"):
        seen(net, inputs(), layers=["relu7"])
    with pytest.raises(RuntimeError, match="saw no gate"):
        seen(nn.Linear(5, 2), inputs())
    for options, message in (
        ({"beta": float("inf")}, "beta is inf; expected a number > 0"),
        ({"energy_lr": float("nan")}, "energy_lr is nan; expected a number > 0"),
        ({"l2": -1.0}, "l2 is -1.0; expected a number >= 0"),
        ({"l2": float("nan")}, "l2 is nan; expected a number >= 0"),
        ({"layers": []}, r"layers is \[\]"),
        ({"widths": (8, 0)}, "widths is 0 in an energy model of gates .*; expected a number >= 1"),
        ({"layers": 0}, "layers is 0"),
        ({"estimator": "f"}, "estimator is 'f'; expected one of prior, energy, kernel"),
        ({"positions": 0}, "positions is 0; expected a number >= 1, or None for all"),
        ({"beta": 0}, "beta is 0; expected a number > 0"),
        ({"energy_lr": -1.0}, "energy_lr is -1.0; expected a number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ComplexityLoss(net, **options)


def test_a_shape_that_changes_is_an_error():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    loss = ComplexityLoss(net, widths=NARROW, estimator="energy")
    for size in (8, 10):
        with loss.watch() as gates:
            net(torch.randn(2, 1, size, size))
        if size == 8:
            loss(gates)
    with pytest.raises(ValueError, match=r"gating layer '1' changed its shape from \(2, 6, 6\) to \(2, 8, 8\)"):
        loss(gates)


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match=r"gating layer 'relu1' met an empty batch, of shape \(0, 7\)"):
        seen(Net(), inputs(batch=0))


def test_a_batch_of_one():
    assert value_of(Net(), inputs(batch=1)).isfinite()


def test_what_is_not_finite_is_left_out_and_counted_and_then_stops():
    net = Net()
    loss = seen_and_called(net)
    broken = inputs()
    broken[0, 0] = float("nan")
    with loss.watch() as gates:
        net(broken)
    assert loss(gates) == 0
    assert loss.nonfinite_skips == 2  # both layers
    with loss.watch() as gates:
        net(inputs())
    assert loss(gates).isfinite(), "the energies have not learned the NaN"
    with torch.no_grad():
        energies(loss)[1].readout.fill_(1e9)  # exploded
    with loss.watch() as gates:
        net(inputs())
    value = loss(gates)
    assert value == loss.metrics["complexity/relu1"]
    assert torch.autograd.grad(value, net.fc2.weight)[0].abs().sum() == 0
    with pytest.raises(FloatingPointError, match="layer ':relu#0' were not finite 1. times in a row; lower energy_lr"):
        for _ in range(20):
            with loss.watch() as gates:
                net(inputs())
            loss(gates)


def after_some_steps(rank, batches, steps=3):
    """What the parameters, gradients and chains are after some steps of plain data parallelism."""
    net = Net()
    loss = ComplexityLoss(net, widths=NARROW, chains=16, estimator="energy")
    for number in range(steps):
        own = inputs(number, 9)[batches[rank]]
        with loss.watch() as gates:
            net(own)
        gradients = torch.autograd.grad(loss(gates), list(net.parameters())[:4])
        gradients = [gradient * len(own) / 9 for gradient in gradients]
        for gradient in gradients if len(batches) > 1 else []:
            torch.distributed.all_reduce(gradient)
    return {"gradients": gradients, "energies": [e.state_dict() for e in energies(loss)]}


def test_two_processes_have_the_gradients_and_energies_of_one_on_their_joint_batch():
    one = after_some_steps(0, [slice(None)])
    first, second = on_ranks(2, partial(after_some_steps, batches=[slice(0, 5), slice(5, 9)]))
    for ours, theirs in zip(first["gradients"], one["gradients"], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        assert theirs.abs().sum() > 0
    for ours, other, theirs in zip(first["energies"], second["energies"], one["energies"], strict=True):
        for key, value in theirs.items():
            if isinstance(value, dict):
                assert ours[key] == value == other[key]
            elif key in ("chains", "rates"):
                assert torch.equal(ours[key], value), key
            else:
                assert torch.equal(ours[key], other[key])
                assert torch.allclose(ours[key], value, rtol=1e-4, atol=1e-6), key


def test_with_half_precision_and_a_gradient_scaler_it_is_the_same_within_rounding():
    def last_gradients(half):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        complexity, optimizer = (
            ComplexityLoss(net, layers=-2, estimator="energy"),
            torch.optim.SGD(net.parameters(), 0.01),
        )
        scaler = torch.amp.GradScaler("cpu", enabled=half)
        for _ in range(3):
            with torch.autocast("cpu", torch.float16, enabled=half):
                with complexity.watch() as gates:
                    logits = net(torch.randn(32, 20))
                loss = logits.float().square().mean() + 0.01 * complexity(gates)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert complexity.nonfinite_skips == 0
        return [parameter.grad for parameter in net.parameters()]

    for full, half in zip(last_gradients(False), last_gradients(True), strict=True):
        assert (full - half).norm() < 0.05 * full.norm()
