"""A hypernetwork in every kind of model that has attention layers: exactly what the same MLPs do there by hand."""

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.adapter.hosts import (
    CROSS_ATTENTION,
    FLOAT64_TOLERANCE,
    JOINT_ATTENTION,
    DiffusionWrapper,
    by_hand,
    cast_to,
    run,
)
from tests.adapter.test_attach import fingerprint
from tests.models import make_net, relative_error

HOSTS = {**CROSS_ATTENTION, **JOINT_ATTENTION}
CHECKPOINTED = ("sd1", "controlnet", "pixart", "sana", "wan", "sd3", "flux")

every_host = pytest.mark.parametrize("case", HOSTS.values(), ids=HOSTS)


def net_for(case, **options):
    return make_net(tuple(case.widths), **options)


@every_host
def test_the_sites_are_the_attention_layers_by_kind_and_width(case):
    model, sites = case.model(), []
    for kind in ("attn1", "attn2"):
        for width in case.widths:
            count = case.sites.get((kind, width), 0)
            if not count:
                with pytest.raises(hn.AdapterError, match="it is for another model"):
                    hn.attach(model, make_net((width,)), targets=kind)
                continue
            with hn.attach(model, make_net((width,)), targets=kind) as adapter:
                sites += adapter.sites()
                assert len(adapter.sites()) == count
    with hn.attach(model, net_for(case)) as adapter:
        assert sorted(adapter.sites()) == sorted(sites)
    with pytest.raises(hn.AdapterError, match=rf"widths \[{', '.join(map(str, case.widths))}\] in attn1, attn2"):
        hn.attach(model, make_net((999,)))


@every_host
@pytest.mark.parametrize("targets", [("attn1", "attn2"), ("attn1",), ("attn2",)], ids="+".join)
def test_it_does_what_the_mlps_do_in_front_of_to_k_and_to_v(case, targets):
    model, call, net = case.model(), case.call(), net_for(case).double()
    with torch.no_grad():
        base, expected = run(model, call), run(by_hand(model, net, kinds=targets), call)
        hn.attach(model, net, targets=targets)
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE  # from what was kept
    assert relative_error(base, expected) > 1e-5  # the network does matter there


@every_host
def test_two_networks_chain_the_second_fused_or_not(case):
    model, call, nets = case.model(), case.call(), [net_for(case, activation=a).double() for a in ("relu", None)]
    with torch.no_grad():
        expected = run(by_hand(model, *nets), call)
        _, affine = (hn.attach(model, net) for net in nets)
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE
        affine.fuse()
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE


@every_host
def test_in_fp32_it_errs_no_more_than_by_hand(case):
    model, call, net = case.model(), case.call(), net_for(case)
    with torch.no_grad():
        exact = run(by_hand(model, net.double()), call)
        model, call, net = model.float(), cast_to(call, torch.float32), net.float()
        plain = run(by_hand(model, net), call)
        hn.attach(model, net)
        # Most of the error is the model's own, and a few hundred numbers are few: twice where eager's is the measure.
        assert relative_error(run(model, call), exact) <= 2 * relative_error(plain, exact)


@every_host
@pytest.mark.parametrize("grad", [False, True])
def test_at_strength_0_and_detached_the_model_is_itself_bit_for_bit(case, grad):
    model, call = case.model(torch.float32), case.call(torch.float32)
    before = fingerprint(model)
    with torch.set_grad_enabled(grad):
        base = run(model, call)
        adapter = hn.attach(model, net_for(case))
        changed = run(model, call)
        assert not torch.equal(changed, base)
        adapter.strength = 0
        assert torch.equal(run(model, call), base)
        adapter.strength = 1
        assert torch.equal(run(model, call), changed)
        adapter.detach()
        assert torch.equal(run(model, call), base)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("case", "checkpointing"),
    [(case, False) for case in HOSTS.values()] + [(HOSTS[name], True) for name in CHECKPOINTED],
    ids=[*HOSTS, *(f"{name} with checkpointing" for name in CHECKPOINTED)],
)
def test_training_gives_the_gradients_of_the_mlps_by_hand(case, checkpointing):
    model, call, net = case.model(), case.call(), net_for(case).double().train()
    twin = by_hand(model, net)
    run(twin, call).square().sum().backward()
    hn.attach(model, net)
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    run(model, call).square().sum().backward()
    for mlp, reference in twin.by_hand.items():
        ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (mlp, reference))
        assert relative_error(ours, theirs) < FLOAT64_TOLERANCE
        assert theirs.norm() > 0
    assert len(twin.by_hand) == 2 * len(case.widths)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "controlnet", "pixart", "hunyuan-dit", "sana", "wan", "ldm"])
