"""``hnkernels doctor`` and ``hnkernels explain``."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

import hnkernels as hn
from hnkernels import doctor
from hnkernels.accounting.layers import KNOWN
from hnkernels.assets import TINY_SD
from hnkernels.cli import machine

pytest.importorskip("triton", reason="explain counts what Triton's kernels launch")


def test_doctor_says_what_there_is_and_that_it_is_right(cli):
    code, out, _ = cli("doctor")
    assert code == 0
    installed = importlib.metadata.version("torch")  # torch.__version__ may name a build of CUDA too
    for words in (hn.__version__, installed, "cpu", "portable", "set TRITON_INTERPRET=1", "hyper_kv, relu"):
        assert words in out
    assert out.count("right") == 6


def test_doctor_says_how_to_get_what_is_missing(cli, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    out = cli("doctor")[1]
    assert "for the page: pip install 'hnkernels[ui]'" in out
    assert "for training: pip install 'hnkernels[train]'" in out


def test_doctor_prints_json(cli):
    code, out, _ = cli("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["right"]
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert {check["fault"] for check in found["checks"]} == {""}
    assert all(check["error"] <= 1.5 for check in found["checks"])


def test_doctor_tries_the_kernels_where_they_run():
    """Triton reads its switch when a kernel is defined, so this takes a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hnkernels", "doctor", "--json"],
        capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["devices"][0]["backend"] == "triton"
    assert found["variables"]["TRITON_INTERPRET"] == "1"
    assert found["right"]


def test_doctor_ends_with_1_if_an_operation_is_wrong(cli, monkeypatch):
    right = doctor.hyper_kv
    monkeypatch.setattr(doctor, "hyper_kv", lambda *given: [result * 1.001 for result in right(*given)])
    code, out, _ = cli("doctor")
    assert code == 1
    assert "times eager PyTorch's own error; at most 1.5 is right" in out
    assert json.loads(cli("doctor", "--json")[1])["right"] is False


def test_doctor_says_what_an_operation_raised(cli, monkeypatch):
    def fails(*given):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(doctor, "hyper_kv", fails)
    code, out, _ = cli("doctor")
    assert code == 1
    assert "RuntimeError: no kernel image is available" in out


@pytest.mark.parametrize(
    ("package", "purpose"),
    [("peft", "for LoRA beside a hypernetwork: pip install peft"), ("gradio", "pip install 'hnkernels[ui]'")],
)
def test_doctor_says_what_a_missing_package_is_for(cli, monkeypatch, package, purpose):
    found = importlib.metadata.version

    def version(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert purpose in cli("doctor")[1]


def test_explain_counts_a_whole_model(cli):
    code, out, _ = cli("explain", "--gpu", "rtx4090", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["gpu"] == "RTX 4090"
    assert found["counted"]
    assert not found["measured"]
    first, shapes = found["layers"][0], KNOWN["Stable Diffusion 1.5, 512 pixels"]
    assert [layer["count"] for layer in found["layers"]] == [shape.count for shape in shapes]
    net = hn.Hypernetwork((320,), activation="relu")
    alone = hn.explain(*net[320], tokens=8192, training=False, target="sm_89")
    assert first["hnkernels"]["launches"] == 5 * len(alone.launches) < first["eager"]["launches"]
    assert first["hnkernels"]["bytes_moved"] == 5 * alone.bytes_moved


def test_explain_shows_a_table_and_the_launches_of_a_layer(cli, style):
    code, out, _ = cli("explain", style, "--model", "tiny-sd", "--training")
    assert code == 0
    assert "self-attention 48 → 48, 64 tokens" in out
    assert "Nothing is measured." in out
    code, out, _ = cli("explain", style, "--model", TINY_SD, "--layer", 1)
    assert code == 0
    assert "forward, 2 launches" in out
    assert "counted for sm_80, not measured" in out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--gpu", "voodoo2"], "no figures are known of the GPU 'voodoo2'; known are A100, RTX 3090"),
        (["--dtype", "fp4"], "--dtype must be one of fp16, bf16, fp32, not 'fp4'"),
        (["--layer", "9"], "--layer must be from 1 to 7, the rows of the table, not 9"),
        (["--layer", "0"], "--layer must be from 1 to 7"),
        (["--pictures", "0"], "pictures must be an integer >= 1, not 0"),
        (["--model", "nowhere"], "--model must be sd15, sdxl, tiny-sd or a diffusers folder, not 'nowhere'"),
        (["--activation", "sulu"], "activation 'sulu' is unknown"),
        (["missing.pt"], "missing.pt: does not exist"),
    ],
)
def test_explain_refuses_with_a_sentence(cli, words, fault):
    code, _, err = cli("explain", *words)
    assert code == 1
    assert fault in err


def test_explain_says_that_a_network_is_for_other_widths(cli, style):
    code, _, err = cli("explain", style, "--model", "sdxl")
    assert code == 1
    assert "the network is for widths [48, 80, 96], and the model has [640, 1280, 2048]" in err


def test_a_gpu_is_known_by_name_and_architecture():
    from hnkernels.accounting.gpus import gpu_named

    spelt = {"h100": "H100", "SM_90": "H100", "rtx-4090": "RTX 4090", "gfx942": "MI300X"}
    assert {text: gpu_named(text) for text in spelt} == spelt


def test_machine_knows_every_model_by_a_word():
    assert list(machine.MODELS) == ["sd15", "sdxl"]
    assert list(machine.MODELS.values()) == list(KNOWN)
