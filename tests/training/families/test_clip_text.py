"""Captions of any length, against CLIP called by hand."""

import copy
from functools import cache
from itertools import chain

import pytest
import torch

from hnkernels.training.data.text_encoder import TextEncoder
from hnkernels.training.families import family_of
from hnkernels.training.families.clip_text import is_long, parts_of, tokens_of
from tests.training.families import pipelines

ROOM = 75


@cache
def tokenizer_of(pad="<|endoftext|>"):
    """A tokeniser of CLIP's length, where that of the tiny pipelines is 16."""
    tokenizer = pipelines.clip_tokenizer(pad)
    tokenizer.model_max_length = ROOM + 2
    return tokenizer


@cache
def pipeline_of(name):
    pipeline = copy.copy(getattr(pipelines, name)())
    pipeline.tokenizer = tokenizer_of()
    if hasattr(pipeline, "tokenizer_2"):
        pipeline.tokenizer_2 = tokenizer_of("!")
    return pipeline


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def words(tokenizer, count):
    """A caption of so many tokens."""
    assert len(tokens_of(tokenizer, "a")) == 1
    return " ".join(["a"] * count)


def texts(tokenizer, parts):
    """The caption's tokens in every part, without start, end and filling."""
    found = []
    for part in parts.tolist():
        assert part[0] == tokenizer.bos_token_id
        end = part.index(tokenizer.eos_token_id)
        assert set(part[end + 1 :]) <= {tokenizer.pad_token_id}
        found.append(part[1:end])
    return found


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize(
    ("count", "lengths"), [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])]
)
def test_a_caption_is_as_many_parts_as_it_needs(count, lengths, pad):
    tokenizer = tokenizer_of(pad)
    caption = words(tokenizer, count)
    parts = parts_of(tokenizer, caption)
    assert parts.shape == (len(lengths), ROOM + 2)
    assert [len(part) for part in texts(tokenizer, parts)] == lengths
    assert list(chain(*texts(tokenizer, parts))) == tokens_of(tokenizer, caption)
    assert is_long(tokenizer, caption) == (count > ROOM)


@pytest.mark.parametrize(
    ("before", "first"),
    [(54, 75), (55, 56), (60, 61), (74, 75), (75, 75)],
    ids=["too early", "earliest", "early", "last", "after"],
)
def test_a_part_ends_after_a_comma_among_its_last_20_tokens(tokenizer, before, first):
    caption = words(tokenizer, before) + ", " + words(tokenizer, 100 - before)
    lengths = [len(part) for part in texts(tokenizer, parts_of(tokenizer, caption))]
    assert lengths == [first, 101 - first]


def test_of_several_commas_the_last_one_counts_in_every_part(tokenizer):
    caption = ", ".join([words(tokenizer, 9)] * 20)  # 10 tokens each with its comma
    assert [len(part) for part in texts(tokenizer, parts_of(tokenizer, caption))] == [70, 70, 59]


def test_a_reader_of_few_tokens_looks_back_no_further_than_its_part():
    tokenizer = pipelines.clip_tokenizer()
    caption = words(tokenizer, 20) + " , " + words(tokenizer, 2)
    assert [len(part) for part in texts(tokenizer, parts_of(tokenizer, caption))] == [14, 9]


@pytest.mark.parametrize("caption", ["猫" * 200, "a\n" * 100, "🦆" * 60, ",, ,"])
def test_no_token_is_lost_whatever_is_written(tokenizer, caption):
    assert list(chain(*texts(tokenizer, parts_of(tokenizer, caption)))) == tokens_of(tokenizer, caption)


def by_hand(encoder, ids, clip_skip):
    """A hidden layer of CLIP, counted from the end, by running its layers one by one; with the final LayerNorm."""
    inner = getattr(encoder, "text_model", encoder)
    kept = []
    layers = inner.encoder.layers
    hook = layers[len(layers) - clip_skip].register_forward_hook(lambda _, args, out: kept.append(out))
    try:
        with torch.no_grad():
            encoder(ids)
    finally:
        hook.remove()
    (state,) = (out[0] if isinstance(out, tuple) else out for out in kept)
    return state, inner.final_layer_norm(state)


def embedded(name, captions, clip_skip=1):
    return TextEncoder(family_of(pipeline_of(name)), clip_skip)(captions)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 75, 80, 200])
def test_embeddings_are_clips_of_each_part(clip_skip, count):
    pipeline = pipeline_of("velocity")
    caption = words(pipeline.tokenizer, count)
    parts = parts_of(pipeline.tokenizer, caption)
    _, expected = by_hand(pipeline.text_encoder, parts, clip_skip)
    found = embedded("velocity", [caption], clip_skip)["encoder_hidden_states"]
    torch.testing.assert_close(found, expected.flatten(0, 1)[None])


@pytest.mark.parametrize("name", ["velocity", "xl", "refiner"])
def test_short_captions_are_the_pipelines_own_bit_for_bit(name):
    pipeline = pipeline_of(name)
    captions = ["", "a digit one", words(pipeline.tokenizer_2 if name == "refiner" else pipeline.tokenizer, 75)]
    found = embedded(name, captions)
    rows = slice(0 if name == "velocity" else 1, 3)  # of SDXL the empty caption is zeros, as in its pipeline
    own = pipeline.encode_prompt(
        captions[rows], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(found["encoder_hidden_states"][rows], own[0])
    if name != "velocity":
        assert torch.equal(found["text_embeds"][rows], own[2])
        assert not found["encoder_hidden_states"][0].any()


@pytest.mark.parametrize("name", ["xl", "refiner"])
def test_sdxls_long_captions_are_the_last_layer_but_one_of_each_part(name):
    pipeline = pipeline_of(name)
    caption = words(pipeline.tokenizer_2, 100)
    found = embedded(name, [caption])
    expected = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        if encoder is not None:
            parts = parts_of(tokenizer, caption)
            expected.append(by_hand(encoder, parts, 2)[0].flatten(0, 1))
    torch.testing.assert_close(found["encoder_hidden_states"], torch.cat(expected, -1)[None])
    with torch.no_grad():
        torch.testing.assert_close(found["text_embeds"], pipeline.text_encoder_2(parts[:1]).text_embeds)


@pytest.mark.parametrize("name", ["velocity", "xl"])
def test_in_a_batch_shorter_captions_are_followed_by_empty_parts(name):
    tokenizer = pipeline_of(name).tokenizer
    captions = ["a digit", words(tokenizer, 200), words(tokenizer, 80), ""]
    together = embedded(name, captions)["encoder_hidden_states"]
    empty = embedded(name, [""])["encoder_hidden_states"][0]
    assert together.shape[1] == 3 * (ROOM + 2)
    for row, caption in zip(together, captions, strict=True):
        own = embedded(name, [caption])["encoder_hidden_states"][0]
        torch.testing.assert_close(row[: len(own)], own)
        for start in range(len(own), len(row), len(empty)):
            torch.testing.assert_close(row[start : start + len(empty)], empty)


def test_captions_of_all_lengths_with_clip_skip_make_a_batch():
    tokenizer = pipeline_of("velocity").tokenizer
    captions = ["a", "a digit one", words(tokenizer, 90)]
    together = embedded("velocity", captions, 2)["encoder_hidden_states"]
    for row, caption in zip(together, captions, strict=True):
        own = embedded("velocity", [caption], 2)["encoder_hidden_states"][0]
        torch.testing.assert_close(row[: len(own)], own)
