"""A command, run as a user types it."""

import sys

import pytest

import hnkernels as hn


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs a command; returns (exit code, stdout, stderr)."""
    from hnkernels.cli import main
    from hnkernels.cli.terminal import console

    monkeypatch.setattr(console, "_width", 200)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hnkernels", *map(str, words)])
        capsys.readouterr()  # what fixtures have printed
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def style(tmp_path):
    net = hn.Hypernetwork((48, 80, 96), activation="relu", name="style")
    hn.save_hypernetwork(net, tmp_path / "style.pt")
    return tmp_path / "style.pt"
