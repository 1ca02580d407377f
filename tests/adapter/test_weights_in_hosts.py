"""Generated weights in every kind of model, beside LoRA, offloaded, compiled, and in whole pipelines."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from tests.adapter.hosts import CROSS_ATTENTION, FLOAT64_TOLERANCE, JOINT_ATTENTION, by_hand, run
from tests.adapter.test_attach import fingerprint
from tests.adapter.test_compile import Compilations, by_blocks, compilations_without, small_unet, whole
from tests.adapter.test_lora import LoRA
from tests.adapter.test_weights import make_generator, written_in
from tests.marks import compiles_models, earlier
from tests.models import UNET_TOLERANCE, copied, denoise, make_net, noise, prompt, randomise, relative_error

HOSTS = {**CROSS_ATTENTION, **JOINT_ATTENTION}
CHECKPOINTED = ("sd1", "controlnet", "pixart", "sana", "wan", "sd3", "flux")

every_host = pytest.mark.parametrize("case", HOSTS.values(), ids=HOSTS)


@pytest.fixture
def gen(unet):
    return gentle(unet)


def gentle(model):
    """A generator in fp32 whose weights matter, but leave the model so tame that rounding does not grow in it."""
    gen = make_generator(model).float()
    randomise(gen, 0.1)
    return gen


@every_host
def test_it_does_what_weights_written_in_by_hand_do(case):
    model, call = case.model(), case.call()
    weights = make_generator(model).generate_weights("ink").detach()
    before = fingerprint(model)
    with torch.no_grad():
        base, expected = run(model, call), run(written_in(model, weights), call)
        adapter = hn.attach(model, weights)
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE  # from what was kept
        adapter.strength = 0
        assert torch.equal(run(model, call), base)
        adapter.detach()
        assert torch.equal(run(model, call), base)
    assert relative_error(base, expected) > 1e-5
    assert fingerprint(model) == before


@every_host
def test_together_with_a_context_hypernetwork(case):
    model, call, net = case.model(), case.call(), make_net(tuple(case.widths)).double()
    weights = make_generator(model).generate_weights("ink").detach()
    with torch.no_grad():
        expected = run(by_hand(written_in(model, weights), net), call)
        hn.attach(model, weights)
        hn.attach(model, net)
        assert relative_error(run(model, call), expected) < FLOAT64_TOLERANCE


@pytest.mark.parametrize(
    ("case", "checkpointing"),
    [(case, False) for case in HOSTS.values()] + [(HOSTS[name], True) for name in CHECKPOINTED],
    ids=[*HOSTS, *(f"{name} with checkpointing" for name in CHECKPOINTED)],
)
def test_training_gives_the_gradients_of_weights_by_hand(case, checkpointing):
    model, call = case.model(), case.call()
    gen = make_generator(model)
    parameters = [*gen.decoder.parameters()]
    dense = {f"{name}.weight": w[0] + model.get_submodule(name).weight for name, w in gen("ink").dense().items()}

    class Forward(torch.nn.Module):  # functional_call knows no run()
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return run(self.model, call)

    by_hand = torch.func.functional_call(Forward(), {f"model.{k}": w for k, w in dense.items()}, ())
    theirs = torch.autograd.grad(by_hand.square().sum(), parameters, allow_unused=True)
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    with hn.attach(model, gen) as adapter, adapter.condition("ink"):
        ours = torch.autograd.grad(run(model, call).square().sum(), parameters, allow_unused=True)
    whole_ours, whole_theirs = (torch.cat([g.flatten() for g in gs if g is not None]) for gs in (ours, theirs))
    assert whole_theirs.norm() > 0
    assert relative_error(whole_ours, whole_theirs) < 10 * FLOAT64_TOLERANCE


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("grad", [False, True])
def test_beside_lora(unet, gen, x, text, order, grad):
    pytest.importorskip("peft", reason="diffusers loads LoRA through PEFT")
    base, lora = copied(unet), LoRA(unet)
    weights = gen("ink").detach()
    with torch.no_grad():
        pure = denoise(written_in(base, weights), x, text)
        both = denoise(written_in(lora.merged_into(base), weights), x, text)
    with torch.set_grad_enabled(grad):
        if order == "before":
            lora.load(unet)
        hn.attach(unet, weights)
        if order == "after":
            assert relative_error(denoise(unet, x, text), pure) < UNET_TOLERANCE
            lora.load(unet)
        assert relative_error(denoise(unet, x, text), both) < UNET_TOLERANCE
        unet.fuse_lora(lora_scale=1.0)
        unet.unload_lora()
        assert relative_error(denoise(unet, x, text), both) < UNET_TOLERANCE


def test_what_it_generates_loads_as_a_lora(unet, gen, x, text):
    pytest.importorskip("peft", reason="diffusers loads LoRA through PEFT")
    weights = gen("oil").detach()
    with torch.no_grad():
        with hn.attach(unet, weights):
            expected = denoise(unet, x, text)
        unet.load_lora_adapter(weights.to_lora_state_dict(0), prefix="unet")
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


@pytest.mark.parametrize("order", ["before", "after"])
def test_model_weights_that_are_there_during_a_call_only(unet, gen, x, text, order):
    weights = gen("ink").detach()
    with torch.no_grad():
        base, expected = denoise(unet, x, text), denoise(written_in(unet, weights), x, text)
        if order == "before":
            accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
        adapter = hn.attach(unet, weights)
        if order == "after":
            accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
        for _ in range(2):
            assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
        adapter.detach()
        assert relative_error(denoise(unet, x, text), base) < UNET_TOLERANCE


@compiles_models
class TestCompiled:
    @pytest.fixture(autouse=True)
    def _nothing_compiled(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.fixture(params=[whole, by_blocks], ids=["whole", "by blocks"])
    def compiled(self, request):
        return request.param

    @pytest.mark.parametrize("grad", [False, True])
    def test_conditions_strengths_and_timesteps_compile_nothing_more(self, compiled, grad):
        unet, backend = small_unet(compiled), Compilations()
        gen = gentle(unet)
        pure = copied(unet)
        adapter = hn.attach(unet, gen)
        model = compiled(unet, backend)
        x, text = noise(), prompt()
        steps = [("ink", 1.0), ("oil", 1.0), ("oil", 0.5), ("ink", -0.3), ({"ink": 0.5, "oil": 0.5}, 2.0)]
        for t, (style, strength) in enumerate(steps):
            adapter.strength = strength
            weights = gen(style)
            if not grad:
                weights = weights.detach()
            with torch.set_grad_enabled(grad), adapter.condition(weights, guidance=False):
                y = denoise(model, x, text, t)
                if grad:
                    y.square().sum().backward()
            expected = denoise(written_in(pure, weights, strength=strength), x, text, t)
            assert relative_error(y, expected) < 2 * UNET_TOLERANCE
        if compiled is whole or not earlier("torch", (2, 11)):  # 2.8 compares hooks by number: once for each block
            assert backend.count == compilations_without(compiled, grad)

    def test_guidance_and_scales_by_row(self, compiled):
        unet, backend = small_unet(compiled), Compilations()
        weights = gentle(unet)(["ink", "oil"]).detach()
        x, text = noise(4), prompt(4)
        with torch.no_grad(), hn.attach(unet, weights) as adapter:
            expected, y = [], []
            for scale in (1.0, 0.3):
                adapter.guidance = True
                adapter.weights = weights.scaled(torch.tensor([scale, 2 * scale]))
                expected.append(denoise(unet, x, text))
            model = compiled(unet, backend)
            for scale in (1.0, 0.3):
                adapter.weights = weights.scaled(torch.tensor([scale, 2 * scale]))
                y.append(denoise(model, x, text))
        for ours, eager in zip(y, expected, strict=True):
            assert relative_error(ours, eager) < UNET_TOLERANCE


class TestPipelines:
    @pytest.fixture(scope="class")
    def loaded(self):
        return load_pipeline(TINY_SD)

    @pytest.fixture
    def pipe(self, loaded):
        pipe = copy.deepcopy(loaded)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe, prompts, seeds, **options):
        options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0, **options}
        return pipe(prompts, generator=[torch.Generator().manual_seed(s) for s in seeds], **options).images

    def expected(self, pipe, weights, row, prompt, seeds, guidance_scale):
        """Both halves of guidance by hand: the base model on the empty prompt, the written-in copy on the prompt."""
        model = copy.deepcopy(pipe)
        changed = written_in(pipe.unet, weights, row)
        plain = model.unet.forward

        def forward(sample, t, encoder_hidden_states, **kwargs):
            if guidance_scale <= 1:
                return changed(sample, t, encoder_hidden_states, **kwargs)
            (s0, s1), (c0, c1) = sample.chunk(2), encoder_hidden_states.chunk(2)
            halves = plain(s0, t, c0, **kwargs)[0], changed(s1, t, c1, **kwargs)[0]
            return (torch.cat(halves),)

        model.unet.forward = forward
        return self.draw(model, prompt, seeds, guidance_scale=guidance_scale, num_images_per_prompt=len(seeds))

    @pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
    @pytest.mark.parametrize("images", [1, 2])
    def test_prompts_with_a_condition_each(self, pipe, guidance_scale, images):
        gen = gentle(pipe)
        prompts, seeds = ["digit one", "digit seven"], list(range(2 * images))
        with torch.no_grad():
            weights = gen(["ink", "oil"])
            halves = [
                self.expected(
                    pipe, weights, row, prompts[row], seeds[row * images : (row + 1) * images], guidance_scale
                )
                for row in range(2)
            ]
        with hn.attach(pipe, gen) as adapter:
            base = self.draw(pipe, prompts, seeds, guidance_scale=guidance_scale, num_images_per_prompt=images)
            with torch.no_grad(), adapter.condition(["ink", "oil"]):
                ours = self.draw(pipe, prompts, seeds, guidance_scale=guidance_scale, num_images_per_prompt=images)
        assert relative_error(ours, torch.cat(halves)) < 10 * UNET_TOLERANCE
        assert relative_error(ours, base) > 0.01

    def test_outside_of_a_run_no_row_is_unconditional(self, pipe):
        gen, x, text = gentle(pipe), torch.randn(2, 4, 8, 8), torch.randn(2, 16, 96)
        self.draw(pipe, "digit one", [0])  # under guidance
        with torch.no_grad(), hn.attach(pipe, gen) as adapter, adapter.condition("ink"):
            y = denoise(pipe.unet, x, text)
            assert relative_error(y, denoise(written_in(pipe.unet, adapter.weights), x, text)) < UNET_TOLERANCE

    def test_a_pipeline_finds_what_was_attached_to_its_unet(self, pipe):
        gen = gentle(pipe)
        with torch.no_grad():
            with hn.attach(pipe, gen) as adapter, adapter.condition("ink"):
                expected = self.draw(pipe, "digit one", [0])
            with hn.attach(pipe.unet, gen) as adapter, adapter.condition("ink"):
                assert torch.equal(self.draw(pipe, "digit one", [0]), expected)

    def test_other_guidance_is_refused(self, pipe, monkeypatch):
        monkeypatch.setattr(type(pipe), "do_perturbed_attention_guidance", True, raising=False)
        adapter = hn.attach(pipe, gentle(pipe))
        refused = pytest.raises(hn.AdapterError, match=r"batches of 3 parts .* guidance=False")
        with torch.no_grad(), adapter.condition("ink"), refused:
            self.draw(pipe, "digit one", [0])

    def test_a_condition_may_change_between_steps(self, pipe):
        gen = gentle(pipe)
        seen = []
        with torch.no_grad(), hn.attach(pipe, gen) as adapter:
            first, second = gen("ink"), gen("oil")

            def change(pipeline, step, timestep, tensors):
                seen.append(adapter.weights)
                adapter.weights = second
                return tensors

            adapter.weights = first
            mixed = self.draw(pipe, "digit one", [0], callback_on_step_end=change)
            adapter.weights = first
            alone = self.draw(pipe, "digit one", [0])
        assert seen == [first, second]
        assert relative_error(mixed, alone) > 1e-3

    def test_a_copied_pipeline_asks_the_copy(self, pipe):
        gen = gentle(pipe)
        hn.attach(pipe, gen)
        twin = copy.deepcopy(pipe)
        with torch.no_grad():
            with hn.adapters(pipe)["hypernetwork"].condition("ink"):
                expected = self.draw(pipe, "digit one", [0])
            pipe._guidance_scale = 1.0
            with hn.adapters(twin)["hypernetwork"].condition("ink"):
                assert torch.equal(self.draw(twin, "digit one", [0]), expected)
