"""Conditions of all kinds."""

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.generator.cases import EMBEDDING, HIDDEN, STYLES, TASKS
from tests.models import randomise

POOLINGS = ("perceiver", "mean")


def make(pooling="perceiver", **options):
    encoder = hn.HypernetworkEncoder(EMBEDDING, HIDDEN, pooling, TASKS, STYLES, **options)
    randomise(encoder)
    return encoder.double().eval()


def tokens(batch=3, length=5):
    return torch.randn(batch, length, EMBEDDING, dtype=torch.float64)


@pytest.fixture(params=POOLINGS)
def encoder(request):
    return make(request.param)


def conditions():
    return {
        "features": tokens()[:, 0],
        "tokens": tokens(),
        "tasks": torch.tensor([0, 2, 1]),
        "styles": ["ink", "oil", "chalk"],
        "mixtures": [{"ink": 0.5, "oil": 0.5}, "oil", {"chalk": 2}],
    }


@pytest.mark.parametrize("kind", conditions())
def test_every_kind_of_condition_becomes_a_latent_of_unit_size(encoder, kind):
    latent = encoder(conditions()[kind])
    assert latent.shape == (3, HIDDEN)
    torch.testing.assert_close(latent.square().mean(1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)


def test_without_the_norm_the_latent_has_a_size_of_its_own():
    encoder = make(latent_norm=False)
    x = tokens()
    bare = encoder(x)
    assert (bare.square().mean(1) - 1).abs().min() > 1e-3
    encoder.norm = nn.RMSNorm(HIDDEN, elementwise_affine=False)
    torch.testing.assert_close(encoder(x), bare / bare.square().mean(1, keepdim=True).sqrt())


def test_rows_do_not_know_of_each_other(encoder):
    x, mask = tokens(), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
    together = encoder(x, mask)
    for i in range(3):
        torch.testing.assert_close(encoder(x[i : i + 1], mask[i : i + 1]), together[i : i + 1])


def test_features_are_a_single_token(encoder):
    x = tokens(length=1)
    torch.testing.assert_close(encoder(x[:, 0]), encoder(x))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masked_tokens_are_as_if_not_there_whatever_they_hold(encoder, dtype):
    x = tokens()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3).to(dtype)
    spoilt = x.masked_fill(mask[..., None] == 0, float("nan"))
    torch.testing.assert_close(encoder(spoilt, mask), encoder(x[:, :3]))
    assert (encoder(x) - encoder(x, mask)).abs().max() > 1e-3


def test_a_mask_of_ones_changes_nothing(encoder):
    x = tokens()
    torch.testing.assert_close(encoder(x, torch.ones(3, 5)), encoder(x), rtol=0, atol=0)


@pytest.mark.parametrize("length", [0, 4])
def test_a_row_without_tokens_is_a_condition_too(encoder, length):
    x = tokens(2, length).requires_grad_()
    latent = encoder(x, torch.zeros(2, length, dtype=torch.bool))
    assert latent.isfinite().all()
    torch.testing.assert_close(latent[0], latent[1])
    latent.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [x, *encoder.parameters()])


def test_the_mean_is_that_of_the_kept_tokens():
    encoder = make("mean")
    x, mask = tokens(), torch.tensor([[1, 0, 1, 1, 0]] * 3)
    torch.testing.assert_close(encoder(x, mask), encoder(x[:, [0, 2, 3]].mean(1)))


def test_the_order_of_tokens_does_not_matter(encoder):
    x = tokens()
    torch.testing.assert_close(encoder(x[:, [3, 1, 0, 4, 2]]), encoder(x))


def test_a_style_alone_is_a_batch_of_one(encoder):
    for alone in ("oil", {"oil": 1.0}):
        assert torch.equal(encoder(alone), encoder(["oil"]))
        assert encoder(alone).shape == (1, HIDDEN)


