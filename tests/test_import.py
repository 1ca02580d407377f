"""Importing the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hnkernels

BLOCKED = "import sys; sys.modules.update(dict.fromkeys({names!r})); "


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_needs_neither_triton_nor_diffusers_and_loads_no_torch():
    code = BLOCKED.format(names=["triton", "diffusers", "transformers", "typer", "rich"])
    assert run(code + "import hnkernels; print('torch' in sys.modules)").strip() == "False"


def test_the_core_works_without_triton_diffusers_and_the_extras():
    code = BLOCKED.format(names=["triton", "diffusers", "transformers", "typer", "rich", "PIL", "tqdm", "matplotlib"])
    code += (
        "import torch, hnkernels as hn; net = hn.Hypernetwork((8,)); x = torch.randn(2, 8); w = torch.randn(4, 8);"
        "print(hn.hyper_kv(x, *net[8], w, w)[0].shape, hn.attach, hn.load_hypernetwork)"
    )
    assert "torch.Size([2, 4])" in run(code)


def test_files_are_saved_and_loaded_without_the_compiler(tmp_path):
    """PyTorch imports its compiler, for a second or two, to draw random numbers on the meta device."""
    code = (
        f"import sys, hnkernels as hn; path = {str(tmp_path / 'a.pt')!r};"
        "hn.save_hypernetwork(hn.Hypernetwork((8,)), path); hn.load_hypernetwork(path);"
        "print('torch._dynamo' in sys.modules)"
    )
    assert run(code).strip() == "False"


def test_every_public_name_is_there():
    pytest.importorskip("tqdm", reason="the trainer shows its progress with it")
    assert run("import hnkernels as hn; print(all(hasattr(hn, n) for n in hn.__all__))").strip() == "True"


def test_a_name_says_what_it_needs():
    pytest.importorskip("PIL", reason="is missed first")
    code = BLOCKED.format(names=["tqdm", "tqdm.auto"]) + "import hnkernels; hnkernels.HypernetworkTrainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = "hnkernels.HypernetworkTrainer needs tqdm.auto; install it with: pip install 'hnkernels[train]'"
    assert message in done.stderr


def test_the_command_line_says_what_it_needs():
    code = BLOCKED.format(names=["typer"]) + "from hnkernels.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'hnkernels[cli]'" in done.stderr


def test_the_package_imports_nothing_that_a_wheel_does_not_contain():
    package = Path(hnkernels.__file__).parent
    imported = {
        name.split(".")[0]
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }  # fmt: skip
    assert not imported & {"benchmarks", "tests", "reference"}
    assert (package / "py.typed").exists()
