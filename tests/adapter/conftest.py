"""A tiny UNet with its inputs, and a count of MLP evaluations."""

import pytest
import torch

import hnkernels.ops.fused
import hnkernels.ops.portable
from tests.models import TEXT_WIDTH, noise, prompt, tiny_unet

pytest.importorskip("diffusers", reason="the adapter is tested on real diffusers UNets")


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture
def x():
    return noise()


@pytest.fixture
def text():
    return prompt()


class Evaluations(list):
    """The context widths of all chains that were computed."""

    def of_text(self) -> int:
        """How many were of text contexts since the last call of this."""
        count = self.count(TEXT_WIDTH)
        self.clear()
        return count


@pytest.fixture
def evaluations(monkeypatch):
    made = Evaluations()
    transform, transform_pair = hnkernels.ops.portable.transform, hnkernels.ops.fused.transform_pair

    def counting(x: torch.Tensor, chain):
        if chain:
            made.append(x.shape[-1])
        return transform(x, chain)

    def counting_pair(x: torch.Tensor, chain_k, chain_v, *options):
        made.extend(x.shape[-1] for chain in (chain_k, chain_v) if chain)
        return transform_pair(x, chain_k, chain_v, *options)

    monkeypatch.setattr(hnkernels.ops.portable, "transform", counting)
    monkeypatch.setattr(hnkernels.ops.fused, "transform_pair", counting_pair)
    return made
