"""A model on which anything happens in any order: after every step it computes what the web UI's way does by hand.

``HNKERNELS_FUZZ=20 pytest tests/adapter/test_random_walk.py`` takes twenty times as many steps as the suite does.
"""

import copy
import io
import os
import pickle
import threading
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import hnkernels as hn
from tests.adapter.test_attach import fingerprint
from tests.adapter.test_weights import make_generator
from tests.models import (
    FEWER_LAYERS,
    TEXT_WIDTH,
    WIDTHS,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    randomise,
    reference_of,
    relative_error,
    tiny_unet,
)

STEPS = 40
EXAMPLES = 6 * int(os.environ.get("HNKERNELS_FUZZ", "1"))
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3}  # rounding grows on its way through some fifty layers

NETWORKS = {
    "affine": {"activation": None},
    "relu": {"activation": "relu"},
    "normed": {"activation": "swish", "layer_norm": True},
    "text": {"sizes": (TEXT_WIDTH,), "activation": "tanh"},
    "wide": {"sizes": WIDTHS, "activation": "linear", "layer_structure": (1, 1.5, 1)},
}
NAMES = ("first", "second", "third")
# Binary fractions: strengths by row are fp32.
STRENGTHS = (1.0, 0.0, -0.375, 0.75, hn.PerRow(0, 1), hn.PerRow(0.5, -0.25), {"attn2": 0.25, "k": 0.5}, {"attn1": 0})
LAYERS = ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn1")


class Broken(Exception):
    """Raised in the middle of a call."""


@dataclass
class Truth:
    """What is known of an attached network without asking it."""

    references: dict[int, Any] | None = None  # by width, K's MLP and V's; generated weights have none
    changes: dict[str, torch.Tensor] = field(default_factory=dict)  # by linear, what is added to its weight
    kinds: tuple[str, ...] = ("attn1", "attn2")
    strength: Any = 1.0
    enabled: bool = True
    training: bool = False


def by_row(strength, kind, stream):
    """The strength at a kind of attention and a stream, for the two rows of a batch. Shape: [2, 1, 1]."""
    factor = torch.ones(2)
    for key, value in strength.items() if isinstance(strength, dict) else [(kind, strength)]:
        if key in (kind, stream):
            factor = factor * torch.tensor(value.values if isinstance(value, hn.PerRow) else value)
    return factor.double()[:, None, None]


def dense(weights):
    """What is added to the weight of each linear."""
    return {layer: change[0] for layer, change in weights.dense().items()}


