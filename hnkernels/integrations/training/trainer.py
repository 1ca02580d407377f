"""Training runs that another program starts: processes of their own, one at a time. The base model stays frozen."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.home.runs.output import OUTPUT, last_lines
from hnkernels.integrations.training.wish import Wish


class Trainer:
    """The run of a program.

    Args:
        python: the interpreter that trains, in whose environment ``hnkernels[train]`` is.
    """

    def __init__(self, python: str = sys.executable):
        self.python = python
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def running(self) -> bool:
        """Whether a run has not ended yet."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, wish: Wish, home: Path) -> Path:
        """Starts a run in a new folder below ``home``, which is returned.

        Raises:
            ValueError: another run has not ended, or the folder cannot be written.
        """
        if self.running:
            raise InputError("a run has not ended yet; stop it first, or wait")
        try:
            folder = _new_folder(home / "runs", wish.name)
            (folder / "config.json").write_text(json.dumps(wish.settings(), indent=1), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{home} cannot be written to: {error.strerror or error}; name another folder") from error
        self.folder, self._stopped = folder, False
        self._thread = threading.Thread(
            target=self._run, args=(self._commands(wish, home, folder), folder), daemon=True
        )
        self._thread.start()
        return folder

    def stop(self) -> None:
        """Asks the run to save and stop.

        Raises:
            ValueError: there is none.
        """
        if not self.running:
            raise InputError("no run is going on, there is nothing to stop")
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))

    def said(self, count: int = 12) -> str:
        """The last lines that the run has written, and whether it goes on."""
        if self.folder is None:
            return "No run has been started."
        lines = last_lines(self.folder / OUTPUT, count)
        state = "Running" if self.running else "Ended"
        return "\n".join([*lines, f"{state}: {self.folder}"])

    def results(self) -> list[Path]:
        """The files of the finished hypernetwork; none before it has finished."""
        if self.folder is None or self.running:
            return []
        return sorted(path for path in self.folder.glob("*.pt") if path.is_file())

    def take(self, hypernetworks: Path) -> list[Path]:
        """Copies the finished hypernetwork into a folder of hypernetworks, under a name that is not taken.

        Raises:
            ValueError: nothing has been finished.
        """
        results = self.results()
        if not results:
            raise InputError("there is no finished hypernetwork; wait until a run has ended without being stopped")
        copied = []
        for path in results:
            target, number = hypernetworks / path.name, 1
            while target.exists():
                number += 1
                target = hypernetworks / f"{path.stem}-{number}{path.suffix}"
            shutil.copyfile(path, target)
            copied.append(target)
        return copied

    def _commands(self, wish: Wish, home: Path, folder: Path) -> list[list[str]]:
        model, commands = wish.model, []
        if model.is_file():
            converted = home / "models" / model.stem
            if not (converted / "model_index.json").is_file():
                commands.append(
                    [self.python, "-m", "hnkernels.integrations.training.single_file", str(model), str(converted)]
                )
            model = converted
        options = [f"--config={folder / 'config.json'}", f"--recipe={wish.recipe}", f"--name={wish.name}"]
        options.append(f"--output-dir={folder}")
        return [*commands, [self.python, "-m", "hnkernels", "train", *options, "--", str(model), str(wish.data)]]

    def _run(self, commands: Sequence[list[str]], folder: Path) -> None:
        # A group of its own: what stops the program in its terminal does not reach it.
        windows = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        for command in commands:
            if self._stopped:
                return
            with (folder / OUTPUT).open("ab") as output:
                try:
                    process = self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                        creationflags=windows,
                    )
                except OSError as error:
                    output.write(f"{command[0]} cannot be run: {error}\n".encode())
                    return
            if process.wait() != 0:
                return


def _new_folder(runs: Path, name: str) -> Path:
    number, folder = 1, runs / name
    while folder.exists():
        number += 1
        folder = runs / f"{name}-{number}"
    folder.mkdir(parents=True)
    return folder
