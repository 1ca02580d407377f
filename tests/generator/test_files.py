"""Files that are broken, foreign or hostile."""

import contextlib
import json
import os

import pytest
import safetensors.torch
import torch

import hnkernels as hn
from tests.checkpoint.hostile import RunsCode, refused
from tests.generator.cases import make_generator, make_weights, tiny_layers
from tests.models import make_net

LOADS = {"network": hn.WeightHypernetwork.load, "weights": hn.GeneratedWeights.load}


@pytest.fixture(params=LOADS)
def kind(request):
    return request.param


@pytest.fixture
def load(kind):
    return LOADS[kind]


@pytest.fixture
def path(kind, tmp_path):
    """A sound file of either kind."""
    file = tmp_path / "file.safetensors"
    saved = make_generator(hidden_dim=8) if kind == "network" else make_weights(2).scaled(0.5).repeat(2)
    saved.save(file)
    return file


def rewrite(path, change=lambda content: None, tensors=lambda tensors: None, header=None):
    """Writes the file again with another JSON content, other tensors or another header."""
    state = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["hnkernels"])
    content = change(content) or content
    tensors(state)
    metadata = {"format": "pt", "hnkernels": json.dumps(content)} if header is None else header
    safetensors.torch.save_file(state, path, metadata)


def test_a_file_can_be_read_by_anyone(path, kind):
    rewrite(path)
    LOADS[kind](path)
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["hnkernels"])
    assert content["version"] == 1
    assert content["layers"][0] == {
        "name": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "attention": "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
        "kind": "attn1",
        "projection": "q",
        "out_features": 8,
        "in_features": 8,
        "rank": 2,
    }


def test_a_file_cut_anywhere_is_refused(path, load):
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "is empty|is damaged", load)


def test_flipped_bytes_are_refused_or_change_numbers_alone(path, load):
    data = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        at = int(torch.randint(min(len(data), 4000), (), generator=generator))
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(spoilt)
        with contextlib.suppress(hn.CheckpointError):
            load(path)


def test_paths_that_are_not_files_are_refused(load, tmp_path):
    refused(tmp_path / "nothing.safetensors", "does not exist", load)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    refused(folder, "is a folder", load)
    refused(tmp_path / "file.pt", "the extension is not accepted; use .safetensors", load)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused(load, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", "is not an ordinary file", load)


def test_nothing_in_a_file_is_executed(load, tmp_path):
    file, marker = tmp_path / "file.safetensors", tmp_path / "marker"
    torch.save({"x": RunsCode(marker)}, file)
    refused(file, "is damaged, cut short, or not a safetensors file", load)
    assert not marker.exists()


def test_files_of_other_things_are_refused(load, kind, tmp_path):
    file = tmp_path / "file.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, file)
    refused(file, "without the 'hnkernels' entry", load)
    hn.save_hypernetwork(make_net(), file)
    refused(file, "holds no .*; load it with load_hypernetwork if it is a context hypernetwork", load)
    (make_weights(1) if kind == "network" else make_generator(hidden_dim=8)).save(file)
    refused(file, "holds no .* but '(generated weights|weight hypernetwork)'; load it with what saved it", load)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({}, "without the 'hnkernels' entry"),
        ({"hnkernels": "{"}, "has a header that is not valid JSON"),
        ({"hnkernels": "[" * 100_000}, "has a header that is not valid JSON"),
        ({"hnkernels": "[]"}, "has a list in place of"),
        ({"hnkernels": "null"}, "has None in place of"),
        ({"hnkernels": "{}"}, "without a version"),
        ({"hnkernels": '{"version": 1}'}, "holds no "),
        ({"hnkernels": '{"version": 1, "kind": ' + "[" * 900 + "]" * 900 + "}"}, "but a list|is not valid JSON"),
    ],
)
def test_foreign_headers_are_refused(path, load, header, match):
    rewrite(path, header=header)
    refused(path, match, load)


def entry(**changes):
    def change(content):
        content["layers"][3].update(changes)

    return change


def without(key):
    def change(content):
        del content["layers"][3][key]

    return change


def section(name, value):
    return lambda content: {**content, name: value}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (section("version", 2), "has format version 2; this hnkernels reads up to 1; update hnkernels"),
        (section("version", True), "without a version"),
        (section("version", None), "without a version"),
        (section("layers", None), "names no layers"),
        (section("layers", []), "names no layers"),
        (section("layers", {}), "names no layers"),
        (section("layers", [1]), "describes the impossible layer 1"),
        (section("layers", ["x" * 10_000]), "describes the impossible layer"),
        (entry(name="elsewhere" * 1000, rank=0), "describes the impossible layer"),
        (entry(name=4), "describes the impossible layer 4"),
        (entry(kind="attn3"), "describes the impossible layer"),
        (entry(projection="x"), "describes the impossible layer"),
        (entry(rank=65), "describes the impossible layer"),
        (entry(rank=2.0), "describes the impossible layer"),
        (entry(rank=True), "describes the impossible layer"),
        (entry(out_features=-8), "describes the impossible layer"),
        (entry(out_features=10**40), "contradicts itself"),
        (entry(in_features=10**12), "contradicts itself"),
        (entry(rank=1), "contradicts itself"),
        (entry(extra=1), "describes the impossible layer"),
        (without("attention"), "describes the impossible layer"),
        (entry(name="down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"), "names a layer twice"),
    ],
)
def test_impossible_layers_are_refused(path, load, change, match):
    rewrite(path, change)
    refused(path, match, load)


