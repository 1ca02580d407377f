"""Training a weight hypernetwork: conditions, losses, the whole job."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.generator import weights_of_loras
from hnkernels.pipeline import load_pipeline
from hnkernels.training import Example, Mixture, Penalty, Reconstruction, denoising
from hnkernels.training.losses import Step
from tests.models import TEXT_WIDTH, randomise
from tests.training.nets import make_batch, make_rows, make_unet

STYLES = ("ink", "oil")


def make_gen(model, **options):
    torch.manual_seed(1)
    options = {"embedding_dim": TEXT_WIDTH, "hidden_dim": 16, "styles": STYLES, "model": model, **options}
    return hn.WeightHypernetwork(**options)


def step(gen, unet, batch, lr=1e-2, **options):
    return hn.train_hypernetwork(gen, unet, batch, torch.optim.AdamW(gen.parameters(), lr=lr), **options)


def conditioned(rows=2, condition=None):
    return {**make_batch(rows), "condition": condition or [STYLES[i % 2] for i in range(rows)]}


def in_float64(batch):
    return {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}


def lora_of(gen, style):
    return gen(style).to_lora_state_dict(0)


def test_the_network_learns_and_the_model_stays():
    unet = make_unet()
    gen, before = make_gen(unet), {name: p.clone() for name, p in unet.named_parameters()}
    optimizer = torch.optim.AdamW(gen.parameters(), lr=3e-3)
    losses = [hn.train_hypernetwork(gen, unet, conditioned(), optimizer)["loss"] for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())
    assert not [m for m in unet.modules() if "forward" in m.__dict__]
    assert all(p.grad is not None for p in gen.decoder.parameters())


def test_a_step_is_the_gradient_of_the_loss_with_every_row_under_its_condition():
    unet, batch = make_unet().double(), in_float64(make_batch())
    gens = [make_gen(unet).double() for _ in range(2)]
    for gen in gens:
        torch.manual_seed(2)
        randomise(gen, 0.1)
    step(gens[0], unet, {**batch, "condition": ["oil", "ink"]}, lr=0.0)
    for row, style in enumerate(("oil", "ink")):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        with hn.attach(unet, gens[1].train()) as adapter, adapter.condition(style):
            (hn.training.denoising(Step(unet, None, one, None, None)) / 2).backward()
    for a, b in zip(gens[0].parameters(), gens[1].parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "condition",
    [torch.randn(2, TEXT_WIDTH), torch.randn(2, 3, TEXT_WIDTH), ["ink", "oil"], [{"ink": 0.5, "oil": 0.5}] * 2],
    ids=["vectors", "tokens", "styles", "mixtures"],
)
def test_what_a_condition_may_be(condition):
    unet = make_unet()
    metrics = step(make_gen(unet), unet, {**make_batch(), "condition": condition})
    assert metrics["updated"]
    assert metrics["grad_norm"] > 0


def test_masked_tokens_count_for_nothing():
    unet = make_unet()
    tokens, mask = torch.randn(2, 3, TEXT_WIDTH), torch.tensor([[True, True, False]] * 2)
    metrics = []
    for fill in (0.0, 9.0):
        tokens[:, 2] = fill
        metrics.append(step(make_gen(unet), unet, {**make_batch(), "condition": tokens, "condition_mask": mask}))
    assert metrics[0] == metrics[1]  # the gradient too: at the start no condition changes the loss


def test_without_a_condition_the_text_is_the_condition():
    unet, batch = make_unet(), make_batch()
    ours = step(make_gen(unet), unet, batch)
    assert ours == step(make_gen(unet), unet, {**batch, "condition": batch["encoder_hidden_states"]})


def test_guidance_of_sampling_has_no_hand_in_training():
    unet = make_unet()
    gen = make_gen(unet)
    expected = step(make_gen(unet), unet, conditioned())
    with hn.attach(unet, gen) as adapter:
        adapter.guidance = True
        assert step(gen, unet, conditioned()) == expected
        assert adapter.guidance is True
        assert adapter.weights is None


def test_accumulated_micro_batches_give_the_gradient_of_the_whole():
    unet = make_unet().double()
    whole = {**in_float64(make_batch(4)), "condition": ["ink", "oil", "ink", "ink"]}
    parts = [{key: value[:1] for key, value in whole.items()}, {key: value[1:] for key, value in whole.items()}]
    gens = [make_gen(unet).double() for _ in range(2)]
    for gen, batch in zip(gens, (whole, parts), strict=True):
        step(gen, unet, batch, lr=0.0)
    for a, b in zip(gens[0].parameters(), gens[1].parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_comes_close_to_full(precision):
    norms = []
    for option in ("no", precision):
        unet = make_unet()
        scaler = torch.amp.GradScaler("cpu") if option == "fp16" else None
        norms.append(step(make_gen(unet), unet, conditioned(), mixed_precision=option, scaler=scaler)["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_reconstruction_measures_the_distance_from_loras_and_brings_it_down():
    unet = make_unet()
    teacher, gen = make_gen(unet, rank=2), make_gen(unet)
    randomise(teacher, 0.3)
    batch = {"condition": list(STYLES), "lora": [lora_of(teacher, style) for style in STYLES]}
    optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-2)
    losses = [hn.train_hypernetwork(gen, unet, batch, optimizer, loss=Reconstruction())["loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(1.0, rel=1e-6)  # ΔW is 0 at the start
    assert losses[-1] < 0.3
    dense, wanted = gen(list(STYLES)).dense(), teacher(list(STYLES)).dense()
    squares = [sum((dense[n][i] * s - wanted[n][i]).square().sum() for n in wanted) for s in (1, 0) for i in (0, 1)]
    by_hand = (squares[0] / squares[2] + squares[1] / squares[3]) / 2
    assert step(gen, unet, batch, lr=0.0, loss=Reconstruction())["loss"] == pytest.approx(by_hand.item(), rel=1e-4)


def test_loras_as_weights():
    unet = make_unet()
    teacher = make_gen(unet, rank=3)
    randomise(teacher, 0.3)
    layers = teacher.layers
    states = [lora_of(teacher, "ink"), {f"{k}": t for k, t in lora_of(teacher, "oil").items() if "attn2" in k}]
    weights = weights_of_loras(layers, states)
    for name, dense in weights.dense().items():
        ink, oil = (teacher(style).dense(name)[0] for style in STYLES)
        assert torch.equal(dense[0], ink)
        assert torch.equal(dense[1], oil if "attn2" in name else torch.zeros_like(oil))
    name = layers[0].name
    a, b = torch.randn(2, layers[0].in_features), torch.randn(layers[0].out_features, 2)
    old = {f"{name}.lora.down.weight": a, f"{name}.lora.up.weight": b, f"{name}.alpha": torch.tensor(1.0)}
    torch.testing.assert_close(weights_of_loras(layers, [old]).dense(name)[0], 0.5 * b @ a)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "there is no LoRA with keys '<layer>.lora_A.weight' in it, but nothing"),
        ({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, "but lora_unet_x.lora_down.weight; convert it"),
        ({"unet.x.lora_A.weight": torch.ones(1, 4)}, "unet.x.lora_A.weight has no partner"),
        (
            {"unet.x.lora_A.weight": torch.ones(1, 4), "unet.x.lora_B.weight": torch.ones(4, 1)},
            "LoRA 0 changes x, for which no weights are generated; widen target_layers",
        ),
    ],
)
def test_loras_that_do_not_fit_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        weights_of_loras(make_gen(make_unet()).layers, [state])


def test_loras_of_another_shape_are_refused():
    layers = make_gen(make_unet()).layers
    state = {f"{layers[0].name}.lora_A.weight": torch.ones(1, 99), f"{layers[0].name}.lora_B.weight": torch.ones(98, 1)}
    with pytest.raises(ValueError, match=r"LoRA 0 has \[98, 1\] by \[1, 99\] at .* whose weight is \[8, 8\]"):
        weights_of_loras(layers, [state])
    with pytest.raises(ValueError, match="at least one LoRA"):
        weights_of_loras(layers, [])


def test_mixtures_and_callables_of_ones_own():
    unet = make_unet()
    teacher = make_gen(unet)
    randomise(teacher, 0.3)
    batch = {**conditioned(), "lora": [lora_of(teacher, style) for style in STYLES]}
    gen = make_gen(unet)
    randomise(gen, 0.1)
    losses = (denoising, Reconstruction(), Penalty(1.0, 2.0))
    parts = [step(gen, unet, batch, lr=0.0, loss=loss)["loss"] for loss in losses]

    def own(s):
        assert s.batch["lora"] is batch["lora"]
        return s.weights.penalty(1.0, 2.0)

    mixture = Mixture((0.5, denoising), (2.0, Reconstruction()), (3.0, own))
    expected = 0.5 * parts[0] + 2 * parts[1] + 3 * parts[2]
    assert step(gen, unet, batch, lr=0.0, loss=mixture)["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        ({}, denoising, "batch needs 'latents'"),
        ({}, Reconstruction(), "batch needs 'condition', or 'latents'"),
        ({"condition": ["ink"]}, Reconstruction(), "reconstruction needs 'lora' in the batch, a state dict each"),
        ({"condition": ["chalk"]}, Penalty(1.0), "chalk"),
        ({"condition": torch.ones(2, 5)}, Penalty(1.0), "5"),
        ({"latents": torch.ones(1, 4, 4, 4)}, Penalty(1.0), "batch needs 'condition', or text embeddings"),
    ],
)
def test_batches_that_lack_something_are_refused_and_leave_nothing_behind(batch, loss, message):
    unet = make_unet()
    with pytest.raises(ValueError, match=message):
        step(make_gen(unet), unet, batch, loss=loss)
    assert not [m for m in unet.modules() if "forward" in m.__dict__]
    assert all(p.requires_grad for p in unet.parameters())


def test_losses_that_cannot_be_are_refused():
    unet = make_unet()
    with pytest.raises(ValueError, match=r"made of \(weight, loss\) pairs"):
        Mixture(denoising)
    net = hn.Hypernetwork((8,))
    for loss in (Reconstruction(), Penalty(1.0)):
        with pytest.raises(ValueError, match="is for a WeightHypernetwork"):
            hn.train_hypernetwork(net, unet, make_batch(), torch.optim.AdamW(net.parameters()), loss=loss)
    gen = make_gen(unet)
    zero = {k: torch.zeros_like(t) for k, t in lora_of(gen, "ink").items()}
    with pytest.raises(ValueError, match="changes nothing, and cannot be a measure"):
        step(gen, unet, {"condition": ["ink"], "lora": [zero]}, loss=Reconstruction())
    randomise(gen)
    with pytest.raises(ValueError, match="2 conditions and 1 LoRAs"):
        step(gen, unet, {"condition": ["ink", "oil"], "lora": [lora_of(gen, "ink")]}, loss=Reconstruction())


def rows_with_styles(count=5):
    return [{**row, "condition": STYLES[i % 2]} for i, row in enumerate(make_rows(count))]


def trainer(out, data=None, unet=None, gen=None, loss=denoising, **config):
    unet = unet or make_unet()
    settings = {"learning_rate": 1e-2, "batch_size": 2, "max_epochs": 4, "output_dir": str(out), "progress": False}
    data = data or rows_with_styles()
    return hn.HypernetworkTrainer(gen or make_gen(unet), unet, {**settings, **config}, data, loss=loss)


def test_a_run_leaves_the_network_and_a_log(tmp_path):
    job = trainer(tmp_path)
    result = job.train()
    assert (result.step, result.stopped) == (12, "finished")
    assert [path.name for path in result.files] == ["hypernetwork.safetensors"]
    loaded = hn.WeightHypernetwork.load(result.files[0])
    pairs = zip(loaded.state_dict().values(), job.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert loaded.provenance.step == 12
    with (tmp_path / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    assert not job.net.training


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    unet = make_unet()

    def job(out, **config):
        gen = make_gen(unet, rank_dropout=0.3)
        return trainer(tmp_path / out, gen=gen, checkpoint_every=5, gradient_checkpointing=True, **config)

    whole = job("whole")
    whole.train()
    job("part", max_steps=5).train()
    again = job("part")
    again.train(resume=True)
    for a, b in zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = trainer(tmp_path / "part", gen=make_gen(unet, hidden_dim=8))
    with pytest.raises(ValueError, match="a weight hypernetwork of other layers or widths"):
        other.train(resume=True)


def test_a_run_on_loras_alone(tmp_path):
    unet = make_unet()
    teacher = make_gen(unet)
    randomise(teacher, 0.3)
    rows = [{"condition": style, "lora": lora_of(teacher, style)} for style in STYLES]
    result = trainer(tmp_path, rows, loss=Reconstruction(), max_steps=30, max_epochs=30).train()
    assert result.losses[-1] < 0.6 * result.losses[0]
    with pytest.raises(ValueError, match="encoded data needs 'condition'"):
        trainer(tmp_path / "other", [{"lora": rows[0]["lora"]}], loss=Reconstruction()).train()


def test_target_layers_that_the_network_goes_beyond_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights for attn1 too, and target_layers is attn2; build it for those"):
        trainer(tmp_path, target_layers=["attn2"])


def test_rows_with_different_keys_are_refused(tmp_path):
    rows = rows_with_styles(3)
    del rows[1]["condition"]
    with pytest.raises(ValueError, match="all rows need the same keys"):
        trainer(tmp_path, rows).train()


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(TINY_SD)


def pictures():
    return [Image.new("RGB", (32, 32), color) for color in ("white", "grey", "black")]


@pytest.mark.parametrize("kind", ["styles", "mixtures", "text", "folder"])
def test_pictures_with_conditions_train_on_a_pipeline_and_previews_show_them(pipe, tmp_path, kind):
    conditions = {"styles": ["ink", "oil", "ink"], "mixtures": [{"ink": 1.0}, {"oil": 0.5}, {"ink": 0.2, "oil": 0.8}]}
    width = pipe.unet.config.cross_attention_dim
    gen = hn.WeightHypernetwork(embedding_dim=width, hidden_dim=8, model=pipe, styles=STYLES)
    chosen = conditions.get(kind, [None] * 3)
    data = [Example(image, "digit one", c) for image, c in zip(pictures(), chosen, strict=True)]
    if kind == "folder":
        lines = []
        for i, image in enumerate(pictures()):
            image.save(tmp_path / f"{i}.png")
            lines.append(f'{{"file_name": "{i}.png", "text": "digit one", "condition": "ink"}}')
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        data = tmp_path
    config = {
        "max_epochs": 1, "batch_size": 3, "output_dir": str(tmp_path / "out"), "progress": False, "preview_every": 1,
        "preview_prompts": ["digit one", "digit two"], "preview_inference_steps": 2,
        "preview_conditions": [] if kind == "text" else [{"ink": 0.5, "oil": 0.5}, "oil"],
    }  # fmt: skip
    result = hn.HypernetworkTrainer(gen, pipe, config, data).train()
    assert result.step == 1
    Image.open(tmp_path / "out" / "previews" / "step-000001.png").verify()


def test_conditions_of_several_kinds_are_refused(pipe, tmp_path):
    gen = hn.WeightHypernetwork(embedding_dim=8, hidden_dim=8, model=pipe, styles=STYLES)
    data = [Example(pictures()[0], "digit one", "ink"), Example(pictures()[1], "digit two")]
    with pytest.raises(ValueError, match="a condition of one kind"):
        hn.HypernetworkTrainer(gen, pipe, {"output_dir": str(tmp_path), "progress": False}, data).train()
    with pytest.raises(ValueError, match="preview_conditions must be as many as preview_prompts, 1"):
        hn.TrainingConfig(preview_every=1, preview_prompts="a", preview_conditions=["ink", "oil"])
