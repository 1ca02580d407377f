"""What the list says of each network, and of files that are none."""

import json

import pytest
import torch

import hnkernels as hn
from hnkernels.home.library import CONTEXT, GENERATED, WEIGHTS
from hnkernels.home.library.facts import Facts
from tests.checkpoint.hostile import RunsCode


def only(library):
    (entry,) = library.all()
    return entry


def test_a_context_network(library, add):
    key = add("style", step=7, base="v1-5", sizes=(8, 16), layer_structure=(1, 1.5, 1), activation="relu")
    entry = only(library)
    assert (entry.key, entry.name, entry.run, entry.own) == (key, "style", "", True)
    facts = entry.facts
    assert (facts.kind, facts.title, facts.step, facts.base) == (CONTEXT, "style", 7, "v1-5")
    assert (facts.widths, facts.structure, facts.activation, facts.layer_norm) == (
        (8, 16),
        "1 × 1.5 × 1",
        "relu",
        False,
    )
    assert not facts.affine
    assert entry.size == entry.files[0].stat().st_size
    assert "convert it to .pt" in facts.a1111
    json.dumps(entry.to_json())


def test_a_pt_file_is_what_a1111_loads(library, add):
    add("style", ".pt", layer_norm=True, activation="relu", dropout_structure=(0, 0.3, 0))
    facts = only(library).facts
    assert facts.a1111 == ""
    assert facts.structure == "1 × 2 × 1, dropout"
    assert facts.layer_norm


def test_a_pt_file_with_entries_that_a1111_refuses(library, add, home):
    add("style", ".pt")
    file = home.networks / "style.pt"
    torch.save(torch.load(file), file)
    assert "zip entry" in only(library).facts.a1111


def test_a_pt_file_whose_options_contradict_its_weights(library, home):
    state = {"linear.0.weight": torch.ones(16, 8), "linear.0.bias": torch.ones(16)}
    state |= {"linear.3.weight": torch.ones(8, 16), "linear.3.bias": torch.ones(8)}  # relu, and a dropout
    flat = {8: (state, state), "activation_func": "relu", "use_dropout": True, "dropout_structure": [0, 0, 0]}
    torch.save(flat | {"activate_output": False}, home.networks / "old.pt")
    assert "A1111 refuses weights" in only(library).facts.a1111


def test_both_files_of_a_network_are_one_entry_with_the_hash_that_a1111_shows(library, add, home):
    torch.manual_seed(0)
    add("style")
    torch.manual_seed(0)
    add("style", ".pt")
    (home.networks / "style.pt.optim").write_bytes(b"x")
    (home.networks / "style.preview.png").write_bytes(b"x")
    entry = only(library)
    assert [path.name for path in entry.files] == ["style.safetensors", "style.pt"]
    assert [path.name for path in entry.beside] == ["style.pt.optim", "style.preview.png"]
    assert entry.facts.a1111 == ""
    assert entry.facts.warnings == ()
    (home.networks / "style.safetensors").unlink()
    assert only(library).facts.hash == entry.facts.hash
    assert len(entry.facts.hash) == 10


def test_files_of_one_name_that_hold_different_networks_are_warned_of(library, add):
    add("style")
    add("style", ".pt", step=9)
    assert "style.pt holds another network than style.safetensors" in only(library).facts.warnings[0]


def test_a_broken_file_beside_a_good_one_is_warned_of(library, add, home):
    add("style", ".pt")
    (home.networks / "style.safetensors").write_bytes(b"x")
    entry = only(library)
    assert entry.file().name == "style.pt"
    assert entry.facts.warnings[0].startswith("style.safetensors: is damaged")


def test_a_weight_hypernetwork_and_what_it_generates(library, add_weights, home):
    add_weights()
    facts = only(library).facts
    assert (facts.kind, facts.title, facts.styles) == (WEIGHTS, "styles", ("ink", "oil"))
    assert "generate a LoRA" in facts.a1111
    net = hn.WeightHypernetwork.load(home.networks / "styles.safetensors")
    net.generate_weights({"ink": 1.0}).save(home.networks / "ink.safetensors")
    generated = library.entry("networks/ink").facts
    assert generated.kind == GENERATED
    assert generated.structure.startswith("1 set, ")


def test_files_that_are_not_networks_say_why(library, home):
    marker = home.path / "ran"
    (home.networks / "empty.pt").touch()
    (home.networks / "noise.safetensors").write_bytes(b"not one")
    torch.save({"x": RunsCode(marker)}, home.networks / "code.pt")
    (home.networks / "folder.pt").mkdir()
    (home.networks / ".hidden.pt").touch()
    (home.networks / "readme.md").touch()
    problems = {entry.name: entry.facts.problem for entry in library.all()}
    assert list(problems) == ["code", "empty", "noise"]
    assert problems["empty"].startswith("empty.pt: is empty; ")
    assert "nothing of it was run" in problems["code"]
    assert str(home.path) not in "".join(problems.values())
    assert not marker.exists()
    with pytest.raises(ValueError, match=r"empty\.pt: is empty"):
        library.entry("networks/empty").file()


def test_a_strangers_texts_are_short_and_on_one_line(library, add):
    add("style", base="a\nb\x1b[2J" + "x" * 10_000)
    base = only(library).facts.base
    assert base.isprintable()
    assert len(base) < 300


def test_links_are_not_followed(library, add, home, tmp_path):
    outside = tmp_path / "outside"
    add_outside = hn.Hypernetwork((8,))
    outside.mkdir()
    hn.save_hypernetwork(add_outside, outside / "secret.pt")
    (home.networks / "link.pt").symlink_to(outside / "secret.pt")
    (home.networks / "gone.pt").symlink_to(outside / "nothing.pt")
    (home.runs / "far").symlink_to(outside)
    add("style")
    (home.networks / "style.json").symlink_to(outside / "secret.json")
    (outside / "secret.json").write_text('{"notes": "secret"}')
    problems = {entry.name: entry.facts.problem for entry in library.all()}
    assert list(problems) == ["gone", "link", "style"]
    assert "is a link, which is not followed" in problems["link"]
    assert problems["gone"]
    assert library.entry("networks/style").notes == ""


def test_finished_networks_of_runs_are_listed_and_what_a_run_began_with_is_not(library, add, home):
    run = home.runs / "first"
    for name in ("style", "style-best", "start"):
        add(name, folder=run)
    add("step-10", folder=run / "checkpoints")
    entries = library.all()
    assert [(entry.key, entry.run, entry.own) for entry in entries] == [
        ("runs/first/style", "first", False),
        ("runs/first/style-best", "first", False),
    ]


@pytest.mark.parametrize("key", ["networks/none", "../x", "runs/first/../../x", "", None, 3, ["networks/style"]])
def test_only_what_is_listed_is_found(library, add, key):
    add()
    with pytest.raises(ValueError, match="there is no network"):
        library.entry(key)


def test_a_folder_that_is_gone_has_no_networks(library, home, add):
    add()
    assert library.all()
    for path in sorted(home.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    home.path.rmdir()
    assert library.all() == []
    assert not home.path.exists()


@pytest.mark.parametrize("content", [None, [], {}, {"kind": "context"}, Facts().to_json() | {"step": "1"}])
def test_facts_from_something_else(content):
    assert Facts.from_json(content) is None


def test_facts_come_back_from_json():
    facts = Facts(
        "context", "x", 1, (8, 16), "1 × 2", "relu", True, 9, "float32", "base", "abc", ("ink",), "no", ("w",)
    )
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
