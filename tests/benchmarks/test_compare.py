"""Comparing two versions: what counts as a change, what is noise, and what cannot be compared."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.compare import Pair, Verdict, VersionError, Worker, judge, main, side_by_side, table


def pair(ratio: float, control: float = 1.0) -> Pair:
    """Timings in which the new version takes ``ratio`` times as long, and the control ``control`` times."""
    return Pair([1.0, 1.0, 9.0], [ratio, ratio, 9.0], [2.0], [2.0 * control])


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ((1.1, 1.1, 1.1), "slower"),
        ((0.9, 0.9, 0.9), "faster"),
        ((1.04, 1.04, 1.04), "same"),  # below the threshold
        ((1.2, 1.2, 0.99), "same"),  # not every pair shows it
        ((1.3, 1.1, 1.01), "same"),  # it strays as much as it changes
    ],
)
def test_a_change_counts_beyond_the_threshold_and_in_every_pair(ratios, word):
    assert judge([pair(r) for r in ratios]).word == word


def test_what_unchanged_code_differs_by_is_noise():
    assert judge([pair(1.1, control=1.08)] * 3).word == "same"
    verdict = judge([pair(1.2, control=1.08)] * 3)
    assert verdict.word == "slower"
    assert verdict.noise == pytest.approx(0.08)
    assert verdict.ratio == pytest.approx(1.2)


def test_the_table_marks_what_became_slower_and_names_what_was_not_compared():
    lines = table({("case", "portable"): Verdict(1.2, 0.01, "slower")}, {"other": "in the old version X: no"}, "v1")
    assert "| case | portable | 1.200 | ± 1.0 % | **slower** |" in lines
    assert lines[-1] == "| other | – | – | – | not compared: in the old version X: no |"


@pytest.fixture
def repository(tmp_path):
    """A repository with two versions of packages of the three names, and a change that is not committed."""
    root = tmp_path / "repository"
    for package in ("hnkernels", "benchmarks", "reference"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("version = 1\n")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    git("init", "-q"), git("add", "-A"), git("commit", "-qm", "one"), git("tag", "first")
    for package in ("hnkernels", "benchmarks", "reference"):
        (root / package / "__init__.py").write_text("version = 2\n")
    git("commit", "-qam", "two")
    git("config", "user.name", "a"), git("config", "user.email", "a@example.org")
    (root / "hnkernels" / "__init__.py").write_text("version = 3\n")
    return root


def test_only_the_library_differs_and_what_is_not_committed_counts(repository, tmp_path):
    folder = tmp_path / "sides"
    folder.mkdir()
    with side_by_side("first", folder, repository) as (old, new):
        found = {
            (side.name, package): (side / package / "__init__.py").read_text().strip()[-1]
            for side in (old, new)
            for package in ("hnkernels", "benchmarks", "reference")
        }
    assert found == {
        ("old", "hnkernels"): "1", ("old", "benchmarks"): "2", ("old", "reference"): "2",
        ("new", "hnkernels"): "3", ("new", "benchmarks"): "2", ("new", "reference"): "2",
    }  # fmt: skip
    trees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout
    assert len(trees.splitlines()) == 1  # nothing is left behind
    assert (repository / "hnkernels" / "__init__.py").read_text() == "version = 3\n"


def test_unknown_versions_and_unknown_files_are_refused(repository, tmp_path):
    with (
        pytest.raises(VersionError, match="'nonsense' names no commit here"),
        side_by_side("nonsense", tmp_path, repository),
    ):
        pass
    (repository / "hnkernels" / "new.py").write_text("")
    with (
        pytest.raises(VersionError, match=r"git does not know hnkernels/new.py; `git add`"),
        side_by_side("first", tmp_path, repository),
    ):
        pass


def test_the_command_explains_a_version_that_is_none(capsys):
    assert main(["no-such-version"]) == 2
    assert "'no-such-version' names no commit here" in capsys.readouterr().err


def test_a_version_that_does_not_start_says_why(tmp_path, pytestconfig):
    side = tmp_path / "old"
    (side / "hnkernels").mkdir(parents=True)
    (side / "hnkernels" / "__init__.py").write_text("raise ImportError('nothing here yet')\n")
    for package in ("benchmarks", "reference"):
        (side / package).symlink_to(pytestconfig.rootpath / package)
    with pytest.raises(RuntimeError, match="the process of the old version ended: ImportError: nothing here yet"):
        Worker(side)


def test_a_worker_builds_times_and_says_what_it_cannot(pytestconfig):
    worker = Worker(pytestconfig.rootpath)
    try:
        assert worker.library == str(pytestconfig.rootpath)
        providers, fault = worker.build("affine, inference, 768 x 77, affine")
        assert fault is None
        assert providers == ["reference", "portable"]
        assert all(worker.seconds(provider) > 0 for provider in providers)
    finally:
        worker.close()