class Walk(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed):
        torch.manual_seed(seed)
        self.unet = tiny_unet(torch.float64, **FEWER_LAYERS)
        randomise(self.unet, 0.2)
        self.pure = copied(self.unet)
        self.before = fingerprint(self.unet)
        self.there: dict[str, Truth] = {}  # in the order in which they were attached
        self.loras = 0
        self.grad = self.checkpointed = False
        self.dtype = torch.float64
        self.x, self.texts = noise(dtype=torch.float64), [prompt(dtype=torch.float64) for _ in range(2)]

    # What is attached.

    @rule(
        name=st.sampled_from(NAMES),
        network=st.sampled_from(sorted(NETWORKS)),
        kinds=st.sampled_from([("attn1", "attn2"), ("attn2",)]),
    )
    def attach(self, name, network, kinds):
        net = make_net(**{"std": 0.2, **NETWORKS[network]}).double().eval()
        if name in self.there or (kinds == ("attn2",) and TEXT_WIDTH not in net):
            return
        hn.attach(self.unet, net, targets=kinds, name=name)
        self.there[name] = Truth({d: [reference_of(mlp) for mlp in net[d]] for d in net}, kinds=kinds)

    @rule(name=st.sampled_from(NAMES))
    def attach_generated_weights(self, name):
        if name in self.there:
            return
        weights = self._weights()
        hn.attach(self.unet, weights, name=name)
        self.there[name] = Truth(changes=dense(weights))

    @precondition(lambda self: any(truth.references is None for truth in self.there.values()))
    @rule(data=st.data(), what=st.sampled_from(["other", "none", "for a while"]))
    def condition(self, data, what):
        name = data.draw(st.sampled_from(sorted(n for n, truth in self.there.items() if truth.references is None)))
        adapter, truth = hn.adapters(self.unet)[name], self.there[name]
        weights = self._weights()
        if what == "for a while":
            before, truth.changes = truth.changes, dense(weights)
            with adapter.condition(weights):
                self.check()
            truth.changes = before
        else:
            adapter.weights, truth.changes = (None, {}) if what == "none" else (weights, dense(weights))

    def _weights(self):
        return make_generator(self.pure, target_layers=[*LAYERS])(["ink"]).detach()

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def detach(self, data):
        name = data.draw(st.sampled_from(sorted(self.there)))
        hn.adapters(self.unet)[name].detach()
        del self.there[name]

    @precondition(lambda self: self.there)
    @rule(data=st.data(), strength=st.sampled_from(STRENGTHS))
    def strength(self, data, strength):
        name = data.draw(st.sampled_from(sorted(self.there)))
        truth = self.there[name]
        if isinstance(strength, dict) and (truth.references is None or len(truth.kinds) < 2):
            return
        hn.adapters(self.unet)[name].strength = truth.strength = strength

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def switch(self, data):
        name = data.draw(st.sampled_from(sorted(self.there)))
        self.there[name].enabled = not self.there[name].enabled
        hn.adapters(self.unet)[name].enabled = self.there[name].enabled

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def fuse(self, data):
        adapter = hn.adapters(self.unet)[data.draw(st.sampled_from(sorted(self.there)))]
        if isinstance(adapter, hn.WeightAdapter):
            return
        if adapter.fused:
            adapter.unfuse()
        else:
            try:
                adapter.fuse()
            except hn.AdapterError:
                return

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def train_or_eval(self, data):
        name = data.draw(st.sampled_from(sorted(self.there)))
        truth = self.there[name]
        if truth.references is not None:
            truth.training = not truth.training
            hn.adapters(self.unet)[name].net.train(truth.training)

    @precondition(lambda self: self.there)
    @rule(data=st.data(), in_place=st.booleans())
    def train_the_network(self, data, in_place):
        name = data.draw(st.sampled_from(sorted(self.there)))
        truth, net = self.there[name], getattr(hn.adapters(self.unet)[name], "net", None)
        if truth.references is None:
            return
        parameter = next(net.parameters())
        with torch.no_grad():
            if in_place:
                parameter.mul_(1.1)
            else:
                parameter.data = parameter.data * 1.1
        truth.references = {d: [reference_of(mlp) for mlp in net[d]] for d in net}

    # What other tools do.

    @rule(layer=st.sampled_from(LAYERS), stream=st.sampled_from(["to_k", "to_v"]), how=st.integers(0, 2))
    def write_into_the_model(self, layer, stream, how):
        for model in (self.unet, self.pure):
            linear = model.get_submodule(f"{layer}.{stream}")
            linear = getattr(linear, "base_layer", linear)
            with torch.no_grad():
                if how == 0:
                    linear.weight.mul_(1.01)
                elif how == 1:
                    linear.weight.data.mul_(1.01)
                else:
                    linear.weight = torch.nn.Parameter(linear.weight * 1.01, requires_grad=False)
        if how == 1:  # no trace: seen when the next sampling run starts
            self.texts = [text.clone() for text in self.texts]

    @precondition(lambda self: self.loras < 2)
    @rule()
    def add_a_lora(self):
        name = f"lora{self.loras}"
        config = peft.LoraConfig(r=2, target_modules=["to_k", "to_v", "to_q"], init_lora_weights=False)
        for model in (self.unet, self.pure):
            model.add_adapter(copy.deepcopy(config), adapter_name=name)
        self.pure.load_state_dict(self.unet.state_dict())
        self._same_modes()
        self.loras += 1

    @precondition(lambda self: self.loras)
    @rule(what=st.sampled_from(["off", "on", "scale", "fuse", "unfuse", "delete"]))
    def change_the_loras(self, what):
        names = [f"lora{i}" for i in range(self.loras)]
        for model in (self.unet, self.pure):
            if what == "off":
                model.disable_lora()
            elif what == "on":
                model.enable_lora()
            elif what == "scale":
                model.set_adapters(names, [0.5] * len(names))
            elif what == "fuse":
                model.fuse_lora()
            elif what == "unfuse":
                model.unfuse_lora()
            else:
                model.unfuse_lora()
                model.unload_lora()
        if what == "delete":
            self.loras = 0
        self._same_modes()

    def _same_modes(self):
        for model in (self.unet, self.pure):
            model.eval().requires_grad_(False).to(self.dtype)
        for name, truth in self.there.items():
            if truth.references is not None:
                hn.adapters(self.unet)[name].net.train(truth.training)

    @rule(on=st.booleans())
    def checkpointing(self, on):
        self.checkpointed = on
        for model in (self.unet, self.pure):
            (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()

    @rule()
    def other_dtype(self):
        self.dtype = torch.float32 if self.dtype == torch.float64 else torch.float64
        for model in (self.unet, self.pure):
            torch.nn.Module.to(model, self.dtype)
        self.x, self.texts = self.x.to(self.dtype), [text.to(self.dtype) for text in self.texts]

    @rule()
    def away_and_back(self):
        state = {key: value.clone() for key, value in self.unet.state_dict().items()}
        self.unet.to("meta")
        self.unet.to_empty(device="cpu").load_state_dict(state)

    @rule(on=st.booleans())
    def compile_a_block(self, on):
        block = self.unet.get_submodule(LAYERS[0].rpartition(".")[0])
        if on:
            block.compile(backend="eager")
        else:
            block._compiled_call_impl = None

    # What happens to calls.

    @rule()
    def an_exception_in_a_layer(self):
        def fail(*_):
            raise Broken

        hook = self.unet.mid_block.register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            denoise(self.unet, self.x, self.texts[0])
        hook.remove()

    @rule()
    def another_thread(self):
        results = []
        expected = self._expected(self.texts[1])
        thread = threading.Thread(target=lambda: results.append(self._computed(self.texts[1])))
        thread.start()
        thread.join()
        assert relative_error(results[0], expected) < TOLERANCE[self.dtype]

    @rule(how=st.sampled_from(["copy", "pickle", "torch.save"]))
    def copied(self, how):
        if how == "copy" or self.checkpointed:  # diffusers' checkpointing cannot be pickled
            self.unet = copy.deepcopy(self.unet)
        elif how == "pickle":
            self.unet = pickle.loads(pickle.dumps(self.unet))
        else:
            buffer = io.BytesIO()
            torch.save(self.unet, buffer)
            buffer.seek(0)
            self.unet = torch.load(buffer, weights_only=False)

    @rule()
    def other_prompts(self):
        self.texts = [prompt(dtype=self.dtype) for _ in range(2)]

    @rule()
    def gradients(self):
        self.grad = not self.grad

    @rule()
    def a_training_step(self):
        nets = [a.net for a in hn.adapters(self.unet).values() if getattr(a, "net", None) is not None]
        loss = denoise(self.unet, self.x, self.texts[0]).square().sum()
        if loss.requires_grad:
            loss.backward()
        for net in nets:
            net.zero_grad()

    def _computed(self, text):
        with torch.set_grad_enabled(self.grad):
            return denoise(self.unet, self.x, text).detach()

    @torch.no_grad()
    def _expected(self, text):
        hooks = []
        for name, layer in attention_layers(self.pure).items():
            for stream, projection in enumerate(("to_k", "to_v")):
                hooks.append(getattr(layer, projection).register_forward_pre_hook(self._chain(name, stream)))
        for name, truth in self.there.items():
            for path, change in truth.changes.items():
                if truth.enabled:
                    hooks.append(self.pure.get_submodule(path).register_forward_hook(self._change(name, change)))
        try:
            return denoise(self.pure, self.x, text)
        finally:
            for hook in hooks:
                hook.remove()

    def _chain(self, name, stream):
        kind = name.rsplit(".", 1)[-1]

        def chain(module, args):
            x = args[0].double()
            for truth in self.there.values():
                if truth.enabled and kind in truth.kinds and truth.references and x.shape[-1] in truth.references:
                    strength = 1.0 if truth.training else by_row(truth.strength, kind, "kv"[stream])
                    x = x + strength * (truth.references[x.shape[-1]][stream](x) - x)
            return x.to(args[0].dtype), *args[1:]

        return chain

    def _change(self, name, change):
        def add(module, args, output):
            strength = by_row(self.there[name].strength, "any", "any")
            return (output.double() + strength * (args[0].double() @ change.T)).to(output.dtype)

        return add

    @invariant()
    def check(self):
        expected = [self._expected(text) for text in self.texts]
        for text, exact in zip((*self.texts, self.texts[0]), (*expected, expected[0]), strict=True):
            assert relative_error(self._computed(text), exact) < TOLERANCE[self.dtype]

    def teardown(self):
        if not hasattr(self, "unet"):
            return
        for adapter in list(hn.adapters(self.unet).values()):
            adapter.detach()
        state, kept = self.unet.state_dict(), self.pure.state_dict()
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        if not self.loras:
            assert {n for n, m in self.unet.named_modules() if "forward" in m.__dict__} == set()
            assert not any(m._forward_pre_hooks or m._forward_hooks for m in self.unet.modules())
        with torch.no_grad():
            assert torch.equal(denoise(self.unet, self.x, self.texts[0]), denoise(self.pure, self.x, self.texts[0]))


def test_anything_in_any_order():
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True)
    )
