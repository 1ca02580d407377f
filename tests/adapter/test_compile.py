"""A model with a hypernetwork on it, through PyTorch's compiler."""

import pytest
import torch

import hnkernels as hn
from tests.models import denoise, make_net, relative_error


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_model_compiles_as_one_graph(unet, x, text, training):
    net = make_net(activation="silu")
    hn.attach(unet, net)
    net.train(training)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        eager, result = denoise(unet, x, text), denoise(compiled, x, text)
        assert relative_error(result, eager) <= 1e-6  # the same operations, some in another order
        if training:
            parameters = list(net.parameters())
            theirs, ours = (torch.autograd.grad(y.square().sum(), parameters) for y in (eager, result))
            assert relative_error(*(torch.cat([g.flatten() for g in side]) for side in (ours, theirs))) <= 1e-5


def test_later_calls_compile_nothing_anew(unet, x, text):
    hn.attach(unet, make_net(activation="silu"))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(unet, fullgraph=True, backend=backend)
    with torch.no_grad():
        for _ in range(4):
            denoise(compiled, x, text)
    assert len(graphs) == 1
