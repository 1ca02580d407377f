"""The node that lets a hypernetwork act on the prompts that have its hook, with doubles of ComfyUI's hooks."""

from __future__ import annotations

import pytest

from tests.integrations.conftest import HookScope
from tests.integrations.nodes import apply, inputs, node, weight_net, where
from tests.integrations.patched_unet import make_patcher, sample
from tests.models import UNET_TOLERANCE, make_net, relative_error


def hook(patcher, net, strength=1.0, **options):
    return node("Hook").create(patcher, net, strength, **options)[0]


def hooked(patcher, hooks, x, context):
    """One call for prompts with these hooks: the hooks' patches come before the model's own."""
    together = patcher.clone()
    patches = together.model_options["transformer_options"].pop("patches", {})
    for part in [*(each.transformers_dict["patches"] for each in hooks.hooks), patches]:
        for name, some in part.items():
            together.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).extend(some)
    return sample(together, x, context)


def test_a_hooked_prompt_is_drawn_as_with_the_network_on_the_model(comfy):
    patcher, net, (x, context) = make_patcher(), make_net(activation="relu"), inputs()
    places = where(down=0.5, v=0)
    expected = sample(apply(patcher, net, 0.7, where=places), x, context)
    hooks = hook(patcher, net, 0.7, where=places)
    assert relative_error(hooked(patcher, hooks, x, context), expected) < UNET_TOLERANCE
    assert [each.hook_scope for each in hooks.hooks] == [HookScope.HookedOnly]


def test_hooks_chain_in_their_order_and_before_the_model(comfy):
    patcher, (x, context) = make_patcher(), inputs()
    first, second, third = (make_net(activation=activation) for activation in ("relu", "tanh", "silu"))
    one = hook(patcher, first)
    two = hook(patcher, second, prev_hooks=one)
    assert len(one.hooks) == 1, "the hooks that go in are not changed"
    expected = sample(apply(apply(apply(patcher, first), second), third), x, context)
    assert relative_error(hooked(apply(patcher, third), two, x, context), expected) < UNET_TOLERANCE


def test_a_network_without_strength_is_not_a_hook(comfy):
    patcher, net = make_patcher(), make_net()
    assert hook(patcher, net, 0.0).hooks == []
    before = hook(patcher, net)
    assert hook(patcher, net, 0.0, prev_hooks=before).hooks == before.hooks


def test_a_weight_hypernetwork_is_refused(comfy):
    with pytest.raises(ValueError, match="Apply Style Mixture"):
        hook(make_patcher(), weight_net())
