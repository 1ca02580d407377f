"""Features of every layer."""

import pytest
import torch

import hnkernels as hn
from tests.generator.cases import HIDDEN, tiny_layers

LAYERS = tiny_layers()


def latents(batch=3):
    return torch.randn(batch, HIDDEN)


def test_every_layer_gets_features_of_unit_size():
    features = hn.WeightGenerator(HIDDEN, LAYERS)(5 * latents())
    assert features.shape == (len(LAYERS), 3, HIDDEN)
    torch.testing.assert_close(features.square().mean(-1), torch.ones(len(LAYERS), 3))


def test_no_two_layers_have_the_same_and_no_two_conditions():
    features = hn.WeightGenerator(HIDDEN, LAYERS)(latents()).flatten(0, 1)
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 1e-2


@pytest.mark.parametrize("target_layers", ["attn1", "k", "mid"])
def test_layers_differ_by_their_place_alone(target_layers):
    layers = tiny_layers(target_layers)
    generator = hn.WeightGenerator(HIDDEN, layers)
    with torch.no_grad():
        for table in (generator.depth_table, generator.kind_table, generator.projection_table, generator.block_table):
            table.zero_()
    features = generator(latents())
    assert torch.equal(features, features[:1].expand_as(features))


def test_the_tables_are_as_large_as_what_there_is():
    generator = hn.WeightGenerator(HIDDEN, LAYERS)
    assert generator.depth_table.shape == (14, HIDDEN)  # attention layers
    assert generator.block_table.shape == (5, HIDDEN)  # two down, the middle, two up
    assert generator.kind_table.shape == (2, HIDDEN)
    assert generator.projection_table.shape == (4, HIDDEN)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_depth_is_the_number_of_mlps(depth):
    generator = hn.WeightGenerator(HIDDEN, LAYERS, depth)
    assert len(generator.blocks) == depth
    assert generator(latents()).shape == (len(LAYERS), 3, HIDDEN)


def test_rows_do_not_know_of_each_other():
    generator, latent = hn.WeightGenerator(HIDDEN, LAYERS), latents()
    torch.testing.assert_close(generator(latent)[:, 1:2], generator(latent[1:2]))


def test_an_empty_batch_gives_no_features():
    assert hn.WeightGenerator(HIDDEN, LAYERS)(latents(0)).shape == (len(LAYERS), 0, HIDDEN)


def test_the_positions_of_layers_are_not_part_of_the_state():
    assert all("ids" not in key for key in hn.WeightGenerator(HIDDEN, LAYERS).state_dict())


def test_a_latent_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"latent must be \[B, 16\], not \[3, 8\]"):
        hn.WeightGenerator(HIDDEN, LAYERS)(torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"latent must be \[B, 16\], not \[16\]"):
        hn.WeightGenerator(HIDDEN, LAYERS)(torch.zeros(16))


@pytest.mark.parametrize("depth", [-1, 1.0, 65])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ValueError, match="depth must be an integer >= 0 and at most 64"):
        hn.WeightGenerator(HIDDEN, LAYERS, depth)


def test_where_a_layer_is_counts_as_much_as_the_condition():
    generator = hn.WeightGenerator(256, LAYERS)
    places = [generator.depth_table, generator.block_table, generator.kind_table, generator.projection_table]
    where = sum(table[ids] for table, ids in zip(places, generator.ids, strict=True))
    assert where.square().mean().item() == pytest.approx(1, rel=0.2)  # as a latent's; 25 rows of 256 draws make it up
