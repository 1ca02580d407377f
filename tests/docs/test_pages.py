"""What the README and the pages of docs/ show runs as written: Python, commands and their options.

Python that is fenced as ``py`` belongs into another program, which is not here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import hnkernels as hn
from tests import versions

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
API = ROOT / "docs" / "api"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_images").mkdir()
    for index in range(4):
        Image.new("RGB", (32, 32), (60 * index, 0, 0)).save(tmp_path / "my_images" / f"digit {index}.png")
    (tmp_path / "ink").mkdir()
    for file in ("ink.safetensors", "ink/ink.pt"):
        hn.save_hypernetwork(hn.Hypernetwork((48, 80, 96), name="ink"), file)
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_commands_exist_and_take_the_options_that_are_shown():
    import typer

    from hnkernels.cli import app

    commands = typer.main.get_command(app).commands
    shown = [line for page in PAGES for block in blocks(page, "bash") for line in lines(block)]
    used = [shlex.split(line, comments=True)[1:] for line in shown if line.startswith("hnkernels ")]
    assert used
    for name, *arguments in used:
        if name.startswith("--"):
            continue
        assert name in commands, f"hnkernels {name}"
        accepted = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        accepted |= {option for parameter in commands[name].params for option in parameter.secondary_opts}
        assert {argument.split("=")[0] for argument in arguments if argument.startswith("--")} <= accepted, arguments


def lines(block: str) -> list[str]:
    """The commands of a block, a line that ends in a backslash together with the next."""
    return block.replace("\\\n", " ").splitlines()


def test_the_targets_of_make_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r"[`\n]make ([a-z-]+)\b", page.read_text(encoding="utf-8")):
            assert target in targets, (named(page), target)


def test_the_map_names_what_there_is():
    rows = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Where things are")[1].split("|")
    paths = {path for row in rows for path in re.findall(r"`([\w/]+(?:/|\.py))`", row) if "/" in path}
    assert all((ROOT / path).exists() for path in paths)
    folders = {f"hnkernels/{file.parent.name}/" for file in (ROOT / "hnkernels").glob("*/__init__.py")}
    assert folders <= paths


def test_the_table_of_versions_is_what_is_written_down():
    text = versions.PAGE.read_text(encoding="utf-8")
    assert versions.filled(text) == text
    assert {r.environment for r in versions.recorded()} <= {e.name for e in versions.ENVIRONMENTS}


def test_the_oldest_versions_are_those_that_are_accepted():
    assert {"torch==2.6", "triton==3.2", "safetensors==0.4.5", "diffusers==0.36"} <= set(versions.oldest())
    names = {requirement.partition("==")[0] for requirement in versions.oldest()}
    assert names.isdisjoint({"gradio", "playwright", "mkdocs-material", "ruff"})


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=named)
def test_the_links_of_a_page_that_is_not_in_the_site_lead_somewhere(page):
    """Those of docs/ are checked by ``make docs``, their anchors too."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            text = (page.parent / file).read_text(encoding="utf-8") if file.endswith(".md") else ""
            assert (page.parent / file).exists(), target
            assert not anchor or anchor in map(anchor_of, re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)), target


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")


def test_every_public_name_is_on_a_page_of_the_api():
    shown = re.findall(
        r"^::: hnkernels\.([\w.]+)$", "".join(p.read_text() for p in API.glob("*.md")), flags=re.MULTILINE
    )
    assert len(shown) == len(set(shown))
    assert {name for name in shown if "." not in name} == set(hn.__all__) - {"__version__"}


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("1/4.6 of the web UIs' time", "16 cross-attention layers, forward |"),
        ("1/68 from the second denoising step on", "the same from the second denoising step on |"),
        ("UNet 1/1.8,", "training step of the UNet, batch 1 |"),
        ("1/1.6 with gradient checkpointing", "training step of the UNet, batch 1, gradient checkpointing |"),
    ],
)
def test_a_figure_of_the_readme_is_that_of_the_table(words, row):
    (line,) = [
        line for line in (ROOT / "docs" / "benchmarks.md").read_text().splitlines() if line.startswith(f"| {row}")
    ]
    measured = float(re.search(r"\| ([\d.]+) x \|", line)[1])
    said = re.search(r"1/([\d.]+)", words)[1]
    assert words in README.read_text(encoding="utf-8").replace("\n", " ")
    assert f"{measured:.{len(said.partition('.')[2])}f}" == said


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