def test_all_cross_attention_layers_cost_one_evaluation_a_stream(name, evaluations):
    case = HOSTS[name]
    model, call = case.model(torch.float32), case.call(torch.float32)
    hn.attach(model, net_for(case), targets="attn2")
    with torch.no_grad():
        run(model, call)
    assert len(evaluations) == 2


def test_a_context_that_is_made_anew_at_every_call_is_rewritten_once_a_call(evaluations):
    case = HOSTS["ldm in its wrapper"]
    wrapper, call = case.model(torch.float32), case.call(torch.float32)
    assert isinstance(wrapper, DiffusionWrapper)
    for model in (wrapper, wrapper.diffusion_model):  # where the arguments do not show the context, and where they do
        with hn.attach(model, net_for(case), targets="attn2"), torch.no_grad():
            for _ in range(3):
                evaluations.clear()
                run(wrapper, call)
                assert len(evaluations) == 2


def test_what_a_motion_module_sees_does_not_push_out_what_is_kept_of_the_prompt(evaluations):
    case = HOSTS["animatediff"]
    model, call = case.model(torch.float32), case.call(torch.float32)
    hn.attach(model, net_for(case))
    with torch.no_grad():
        run(model, call)
        evaluations.clear()
        run(model, call)
    assert 12 not in evaluations


def test_a_network_without_the_width_of_the_text_leaves_the_text_alone():
    case = HOSTS["sd1"]
    model, call, net = case.model(), case.call(), make_net((8, 16)).double()
    with torch.no_grad():
        expected = run(by_hand(model, net), call)
        adapter = hn.attach(model, net)
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE
    assert {name.rsplit(".", 1)[-1] for name in adapter.sites()} == {"attn1"}


class OwnAttention(nn.Module):
    """Somebody's own class, with names of its own."""

    hypernetwork_projections = ("query", "key", "value")

    def __init__(self, width, context_width=None):
        super().__init__()
        self.is_cross_attention = context_width is not None
        self.query = nn.Linear(width, 6, bias=False)
        self.key, self.value = (nn.Linear(context_width or width, 6, bias=False) for _ in range(2))

    def forward(self, x, context=None):
        context = x if context is None else context
        scores = self.query(x) @ self.key(context).mT
        return scores.softmax(-1) @ self.value(context)


def own_model():
    return nn.ModuleDict({"itself": OwnAttention(5), "text": OwnAttention(5, 12)}).double().requires_grad_(False)


def test_an_attention_class_of_ones_own_says_its_names():
    model, net = own_model(), make_net((5, 12)).double()
    x, text = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    for name, context in (("itself", x), ("text", text)):
        layer = model[name]
        mlp_k, mlp_v = net[context.shape[-1]]
        expected = (layer.query(x) @ layer.key(mlp_k(context)).mT).softmax(-1) @ layer.value(mlp_v(context))
        with hn.attach(model, net) as adapter:
            assert adapter.sites() == ["itself", "text"]
            assert relative_error(layer(x, None if name == "itself" else text), expected) < FLOAT64_TOLERANCE
    with hn.attach(model, net, targets="attn2") as adapter:
        assert adapter.sites() == ["text"]


@pytest.mark.parametrize(
    "names", [("query", "key"), ("query", "key", "velue"), ("query", "key", "forward"), "qkv", None]
)
def test_names_that_are_not_linears_are_refused(names):
    model = own_model()
    model["text"].hypernetwork_projections = names
    with pytest.raises(
        hn.AdapterError, match=r"text \(OwnAttention\) says hypernetwork_projections = .*; it must name"
    ):
        hn.attach(model, make_net((5, 12)))
