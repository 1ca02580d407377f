"""A study from its runs to its page."""

import dataclasses

import pytest
import torch
from PIL import Image

from hnkernels.demo import scores
from hnkernels.study import study
from hnkernels.study.bench import Bench
from hnkernels.study.protocol import Cell
from hnkernels.study.results import Results
from hnkernels.study.run import run
from hnkernels.study.study import run_study
from tests.study.cases import BASE, PROTOCOL, QUESTION

JUDGES = scores.Judges(scores._network(2).eval(), scores._network(10).eval(), 0.5, 0.1)


@pytest.fixture(autouse=True)
def _small_study(monkeypatch):
    monkeypatch.setattr(study, "held_out_judges", lambda vae, protocol: JUDGES)
    monkeypatch.setattr(study, "QUESTIONS", (QUESTION,))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(PROTOCOL, JUDGES, tmp_path_factory.mktemp("cache"))


def test_a_study_gives_a_page_and_a_second_start_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SEEDS", (0,))
    out = tmp_path / "new" / "study"
    page = run_study(out, [QUESTION], processes=1, protocol=PROTOCOL)
    text = page.read_text(encoding="utf-8")
    assert "## Width" in text
    assert "| 1, 1, 1 | 72,576 | 2 |" in text
    Image.open(out / "recipes" / "width.png").verify()
    monkeypatch.setattr(study, "run", None)
    for questions in ([QUESTION], []):  # the page has what is known of others too
        assert run_study(out, questions, processes=1, protocol=PROTOCOL).read_text(encoding="utf-8") == text


def test_a_study_that_is_interrupted_goes_on_with_the_run_that_it_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SEEDS", (0,))
    ran = []

    def interrupted(bench, cell, seed):
        ran.append(cell.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(bench, cell, seed)

    monkeypatch.setattr(study, "run", interrupted)
    for _ in range(2):
        try:
            run_study(tmp_path, [QUESTION], processes=1, protocol=PROTOCOL)
        except KeyboardInterrupt:
            continue
    assert ran == ["base", "narrow", "narrow"]


def test_when_the_time_is_over_the_page_has_what_there_is(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 0.0, *[1e6] * 9])
    monkeypatch.setattr(study.time, "monotonic", lambda: next(clock))
    page = run_study(tmp_path, [QUESTION], minutes=1, processes=1, protocol=PROTOCOL)
    results = Results(tmp_path / study.RESULTS, PROTOCOL)
    assert results.of(BASE, 0) is not None
    assert results.of(BASE, 1) is None
    assert "1, 2, 1: 1 of 3 seeds have been run. off: 1 of 3 seeds have been run." in page.read_text(
        encoding="utf-8"
    ).replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes must be a number above 0, not 0"),
        ({"minutes": -1.5}, "not -1.5"),
        ({"minutes": float("nan")}, "not nan"),
        ({"processes": 0}, "processes must be an integer >= 1, not 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_study(tmp_path / "out", [QUESTION], protocol=PROTOCOL, **options)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        run_study(tmp_path / "out", [QUESTION], protocol=PROTOCOL)


def test_the_folder_of_another_study_is_refused_and_left_alone(tmp_path, bench):
    results = Results(tmp_path / study.RESULTS, dataclasses.replace(PROTOCOL, drawn=20))
    results.add(BASE, 0, run(bench, BASE, 0))
    before = results.path.read_bytes()
    with pytest.raises(ValueError, match="holds the results of another study"):
        run_study(tmp_path, [QUESTION], protocol=PROTOCOL)
    assert results.path.read_bytes() == before


def test_a_lora_without_peft_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: None)
    lora = QUESTION._replace(baseline=QUESTION.baseline._replace(cell=Cell("lora", "lora", network={"rank": 2})))
    with pytest.raises(ValueError, match="need peft; install it with pip install peft"):
        run_study(tmp_path, [lora], protocol=PROTOCOL)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("context", strengths={"0": 0.0}),
        Cell("weight", "weight", network={"hidden_dim": 4, "rank": 2, "depth": 0}),
        Cell("lora", "lora", network={"rank": 2}),
    ],
    ids=lambda cell: cell.kind,
)
def test_a_network_of_every_kind_acts_while_it_is_judged_and_leaves_the_model_as_it_was(bench, cell):
    before = bench.scores(cell, 0)
    trained = run(bench, cell, 0)
    assert trained.parameters > 0
    assert trained.step_ms > 0
    assert trained.scores["1"]["loss"] != before["loss"]
    assert trained.scores.get("0", before) == before
    assert bench.scores(cell, 0) == before
    assert not any("lora" in name for name, _ in bench.pipeline.unet.named_parameters())


def test_a_run_is_a_function_of_cell_and_seed(bench):
    first, again, other = (run(bench, Cell("cell"), seed).scores for seed in (0, 0, 1))
    assert first == again != other


def test_a_subject_is_one_digit_and_what_spills_to_the_others_is_measured(bench):
    cell = Cell("cell", data="subject", prior=2)
    assert {example.caption for example in bench.examples(cell, 0)} == {"digit seven"}
    assert 7 not in bench.prior(20, 0).labels
    assert set(run(bench, cell, 0).scores["1"]) == {"style", "content", "both", "loss", "spill"}


def test_at_equal_time_the_steps_are_fewer_where_one_takes_longer(bench, monkeypatch):
    monkeypatch.setattr("hnkernels.study.run.step_ms", lambda bench, cell, seed: 4.0 if cell.name else 2.0)
    assert run(bench, Cell("slow", equal_time=True), 0).steps == 1


def test_a_run_that_diverges_says_so(bench):
    found = run(bench, Cell("cell", training={"learning_rate": 1e30}), 0)
    assert "the loss is" in found.diverged
    assert found.scores == {}


def test_held_out_pictures_are_trained_on_by_no_seed(bench):
    pictures, held, _ = bench._split(Cell("cell"))
    held = {pictures.images[i].tobytes() for i in held}
    for seed in (0, 1):
        assert not held & {example.image.tobytes() for example in bench.examples(Cell("cell"), seed)}


def test_pictures_that_are_both_are_counted(monkeypatch):
    styles, digits = torch.tensor([1, 1, 0, 0]), torch.tensor([3, 4, 3, 4])
    monkeypatch.setattr(scores, "_classes", lambda network, images: styles if network is JUDGES.style else digits)
    assert JUDGES.both([None] * 4, torch.tensor([3, 3, 3, 3]).numpy()) == 0.25
