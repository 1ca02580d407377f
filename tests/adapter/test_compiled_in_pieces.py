"""Models that PyTorch's compiler may cut into graphs, as it must before PyTorch 2.8."""

import pytest
import torch

import hnkernels as hn
from tests.adapter.hosts import by_hand
from tests.adapter.test_compile import Compilations, small_unet, whole
from tests.marks import earlier
from tests.models import UNET_TOLERANCE, copied, denoise, make_net, relative_error


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_values(x, text):
    unet, backend, net = small_unet(whole), Compilations(), make_net()
    pure = copied(unet)
    hn.attach(unet, net)
    model = torch.compile(unet, backend=backend)
    with torch.no_grad():
        assert relative_error(denoise(model, x, text), denoise(by_hand(pure, net), x, text)) < UNET_TOLERANCE
    assert backend.count


@pytest.mark.skipif(not earlier("torch", (2, 8)), reason="PyTorch 2.8 and later make one graph of it: test_compile.py")
def test_one_graph_is_refused_with_the_reason(x, text):
    unet = small_unet(whole)
    hn.attach(unet, make_net())
    with pytest.raises(Exception, match=r"from PyTorch 2\.8 on"):
        denoise(whole(unet, Compilations()), x, text)
