"""What a pipeline says of its batches and steps, against pictures drawn one by one."""

import copy

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.pipelines import calling_groups, in_groups
from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline
from tests.models import make_net, relative_error

TOLERANCE = 1e-3  # of whole pipelines: each step goes on from the last one's rounding


@pytest.fixture(scope="module")
def loaded():
    return load_pipeline(TINY_SD)


@pytest.fixture
def pipe(loaded):
    pipe = copy.deepcopy(loaded)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def net():
    return make_net((48, 80, 96), std=0.1, activation="relu")


def draw(pipe, seeds=(0, 1), **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 2, "output_type": "latent", **options}
    return pipe("digit", generator=generators, num_images_per_prompt=len(seeds), **options).images


def drawn_at(pipe, net, strength, model="pipeline", **options):
    with hn.attach(pipe if model == "pipeline" else pipe.unet, net, strength):
        return draw(pipe, **options)


@pytest.mark.parametrize("model", ["pipeline", "unet"])
def test_without_guidance_there_are_no_unconditional_rows(pipe, net, model):
    plain = {"guidance_scale": 1.0}
    got = drawn_at(pipe, net, hn.PerRow(0, 1), model, **plain)
    assert relative_error(got, drawn_at(pipe, net, 1.0, **plain)) < TOLERANCE
    assert relative_error(got, drawn_at(pipe, net, 0.0, **plain)) > 10 * TOLERANCE


def test_a_strength_for_each_picture_with_guidance_and_without(pipe, net):
    strength = {"attn2": hn.PerRow(0, 0, 0.3, 1)}
    for scale in (3.0, 1.0):
        got = drawn_at(pipe, net, strength, guidance_scale=scale)
        for i, s in enumerate((0.3, 1)):
            alone = drawn_at(pipe, net, {"attn2": hn.PerRow(0, s)}, seeds=[i], guidance_scale=scale)
            assert relative_error(got[i : i + 1], alone) < TOLERANCE


def test_guidance_that_ends_in_the_middle_of_a_run(pipe, net):
    def no_more_guidance(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    options = {
        "guidance_scale": 3.0,
        "callback_on_step_end": no_more_guidance,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    together = drawn_at(pipe, net, hn.PerRow(0, 1), **options)
    apart = torch.cat([drawn_at(pipe, net, hn.PerRow(0, 1), seeds=[seed], **options) for seed in (0, 1)])
    assert relative_error(together, apart) < TOLERANCE


def test_outside_of_a_run_the_rows_are_those_of_the_batch(pipe, net):
    draw(pipe, guidance_scale=1.0)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 96)
    with torch.no_grad():
        base = pipe.unet(x, 7, text).sample
        with hn.attach(pipe, net, hn.PerRow(0, 1)):
            got = pipe.unet(x, 7, text).sample
    assert relative_error(got[:1], base[:1]) < 1e-5
    assert relative_error(got[1:], base[1:]) > 1e-2


class Old:
    """A pipeline that keeps its guidance to itself."""

    def __call__(self, guided):
        do_classifier_free_guidance = guided  # noqa: F841
        return calling_groups()


class InstructPix2Pix:
    do_classifier_free_guidance = True
    image_guidance_scale = 1.5

    def __call__(self):
        return calling_groups()


class Perturbed:
    do_perturbed_attention_guidance = True

    def __init__(self, guided):
        self.guided = guided

    @property
    def do_classifier_free_guidance(self):
        return self.guided

    def __call__(self):
        return calling_groups()


def test_the_layouts_of_pipelines():
    assert calling_groups() is None
    assert Old()(True) == (False, True)
    assert Old()(False) == (True,)
    assert InstructPix2Pix()() == (True, False, False)
    assert Perturbed(True)() == (False, True, True)
    assert Perturbed(False)() == (True, True)


@pytest.mark.parametrize(
    ("groups", "values"),
    [
        (None, (0, 1, 2, 3)),
        ((False, True), (0, 1, 2, 3)),
        ((True,), (2, 3)),
        ((False, True, True), (0, 1, 2, 3, 2, 3)),
        ((True, False, False), (2, 3, 0, 1, 0, 1)),
    ],
)
def test_values_by_layout(groups, values):
    assert in_groups((0, 1, 2, 3), groups) == values
    assert in_groups((0, 1, 2), groups) == (0, 1, 2)
    assert in_groups(0.5, groups) == 0.5


class Stopped(Exception):
    pass


@pytest.mark.parametrize("how", ["raised", "interrupted"])
def test_a_schedule_begins_anew_after_a_run_that_was_stopped(pipe, net, how):
    adapter = hn.attach(pipe, net)
    follow = adapter.schedule([0.0, 0.5, 1.0])
    seen = []
    pipe.unet.register_forward_pre_hook(lambda *_: seen.append(adapter.strength))

    def stop(pipeline, step, timestep, tensors):
        follow(pipeline, step, timestep, tensors)
        if how == "raised":
            raise Stopped
        pipeline._interrupt = True
        return tensors

    def run(callback):
        seen.clear()
        draw(pipe, num_inference_steps=3, callback_on_step_end=callback)
        return list(seen)

    whole = draw(pipe, num_inference_steps=3, callback_on_step_end=follow)
    if how == "raised":
        with pytest.raises(Stopped):
            run(stop)
    else:
        assert len(run(stop)) == 1
    again = draw(pipe, num_inference_steps=3, callback_on_step_end=follow)
    assert torch.equal(whole, again)
    assert run(follow) == [0.0, 0.5, 1.0]


def test_a_strength_that_was_set_after_a_stopped_run_stays(pipe, net):
    adapter = hn.attach(pipe, net)
    follow = adapter.schedule([0.0, 0.5])

    def stop(*step):
        follow(*step)
        raise Stopped

    with pytest.raises(Stopped):
        draw(pipe, callback_on_step_end=stop)
    adapter.strength = 0.7
    draw(pipe)
    assert adapter.strength == 0.7
