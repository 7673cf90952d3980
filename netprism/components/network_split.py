"""A trained network, cut in two at a layer: the feature f(x) there, and the head g that makes logits of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from netprism.gates.calls import GateCall, watch_gates
from netprism.module_names import module_names, run_eagerly
from netprism.taps import tap


class SplitNetwork:
    """A network as f and g with logits g(f(x)), where f is the output of a named layer.

    A layer that is made of several and returns what its last activation gives, as a residual block does, is cut before
    this activation: f is its input, and the head g begins with it. To cut behind it, name the activation's own module.

    The head is the network itself with the layer's output replaced, so nothing of its code has to be known. What lies
    before the layer runs along on one blank input, a cost that does not grow with the batch (on as many as there are
    features where the network asks its input for the batch size).

    The network is used as it is: put it in eval mode, and call this under `torch.no_grad()` where that is meant.

    Args:
        network: takes one tensor `(N, ...)`; returns logits `(N, classes)`, or a mapping that has them as "logits".
        layer: one of `netprism.taps.layer_names(network)`; `relu#1` is the second call of the module `relu`.
        head: None to find it; else a module that takes the layer's output, or names of the network's modules that make
            logits of it one after the other (vectors are flattened before a linear layer), such as `["avgpool", "fc"]`.

    Example:
        >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 2))
        >>> split = SplitNetwork(network, "0")
        >>> x = torch.randn(4, 2)
        >>> split.find_head(x)
        >>> torch.equal(split.feature(x), network[0][0](x)), torch.equal(split.head(split.feature(x)), network(x))
        (True, True)
    """

    def __init__(self, network: nn.Module, layer: str, head: nn.Module | Sequence[str] | None = None) -> None:
        self.network, self.layer = network, layer
        self._given = head
        self._ending: GateCall | None = None  # the activation that ends the layer
        self._blank: Tensor | None = None  # one input of zeros
        self._blanks_as_features = False

    def feature(self, x: Tensor) -> Tensor:
        """Inputs `(N, ...)` to f `(N, ...)`, without gradients.

        Raises:
            ValueError: the network has no such layer; the message lists those that it has.
            TypeError: the layer returns something else than one tensor.
        """
        if self._blank is None:
            return self._first_feature(x)
        inputs: list[Tensor] = []
        if self._ending is None:
            return self._run(x)[0]
        ending = self._ending.layer
        with watch_gates(self.network, lambda call: inputs.append(_kept(call).input) if call.layer == ending else None):
            self.network(x)
        return inputs[0]

    def find_head(self, x: Tensor) -> None:
        """Finds out how g is run, and checks that g(f(x)) are the network's own logits; once, before `head`.

        Raises:
            ValueError: they are not: a skip connection goes around the layer, or the given head is another one.
            TypeError: the network returns no logits.
        """
        feature = self.feature(x)
        logits = logits_of(self._run(x)[1])
        for self._blanks_as_features in (False, True):
            try:
                found = self.head(feature)
            except (RuntimeError, IndexError):  # torch's errors of shapes that do not fit
                continue
            if found.shape == logits.shape and torch.allclose(found, logits, rtol=1e-3, atol=1e-4):
                return
        name = type(self.network).__name__
        if self._given is not None:
            raise ValueError(f"the head {self._given} makes other logits of layer {self.layer!r} than {name} does")
        raise ValueError(
            f"the head cannot be found: {name} makes its logits of more than layer {self.layer!r}; name a later layer, "
            'or the modules of the head: head=["avgpool", "fc"]'
        )

    def head(self, feature: Tensor) -> Tensor:
        """F `(N, ...)` to logits `(N, classes)`; gradients flow. `find_head` has to be called before."""
        if self._blank is None:
            raise RuntimeError("call find_head first")
        value = feature if self._ending is None else self._ending.rerun(feature.clone())  # it may work in place
        if self._given is None:
            return self._run_on(value)
        if isinstance(self._given, nn.Module):
            return logits_of(self._given(value))
        for module in map(self._module, self._given):
            value = module(value.flatten(1) if isinstance(module, nn.Linear) else value)
        return value

    def _first_feature(self, x: Tensor) -> Tensor:
        """Also finds where the layer ends."""
        inside: list[GateCall] = []
        own = self.layer.partition("#")[0]

        def visit(call: GateCall) -> None:
            if call.layer.startswith((f"{own}.", f"{own}:")):
                inside.append(_kept(call))

        with watch_gates(self.network, visit):
            output, _ = self._run(x)
        self._ending = next((call for call in reversed(inside) if _gives(call, output)), None)
        self._blank = torch.zeros_like(x[:1])
        return output if self._ending is None else self._ending.input

    def _run(self, x: Tensor) -> tuple[Tensor, object]:
        """The layer's output and the network's."""
        with tap(self.network, [self.layer], detach=True) as features:
            output = self.network(x)
        return features[self.layer], output

    def _run_on(self, value: Tensor) -> Tensor:
        """The network's logits where the layer returns `value`."""
        assert self._blank is not None
        name, _, number = self.layer.partition("#")
        calls = 0

        def swap(module: nn.Module, args: object, output: object) -> Tensor | None:
            nonlocal calls
            calls += 1
            return value if calls == int(number or 0) + 1 else None

        count = len(value) if self._blanks_as_features else 1
        blank = self._blank.to(value.device).expand(count, *self._blank.shape[1:])
        handle = self._module(name).register_forward_hook(swap)
        try:
            with run_eagerly():
                return logits_of(self.network(blank))
        finally:
            handle.remove()

    def _module(self, name: str) -> nn.Module:
        for module, path in module_names(self.network).items():
            if path == name:
                return module
        raise ValueError(f"{type(self.network).__name__} has no module {name!r} for its head")


def logits_of(output: object) -> Tensor:
    """The logits of what a classifier returns: the tensor itself, or what a mapping has as "logits".

    Raises:
        TypeError: neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(logits, Tensor):
        raise TypeError(f"the network returns {type(output).__name__} without logits; expected (N, classes) logits")
    return logits


def _kept(call: GateCall) -> GateCall:
    """With a copy of the input: the network may go on in place."""
    return replace(call, input=call.input.detach().clone())


def _gives(call: GateCall, output: Tensor) -> bool:
    return call.input.shape == output.shape and torch.equal(call.rerun(call.input.clone()), output)
