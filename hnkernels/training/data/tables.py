"""Tables of pictures and captions: ``metadata.jsonl`` and ``metadata.csv``."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnkernels.training.data.text_files import parse_json, read_text
from hnkernels.wording import shown

TABLE_NAMES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "text", "condition")
_EXPECTED = '{"file_name": "…", "text": "…"}'


def read_table(path: Path, root: Path) -> Iterator[tuple[int, Path, str, Any, set[str]]]:
    """The lines of a table: number, picture, caption, condition, and the columns that are not known.

    Args:
        path: ``metadata.jsonl``, an object per line, or ``metadata.csv``, with a header. The names in it are relative
            to its folder.
        root: the folder of the data, outside of which no picture may lie.

    Raises:
        ValueError: the table cannot be read or a line of it cannot be used; the message names file and line.
    """
    lines = _json_lines if path.suffix.lower() == ".jsonl" else _csv_lines
    text = read_text(path)
    number = 0
    try:
        for number, cells in lines(text):
            image = _image(cells["file_name"], path.parent, root)
            yield (
                number,
                image,
                _caption(cells["text"]),
                _condition(cells.get("condition")),
                cells.keys() - set(COLUMNS),
            )
    except _LineError as error:
        raise ValueError(f"{path}, line {error.number or number}: {error}") from None


class _LineError(Exception):
    """A line cannot be used; without its number it is the current one."""

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.number = number


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # str.splitlines would split at U+2028 too, which may stand in a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _LineError(f"expected {_EXPECTED}, found {line[:80]!r}: {error}", number) from None
        if not isinstance(row, dict) or not row.keys() >= {"file_name", "text"}:
            raise _LineError(f"expected {_EXPECTED}, found {line[:80]!r}", number)
        yield number, row


def _csv_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not {"file_name", "text"} <= set(header) or len(set(header)) < len(header):
            raise _LineError(f"expected the columns file_name,text, each once, found {','.join(header)[:80]!r}", 1)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise _LineError(
                    f"expected {len(header)} cells, found {len(cells)}; put quotes around a text with a comma",
                    reader.line_num,
                )
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            yield reader.line_num, {**row, "condition": row.get("condition") or None}
    except csv.Error as error:
        raise _LineError(str(error), reader.line_num) from None


def _image(name: Any, folder: Path, root: Path) -> Path:
    """The picture of this name as a path below ``root``, whichever way it is written."""
    if not isinstance(name, str) or not name.strip():
        raise _LineError(f"file_name must be the name of a picture, not {shown(name)}")
    written = [folder / name, folder / name.replace("\\", "/")]
    image = os.path.abspath(next((path for path in written if os.path.isfile(path)), written[0]))
    for base in (os.path.abspath(root), os.path.realpath(root)):
        if Path(image).is_relative_to(base):
            if not os.path.isfile(image):
                raise _LineError(f"there is no file {shown(name)} in {folder}")
            return root / os.path.relpath(image, base)
    raise _LineError(f"{shown(name)} lies outside {root}; copy it into the folder, and give its name there")


def _caption(text: Any) -> str:
    if not isinstance(text, str):
        raise _LineError(f'text must be a text in quotes, "" for none, not {shown(text)}')
    return text


def _condition(condition: Any) -> str | dict[str, float] | None:
    if condition is None or isinstance(condition, str):
        return condition
    if isinstance(condition, dict) and condition and all(map(_is_weight, condition.values())):
        return condition
    raise _LineError(f"condition must be a style's name or {{style: weight}}, not {shown(condition)}")


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
