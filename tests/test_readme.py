"""The README's Python runs as written, and its commands exist."""

import re
from pathlib import Path

from PIL import Image

from tests import versions

README = Path(__file__).parent.parent / "README.md"


def test_the_snippets_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_images").mkdir()
    for index in range(4):
        Image.new("RGB", (32, 32), (60 * index, 0, 0)).save(tmp_path / "my_images" / f"digit {index}.png")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 10
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["result"].step == 4
    assert namespace["k"].shape == (2, 77, 48)


def test_the_commands_exist():
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    for target in set(re.findall(r"[`\n]make ([a-z-]+)\b", text)):
        assert target in targets
    from hnkernels.cli import app

    commands = {command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    shell = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    used = re.findall(r"^hnkernels ([\w-]+)", shell, flags=re.MULTILINE)
    assert used
    assert set(used) <= commands


def test_the_map_names_what_there_is():
    rows = README.read_text(encoding="utf-8").split("## Where things are")[1].split("|")
    named = {path for row in rows for path in re.findall(r"`([\w/]+(?:/|\.py))`", row) if "/" in path}
    assert all((README.parent / path).exists() for path in named)
    folders = {f"hnkernels/{file.parent.name}/" for file in (README.parent / "hnkernels").glob("*/__init__.py")}
    assert folders <= named


def test_the_table_of_versions_is_what_is_written_down():
    text = README.read_text(encoding="utf-8")
    assert versions.readme(text) == text
    assert {r.environment for r in versions.recorded()} <= {e.name for e in versions.ENVIRONMENTS}


def test_the_oldest_versions_are_those_that_are_accepted():
    assert {"torch==2.6", "triton==3.2", "safetensors==0.4.5", "diffusers==0.36"} <= set(versions.oldest())
