"""What a run is given of pictures: latents, sizes, masks and weights, from a cache or encoded again."""

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import hnkernels as hn
from hnkernels.training import Example, denoising
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data import cache as caching
from hnkernels.training.data.cache import DiskCache
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.families import family_of
from hnkernels.training.sampler import generator_of
from tests.training.families import pipelines


def picture(width=24, height=20, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 255, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode)


def data_of(name, examples, prior=0, cache=None, **config):
    config = TrainingConfig.of({"resolution": 16, "latent_sampling": "deterministic", "progress": False, **config})
    data = PipelineData(family_of(getattr(pipelines, name)()), examples, config, "net", prior=prior, cache=cache)
    data.broken = data.encode()
    return data


def batch_of(data, *indices, seed=0):
    return data.batch(indices, [generator_of(seed, i) for i in range(len(indices))])


def latents_of(name, pixels):
    vae = getattr(pipelines, name)().vae
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor


def net_for(name):
    torch.manual_seed(0)
    return hn.Hypernetwork({"stable_diffusion": (48, 80, 96), "xl": (16, 20)}.get(name, (8, 16)), init="identity")


def run(name, out, data, loss=denoising, **config):
    """Trains for some steps; returns the network."""
    config = {"resolution": 16, "max_steps": 3, "learning_rate": 1e-2, "progress": False, **config}
    net = net_for(name)
    hn.HypernetworkTrainer(net, getattr(pipelines, name)(), {**config, "output_dir": str(out)}, data, loss=loss).train()
    return net


def equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(autouse=True)
def _without_a_report(monkeypatch):
    """Drawing one takes longer than a run of these tests."""
    monkeypatch.setattr("hnkernels.training.progress.reporter.write_report", lambda *args, **kwargs: None)


