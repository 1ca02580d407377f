"""How strong a network is where: each layer is held to the web UI's way of running it, with that layer's multiplier."""

import math
from fnmatch import fnmatchcase

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.links import Link, rewrite
from hnkernels.adapter.strength import Place
from hnkernels.ops.hyper import hyper_context
from tests.models import (
    FORWARD_TOLERANCE,
    WebUIProcessor,
    attention_layers,
    copied,
    denoise,
    make_mlp,
    make_net,
    noise,
    prompt,
    relative_error,
    tiny_unet,
)

ROWS = 4


class ByHand(WebUIProcessor):
    """The web UI's way, with strengths for K and V and for each row of the batch."""

    def __init__(self, nets, strengths):
        super().__init__(nets)
        self.strengths = strengths  # per net: (k, v), each a number or one per row

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        results = []
        for row in range(hidden_states.shape[0]):
            for pairs, strengths in zip(self.pairs, self.strengths, strict=True):
                for pair in pairs.values():
                    for mlp, strength in zip(pair, strengths, strict=True):
                        mlp.multiplier = strength[row] if isinstance(strength, tuple) else strength
            context = None if encoder_hidden_states is None else encoder_hidden_states[row : row + 1]
            results.append(super().__call__(attn, hidden_states[row : row + 1], context))
        return torch.cat(results)


def by_hand(unet, x, text, nets, strengths_of):
    """The UNet's output in float64 where ``strengths_of(name, kind)`` gives (k, v) for every network."""
    truth = copied(unet).double()
    for name, layer in attention_layers(truth).items():
        layer.set_processor(ByHand(nets, strengths_of(name, name.rsplit(".", 1)[-1])))
    return denoise(truth, x.double(), text.double())


@pytest.fixture
def net():
    return make_net(activation="relu", std=0.2)


HALVES = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


