"""What traced code shares between layers."""

import pytest
import torch

from hnkernels.adapter.links import Link, rewrite
from hnkernels.adapter.trace import TracedContext
from tests.models import make_mlp


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
