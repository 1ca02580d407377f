"""What traced code shares between layers."""

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.host import Host
from hnkernels.adapter.links import Action, Chain, Link, rewrite
from hnkernels.adapter.trace import TracedContext
from tests.models import make_mlp, make_net, tiny_unet


@pytest.mark.parametrize("differs", ["mlp_k", "mlp_v", "k", "v", "parallel", "count"])
def test_a_context_is_rewritten_once_for_the_same_links_and_again_for_others(differs):
    mlps = [make_mlp(activation="tanh").eval() for _ in range(3)]
    first = Link(mlps[0], mlps[1], torch.tensor(0.5), torch.tensor(0.7))
    second = Link(mlps[1], mlps[0], torch.tensor(1.5), torch.tensor(-0.7))
    other = {
        "mlp_k": second._replace(mlp_k=mlps[2]),
        "mlp_v": second._replace(mlp_v=mlps[2]),
        "k": second._replace(k=torch.tensor(0.1)),
        "v": second._replace(v=torch.tensor(0.1)),
        "parallel": second._replace(parallel=True),
    }.get(differs)
    context = TracedContext(torch.randn(2, 3, 8))
    chains = [(first, second), (first, other) if other else (first,)]
    for links in chains:
        for ours, expected in zip(context.rewritten(links), rewrite(context.tensor, links), strict=True):
            torch.testing.assert_close(ours, expected)
    for links in chains:
        assert context.rewritten(links)[0] is context.rewritten(tuple(links))[0]


def test_layers_that_are_alike_have_one_chain_and_others_another():
    unet = tiny_unet()
    adapters = [hn.attach(unet, make_net(), targets=targets) for targets in ("attn2", ("attn1", "attn2"))]
    layers = Host.of(unet).layers

    def chains():
        return len({layer.chain for layer in layers})

    alike = len({(layer.spec.kind, layer.width) for layer in layers})
    assert chains() == alike > 2
    adapters[0].strength = {"up": 0.5, "down": 1}  # the text is of one width everywhere
    halves = {layer.name.split("_")[0] for layer in layers}
    assert chains() == alike - 1 + len(halves)
    adapters[0].strength = 0.3
    assert chains() == alike


class Asked(Chain):
    count = 0

    def links(self):
        self.count += 1
        return super().links()


def test_a_chain_is_asked_once_in_a_call():
    mlp = make_mlp()
    link = Link(mlp, mlp, torch.tensor(0.5), torch.tensor(0.7))
    source = type("Source", (), {"parallel": False, "link": lambda self, width, level: link})()
    first, second = Asked(8, ()), Asked(8, [Action(source, None)] * 2)
    context = TracedContext(torch.randn(2, 3, 8))
    for _ in range(3):
        assert context.links(first) == ()
        assert context.links(second) == (link, link)
    assert (first.count, second.count) == (1, 1)
