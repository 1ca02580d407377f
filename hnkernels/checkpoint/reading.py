"""Opening a file that a stranger made: nothing of it is executed, and nothing larger than it is allocated."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from hnkernels.checkpoint.errors import Fault, brief
from hnkernels.checkpoint.program import check_program

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLES = 5  # of the older form: magic number, version, system, the value itself, the keys of its storages
_AGAIN = "fetch or save the file again"


def check_regular(path: Path) -> int:
    """Size in bytes of an ordinary, non-empty file.

    Raises:
        Fault: the path is a folder, a device or an empty file.
        OSError: it does not exist or cannot be reached.
    """
    try:
        info = path.stat()
    except ValueError as error:
        raise Fault("is not a possible path", "check the path") from error
    if stat.S_ISDIR(info.st_mode):
        raise Fault("is a folder", "name the hypernetwork file inside it")
    if not stat.S_ISREG(info.st_mode):
        raise Fault("is not an ordinary file", "name a hypernetwork file")
    if info.st_size == 0:
        raise Fault("is empty", _AGAIN)
    return info.st_size


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens an ordinary, non-empty file for reading; raises as ``check_regular``."""
    check_regular(path)
    with path.open("rb") as file:
        yield file


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, in the zip form or in the older one of torch < 1.6, tensors on the CPU.

    Only ``torch.load(weights_only=True)`` is used. Before it, a zip whose entries are compressed, or claim more bytes
    than the file has, is refused: ``torch.save`` never compresses. So are the pickles that ``check_program`` refuses.

    Raises:
        Fault: the content is anything but tensors and plain values, or is damaged.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        if zipped:
            _check_zip(file)
        file.seek(0)
        try:
            _check_programs(file, zipped)
            file.seek(0)
            # Not torch.load: AUTOMATIC1111 puts a function of its own there, which reads files by name only.
            return torch.serialization.load(file, map_location="cpu", weights_only=True, mmap=False)
        except (OSError, Fault):
            raise
        except Exception as error:  # torch raises a dozen different types for damaged input
            raise _fault_of(error) from error


def read_safetensors_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file, on the CPU; they may be views of the mapped file.

    Raises:
        Fault: it is damaged or of another kind.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not iterable
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and whatever torch says to an unknown dtype
        raise Fault("is damaged, cut short, or not a safetensors file", _AGAIN) from error


def _check_programs(file: BinaryIO, zipped: bool) -> None:
    """Checks all pickles of a file, read as PyTorch reads them."""
    if zipped:
        check_program(torch._C.PyTorchFileReader(file).get_record("data.pkl"))
    else:
        for _ in range(_PICKLES):
            check_program(file)


def _check_zip(file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # BadZipFile, but also struct.error, UnicodeDecodeError, NotImplementedError
        raise Fault("is damaged or cut short: its zip directory cannot be read", _AGAIN) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Fault(f"holds the compressed entry {brief(entry.filename)}, which torch.save never writes", _AGAIN)
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise Fault(f"claims {claimed} bytes of content but is only {size} bytes long", _AGAIN)


def _fault_of(error: Exception) -> Fault:
    forbidden = re.search(r"(?:GLOBAL|global|class|function) `?([A-Za-z_]\w*(?:\.\w+)+)", str(error))
    if forbidden and "eights only" in str(error):
        return Fault(
            f"holds more than tensors and plain values ({forbidden[1][:60]}); it was refused, and nothing of it was "
            "run",
            "do not load it by other means unless you trust its source",
        )
    return Fault("is damaged, cut short, or not a file of torch.save with tensors and plain values only", _AGAIN)