def replaced(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def test_tensors_that_are_not_finite_are_refused(path, load):
    rewrite(
        path,
        tensors=lambda tensors: (
            next(t for t in tensors.values() if t.numel() and t.ndim > 1).view(-1)[:1].fill_(float("nan"))
        ),
    )
    refused(path, "has NaN or infinite values", load)


def test_foreign_and_missing_tensors_are_refused(path, load):
    rewrite(path, tensors=replaced("foreign", torch.ones(1, dtype=torch.float32)))
    refused(path, "contradicts itself: .*(foreign|dtype)", load)
    rewrite(path, tensors=lambda tensors: (tensors.pop("foreign"), tensors.pop(sorted(tensors)[0])))
    refused(path, "contradicts itself: .* missing", load)
    rewrite(path, tensors=lambda tensors: tensors.clear())
    refused(path, "contradicts itself", load)


# A weight hypernetwork


def part(part, **options):
    def change(content):
        content[part].update(options)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (section("encoder", None), "it says nothing of the encoder"),
        (section("decoder", [1]), "it says nothing of the decoder"),
        (section("provenance", "me"), "it says nothing of the provenance"),
        (part("provenance", step="seven"), "has step = 'seven', which must be an integer"),
        (part("provenance", name=None), "has name = None, which must be a string"),
        (part("encoder", pooling="max"), "pooling must be one of"),
        (part("encoder", hidden_dim=10**40), "contradicts itself"),
        (part("encoder", hidden_dim=10**9), "the parts have different hidden_dim|contradicts itself"),
        (part("encoder", embedding_dim=10**12), "encoder.pool.nothing is .*, and must be"),
        (part("encoder", embedding_dim="wide"), "embedding_dim must be"),
        (part("encoder", tasks=10**9), "encoder.task_table is .*, and must be"),
        (part("encoder", styles=5), "contradicts itself"),
        (part("encoder", styles=[["ink"]]), "styles must be different names"),
        (part("encoder", latent_norm=[]), None),
        (part("encoder", surprise=1), "surprise"),
        (part("generator", depth=10**9), "depth must be"),
        (part("generator", depth=9), "the tensor 'generator.blocks.2.*' is missing"),
        (part("generator", depth=1), "the tensor 'generator.blocks.1.*' is foreign"),
        (part("generator", layers=[]), "contradicts itself"),
        (part("decoder", head="evil"), "head must be one of"),
        (part("decoder", head="basis"), "the tensor 'decoder.* is (missing|foreign)"),
        (part("decoder", head="dense"), "head 'dense' needs full rank"),
        (part("decoder", init=["x"]), "init must be one of"),
        (part("decoder", bases=10**18, head="basis"), "contradicts itself"),
        (part("decoder", rank_dropout=float("nan")), "rank_dropout must be"),
    ],
)
def test_impossible_networks_are_refused(change, match, tmp_path):
    path = tmp_path / "file.safetensors"
    make_generator(hidden_dim=8).save(path)
    rewrite(path, change)
    if match is None:
        assert not hn.WeightHypernetwork.load(path).encoder.config["latent_norm"]
    else:
        refused(path, match, hn.WeightHypernetwork.load)


@pytest.mark.parametrize("tensor", [torch.ones(2, 2), torch.ones(3, 8, dtype=torch.int64), torch.ones(3, 8).half()])
def test_tensors_of_another_shape_or_dtype_are_refused(tensor, tmp_path):
    path = tmp_path / "file.safetensors"
    make_generator(hidden_dim=8).save(path)
    rewrite(path, tensors=replaced("encoder.style_table", tensor))
    refused(path, "encoder.style_table is|of one floating dtype", hn.WeightHypernetwork.load)


# Generated weights


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("a.8x8x2", torch.ones(2, 2), r"the factors of the layers \[8, 8\] are missing or no factors"),
        ("a.8x8x2", torch.ones(16, 2, 2, 8), r"the factors of the layers \[8, 8\] are missing or no factors"),  # fp32
        ("a.8x8x2", torch.ones(16, 3, 2, 8).double(), "with the same G everywhere"),
        ("index", torch.ones(4), "index must be"),
        ("index", torch.tensor([0, 2]), "index must be"),
        ("index", torch.tensor([0, -1]), "index must be"),
        ("scale.nowhere", torch.ones(2).double(), "the foreign tensor 'scale.nowhere'"),
        ("scale." + tiny_layers()[0].name, torch.ones(3), "the scale of .* is not one number per set"),
        ("scale." + tiny_layers()[0].name, torch.ones(2, dtype=torch.int64), "is not one number per set"),
    ],
)
def test_impossible_weights_are_refused(name, tensor, match, tmp_path):
    path = tmp_path / "file.safetensors"
    make_weights(2).scaled(0.5).repeat(2).save(path)
    rewrite(path, tensors=replaced(name, tensor))
    refused(path, match, hn.GeneratedWeights.load)


def test_weights_of_several_dtypes_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    make_weights(2).save(path)

    def halve(tensors):
        for side in "ab":
            tensors[f"{side}.8x8x2"] = tensors[f"{side}.8x8x2"].half()

    rewrite(path, tensors=halve)
    refused(path, "the factors are of several dtypes", hn.GeneratedWeights.load)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.safetensors"
    weights = make_weights(2)
    weights.save(path)
    before = path.read_bytes()
    weights.factors(weights.layers[0].name)[0][0, 0, 0] = float("inf")
    with pytest.raises(hn.CheckpointError, match=r"file.safetensors: has NaN or infinite values in 'a.8x8x2'; "):
        weights.save(path)
    assert path.read_bytes() == before
    with pytest.raises(hn.CheckpointError, match="lies in a folder that does not exist"):
        make_weights(1).save(tmp_path / "nowhere" / "file.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(hn.CheckpointError, match="is a folder"):
        make_weights(1).save(tmp_path / "folder.safetensors")
