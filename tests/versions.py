"""``python -m tests.versions [names]``: the tests with other versions of what the library is built on.

An environment for each line of ``ENVIRONMENTS`` is made under ``.venv-versions/``, with pip and a Python that is on the
PATH (or pyenv's), a few gigabytes each. What came of it goes to ``tests/versions.csv`` and ``docs/versions.md``.
Exits with 1 if a test has failed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs" / "versions.md"
INTERPRETED = ("tests/triton", "tests/ops")
_MARKS = re.compile(r"(<!-- versions -->\n).*?(<!-- /versions -->)", re.DOTALL)


@dataclass(frozen=True)
class Environment:
    """A Python and what is installed for it.

    Attributes:
        name: of its folder.
        python: ``"3.10"``.
        requirements: as pip takes them.
        what: what it stands for, in the table.
    """

    name: str
    python: str
    requirements: tuple[str, ...]
    what: str


def oldest() -> tuple[str, ...]:
    """The least that pyproject.toml accepts, of everything with a least version that these tests import.

    Left out are what checks the code, and the extras of the page and of the site: their tests are others, and the least
    gradio asks for a newer huggingface_hub than the least transformers can take.
    """
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith(("ui =", "test-ui =", "docs =")))
    accepted = re.findall(r'"([\w-]+)>=([\w.]+)[;"]', text)
    tools = ("ruff", "mypy")
    return tuple(dict.fromkeys(f"{name}=={version}" for name, version in accepted if name not in tools))


RUNNING = ("numpy", "safetensors", "pytest", "pytest-xdist", "hypothesis")
EVERYTHING = (
    *(*RUNNING, "diffusers", "transformers", "accelerate", "peft", "typer", "rich", "tqdm", "pillow"),
    *("matplotlib", "scikit-learn", "pytest-benchmark", "tensorboard"),
    *("pandas", "pyarrow", "lion-pytorch", "prodigyopt"),
)
ENVIRONMENTS = (
    Environment("oldest", "3.10", (*oldest(), "numpy", "tqdm", "pillow"), "the oldest that are accepted"),
    Environment("bare", "3.12", ("torch==2.11.*", "triton==3.6.*", *RUNNING), "without diffusers, peft, accelerate"),
    Environment("pinned", "3.11", ("--constraint=constraints.txt", ".[dev]"), "what `make` installs"),
    Environment(
        "cuda",
        "3.11",
        ("torch==2.13.0", "triton==3.7.1", *EVERYTHING),
        "the same PyTorch, with its CUDA build's Triton",
    ),
    Environment("newest", "3.13", ("torch", "triton", *EVERYTHING), "the newest that pip finds"),
)


@dataclass(frozen=True)
class Result:
    """What came of the tests in an environment: versions, and how many passed, failed and were skipped."""

    environment: str
    date: str
    python: str
    torch: str
    triton: str
    diffusers: str
    numpy: str
    passed: int
    failed: int
    skipped: int
    interpreted_passed: int
    interpreted_failed: int
    interpreted_skipped: int


def main(arguments: Sequence[str]) -> int:
    """Makes the environments, runs the tests in them one after the other, and writes down what came of it."""
    names = [e.name for e in ENVIRONMENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=names, help=f"which of {', '.join(names)}; all of them unless given"
    )
    chosen = parser.parse_args(arguments).names
    unknown = set(chosen) - set(names)
    if unknown:
        parser.error(f"no such environment: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    results = {r.environment: r for r in recorded()}
    for environment in (e for e in ENVIRONMENTS if e.name in chosen):
        results[environment.name] = _tried(environment)
        _write([results[name] for name in names if name in results])
    failed = [name for name in chosen if results[name].failed or results[name].interpreted_failed]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


def _tried(environment: Environment) -> Result:
    folder = ROOT / ".venv-versions" / environment.name
    python = _installed(environment, folder)
    versions = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout.split()
    print(f"{environment.name}: Python, PyTorch, Triton, diffusers, NumPy {' '.join(versions)}", flush=True)
    counts = [*_tests(python, folder / "plain", ()), *_tests(python, folder / "interpreted", INTERPRETED)]
    return Result(environment.name, datetime.date.today().isoformat(), *versions, *counts)


_VERSIONS = """
import platform
from importlib.metadata import PackageNotFoundError, version
def of(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"
print(platform.python_version(), *map(of, ("torch", "triton", "diffusers", "numpy")))
"""


def _installed(environment: Environment, folder: Path) -> Path:
    """The environment's Python, with everything installed; nothing is done if that was done before."""
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(environment.requirements) + "\n"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([_interpreter(environment.python), "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *environment.requirements], cwd=ROOT, check=True)
        subprocess.run([*install, "--no-deps", "--editable", "."], cwd=ROOT, check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _interpreter(version: str) -> str:
    """A Python of this version.

    Raises:
        SystemExit: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for candidate in (f"python{version}", *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))):
        found = shutil.which(candidate)
        if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
            return found
    raise SystemExit(f"there is no python{version}; put one on the PATH, or leave its environment out")


def _tests(python: Path, report: Path, paths: Sequence[str]) -> tuple[int, int, int]:
    """Passed, failed and skipped; what the tests say goes to ``report`` with the suffix .log."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if paths else {})
    xml, log = report.with_suffix(".xml"), report.with_suffix(".log")
    xml.unlink(missing_ok=True)
    options = ["-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider", "-rs", f"--junitxml={xml}"]
    command = [python, "-m", "pytest", *options, *paths]
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if not xml.exists():
        raise SystemExit(f"no test was run; see {log.relative_to(ROOT)}")
    suite = next(ElementTree.parse(xml).iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    print(f"  {report.name}: {tests - failed - skipped} passed, {failed} failed, {skipped} skipped", flush=True)
    return tests - failed - skipped, failed, skipped


def recorded() -> list[Result]:
    """What is written down."""
    if not RESULTS.exists():
        return []
    numbers = {f.name for f in fields(Result) if f.type == "int"}
    with RESULTS.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [Result(**{k: int(v) if k in numbers else v for k, v in line.items()}) for line in lines]  # type: ignore[arg-type]


def _write(results: Sequence[Result]) -> None:
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in results)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with the table of versions as it is written down."""
    return _MARKS.sub(lambda m: m[1] + "\n".join(_table()) + "\n" + m[2], text)


def _table() -> Iterator[str]:
    yield "| | Python | PyTorch | Triton | diffusers | NumPy | tests passed | in the interpreter | on |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    what = {e.name: e.what for e in ENVIRONMENTS}
    for r in recorded():
        versions = f"{r.python} | {r.torch} | {r.triton} | {r.diffusers} | {r.numpy}"
        plain = _counts(r.passed, r.failed, r.skipped)
        interpreted = _counts(r.interpreted_passed, r.interpreted_failed, r.interpreted_skipped)
        yield f"| {what[r.environment]} | {versions} | {plain} | {interpreted} | {r.date} |"


def _counts(passed: int, failed: int, skipped: int) -> str:
    return f"{passed} of {passed + failed}" + (f", {skipped} skipped" if skipped else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