def test_a_mixture_is_one_of_the_style_vectors():
    encoder = make(latent_norm=False)
    with torch.no_grad():
        encoder.style_table[2] = 0.25 * encoder.style_table[0] - 1.5 * encoder.style_table[1]
    torch.testing.assert_close(encoder([{"ink": 0.25, "chalk": -1.5}]), encoder(["oil"]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_tasks_are_rows_of_a_table(encoder, dtype):
    latent = encoder(torch.tensor([2, 0, 2], dtype=dtype))
    assert torch.equal(latent[0], latent[2])
    assert not torch.equal(latent[0], latent[1])


@pytest.mark.parametrize(
    "nothing",
    [torch.zeros(0, EMBEDDING), torch.zeros(0, 5, EMBEDDING), torch.zeros(0, dtype=torch.int64), []],
    ids=["features", "tokens", "tasks", "styles"],
)
def test_an_empty_batch_gives_no_latents(encoder, nothing):
    assert encoder(nothing).shape == (0, HIDDEN)


@pytest.mark.parametrize("kind", conditions())
def test_it_works_in_another_dtype_than_the_conditions(encoder, kind):
    x = conditions()[kind]
    exact = encoder(x)
    low = encoder.to(torch.bfloat16)(x)
    assert low.dtype == torch.bfloat16
    assert (low.double() - exact).norm() < 0.1 * exact.norm()  # bf16 has 8 bits, over some ten operations


def test_it_does_not_touch_the_random_state(encoder):
    given = conditions()
    state = torch.get_rng_state()
    for x in given.values():
        encoder.train()(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 7), r"x is \[2, 7\], 7 wide, and the encoder accepts 6; .* build it with embedding_dim=7"),
        (torch.zeros(2, 3, 5), r"x is \[2, 3, 5\], 5 wide, and the encoder accepts 6"),
        (torch.zeros(6), r"x must be features \[B, 6\] or tokens \[B, T, 6\], not \[6\]"),
        (torch.zeros(1, 2, 3, 6), r"not \[1, 2, 3, 6\]"),
        (torch.tensor([0, 3]), r"task ids must lie between 0 and 2, not \[0, 3\]"),
        (torch.tensor([-1]), r"task ids must lie between 0 and 2, not \[-1\]"),
        (torch.zeros(2, 2, dtype=torch.int64), r"task ids \[B\], not torch.int64 \[2, 2\]"),
        (torch.zeros(2, dtype=torch.bool), r"not torch.bool \[2\]"),
        (torch.zeros(2, 6, dtype=torch.complex64), "not torch.complex64"),
        ("inc", r"there is no style 'inc'; did you mean 'ink'\? the encoder has 'ink', 'chalk', 'oil'"),
        (["ink", "fresco"], "there is no style 'fresco'; the encoder has 'ink'"),
        ({"inks": 1.0}, "there is no style 'inks'; did you mean 'ink'"),
        ({}, "a mixture of styles must have one at least"),
        ({"ink": "much"}, "the weight of style 'ink' must be"),
        ({"ink": float("nan")}, "the weight of style 'ink' must be a finite number"),
        (["ink", 3], r"x must be a tensor of features, tokens or task ids, .* not \['ink', 3\]"),
        (3.0, "x must be a tensor of features"),
        (None, "x must be a tensor of features"),
        (torch.zeros(2, 6, device="meta"), "x is on meta, the encoder on cpu"),
    ],
)
def test_other_conditions_are_refused(encoder, x, message):
    with pytest.raises(ValueError, match=message):
        encoder(x)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (tokens(), torch.ones(3, 4), r"mask must be \[3, 5\] like the tokens, not \[3, 4\]"),
        (tokens(), [[True] * 5] * 3, r"mask must be \[3, 5\] like the tokens, not list"),
        (tokens()[:, 0], torch.ones(3, 1), r"mask is for tokens \[B, T, E\]"),
        ("ink", torch.ones(1, 1), r"mask is for tokens \[B, T, E\]"),
        (torch.tensor([1]), torch.ones(1), r"mask is for tokens \[B, T, E\]"),
    ],
)
def test_other_masks_are_refused(encoder, x, mask, message):
    with pytest.raises(ValueError, match=message):
        encoder(x, mask)


def test_what_it_has_not_is_said():
    encoder = hn.HypernetworkEncoder(EMBEDDING, HIDDEN)
    with pytest.raises(ValueError, match="the encoder has no tasks; build it with tasks="):
        encoder(torch.tensor([0]))
    with pytest.raises(ValueError, match="x names styles, and the encoder has none; build it with styles="):
        encoder("ink")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be an integer >= 1, not 0"),
        ({"hidden_dim": 2.0}, "hidden_dim must be an integer >= 1, not 2.0"),
        ({"tasks": -1}, "tasks must be an integer >= 0, not -1"),
        ({"tasks": True}, "tasks must be an integer"),
        ({"pooling": "max"}, "pooling must be one of perceiver, mean, not 'max'"),
        ({"styles": "ink"}, "styles must be different names"),
        ({"styles": ("ink", "ink")}, "styles must be different names"),
        ({"styles": (1, 2)}, "styles must be different names"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hn.HypernetworkEncoder(**{"embedding_dim": 4, "hidden_dim": 4, **options})


@pytest.mark.parametrize("hidden", [1, 7, 12])
def test_any_width_will_do(hidden):
    assert hn.HypernetworkEncoder(3, hidden)(torch.randn(2, 4, 3)).shape == (2, hidden)


def test_the_perceiver_is_attention_of_its_queries_head_by_head():
    pool, given = make().pool, tokens(2)
    kept = torch.tensor([[True, True, False, True, False], [False] * 5])
    pooled = pool(given, kept)
    width = HIDDEN // pool.heads
    for row in range(2):
        seen = given[row, kept[row]] if kept[row].any() else pool.nothing[None]
        k, v = pool.to_kv(seen).chunk(2, dim=-1)
        found = torch.empty_like(pool.queries)
        for head in range(pool.heads):
            part = slice(head * width, (head + 1) * width)
            shares = (pool.queries[:, part] @ k[:, part].T / width**0.5).softmax(-1)
            found[:, part] = shares @ v[:, part]
        torch.testing.assert_close(pooled[row], pool.project(found.flatten()))
