"""Selecting layers."""

import pytest

from hnkernels.generator.architectures import projections_of
from hnkernels.generator.targets import by_shape, fits, listing, select_layers
from tests.generator.cases import tiny_layers

SD15 = projections_of("sd15")
SDXL = projections_of("sdxl")


def names(target_layers, found=SD15, **options):
    return [layer.name for layer in select_layers(found, target_layers, 4, **options)]


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("attn1", 64),
        ("attn2", 64),
        ("q", 32),
        ("k", 32),
        ("v", 32),
        ("out", 32),
        ("down", 6 * 8),
        ("mid", 8),
        ("up", 9 * 8),
        ("block_1", 16 + 24),
        ("down.block_1", 16),
        ("up.block_1", 24),
        ("down.block_1.attn2.v", 2),
        ("attn1.out", 16),
        ("mid.q", 2),
        ("down_blocks.1.*", 16),
        ("*.attn2.to_v", 16),
        ("*.attn2", 64),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", 1),
        ("*", 128),
        (r"re:.*\.attn2\.to_(k|v)", 32),
        (r"re:(down|up)_blocks\.\d\.attentions\.0.*", 6 * 8),
    ],
)
def test_a_selector_chooses(selector, count):
    chosen = names(selector)
    assert len(chosen) == count
    assert chosen == names([selector])
    assert set(chosen) == {p.name for p in SD15 if fits(p, selector)}


def test_a_regular_expression_is_about_the_whole_path():
    with pytest.raises(ValueError, match="fits none of the 128 layers"):
        names("re:attn2")


def test_one_of_several_selectors_is_enough():
    assert names(["mid", "down.block_0"]) == [p.name for p in SD15 if p.name.startswith(("mid", "down_blocks.0"))]
    assert names(("attn1", "q")) == [p.name for p in SD15 if p.kind == "attn1" or p.projection == "q"]


def test_projections_narrow_the_choice():
    assert names("attn2", projections=("k", "v")) == names(["attn2.k", "attn2.v"])
    assert names("*", projections="out") == names("out")


def test_the_order_is_that_of_the_data_whatever_the_models():
    backwards = list(reversed(SD15))
    halves = [name.split("_")[0] for name in names("*", backwards)]
    assert halves == sorted(halves, key=["down", "mid", "up"].index)
    assert names("*") == [p.name for p in SD15]


def test_sdxl_has_its_560_layers():
    layers = select_layers(SDXL, ("attn1", "attn2"), 4)
    assert len(layers) == 560
    values = sum(4 * (layer.out_features + layer.in_features) for layer in layers)
    assert listing(layers).splitlines()[-1] == f"560 layers, {values:,} generated values"
    assert len(by_shape(layers)) == 4


@pytest.mark.parametrize(
    ("target_layers", "message"),
    [
        (
            "attn3",
            r"target_layers has 'attn3', which fits none of the 128 layers; did you mean 'attn\d' or .* accepted",
        ),
        (["attn1", "midle"], "has 'midle', .* did you mean 'mid'"),
        ("down.block_3", r"has 'down.block_3', .* did you mean 'down.block_\d'"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_o", "did you mean 'mid_block.attentions.0.*'"),
        ("*.to_qkv", r"has '\*.to_qkv'"),
        ("down.mid", "has 'down.mid', which fits none"),
        ("re:(", r"target_layers has 're:\(', which is not a regular expression"),
        ("", "has '', which fits none"),
        ([3], "target_layers has 3, which is not a string"),
        ([], r"target_layers must be one or more strings, not \[\]"),
        (None, "target_layers must be one or more strings, not None"),
        ({"attn1": 1}, "target_layers must be one or more strings"),
    ],
)
def test_what_fits_nothing_is_refused(target_layers, message):
    with pytest.raises(ValueError, match=message):
        names(target_layers)


@pytest.mark.parametrize(
    ("projections", "message"),
    [
        (("q", "o"), "projections must be some of q, k, v, out, not 'o'"),
        ((), "projections must be one or more strings"),
        ("kv", "projections must be some of q, k, v, out, not 'kv'"),
    ],
)
def test_unknown_projections_are_refused(projections, message):
    with pytest.raises(ValueError, match=message):
        names("*", projections=projections)


def test_a_selector_that_the_projections_leave_nothing_of_is_refused():
    with pytest.raises(ValueError, match="has 'k', which fits none of the 32 layers"):
        names("k", projections="q")


def test_the_first_rank_that_fits_counts():
    layers = select_layers(SD15, "*", {"mid": 32, "attn2.v": 8, "attn2": 2, "*": 1})
    for layer in layers:
        if layer.name.startswith("mid"):
            assert layer.rank == 32
        elif layer.kind == "attn2":
            assert layer.rank == (8 if layer.projection == "v" else 2)
        else:
            assert layer.rank == 1


def test_without_a_rank_it_is_full():
    assert all(layer.rank == min(layer.out_features, layer.in_features) for layer in tiny_layers(rank=None))


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, r"rank is 0 at down_blocks.0\S+to_q, a weight \[320, 320\]; it must be an integer from 1 to 64 there"),
        (65, "rank is 65 at .* from 1 to 64"),
        (2.0, "rank is 2.0 at"),
        (True, "rank is True at"),
        ("4", "rank is '4' at"),
        ({"*": 0}, "rank is 0 at"),
        ({"attn1": 4}, r"rank says nothing of \S+attn2.to_q; add '\*'"),
        ({}, "rank says nothing of"),
        ({"attn4": 4, "*": 1}, "rank has 'attn4', which fits none"),
    ],
)
def test_an_impossible_rank_is_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        select_layers(SD15, "*", rank)


def test_a_rank_above_a_side_of_one_layer_names_it():
    assert {layer.rank for layer in tiny_layers("k", 8)} == {8}
    with pytest.raises(ValueError, match=r"rank is 9 at down_blocks.0\S+, a weight \[8, \d+\]; .* from 1 to 8 there"):
        tiny_layers("*", 9)


def test_the_listing_is_a_table():
    lines = listing(select_layers(SD15, "mid.v", {"attn1": 4, "attn2": 8})).splitlines()
    assert lines == [
        "layer                                                   kind   proj       weight  rank",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_v  attn1  v     1280 × 1280     4",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v  attn2  v     1280 × 768      8",
        "2 layers, 26,624 generated values",
    ]
