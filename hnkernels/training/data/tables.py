"""Tables of pictures and captions: ``metadata.jsonl``, ``.csv`` and ``.parquet``, and kohya's ``meta_*.json``."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnkernels.errors import InputError
from hnkernels.training.data.example import Example
from hnkernels.training.data.kohya import KOHYA_NAMES, kohya_entries
from hnkernels.training.data.pictures import PICTURE_SUFFIXES
from hnkernels.training.data.text_files import parse_json, read_text
from hnkernels.wording import shown

TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PICTURE = ("file_name", "edited_image_file_name")  # of these names of a column the first that is there counts
_CAPTION = ("text", "caption", "prompt", "edit_prompt")
SOURCE_COLUMNS = ("source_file_name", "input_image_file_name")
_EXPECTED = '{"file_name": "…", "text": "…"}'

Cells = dict[str, Any]


@dataclass(frozen=True)
class TableRow:
    """What a table says of one picture.

    Attributes:
        place: where in the table.
        example: the picture with its caption and what else there is.
        unknown: columns that nothing reads.
    """

    place: str
    example: Example
    unknown: frozenset[str]


def find_tables(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The tables among these files, and those of kohya's trainers that a later one in their folder replaces.

    Raises:
        ValueError: a folder holds more than one.
    """
    tables: dict[Path, list[Path]] = defaultdict(list)
    kohyas: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if path.name.lower() in TABLE_NAMES:
            tables[path.parent].append(path)
        elif path.name.lower() in KOHYA_NAMES and kohya_entries(path):
            kohyas[path.parent].append(path)
    replaced = []
    for folder, found in kohyas.items():
        *earlier, last = sorted(found, key=lambda path: KOHYA_NAMES.index(path.name.lower()))
        tables[folder].append(last)
        replaced += earlier
    for folder, found in tables.items():
        if len(found) > 1:
            raise InputError(f"{folder} holds both {found[0].name} and {found[1].name}; remove one of them")
    return [path for found in tables.values() for path in found], replaced


def read_table(path: Path, root: Path) -> Iterator[TableRow]:
    """The rows of a table.

    Args:
        path: ``metadata.jsonl``, an object per line; ``metadata.csv``, with a header; ``metadata.parquet``; or one of
            ``KOHYA_NAMES``. The names in it are relative to its folder.
        root: the folder of the data, outside of which no picture may lie.

    Raises:
        ValueError: the table cannot be read or a row of it cannot be used; the message names file and row.
    """
    suffixes = ("", *PICTURE_SUFFIXES) if path.name.lower() in KOHYA_NAMES else ("",)
    place = ""
    try:
        for place, cells in _rows(path):
            picture, caption, source = (_column(cells, names) for names in (_PICTURE, _CAPTION, SOURCE_COLUMNS))
            assert picture is not None  # _rows has seen to it, and to the caption
            assert caption is not None
            start = None if source is None else cells[source]
            example = Example(
                _image(cells[picture], picture, path.parent, root, suffixes),
                _caption(cells[caption], caption),
                _condition(cells.get("condition")),
                source=None if start is None else _image(start, str(source), path.parent, root, suffixes),
            )
            yield TableRow(place, example, frozenset(cells.keys() - {picture, caption, source, "condition"}))
    except _RowError as error:
        raise InputError(f"{path}, {error.place or place}: {error}") from None


class _RowError(Exception):
    """A row cannot be used; without its place it is the current one."""

    def __init__(self, message: str, place: str | None = None):
        super().__init__(message)
        self.place = place


def _rows(path: Path) -> Iterator[tuple[str, Cells]]:
    """Place and cells of each row, with a column for the picture and one for the caption in every one."""
    if path.name.lower() in KOHYA_NAMES:
        return _kohya_rows(path)
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path)
    return (_json_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(read_text(path))


def _column(cells: Iterable[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in cells), None)


def _is_row(columns: Iterable[str]) -> bool:
    return _column(columns, _PICTURE) is not None and _column(columns, _CAPTION) is not None


def _json_rows(text: str) -> Iterator[tuple[str, Cells]]:
    # str.splitlines would split at U+2028 too, which may stand in a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _RowError(f"expected {_EXPECTED}, found {line[:80]!r}: {error}", place) from None
        if not isinstance(row, dict) or not _is_row(row):
            raise _RowError(f"expected {_EXPECTED}, found {line[:80]!r}", place)
        yield place, row


def _csv_rows(text: str) -> Iterator[tuple[str, Cells]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, "line 1")
        for cells in reader:
            place = f"line {reader.line_num}"
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise _RowError(
                    f"expected {len(header)} cells, found {len(cells)}; put quotes around a text with a comma", place
                )
            row: Cells = dict(zip(header, cells, strict=True))
            for name in {"condition", *SOURCE_COLUMNS} & row.keys():
                row[name] = row[name] or None
            yield place, row
    except csv.Error as error:
        raise _RowError(str(error), f"line {reader.line_num}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Cells]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{path} can only be read with pyarrow; install it (pip install pyarrow), or save the table as "
            f"{path.with_suffix('.csv').name}"
        ) from None
    number = 0
    try:
        with ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, "its header")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    if isinstance(condition := row.get("condition"), dict):  # all rows have all names
                        row["condition"] = {
                            name: value for name, value in condition.items() if value is not None
                        } or None
                    yield f"row {number}", row
    except (ArrowException, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _check_columns(names: Sequence[str], place: str) -> None:
    if not _is_row(names) or len(set(names)) < len(names):
        raise _RowError(f"expected the columns file_name,text, each once, found {','.join(names)[:80]!r}", place)


def _kohya_rows(path: Path) -> Iterator[tuple[str, Cells]]:
    for name, caption in (kohya_entries(path) or {}).items():
        yield f"entry {shown(name)}", {"file_name": name, "text": caption}


def _image(name: Any, column: str, folder: Path, root: Path, suffixes: Sequence[str]) -> Path:
    """The picture of this name as a path below ``root``, whichever way it is written."""
    if not isinstance(name, str) or not name.strip():
        raise _RowError(f"{column} must be the name of a picture, not {shown(name)}")
    written = [folder / (text + suffix) for text in (name, name.replace("\\", "/")) for suffix in suffixes]
    image = os.path.abspath(next((path for path in written if os.path.isfile(path)), written[0]))
    for base in (os.path.abspath(root), os.path.realpath(root)):
        if Path(image).is_relative_to(base):
            if not os.path.isfile(image):
                raise _RowError(f"there is no file {shown(name)} in {folder}")
            return root / os.path.relpath(image, base)
    raise _RowError(f"{shown(name)} lies outside {root}; copy it into the folder, and give its name there")


def _caption(text: Any, column: str) -> str:
    if not isinstance(text, str):
        raise _RowError(f'{column} must be a text in quotes, "" for none, not {shown(text)}')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        fault = f"{column} has half of a character in it, {shown(text)}; write it whole, or leave it out"
        raise _RowError(fault) from None
    return text


def _condition(condition: Any) -> str | dict[str, float] | None:
    if isinstance(condition, str):
        return _caption(condition, "condition")
    if condition is None:
        return None
    if isinstance(condition, dict) and condition and all(map(_is_weight, condition.values())):
        return condition
    raise _RowError(f"condition must be a style's name or {{style: weight}}, not {shown(condition)}")


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