@pytest.fixture
def folder(tmp_path):
    """Pictures of two aspect ratios, one of them with an alpha channel."""
    (tmp_path / "data").mkdir()
    for number, (width, height) in enumerate([(32, 16), (16, 16), (16, 16), (20, 20)]):
        mode = "RGBA" if number == 2 else "RGB"
        picture(width, height, number, mode).save(tmp_path / "data" / f"{number}.png")
        (tmp_path / "data" / f"{number}.txt").write_text(f"digit {number}, printed")
    return tmp_path / "data"


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures and captions have been encoded, by the pipelines of these tests."""
    counts = {"pictures": 0, "captions": 0}

    def watch(module, name, kind):
        function = getattr(module, name)

        def watched(given, *args, **kwargs):
            counts[kind] += len(given)
            return function(given, *args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for name in ("xl", "velocity"):
        pipeline = getattr(pipelines, name)()
        watch(pipeline.vae, "encode", "pictures")
        for part in ("text_encoder", "text_encoder_2"):
            if getattr(pipeline, part, None) is not None:
                watch(getattr(pipeline, part), "forward", "captions")
    return counts


@pytest.mark.parametrize("name", ["xl", "pixart_with_sizes", "sana", "stable_diffusion_3", "flux"])
def test_pictures_in_buckets_have_latents_of_their_buckets_size(name):
    sizes = [(64, 32), (32, 64), (30, 31), (500, 20)]
    examples = [Example(picture(*size, seed=i), "a") for i, size in enumerate(sizes)]
    data = data_of(name, examples, resolution=64, bucketing=True, bucket_step=10)
    family, groups = data.family, data.groups()
    assert groups[0][0] > groups[0][1]
    assert groups[0] == groups[1][::-1]
    assert groups[2][0] == groups[2][1]
    for i, (width, height) in enumerate(groups):
        assert width % family.multiple == height % family.multiple == width % 10 == height % 10 == 0
        scale = family._scale
        assert batch_of(data, i)["latents"].shape[-2:] == (height // scale, width // scale)


def test_time_ids_are_of_each_picture_and_its_bucket():
    examples = [Example(picture(64, 32), "a"), Example(picture(20, 60), "a")]
    data = data_of("xl", examples, resolution=32, bucketing=True, bucket_step=8)
    wide, tall = data.groups()
    assert wide[0] > wide[1]
    assert tall[0] < tall[1]
    for i, ((width, height), size) in enumerate(zip([(64, 32), (20, 60)], (wide, tall), strict=True)):
        scale = max(size[0] / width, size[1] / height)
        left, top = round((width * scale - size[0]) / 2), round((height * scale - size[1]) / 2)
        assert batch_of(data, i)["time_ids"].tolist() == [[height, width, top, left, size[1], size[0]]]


def test_an_epoch_has_every_picture_as_often_as_it_is_repeated_in_batches_of_one_size(folder, tmp_path):
    (folder / "3_square").mkdir()
    for number in (1, 2):
        for suffix in (".png", ".txt"):
            (folder / f"{number}{suffix}").rename(folder / "3_square" / f"{number}{suffix}")
    seen = []

    def watched(step):
        seen.append(step.batch["latents"])
        return denoising(step)

    config = {"resolution": 32, "bucketing": True, "bucket_step": 8, "batch_size": 2, "max_epochs": 1}
    config["max_steps"] = None
    run("xl", tmp_path / "out", folder, watched, **config, latent_sampling="deterministic")
    wide = [batch for batch in seen if batch.shape[-1] > batch.shape[-2]]
    assert [len(batch) for batch in wide] == [1]
    square = torch.cat([batch for batch in seen if batch.shape[-1] == batch.shape[-2]])
    times = [sum(torch.equal(one, other) for other in square) for one in square]
    assert sorted(times) == [1, *[3] * 6]


@pytest.mark.parametrize("name", ["xl", "inpainting", "edits"])
def test_a_mirrored_picture_is_encoded_from_mirrored_pixels_with_its_mask(name):
    mask = Image.linear_gradient("L").rotate(90).resize((16, 16))
    example = Example(picture(16, 16), "a", mask=mask, source=picture(16, 16, 1))
    data = data_of(name, [example], random_flip=True, masked_loss=True)
    seeds = [next(s for s in range(99) if (torch.rand((), generator=generator_of(s, 0)) < 0.5) == f) for f in (1, 0)]
    mirrored, plain = (batch_of(data, 0, seed=seed) for seed in seeds)
    pixels = example.pixels(16)[None]
    torch.testing.assert_close(mirrored["latents"], latents_of(name, pixels.flip(-1)))
    torch.testing.assert_close(plain["latents"], latents_of(name, pixels))
    assert not torch.allclose(mirrored["latents"], plain["latents"].flip(-1))
    torch.testing.assert_close(mirrored["loss_mask"], plain["loss_mask"].flip(-1))
    torch.testing.assert_close(plain["loss_mask"], F.interpolate(example.weights(16)[None], (8, 8), mode="area"))
    if name == "inpainting":
        kept = (example.weights(16) < 0.5)[None]
        torch.testing.assert_close(mirrored["mask"], plain["mask"].flip(-1))
        torch.testing.assert_close(plain["mask"], 1 - F.interpolate(kept.float(), (8, 8)))
        for batch, flipped in ((plain, False), (mirrored, True)):
            shown = (pixels * kept).flip(-1) if flipped else pixels * kept
            torch.testing.assert_close(batch["masked_latents"], latents_of(name, shown))
    if name == "edits":
        source = Example(example.source, "").pixels(16)[None]
        for batch, shown in ((plain, source), (mirrored, source.flip(-1))):
            unscaled = latents_of(name, shown) / pipelines.edits().vae.config.scaling_factor
            torch.testing.assert_close(batch["source_latents"], unscaled)


def test_drawn_masks_are_the_same_in_every_run_of_a_seed():
    examples = [Example(picture(16, 16, i), "a") for i in range(8)]
    first, again, other = (batch_of(data_of("inpainting", examples, seed=seed), *range(8)) for seed in (1, 1, 2))
    assert torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["mask"], other["mask"])
    assert set(first["mask"].unique().tolist()) == {0.0, 1.0}
    assert len(first["mask"].unique(dim=0)) > 4


def test_the_picture_to_be_edited_is_left_out_as_often_as_the_caption_and_by_itself():
    example = Example(picture(16, 16), "a digit one", source=picture(16, 16, 1))
    data = data_of("edits", [example], caption_dropout=0.5)
    empty = data.text([""])["encoder_hidden_states"]
    left_out = set()
    for seed in range(40):
        batch = batch_of(data, 0, seed=seed)
        left_out.add((not batch["source_latents"].any(), torch.equal(batch["encoder_hidden_states"], empty)))
    assert len(left_out) == 4
    assert batch_of(data_of("edits", [example], caption_dropout=1.0), 0)["source_latents"].any().item() is False
    assert batch_of(data_of("edits", [example]), 0)["source_latents"].any().item() is True


def by_hand(step, weights=None):
    """The loss of a step in float64, weighted by place and by example."""
    process, batch = step.process, step.batch
    noisy = process.noising.noisy(batch["latents"], batch["noise"], batch["timesteps"])
    with torch.no_grad():
        prediction = process.family.predict(noisy, batch["timesteps"], batch).double()
    errors = (prediction - process.noising.target(batch["latents"], batch["noise"], batch["timesteps"])) ** 2
    places = batch.get("loss_mask", torch.ones(1)).double().expand_as(errors)
    per_example = (errors * places).sum((1, 2, 3)) / places.sum((1, 2, 3))
    return float((per_example * torch.tensor(weights or [1.0] * len(errors), dtype=torch.float64)).mean())


def test_as_many_pictures_for_prior_preservation_have_their_weight_in_every_batch(folder, tmp_path):
    (tmp_path / "reg").mkdir()
    picture(16, 16, 9).save(tmp_path / "reg" / "digit.png")  # one, which is fewer than a batch needs
    seen = []

    def watched(step):
        loss = denoising(step)
        half = len(step.batch["latents"]) // 2
        assert loss.item() == pytest.approx(by_hand(step, [1.0] * half + [0.25] * half), rel=1e-5)
        seen.append(step.batch)
        return loss

    config = {"regularization_data": str(tmp_path / "reg"), "prior_loss_weight": 0.25, "batch_size": 2}
    run("velocity", tmp_path / "out", folder, watched, **config, latent_sampling="deterministic")
    expected = latents_of("velocity", Example(tmp_path / "reg" / "digit.png", "").pixels(16)[None])[0]
    for batch in seen:
        assert batch["loss_weight"].tolist() == [1.0, 1.0, 0.25, 0.25]
        for latents in batch["latents"][2:]:
            torch.testing.assert_close(latents, expected)


def test_a_size_without_pictures_for_prior_preservation_is_trained_on_without_and_named(folder, tmp_path):
    (tmp_path / "reg").mkdir()
    picture(16, 16, 9).save(tmp_path / "reg" / "digit.png")
    seen = []

    def watched(step):
        seen.append((step.batch["latents"].shape[-2:], step.batch["loss_weight"].tolist()))
        return denoising(step)

    config = {"regularization_data": str(tmp_path / "reg"), "resolution": 32, "bucketing": True, "batch_size": 3}
    config["bucket_step"] = 8
    with pytest.warns(UserWarning, match=r"has the size of 1 pictures \(.*\), which are trained on without: .*0\.png"):
        run("velocity", tmp_path / "out", folder, watched, **config)
    weights = {height == width: weight for (height, width), weight in seen}
    assert weights == {True: [1.0] * 6, False: [1.0]}


def test_pictures_for_prior_preservation_inside_the_data_are_not_trained_on_twice(folder, tmp_path):
    (folder / "reg").mkdir()
    for number in range(2):
        picture(16, 16, 9 + number).save(folder / "reg" / f"digit {number}.png")
    sizes = []

    def watched(step):
        sizes.append(step.batch["loss_weight"].tolist())
        return denoising(step)

    config = {"regularization_data": str(folder / "reg"), "prior_loss_weight": 0.5, "batch_size": 4}
    run("velocity", tmp_path / "out", folder, watched, **config, max_epochs=1)
    assert sizes == [[1.0] * 4 + [0.5] * 4]


def test_pictures_for_prior_preservation_are_not_held_out_and_have_no_template():
    examples = [Example(picture(16, 16, i), f"digit {i}") for i in range(3)]
    data = data_of("velocity", examples, prior=1, caption_template="[filewords] by [name]")
    told = []
    data.text = lambda captions: told.append(captions) or {"encoder_hidden_states": torch.zeros(len(captions), 1, 1)}
    batch_of(data, 0, 2)
    data.plain_batch([0, 2])
    assert told == [["digit 0 by net", "digit 2"]] * 2


def test_the_loss_counts_where_the_mask_is_white(folder, tmp_path):
    (tmp_path / "masks").mkdir()
    for path in folder.glob("*.png"):
        size = Image.open(path).size
        Image.linear_gradient("L").resize(size).save(tmp_path / "masks" / path.name)

    def watched(step):
        loss = denoising(step)
        assert step.batch["loss_mask"].shape == (2, 1, 8, 8)
        assert loss.item() == pytest.approx(by_hand(step), rel=1e-5)
        return loss

    run(
        "velocity", tmp_path / "out", folder, watched, masked_loss=True, mask_data=str(tmp_path / "masks"), batch_size=2
    )


def test_a_mask_that_is_black_all_over_is_refused_or_left_out(tmp_path):
    black, white = Image.new("L", (16, 16)), Image.new("L", (16, 16), 255)
    examples = [Example(picture(16, 16), "a", mask=black), Example(picture(16, 16), "b", mask=white)]
    with pytest.raises(ValueError, match=r"the mask of .* is black all over"):
        data_of("velocity", examples, masked_loss=True)
    with pytest.warns(UserWarning, match=r"the mask of .* is black all over"):
        assert data_of("velocity", examples, masked_loss=True, skip_broken=True).broken == [0]


def cut_off(path):
    """A picture whose header is as it should be, and whose pixels are not all there."""
    picture(16, 16, 5).save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[:-400])
    return path


@pytest.mark.parametrize("config", [{}, {"validation_split": 0.5}, {"regularization_data": "reg"}], ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_is_cut_off_is_named_and_with_skip_broken_left_out(folder, tmp_path, config, cached):
    (tmp_path / "reg").mkdir()
    picture(16, 16, 9).save(tmp_path / "reg" / "digit.png")
    broken = [cut_off(folder / "1.png"), cut_off(folder / "2.png")]
    if "regularization_data" in config:
        config = {"regularization_data": str(tmp_path / "reg")}
        broken.append(cut_off(tmp_path / "reg" / "b.png"))
    if cached:
        config |= {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"cannot read the image .*\.png.*truncated"):
        run("velocity", tmp_path / "out", folder, **config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]
    with pytest.warns(UserWarning, match="cannot be decoded are left out") as warned:
        run("velocity", tmp_path / "out", folder, skip_broken=True, **config)
    (said,) = (str(w.message) for w in warned if "decoded" in str(w.message))
    assert all(str(path) in said for path in broken)
    assert str(folder / "0.png") not in said


def test_a_run_without_any_sound_picture_is_refused(folder, tmp_path):
    for number in range(4):
        cut_off(folder / f"{number}.png")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="no picture can be decoded"):
        run("velocity", tmp_path / "out", folder, skip_broken=True)


def test_a_vae_that_overflows_is_said_at_once(monkeypatch, folder, tmp_path):
    pipeline = copy.deepcopy(pipelines.velocity())
    next(pipeline.vae.encoder.parameters()).fill_(float("inf"))
    config = {"resolution": 16, "skip_broken": True, "progress": False, "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"latents of .*png in float32 are not finite; load the VAE in float32"):
        hn.HypernetworkTrainer(net_for("velocity"), pipeline, config, folder).train()


@pytest.mark.parametrize("name", ["xl", "velocity"])
def test_a_second_run_encodes_nothing_and_gives_the_same_network(name, folder, tmp_path, encoded):
    config = {
        "random_flip": True, "masked_loss": True, "caption_dropout": 0.3, "bucketing": True, "bucket_step": 8,
        "resolution": 32, "latent_sampling": "random", "batch_size": 2, "validation_split": 1, "validate_every": 2,
    }  # fmt: skip
    plain = run(name, tmp_path / "0", folder, **config)
    cached = {**config, "cache_dir": str(tmp_path / "cache")}
    first = run(name, tmp_path / "1", folder, **cached)
    assert encoded["pictures"] == 2 * 8
    assert encoded["captions"] > 0
    encoded.update(pictures=0, captions=0)
    second = run(name, tmp_path / "2", folder, **cached)
    assert encoded == {"pictures": 0, "captions": 0}
    assert equal(plain, first)
    assert equal(plain, second)


@pytest.mark.parametrize(
    ("change", "pictures", "captions"),
    [
        ({}, 0, 0),
        ({"max_steps": 1, "seed": 3, "latent_sampling": "once", "learning_rate": 1e-3}, 0, 0),
        ({"resolution": 8}, 4, 0),
        ({"random_flip": True}, 4, 0),
        ({"masked_loss": True}, 4, 0),
        ({"clip_skip": 2}, 0, 4),
        ({"caption_template": "a [filewords]"}, 0, 4),
    ],
    ids=str,
)
def test_what_is_encoded_anew_for_other_settings(folder, tmp_path, encoded, change, pictures, captions):
    base = {"cache_dir": str(tmp_path / "cache"), "batch_size": 1}
    run("velocity", tmp_path / "0", folder, **base)
    encoded.update(pictures=0, captions=0)
    run("velocity", tmp_path / "1", folder, **base, **change)
    assert encoded == {"pictures": pictures, "captions": captions}


def test_shuffled_captions_are_not_kept(folder, tmp_path, encoded):
    config = {"cache_dir": str(tmp_path / "cache"), "shuffle_tags": True, "batch_size": 4}
    for out in ("0", "1"):
        encoded.update(pictures=0, captions=0)
        run("velocity", tmp_path / out, folder, **config)
        assert encoded["captions"] > 0


@pytest.mark.parametrize(("part", "pictures", "captions"), [("vae", 4, 0), ("text_encoder", 0, 4)])
def test_another_model_is_another_entry(folder, tmp_path, part, pictures, captions):
    counts = {"pictures": 0, "captions": 0}
    pipeline = copy.deepcopy(pipelines.velocity())
    encode, forward = pipeline.vae.encode, pipeline.text_encoder.forward

    def count_pictures(pixels):
        counts["pictures"] += len(pixels)
        return encode(pixels)

    def count_captions(ids, *args, **kwargs):
        counts["captions"] += len(ids)
        return forward(ids, *args, **kwargs)

    pipeline.vae.encode, pipeline.text_encoder.forward = count_pictures, count_captions
    config = {"resolution": 16, "max_steps": 1, "progress": False, "cache_dir": str(tmp_path / "cache")}
    for out in ("0", "1"):
        counts.update(pictures=0, captions=0)
        options = {**config, "output_dir": str(tmp_path / out)}
        hn.HypernetworkTrainer(net_for("velocity"), pipeline, options, folder).train()
        next(getattr(pipeline, part).parameters()).mul_(1.5)
    assert counts == {"pictures": pictures, "captions": captions}


def test_a_damaged_entry_is_encoded_anew(folder, tmp_path, encoded):
    config = {"cache_dir": str(tmp_path / "cache"), "batch_size": 4, "latent_sampling": "deterministic"}
    seen = []

    def watched(step):
        seen.append(step.batch)
        return denoising(step)

    run("velocity", tmp_path / "0", folder, watched, **config)
    with DiskCache(tmp_path / "cache") as cache:
        cache._connection.execute("UPDATE entries SET checksum = zeroblob(16)")
    encoded.update(pictures=0, captions=0)
    run("velocity", tmp_path / "1", folder, watched, **config)
    assert encoded == {"pictures": 4, "captions": 4}
    for then, again in zip(seen[:3], seen[3:], strict=True):
        for key in ("latents", "encoder_hidden_states"):  # encoded one by one, which may round otherwise
            torch.testing.assert_close(then[key], again[key])
    encoded.update(pictures=0, captions=0)
    run("velocity", tmp_path / "2", folder, **config)
    assert encoded == {"pictures": 0, "captions": 0}


def test_a_picture_that_changes_while_it_is_trained_on_spoils_no_entry(folder, tmp_path):
    with DiskCache(tmp_path / "cache") as cache:
        data = data_of("velocity", [Example(folder / "1.png", "a")], cache=cache)
        cache._connection.execute("UPDATE entries SET checksum = zeroblob(16)")
        batch_of(data, 0)
        picture(16, 16, 8).save(folder / "1.png", compress_level=0)
        batch_of(data, 0)
        cache._connection.execute("UPDATE entries SET checksum = zeroblob(16)")
        with pytest.raises(ValueError, match=r"1\.png has changed since the run began"):
            batch_of(data, 0)


def test_two_runs_share_one_cache_at_once(folder, tmp_path):
    alone = data_of("velocity", [Example(path, "a") for path in sorted(folder.glob("*.png"))])
    expected, found, errors = batch_of(alone, 0, 1, 2, 3)["latents"], [], []

    def work():
        try:
            with DiskCache(tmp_path / "cache") as cache:
                examples = [Example(path, "a") for path in sorted(folder.glob("*.png"))]
                found.append(batch_of(data_of("velocity", examples, cache=cache), 0, 1, 2, 3)["latents"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(one, expected) for one in found)


def test_a_picture_is_read_once_for_its_hash_and_not_at_all_by_a_second_run(folder, tmp_path, monkeypatch):
    asked, read = [], []
    function, method = caching.hash_of, caching.Cache.content_hash
    monkeypatch.setattr(caching, "hash_of", lambda source: (read.append(source), function(source))[1])
    monkeypatch.setattr(caching.Cache, "content_hash", lambda self, s: (asked.append(s), method(self, s))[1])
    for out, reads in (("0", 4), ("1", 0)):
        asked.clear()
        read.clear()
        run("velocity", tmp_path / out, folder, cache_dir=str(tmp_path / "cache"), random_flip=True)
        assert sorted(asked) == sorted(folder.glob("*.png"))
        assert len(read) == reads


def test_captions_beyond_what_memory_is_for_are_not_kept_in_the_cache(monkeypatch):
    monkeypatch.setattr("hnkernels.training.data.pipeline_data._CAPTIONS_TOGETHER", 2)
    examples = [Example(picture(16, 16, i), f"digit {i}") for i in range(3)]
    for limit, kept in ((2**30, 3), (100, 0)):
        monkeypatch.setattr("hnkernels.training.data.pipeline_data.BYTES_AT_MOST", limit)
        data = data_of("velocity", examples)
        batch = batch_of(data, 0, 1, 2)
        keys = [data.text.key(example.caption) for example in examples]
        assert len(keys) - len(data._cache.missing(keys)) == kept
        torch.testing.assert_close(
            batch["encoder_hidden_states"], data.family.text(["digit 0", "digit 1", "digit 2"])["encoder_hidden_states"]
        )


def test_captions_from_a_cache_and_from_a_gpu_make_a_batch():
    text = data_of("velocity", [Example(picture(16, 16), "a")]).text
    text(["a", "b"])
    text._known["b"] = {key: tensor.to("meta") for key, tensor in text._known["b"].items()}  # as if on another device
    assert text(["a", "b"])["encoder_hidden_states"].device.type == "meta"


def test_batches_record_no_gradient(folder):
    pipeline = copy.deepcopy(pipelines.velocity())
    pipeline.vae.requires_grad_(True)
    config = TrainingConfig(resolution=16, cache_dir=str(Path(folder.parent) / "cache"))
    data = PipelineData(family_of(pipeline), [Example(folder / "1.png", "a")], config, "net")
    assert not batch_of(data, 0)["latents"].requires_grad  # encoded on its way, as after damage