def rows(*values):
    return tuple(values[i * len(values) // ROWS] for i in range(ROWS))


CASES = {
    "a number": (0.4, lambda n, k: (0.4, 0.4)),
    "negative": (-0.5, lambda n, k: (-0.5, -0.5)),
    "halves": (
        {"down": 0.2, "mid": -1, "up": 1.5},
        lambda n, k: ({"down": 0.2, "mid": -1.0, "up": 1.5}[Place.of(n, k).half],) * 2,
    ),
    "one half, the others whole": ({"up": 0}, lambda n, k: (float(not n.startswith("up_blocks")),) * 2),
    "a block": (
        {"down": {"block_1": 0.3, "block_0": 0.6}},
        lambda n, k: ((0.3 if "down_blocks.1" in n else 0.6 if "down_blocks.0" in n else 1.0),) * 2,
    ),
    "a block's attention modules": (
        {"up": {"block_0": [0.3, 0.9]}},
        lambda n, k: (
            ((0.3 if "up_blocks.0.attentions.0" in n else 0.9 if "up_blocks.0.attentions.1" in n else 1.0),) * 2
        ),
    ),
    "kinds": ({"attn1": 0.7, "attn2": -0.2}, lambda n, k: ({"attn1": 0.7, "attn2": -0.2}[k],) * 2),
    "streams": ({"k": 0, "v": 0.5}, lambda n, k: (0.0, 0.5)),
    "K of the text alone": ({"attn2": {"v": 0}, "attn1": 0}, lambda n, k: (float(k == "attn2"), 0.0)),
    "a pattern": (
        {"*.attentions.0.*.attn2": 0.1},
        lambda n, k: ((0.1 if fnmatchcase(n, "*.attentions.0.*.attn2") else 1.0),) * 2,
    ),
    "several keys multiply": (
        {"down": {"attn1": 0.5, "k": 0.5}, "v": 0.1},
        lambda n, k: (
            (0.5 if "down_blocks" in n else 1.0) * (0.5 if "down_blocks" in n and k == "attn1" else 1.0),
            0.1 * (0.5 if "down_blocks" in n and k == "attn1" else 1.0),
        ),
    ),
    "rows": (hn.PerRow(0, 1), lambda n, k: (rows(0.0, 1.0),) * 2),
    "four rows": (hn.PerRow(0.1, 0.2, 0.2, -1), lambda n, k: (rows(0.1, 0.2, 0.2, -1.0),) * 2),
    "rows in a table": (
        {"attn1": hn.PerRow(1, 0.5), "k": 0.5, "mid": hn.PerRow(0, 1, 2, 3)},
        lambda n, k: tuple(
            tuple(
                a * b * c
                for a, b, c in zip(
                    rows(1, 0.5) if k == "attn1" else rows(1),
                    rows(0, 1, 2, 3) if "mid_block" in n else rows(1),
                    rows(s),
                    strict=True,
                )
            )
            for s in (0.5, 1.0)
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grad", [False, True])
def test_every_layer_has_the_strength_that_is_said(net, case, grad):
    unet, x, text = tiny_unet(), noise(ROWS), prompt(ROWS)
    strength, expected = CASES[case]
    with torch.set_grad_enabled(grad), hn.attach(unet, net, strength=strength) as adapter:
        assert adapter.strength == strength
        y = denoise(unet, x, text)
    truth = by_hand(unet, x, text, [net], lambda n, k: [expected(n, k)])
    assert relative_error(y, truth) <= 3 * FORWARD_TOLERANCE  # a whole UNet's roundings


@pytest.mark.parametrize("beside", [False, True])
def test_gradients_with_rows_are_those_of_the_rows_one_by_one(beside):
    unet = tiny_unet(torch.float64)
    nets = [make_net(activation=a, std=0.2).double() for a in ("silu", "tanh")]
    x, text = noise(ROWS, torch.float64), prompt(ROWS, torch.float64)
    parameters = [p for net in nets for p in net.parameters()]

    def gradients(first, second, rows):
        with hn.attach(unet, nets[0], first), hn.attach(unet, nets[1], second, beside=beside):
            loss = denoise(unet, x[rows], text[rows]).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    together = gradients(hn.PerRow(0.3, 1), {"up": 0.5, "k": hn.PerRow(1, 2)}, slice(None))
    apart = sum(
        gradients(0.3 if row < 2 else 1.0, {"up": 0.5, "k": 1 if row < 2 else 2}, slice(row, row + 1))
        for row in range(ROWS)
    )
    assert relative_error(together, apart) <= 1e-12


def test_rows_of_strength_zero_run_the_base_model(unet, net):
    x, text = noise(ROWS), prompt(ROWS)
    with torch.no_grad():
        base = denoise(unet, x, text)
        with hn.attach(unet, net, strength=hn.PerRow(0, 1)):
            y = denoise(unet, x, text)
    assert relative_error(y[:2], base[:2]) <= FORWARD_TOLERANCE  # the projections may round otherwise
    assert not torch.allclose(y[2:], base[2:])


def test_rows_of_strength_zero_cost_no_evaluation(unet, net, evaluations):
    with torch.no_grad(), hn.attach(unet, net, strength=hn.PerRow(0, 0)):
        denoise(unet, noise(), prompt())
    assert evaluations == []


@pytest.mark.parametrize("off", ["strength", "enabled", "targets", "rows"])
def test_a_network_beside_one_that_does_not_act_takes_its_place(unet, x, text, off):
    first, partner, other = (make_net(activation=a, std=0.2) for a in ("relu", "silu", "tanh"))
    with hn.attach(unet, first), hn.attach(unet, other):
        expected = denoise(unet, x, text)
    with hn.attach(unet, first), hn.attach(unet, partner) as silent, hn.attach(unet, other, beside=True):
        if off == "targets":
            silent.targets = "attn1"
            silent.strength = {"attn1": 0}
        elif off == "enabled":
            silent.enabled = False
        else:
            silent.strength = 0 if off == "strength" else hn.PerRow(0, 0)
        assert relative_error(denoise(unet, x, text), expected) <= 3 * FORWARD_TOLERANCE
        if off == "rows":  # one row with, one without
            silent.strength = hn.PerRow(0, 1)
            assert relative_error(denoise(unet, x, text)[:1], expected[:1]) <= 3 * FORWARD_TOLERANCE


def test_side_by_side_cannot_be_fused(unet):
    first, second = (make_net(activation=None) for _ in range(2))
    one, two = hn.attach(unet, first), hn.attach(unet, second, beside=True)
    for adapter in (one, two):
        with pytest.raises(hn.AdapterError, match="side by side cannot be fused"):
            adapter.fuse()


def test_one_row_strength_for_all_is_a_number(unet, net, x, text):
    with hn.attach(unet, net, hn.PerRow(0.5)):
        y = denoise(unet, x, text)
    with hn.attach(unet, net, 0.5):
        assert torch.equal(denoise(unet, x, text), y)


def test_networks_side_by_side_add_up(unet, x, text):
    one, two, three = (make_net(activation=a, std=0.2) for a in ("relu", "silu", None))
    hn.attach(unet, one, 0.5)
    hn.attach(unet, two, -0.3, beside=True)
    hn.attach(unet, three, 0.7)
    y = denoise(unet, x, text)

    class Parallel(WebUIProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            a, b, c = (pairs[context.shape[-1]] for pairs in self.pairs)
            streams = []
            for s in range(2):
                y = context + 0.5 * a[s].linear(context) - 0.3 * b[s].linear(context)
                streams.append(y + 0.7 * c[s].linear(y))
            k, v = attn.to_k(streams[0]), attn.to_v(streams[1])
            q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (attn.to_q(hidden_states), k, v))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            return attn.to_out[0](out)

    truth = tiny_unet(torch.float64)
    truth.load_state_dict(unet.state_dict())
    for layer in attention_layers(truth).values():
        layer.set_processor(Parallel([one, two, three]))
    assert relative_error(y, denoise(truth, x.double(), text.double())) <= 3 * FORWARD_TOLERANCE


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"dwon": 1}, "key 'dwon', which fits no attention layer here; accepted are down, mid, up"),
        ({"down": {"block_7": 1}}, r"strength\['down'\] has the key 'block_7'"),
        ({"down_blocks.9.*": 1}, "key 'down_blocks.9.*'"),
        ({"mid": {"up": 1}}, r"strength\['mid'\] has the key 'up'"),
        ({1: 2.0}, "the key 1"),
        ({"up": "strong"}, r"strength\['up'\] must be a number, PerRow"),
        ([0, 1], r"for the rows of a batch give PerRow\(0, 1\)"),
        (["x" * 1000], r"for the rows of a batch give PerRow\('x{100,200}"),
        ({"down": [1, 2]}, "a list, which is for the attention modules of one block"),
        ({"down": {"block_0": [1, 2, 3]}}, "has 3 entries and is about 1 attention modules"),
        ({"up_blocks.1.attentions.1.*": [0.5]}, "has 1 entries and is about 1 attention modules; give one for each of"),
        ({"down": {"block_0": ["a"]}}, "each entry of .* must be a number"),
        ({"down": {"block_0": [hn.PerRow(0, 1)]}}, r"each entry of .* must be a number, not PerRow\(0, 1\)"),
        ({"k": {"v": 0}}, r"strength\['k'\] has the key 'v', which fits no"),
        (float("nan"), "must be finite, not nan"),
        (10**400, "must be finite, not 1000"),
        (1e39, r"must be finite, not 1e\+39; the greatest"),
        ({"k": 1e30, "*": 1e30}, "the product of the strengths at .* must be finite, not 1.*e"),
        (hn.PerRow, "must be a number"),
        (torch.tensor(1.0), "must be a number"),
    ],
)
def test_what_is_not_a_strength_is_refused_and_changes_nothing(unet, net, strength, message):
    before = dict(unet.__dict__)
    with pytest.raises(ValueError, match=message):
        hn.attach(unet, net, strength=strength)
    assert unet.__dict__ == before
    adapter = hn.attach(unet, net, strength=0.5)
    with pytest.raises(ValueError, match=message):
        adapter.strength = strength
    assert adapter.strength == 0.5


def test_a_table_may_speak_of_layers_that_the_adapter_does_not_reach(unet, net, x, text):
    adapter = hn.attach(unet, net, {"attn1": 0.5, "attn2": 0.2}, targets="attn2")
    y = denoise(unet, x, text)
    adapter.targets = "attn1"
    assert not torch.equal(denoise(unet, x, text), y)
    adapter.detach()
    with hn.attach(unet, net, 0.2, targets="attn2"):
        assert torch.equal(denoise(unet, x, text), y)


def test_a_row_strength_needs_numbers():
    with pytest.raises(ValueError, match="at least one"):
        hn.PerRow()
    with pytest.raises(ValueError, match="must be a number"):
        hn.PerRow("1")


def test_a_batch_that_the_rows_do_not_divide_is_refused(unet, net):
    hn.attach(unet, net, strength=hn.PerRow(0, 1, 2))
    with pytest.raises(hn.AdapterError, match=r"3 equal parts .* a batch of 2 has come in; give PerRow"):
        denoise(unet, noise(), prompt())


def test_changing_the_callers_table_afterwards_changes_nothing(unet, net, x, text):
    table = {"up": 0.5}
    adapter = hn.attach(unet, net, strength=table)
    y = denoise(unet, x, text)
    table["up"] = 2.0
    adapter.strength["up"] = 2.0
    assert torch.equal(denoise(unet, x, text), y)


def test_keys_of_the_original_repositories_blocks():
    assert Place.of("input_blocks.4.1.transformer_blocks.0.attn1", "attn1")[2:] == ("down", 4, None)
    assert Place.of("middle_block.1.transformer_blocks.0.attn2", "attn2")[2:] == ("mid", None, None)
    assert Place.of("diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2", "attn2")[2:4] == ("up", 11)


class FakePipeline:
    """Counts steps as diffusers' pipelines do."""

    def __init__(self, steps):
        self.num_timesteps = steps

    def __call__(self, adapter, callback):
        seen = []
        for step in range(self.num_timesteps):
            seen.append(adapter.strength)
            assert callback(self, step, 1000 - step, {"latents": 1}) == {"latents": 1}
        return seen


def test_a_schedule_follows_the_steps_and_begins_again(unet, net):
    adapter = hn.attach(unet, net)
    listed = adapter.schedule([1.0, 0.5, {"up": 0.25}])
    for _ in range(2):
        assert FakePipeline(4)(adapter, listed) == [1.0, 0.5, {"up": 0.25}, {"up": 0.25}]
    assert adapter.strength == 1.0
    computed = adapter.schedule(lambda progress: 1 - progress)
    assert FakePipeline(3)(adapter, computed) == [1.0, 0.5, 0.0]
    assert FakePipeline(1)(adapter, computed) == [1.0]


def test_a_schedule_with_a_mistake_is_refused_at_once(unet, net):
    adapter = hn.attach(unet, net, 0.3)
    for wrong in ([], [1.0, "x"], [1.0, {"dwon": 1}], 0.5):
        with pytest.raises(ValueError):
            adapter.schedule(wrong)
    assert adapter.strength == 0.3


def test_a_real_pipeline_runs_a_schedule():
    from diffusers import StableDiffusionPipeline

    from hnkernels.assets import TINY_SD

    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    pipe.set_progress_bar_config(disable=True)
    adapter = hn.attach(pipe, make_net((48, 80, 96), activation="relu"), strength=0.0)
    seen = []
    schedule = adapter.schedule([0.0, 0.5, 1.0])

    def on_step_end(*step):
        seen.append(adapter.strength)
        return schedule(*step)

    pipe("digit seven", num_inference_steps=3, output_type="latent", callback_on_step_end=on_step_end)
    assert seen == [0.0, 0.5, 1.0]


@torch.no_grad()
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("counts", [(2, 4), (4, 2), (2, 3)], ids=str)
def test_networks_may_tell_different_parts_of_a_batch_apart(counts, parallel):
    unet, size = tiny_unet(torch.float64), math.lcm(*counts)
    nets = [make_net(activation=a, std=0.2).double() for a in ("silu", "tanh")]
    values = [tuple((-0.4 - 0.3 * n) * (i + 1) for i in range(count)) for n, count in enumerate(counts)]
    x, text = noise(size, torch.float64), prompt(size, torch.float64)
    with hn.attach(unet, nets[0]) as first, hn.attach(unet, nets[1], parallel=parallel) as second:
        first.strength, second.strength = (hn.PerRow(*v) for v in values)
        together = denoise(unet, x, text)
        rows = []
        for row in range(size):
            first.strength, second.strength = (v[row * len(v) // size] for v in values)
            rows.append(denoise(unet, x[row : row + 1], text[row : row + 1]))
    assert relative_error(together, torch.cat(rows)) <= 1e-12


def test_what_is_read_of_a_strength_is_a_copy(unet, net, x, text):
    adapter = hn.attach(unet, net, {"up": {"k": 0.5}})
    adapter.strength["up"]["k"] = 2
    assert adapter.strength == {"up": {"k": 0.5}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_side_by_side_are_added_up_before_they_are_rounded(dtype):
    mlps = [make_mlp(activation="tanh").eval() for _ in range(5)]
    x = torch.randn(64, 8).to(dtype)
    y, _ = rewrite(x, tuple(Link(mlp, mlp, 1.0, 1.0, parallel=i > 0) for i, mlp in enumerate(mlps)))
    first, *others = (hyper_context(x, mlp).double() for mlp in mlps)
    assert torch.equal(y, (first + sum(other - x.double() for other in others)).to(dtype))
