"""The commands that show a home."""

import json
import sys

import pytest

import hnkernels as hn
from hnkernels.training.progress.history import write_run
from hnkernels.training.progress.log import COLUMNS


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A folder with a home."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hnkernels-home" / "networks").mkdir(parents=True)


@pytest.fixture
def networks(tmp_path):
    folder = tmp_path / "hnkernels-home" / "networks"
    for name, activation, step in (("alpha", "relu", 5), ("beta", "linear", 70)):
        net = hn.Hypernetwork((8, 16), activation=activation, name=name)
        net.provenance.step, net.provenance.sd_checkpoint_name = step, "[red]v1"
        hn.save_hypernetwork(net, folder / f"{name}.pt")
    (folder / "broken.pt").write_bytes(b"x")
    return folder


def test_the_library_as_a_table(cli, networks):
    code, out, _ = cli("library")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[1:]] == ["alpha", "beta", "broken.pt:"]
    assert {"context", "[red]v1", "8", "16", "relu", "5", "yes"} <= set(rows[1])
    assert "broken.pt: is damaged, cut short, or not a file of torch.save" in out
    _, out, _ = cli("library", "--sort", "step", "--descending")
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["beta", "alpha"]
    _, out, _ = cli("library", "RELU")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["alpha"]


def test_the_library_as_json(cli, networks):
    code, out, _ = cli("library", "--json")
    assert code == 0
    first, _, broken = json.loads(out)
    assert (first["name"], first["widths"], first["step"], first["a1111"]) == ("alpha", [8, 16], 5, "")
    assert first["files"] == [str(networks / "alpha.pt")]
    assert broken["problem"].startswith("broken.pt: is damaged")
    assert json.loads(cli("library", "nothing", "--json")[1]) == []


def test_a_library_with_nothing_in_it(cli, tmp_path):
    assert "no networks in hnkernels-home" in cli("library")[1]
    (tmp_path / "other").mkdir()
    assert "no networks in other" in cli("library", "--home", "other")[1]


def test_a_search_that_finds_nothing(cli, networks):
    assert "no network here matches [bold]" in cli("library", "[bold]")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--home", "none"), "there is no folder none; name one with --home"),
        (("--sort", "colour"), "networks are not sorted by 'colour'; accepted are name, kind"),
    ],
)
def test_what_the_library_does_not_take(cli, words, message):
    code, _, err = cli("library", *words)
    assert code == 1
    assert message in err


@pytest.fixture
def run(cli, tmp_path):
    folder = tmp_path / "hnkernels-home" / "runs" / "style [red]"
    folder.mkdir(parents=True)
    write_run(folder, "style", {}, end=7, stopped="finished")
    (folder / "log.csv").write_text(",".join(COLUMNS) + "\n7,0,1,1,1,1,1,1\n")
    (folder / "output.log").write_text("first\nlast [bold]\n")
    return folder.name


def test_runs_are_listed_in_sentences(cli, run):
    assert cli("runs") == (0, "style [red] Finished, at step 7 of 7.\n", "")
    assert cli("runs", run) == (0, "style [red] Finished, at step 7 of 7.\n  first\n  last [bold]\n", "")
    code, out, _ = cli("runs", "--json")
    assert code == 0
    assert json.loads(out) == [
        {"name": run, "state": "finished", "step": 7, "end": 7, "said": "Finished, at step 7 of 7."}
    ]


def test_no_runs(cli):
    assert cli("runs") == (0, "no runs in hnkernels-home\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("runs", "missing"), "there is no run 'missing'"),
        (("runs", "../networks"), "is not a name"),
        (("runs", "--home", "nowhere"), "there is no folder nowhere"),
        (("runs", "--stop"), "name the run to stop"),
        (("runs", "style [red]", "--stop", "--resume"), "contradict each other"),
        (("runs", "style [red]", "--stop"), "has ended already"),
        (("runs", "style [red]", "--resume"), "was not started here"),
        (("ui", "--auth", "user"), "--auth must be USER:PASSWORD"),
        (("ui", "--auth", ":x"), "--auth must be USER:PASSWORD"),
        (("ui", "--listen", "0.0.0.0"), "give --auth USER:PASSWORD with it"),
        (("ui", "--data", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_what_is_wrong_is_said(cli, run, words, said, monkeypatch):
    if words[0] == "ui":
        pytest.importorskip("gradio", reason="the page's package is not installed")
    code, _, err = cli(*words)
    assert code == 1
    assert said in err


def test_without_gradio_the_page_says_what_to_install(cli, monkeypatch):
    monkeypatch.delitem(sys.modules, "hnkernels.ui.server", raising=False)
    for package in ("fastapi", "gradio"):
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = cli("ui")
    assert code == 1
    assert "install it with: pip install 'hnkernels[ui]'" in err
