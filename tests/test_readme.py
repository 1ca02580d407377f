"""The README's Python runs as written, and its commands exist."""

import re
from pathlib import Path

from PIL import Image

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
