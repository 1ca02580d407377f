"""Versions of the library in worktrees of their own, each beside the same benchmarks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SAME = ("benchmarks", "reference")
"""Taken from the present version on both sides: only the library differs."""


class VersionError(ValueError):
    """A version that cannot be checked out."""


@contextmanager
def side_by_side(ref: str, folder: Path, root: Path = ROOT) -> Iterator[tuple[Path, Path]]:
    """Two folders to run ``python -m benchmarks…`` in: with the library as of ``ref``, and as it is now.

    What is now includes what is not committed. The worktrees go away at the end.

    Raises:
        VersionError: ``ref`` names no commit, or there are files that git does not know.
    """
    old = _commit(ref, root)
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "hnkernels", *_SAME).split()
    if unknown:
        raise VersionError(f"git does not know {', '.join(unknown)}; `git add` what belongs to this version")
    new = _git(root, "stash", "create") or _commit("HEAD", root)
    trees = [folder / "tree-old", folder / "tree-new"]
    try:
        for tree, commit in zip(trees, (old, new), strict=True):
            _git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        sides = []
        for name, tree in zip(("old", "new"), trees, strict=True):
            side = folder / name
            side.mkdir()
            (side / "hnkernels").symlink_to(tree / "hnkernels")
            for package in _SAME:
                (side / package).symlink_to(trees[1] / package)
            sides.append(side)
        yield sides[0], sides[1]
    finally:
        for tree in trees:
            if tree.exists():
                _git(root, "worktree", "remove", "--force", str(tree))


def _commit(ref: str, root: Path) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError:
        raise VersionError(f"{ref!r} names no commit here; accepted is what `git rev-parse` accepts") from None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
