"""``torch.save`` for readers stricter than ``torch.load``."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any, BinaryIO

import torch

ENTRY = re.compile(r"[^/]+/(data\.pkl|version|data/\d+)")
"""The zip entries that every A1111 release accepts."""

# AUTOMATIC1111 refuses a zip with any other entry, and current torch adds three or four (.format_version,
# .storage_alignment, byteorder, .data/serialization_id). torch.load takes a file without them as little-endian.


def write_torch_file(value: Any, file: BinaryIO) -> None:
    """Writes what ``torch.save(value)`` would, with only the zip entries that every A1111 release accepts.

    The same value gives the same bytes.

    Args:
        value: nested dicts, lists and tuples of CPU tensors and plain values.
        file: an open binary file.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if ENTRY.fullmatch(entry.filename):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
