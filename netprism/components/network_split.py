"""A trained network, cut in two at a layer: the feature f(x) there, and the head g that turns it into logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from netprism.gates.calls import GateCall, watch_gates
from netprism.module_names import module_names, run_eagerly
from netprism.nets.fitting import heads_of
from netprism.taps import find_layer, tap


class SplitNetwork:
    """A network as f and g with logits g(f(x)), where f is the output of a named layer.

    A layer that consists of several and returns what its last activation gives, as a residual block does, is cut before
    this activation: f is its input, and the head g begins with it. To cut behind it, name the activation's own module.

    The head is the network itself with the layer's output replaced, so nothing of its code has to be known. The layers
    before run too, on one blank input: a cost that does not grow with the batch. Where the network reads the batch size
    from its input, one blank input per feature is used.

    The network is used in the mode that it has: put it in eval mode, and call this under `torch.no_grad()` where that
    is meant.

    Args:
        network: Takes one tensor `(N, ...)`; returns logits `(N, classes)`, or a mapping that has them as "logits".
        layer: A name out of `netprism.taps.layer_names(network)`; `relu#1` is the second call of the module `relu`.
        head: None to find it; otherwise a module that takes the layer's output, or names of the network's modules that
            turn it into logits one after the other (vectors are flattened before a linear layer), such as
            `["avgpool", "fc"]`.
        relative_to: A part of the network; layers may then be named as seen from there, as well as from the network.

    Example:
        >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 2))
        >>> cut = SplitNetwork(network, "0")
        >>> x = torch.randn(4, 2)
        >>> cut.find_head(x)
        >>> torch.equal(cut.feature(x), network[0][0](x)), torch.equal(cut.head(cut.feature(x)), network(x))
        (True, True)
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        head: nn.Module | Sequence[str] | None = None,
        relative_to: nn.Module | None = None,
    ) -> None:
        self.network, self.layer, self.relative_to = network, layer, relative_to
        self.dtype = torch.float32  # of the last feature
        self._given = head
        self._ending: GateCall | None = None  # the activation that ends the layer
        self._blank: Tensor | None = None  # one input of zeros
        self._one_blank_per_feature = False

    def feature(self, x: Tensor) -> Tensor:
        """Maps inputs `(N, ...)` to f `(N, ...)`, without gradients.

        Raises:
            ValueError: The network has no such layer; the message lists those that it has.
            TypeError: The layer does not return one tensor.
        """
        if self._blank is None:
            feature = self._first_feature(x)
        elif self._ending is None:
            feature = self._run(x)[0]
        else:
            ending, inputs = self._ending.layer, []
            with watch_gates(self.network, lambda call: inputs.append(_kept(call)) if call.layer == ending else None):
                self.network(x)
            feature = inputs[0].input
        self.dtype = feature.dtype
        return feature

    @property
    def ending(self) -> str | None:
        """The activation that ends the layer, before which f is, as gates are named; known after `feature`."""
        return None if self._ending is None else self._ending.layer

    def find_head(self, x: Tensor) -> None:
        """Finds out how g is run, and checks that g(f(x)) are the network's own logits; once, before `head`.

        Raises:
            ValueError: They are not: a skip connection passes the layer by, or the given head is another one.
            TypeError: The network returns no logits.
        """
        feature = self.feature(x)
        logits = logits_of(self._run(x)[1])
        for one_blank_per_feature in (False, True):
            self._one_blank_per_feature = one_blank_per_feature
            try:
                found = self.head(feature)
            except (RuntimeError, IndexError):  # torch's errors of shapes that do not fit
                continue
            if found.shape == logits.shape and torch.allclose(found, logits, rtol=1e-3, atol=1e-4):
                return
        name = type(self.network).__name__
        if self._given is not None:
            raise ValueError(f"head is {self._given}; expected one that makes the logits of {name} of {self.layer!r}")
        raise ValueError(
            f"the head cannot be found: {name} makes its logits of more than layer {self.layer!r}; expected a later "
            'layer, or the modules of the head: head=["avgpool", "fc"]'
        )

    def head(self, feature: Tensor) -> Tensor:
        """Maps f `(N, ...)` to logits `(N, classes)`; gradients flow. `find_head` has to be called before."""
        if self._blank is None:
            raise RuntimeError("the head is not known yet: call find_head first")
        value = feature.clone()  # what follows may work in place
        if self._ending is not None:
            value = self._ending.rerun(value)
        if self._given is None:
            return self._run_on(value)
        if isinstance(self._given, nn.Module):
            return logits_of(self._given(value))
        for name in self._given:
            module = find_layer(self.network, name, self.relative_to)
            value = module(value.flatten(1) if isinstance(module, nn.Linear) else value)
        return value

    def _first_feature(self, x: Tensor) -> Tensor:
        """The feature of the first call, which also finds where the layer ends."""
        inside: list[GateCall] = []
        own = module_names(self.network)[self._module]

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
        with tap(self.network, [self.layer], detach=True, relative_to=self.relative_to) as features:
            output = self.network(x)
        return features[self.layer], output

    def _run_on(self, value: Tensor) -> Tensor:
        """The network's logits where the layer returns `value`."""
        assert self._blank is not None
        number = self.layer.partition("#")[2]
        calls = 0

        def swap(module: nn.Module, args: object, output: object) -> Tensor | None:
            nonlocal calls
            calls += 1
            return value if calls == int(number or 0) + 1 else None

        count = len(value) if self._one_blank_per_feature else 1
        blank = self._blank.to(value.device).expand(count, *self._blank.shape[1:])
        handle = self._module.register_forward_hook(swap)
        try:
            with run_eagerly():
                return logits_of(self.network(blank))
        finally:
            handle.remove()

    @property
    def _module(self) -> nn.Module:
        return find_layer(self.network, self.layer.partition("#")[0], self.relative_to)


def features_and_output(cuts: Sequence[SplitNetwork], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Returns f of several layers of one network, and its output, in one pass; gradients flow.

    Args:
        cuts: The network, cut at each layer; `feature` has been called once on each.
        x: Inputs `(N, ...)`.
    """
    network = cuts[0].network
    endings = {cut.ending for cut in cuts}
    inputs: dict[str, Tensor] = {}

    def visit(call: GateCall) -> None:
        if call.layer in endings:
            inputs[call.layer] = call.input.clone()  # the network may continue in place

    plain = list(dict.fromkeys(cut.layer for cut in cuts if cut.ending is None))
    with tap(network, plain) as features, watch_gates(network, visit) if endings - {None} else nullcontext():
        output = network(x)
    return [features[cut.layer] if cut.ending is None else inputs[cut.ending] for cut in cuts], output


def logits_of(output: object) -> Tensor:
    """Returns the logits of what a classifier returns: the tensor itself, or what a mapping or tuple calls "logits".

    Raises:
        TypeError: It is neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else heads_of(output)[0]
    if not isinstance(logits, Tensor):
        raise TypeError(f"the network returns {type(output).__name__} without logits; expected (N, classes) logits")
    return logits


def _kept(call: GateCall) -> GateCall:
    """The call with a copy of the input: the network may continue in place."""
    return replace(call, input=call.input.detach().clone())


def _gives(call: GateCall, output: Tensor) -> bool:
    return call.input.shape == output.shape and torch.equal(call.rerun(call.input.clone()), output)
