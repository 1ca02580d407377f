"""Files of the home that a browser may fetch: links in Gradio's own folder, from which alone it serves."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from gradio.utils import get_upload_folder


def offered(files: Iterable[Path]) -> list[str]:
    """Paths under which Gradio serves the files; without links, and without files that are gone."""
    found = []
    for file in files:
        if file.is_symlink() or not file.is_file():
            continue
        info = file.stat()
        mark = hashlib.sha256(f"{file}\n{info.st_size}\n{info.st_mtime_ns}".encode("utf-8", "replace")).hexdigest()
        folder = Path(get_upload_folder()) / mark
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / file.name
        if not target.exists():
            try:
                os.link(file, target)
            except OSError:  # another file system
                shutil.copyfile(file, target)
        found.append(str(target))
    return found


def forget(upload: Path) -> None:
    """Removes what a browser sent, once it has been taken in or refused."""
    if upload.is_relative_to(get_upload_folder()):
        upload.unlink(missing_ok=True)
