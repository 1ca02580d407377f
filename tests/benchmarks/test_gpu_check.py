"""The check on a GPU, rehearsed: all of it runs, a kill leaves what was found, what is wrong is said and counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cases import cases
from benchmarks.gpu_check import (
    FIGURE,
    PAGE,
    RIGHT,
    SKIPPED,
    WRONG,
    Clock,
    Finding,
    Journal,
    Session,
    correctness,
    page_lines,
    read,
)
from benchmarks.gpu_check import __main__ as machine
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.speed import HEADLINES, predicted
from benchmarks.rows import Environment
from hnkernels import Hypernetwork, explain
from hnkernels.triton.target import TARGETS
from tests.marks import compiles_beforehand

ROOT = Path(__file__).parents[2]
REHEARSED = (
    "import sys; from tests import fast_interpreter; from benchmarks.gpu_check.__main__ import main; "
    "fast_interpreter.install(); sys.exit(main(sys.argv[1:]))"
)


def rehearsal(folder: Path, minutes: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", REHEARSED, "--minutes", str(minutes), "--out", str(folder), "--sanitize"],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_all_of_it_runs_in_the_interpreter_and_finds_nothing_wrong(tmp_path):
    done = rehearsal(tmp_path, 20)  # as long as it takes: a busy machine is slow
    said, _ = done.communicate()
    assert done.returncode == 0, said
    findings = read(tmp_path / "findings.csv")
    assert not [f for f in findings if f.outcome == WRONG or f.note == "no time left"]
    assert {f.phase for f in findings} == {"machine", "sanitized", "right", "fast", "predicted", "tuned"}
    assert sum(f.outcome == RIGHT for f in findings) > 50
    assert all(f.note for f in findings if f.outcome == SKIPPED), "what is skipped says why"
    page = (tmp_path / PAGE).read_text()
    assert "nothing wrong" in page
    assert "not over yet" not in page


def test_a_kill_leaves_what_was_found_until_then(tmp_path):
    running = rehearsal(tmp_path, 20)
    file = tmp_path / "findings.csv"
    while running.poll() is None and not (file.exists() and sum(f.phase == "right" for f in read(file)) > 2):
        time.sleep(0.2)
    running.kill()
    running.communicate()
    findings = read(file)
    page = (tmp_path / PAGE).read_text()
    assert "the check was not over yet" in page
    assert findings[2].what in page


def test_findings_are_on_disk_at_once_and_read_as_they_were(tmp_path):
    journal = Journal(tmp_path)
    found = [Finding("right", "a, b", WRONG, note='it says "no"\nand more'), Finding("fast", "c", FIGURE, 1.5e-5, "s")]
    for finding in found:
        journal.add(finding)
    assert str(read(tmp_path / "findings.csv")) == str(found)  # nan is not itself
    assert journal.wrong == found[:1]
    with (tmp_path / "findings.csv").open("a") as stream:
        stream.write("right,cut o")
    assert len(read(tmp_path / "findings.csv")) == 2


def test_a_page_says_what_is_wrong_first_and_holds_every_finding():
    findings = [
        Finding("right", "one", RIGHT, 1.02, "x eager's error"), Finding("right", "two", WRONG, note="a | b"),
        Finding("fast", "three", FIGURE, 2.5e-3, "s"), Finding("machine", "copy", FIGURE, 3.1e12, "B/s"),
    ]  # fmt: skip
    page = "\n".join(page_lines(findings, ended=True))
    assert page.index("**1 wrong**, 1 right, 0 skipped.") < page.index("## Is it right?")
    assert "- wrong: right: two: a | b" in page
    assert "| three |  | 2.50 ms |  |" in page
    assert "3.10 TB/s" in page
    assert page.count('"wrong"') == 1


def test_time_is_shared_and_what_has_none_left_says_so(tmp_path):
    now = [0.0]
    session = Session(Environment("interpreter", "fp32"), Clock(100, lambda: now[0]), Journal(tmp_path))

    def slow(_):
        now[0] += 30
        yield Finding("right", "slow", RIGHT)

    session.run("right", 0.5, [("first", slow), ("second", slow), ("third", slow)])
    assert [f.outcome for f in session.journal.findings] == [RIGHT, RIGHT, SKIPPED]
    assert session.journal.findings[2].note == "no time left"
    session.clock.begin(1.0)
    assert session.clock.left_in_phase() == 40


def test_a_task_that_fails_is_a_finding_and_not_the_end(tmp_path):
    session = Session(Environment("interpreter", "fp32"), Clock(100), Journal(tmp_path))

    def broken(_):
        yield Finding("right", "half", RIGHT)
        raise AssertionError({"gradient of w": 1.7})

    session.run("right", 1.0, [("broken", broken), ("whole", lambda _: [Finding("right", "whole", RIGHT)])])
    assert [f.outcome for f in session.journal.findings] == [RIGHT, WRONG, RIGHT]
    assert session.journal.findings[1].note == "AssertionError: {'gradient of w': 1.7}"


def test_after_a_fault_of_the_gpu_nothing_is_taken_for_wrong(tmp_path):
    def wait() -> None:
        if session.journal.findings:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    session = Session(Environment("cuda", "fp16"), Clock(100), Journal(tmp_path), wait)
    tasks = [(name, lambda _, name=name: [Finding("right", name, RIGHT)]) for name in ("first", "second")]
    session.run("right", 1.0, tasks)
    assert [f.outcome for f in session.journal.findings] == [RIGHT, WRONG, SKIPPED]
    assert "illegal memory access" in session.journal.findings[1].note
    assert session.journal.findings[2].note == "the GPU has stopped at first"


def test_without_a_gpu_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_check.__main__.interpreting", lambda: False)
    assert main(["--out", str(tmp_path / "none")]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr("benchmarks.gpu_check.__main__.interpreting", lambda: True)
    assert main(["--out", str(tmp_path / "a file")]) == 2
    assert "give a folder that can be written to" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--minutes", "0"])
    assert "--minutes must be positive, not 0" in capsys.readouterr().err


def test_the_sizes_of_a_gpu_are_those_of_real_layers():
    assert correctness.layers(Environment("cuda", "fp16")) is correctness.LAYERS
    assert {layer.width for layer in correctness.layers(Environment("interpreter", "fp32"))} == {16}


def test_every_headline_is_one_case_on_a_gpu_that_has_a_provider_to_compare_with():
    known = [(c.benchmark.name, c.shape, c.mode) for c in cases(Environment("cuda", "fp16"))]
    for name, shape, mode, providers in HEADLINES:
        assert known.count((name, shape, mode)) == 1, (name, str(shape), mode)
        assert {"triton"} < set(providers)


def test_predictions_add_up_by_kernel():
    told = explain(*Hypernetwork((1280,))[1280], tokens=4096, target="sm_90")
    seconds = predicted(told.launches, TARGETS["sm_90"])
    assert "the vendor's library" in seconds
    assert all(1e-7 < s < 1e-2 for s in seconds.values())


@compiles_beforehand
def test_kernels_compiled_beforehand_are_those_that_a_launch_asks_for(tmp_path):
    script = """
import os, sys, torch, hnkernels as hn
from benchmarks.machine_code import compiled, distinct
from hnkernels.triton.launch import capturing
from hnkernels.triton.target import TARGETS
from hnkernels.triton.testing import pretend_device
net = hn.Hypernetwork((64,), activation="silu").half()
with capturing() as calls:
    hn.explain(*net[64], tokens=48, out_features=64, target="sm_80", training=False)
for config in distinct([("", call) for call in calls], TARGETS["sm_80"]):
    compiled(config)
before = set(os.listdir(sys.argv[1]))
with pretend_device("sm_80"), torch.no_grad():
    hn.hyper_kv(torch.randn(1, 48, 64).half(), *net.eval()[64], *torch.randn(2, 64, 64).half(), backend="triton")
assert before and set(os.listdir(sys.argv[1])) == before, set(os.listdir(sys.argv[1])) - before
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=environment, check=True)


def test_what_is_compiled_beforehand_is_what_is_checked():
    kernels = {call.kernel.fn.__name__ for _, call in machine.calls("sm_80")}
    assert {"mlp_layer_forward_kernel", "weight_gradient_kernel", "linear_streams_kernel"} <= kernels
