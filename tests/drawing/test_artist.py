"""What is asked is drawn, the model is as before whatever happens, and one draws at a time."""

import threading
from dataclasses import replace

import pytest
import torch
from PIL import ImageChops

import hnkernels as hn
from hnkernels.adapter import AdapterError
from hnkernels.assets import TINY_SD
from hnkernels.checkpoint import CheckpointError
from hnkernels.drawing import artist as artists
from hnkernels.drawing.artist import Artist, Stopped
from hnkernels.drawing.request import DrawRequest, NetworkUse


def same(a, b):
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


@pytest.fixture
def plain(artist, asks):
    """The picture of the base model alone."""
    return artist.draw(replace(asks, networks=()))[0]


def test_a_picture_is_that_of_the_pipeline_by_hand(artist, asks, ink):
    pipeline = hn.pipeline.load_pipeline(TINY_SD, "cpu")
    with hn.attach(pipeline, hn.load_hypernetwork(ink), strength={"*": 0.5, "attn2": 0.5}):
        by_hand = pipeline(
            "digit seven", num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(3)
        ).images[0]
    drawn = artist.draw(asks.with_network("ink", strength=0.5, parts={"attn2": 0.5}))
    assert len(drawn) == 1
    assert same(drawn[0], by_hand)


def test_a_network_acts_and_is_gone_afterwards(artist, asks, plain):
    assert not same(artist.draw(asks)[0], plain)
    assert same(artist.draw(replace(asks, networks=()))[0], plain)
    assert same(artist.draw(asks.with_network("ink", strength=0.0))[0], plain)


def test_a_batch_is_the_pictures_of_its_seeds(artist, asks):
    batch = artist.draw(replace(asks, batch=2, width=32, height=40))
    assert [picture.size for picture in batch] == [(32, 40)] * 2
    alone = artist.draw(replace(asks, seed=4, width=32, height=40))[0]
    difference = ImageChops.difference(batch[1], alone).getextrema()
    assert all(high <= 2 for _, high in difference)  # a batch adds up in another order


def test_styles_condition_a_weight_hypernetwork_and_without_them_the_prompt_does(artist, asks, styles):
    def draw(**mixed):
        return artist.draw(replace(asks, networks=(NetworkUse(styles, "styles", styles=mixed),)))[0]

    pictures = [draw(oil=1.0), draw(chalk=1.0), draw(oil=0.5, chalk=0.5), draw()]
    assert not any(same(a, b) for n, a in enumerate(pictures) for b in pictures[:n])


def test_progress_counts_the_steps_and_previews_on_demand(artist, asks):
    told, previews = [], []
    artist.draw(
        replace(asks, steps=3, batch=2),
        progress=lambda p: (told.append((p.step, p.steps)), previews.append(p.preview())),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [len(some) for some in previews] == [2, 2, 2]
    assert previews[0][0].size == (32, 32)


def test_a_picture_is_stopped_between_steps_and_the_model_is_as_before(artist, asks, plain):
    stop, steps = threading.Event(), []

    def progress(one):
        steps.append(one.step)
        if one.step == 2:
            stop.set()

    with pytest.raises(Stopped):
        artist.draw(replace(asks, steps=50), stop, progress)
    assert steps == [1, 2]
    assert not hn.adapters(artist._pipeline)
    assert same(artist.draw(replace(asks, networks=()))[0], plain)


def test_the_second_waits_says_so_and_can_leave(artist, asks):
    waiting, stop, ended = threading.Event(), threading.Event(), []

    def second():
        try:
            with artist.turn(stop, waiting.set):
                ended.append("drew")
        except Stopped:
            ended.append("left")

    with artist.turn():
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        stop.set()
        thread.join(30)
    assert ended == ["left"]
    stop.clear()
    second()
    assert ended == ["left", "drew"]


def test_a_network_is_read_again_when_its_file_has_changed(artist, asks, ink, tmp_path):
    file = tmp_path / "copy.safetensors"
    file.write_bytes(ink.read_bytes())
    use = replace(asks, networks=(NetworkUse(file, "copy"),))
    first = artist.draw(use)[0]
    net = hn.Hypernetwork((48, 80, 96), layer_structure=(1, 3, 1), activation="relu")
    torch.nn.init.normal_(net[96][1].linear[2].weight, std=0.3)
    hn.save_hypernetwork(net, file)
    assert not same(artist.draw(use)[0], first)
    file.unlink()
    with pytest.raises(CheckpointError, match="safetensors: does not exist"):
        artist.draw(use)


@pytest.fixture
def unloaded(monkeypatch):
    """An artist whose model must not be loaded."""
    monkeypatch.setattr("hnkernels.pipeline.load_pipeline", lambda *given: pytest.fail("the model was loaded"))
    return Artist("cpu")


def test_what_cannot_be_drawn_is_refused_before_the_model_is_loaded(unloaded, asks, styles, ink, tmp_path):
    foreign = tmp_path / "foreign.pt"
    hn.save_hypernetwork(hn.Hypernetwork((768,), layer_structure=(1, 0.01, 1)), foreign)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no network")
    for network, fault, message in (
        (NetworkUse(foreign, "foreign"), AdapterError, "for another model"),
        (NetworkUse(broken, "broken"), CheckpointError, "broken.safetensors"),
        (NetworkUse(tmp_path / "none.pt", "none"), CheckpointError, "does not exist"),
        (NetworkUse(styles, "styles", styles={"ink": 1.0}), ValueError, "there is no style 'ink'"),
        (NetworkUse(ink, "ink", styles={"oil": 1.0}), ValueError, "for weight hypernetworks, and ink is not one"),
        (NetworkUse(ink, "ink", parts={"sideways": 1.0}), ValueError, "the key 'sideways', which fits no attention"),
    ):
        with pytest.raises(fault, match=r"^") as refused:
            unloaded.draw(replace(asks, networks=(network,)))
        assert message in str(refused.value)
    with pytest.raises(ValueError, match="is not a diffusers pipeline"):
        unloaded.draw(DrawRequest(tmp_path, "a"))


def test_a_fault_while_drawing_leaves_the_model_as_it_was(artist, asks, plain, monkeypatch):
    def fails(*given):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(artists, "_drawn", fails)
    with pytest.raises(ValueError, match="too little memory for this; draw fewer or smaller"):
        artist.draw(asks)
    monkeypatch.undo()
    assert same(artist.draw(replace(asks, networks=()))[0], plain)
