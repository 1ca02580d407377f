"""``hn.load_hypernetwork`` and ``hn.save_hypernetwork`` take networks of either kind."""

import pytest
import torch

import hnkernels as hn
from hnkernels.assets import TINY_SD


@pytest.fixture
def generating():
    pytest.importorskip("diffusers", reason="finds the layers of the embedded model")
    from hnkernels.convert.survey import model_without_weights

    return hn.WeightHypernetwork(
        ["attn2"], embedding_dim=8, hidden_dim=8, rank=2, styles=("ink",), model=model_without_weights(TINY_SD)
    )


def test_a_context_hypernetwork_comes_back(tmp_path):
    net = hn.Hypernetwork((8,), activation="relu")
    for name in ("a.pt", "a.safetensors", "A.SAFETENSORS"):
        hn.save_hypernetwork(net, tmp_path / name)
        back = hn.load_hypernetwork(tmp_path / name)
        assert isinstance(back, hn.Hypernetwork)
        for key, tensor in net.state_dict().items():
            torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=0)


def test_a_weight_hypernetwork_comes_back(generating, tmp_path):
    hn.save_hypernetwork(generating, tmp_path / "a.safetensors")
    back = hn.load_hypernetwork(str(tmp_path / "a.safetensors"))
    assert isinstance(back, hn.WeightHypernetwork)
    for key, tensor in generating.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=0)


def test_a_weight_hypernetwork_is_not_written_as_pt(generating, tmp_path):
    with pytest.raises(hn.CheckpointError, match=r"a\.pt: the extension is not accepted; use \.safetensors"):
        hn.save_hypernetwork(generating, tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_generated_weights_are_named(generating, tmp_path):
    with torch.no_grad():
        generating.generate_weights("ink").save(tmp_path / "a.safetensors")
    with pytest.raises(hn.CheckpointError, match=r"holds generated weights.*GeneratedWeights\.load"):
        hn.load_hypernetwork(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_what_is_not_a_network_is_named(tmp_path, name):
    with pytest.raises(TypeError, match="takes a network and a path, not Linear first"):
        hn.save_hypernetwork(torch.nn.Linear(2, 2), tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(hn.CheckpointError, match=rf"{name}: does not exist"):
            hn.load_hypernetwork(tmp_path / name)


def test_every_error_is_of_one_family_and_what_it_was_before():
    before = {hn.AdapterError: RuntimeError, hn.InputError: ValueError, hn.DivergenceError: RuntimeError}
    for error, base in before.items():
        assert issubclass(error, base)
    for error in (*before, hn.CheckpointError):
        assert issubclass(error, hn.HNKernelsError)


UNET = torch.nn.Module()


@pytest.mark.parametrize(
    "use",
    [
        lambda net: hn.interpolate(net, net, 0.5),
        lambda net: hn.average([net, net]),
        lambda net: hn.merge(UNET, net),
        lambda net: hn.to_lora(net, UNET, rank=4),
    ],
)
def test_what_takes_context_hypernetworks_alone_says_so(generating, use):
    with pytest.raises((hn.HNKernelsError, TypeError), match=r"(?i)Hypernetwork.*not .*WeightHypernetwork"):
        use(generating)
