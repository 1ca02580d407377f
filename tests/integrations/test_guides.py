"""The guides' Python runs as written, and they name the options that there are."""

import re
from pathlib import Path

import hnkernels as hn
from hnkernels.integrations.kohya import arguments

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def test_the_snippets_of_the_guide_to_diffusers_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hn.save_hypernetwork(hn.Hypernetwork((48, 80, 96), name="ink").eval(), "ink.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / "diffusers.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    variables: dict = {}
    for block in blocks:
        exec(block, variables)
    assert "license: openrail" in Path("README.md").read_text(encoding="utf-8")


def test_the_guide_to_kohya_names_all_arguments():
    text = (GUIDES / "kohya.md").read_text(encoding="utf-8")
    names = {name for options in (arguments._COMMON, *arguments._OPTIONS.values()) for name in options}
    assert names == set(re.findall(r"`(\w+)=[^`]*`", text.partition("| `--network_args`")[2].partition("###")[0]))
