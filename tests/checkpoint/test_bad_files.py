"""A broken or hostile file gives one CheckpointError that names it; nothing of it runs, nothing large is allocated."""

import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from hnkernels import CheckpointError, load_hypernetwork
from tests.checkpoint.a1111_files import flat_dict, pair, plain_file, write
from tests.checkpoint.hostile import RunsCode, refused


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_file_is_refused_and_does_not_run(zipped, tmp_path):
    marker = tmp_path / "ran"
    content = flat_dict({4: pair(4)}) | {"optional_info": RunsCode(marker)}
    path = write(tmp_path / "bad.pt", content, _use_new_zipfile_serialization=zipped)
    refused(path, r"more than tensors and plain values \(\w+\.mkdir\)")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_does_not_run(protocol, tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps(RunsCode(marker), protocol=protocol))
    refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_cut_short_anywhere_is_refused(zipped, tmp_path):
    whole = io.BytesIO()
    torch.save(flat_dict({4: pair(4)}), whole, _use_new_zipfile_serialization=zipped)
    data = whole.getvalue()
    path = tmp_path / "cut.pt"
    for length in (1, 2, 5, 50, *range(100, len(data) - 1, len(data) // 12), len(data) - 1):
        path.write_bytes(data[:length])
        refused(path)


def test_damaged_bytes_never_give_another_exception(tmp_path):
    path = plain_file(tmp_path / "f.pt", dims=(4,))
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        position, new = (int(torch.randint(n, (1,), generator=generator)) for n in (len(data), 256))
        path.write_bytes(data[:position] + bytes([new]) + data[position + 1 :])
        try:
            load_hypernetwork(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017  # a lucky byte leaves the file valid


@pytest.mark.parametrize(
    "content", [b"\0" * 1000, b"not a checkpoint at all", b"PK\x03\x04", b"PK\x03\x04" + b"x" * 500]
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "f.pt"
    path.write_bytes(content)
    refused(path)


def rezip(source, target, method=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), method)
        for name, data in extra:
            new.writestr(name, data, zipfile.ZIP_DEFLATED)
    return target


def test_a_compressed_zip_is_refused(tmp_path):
    path = rezip(plain_file(tmp_path / "f.pt"), tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED)
    refused(path, "compressed entry")


def test_a_zip_bomb_is_refused(tmp_path):
    bomb = [("archive/data/99", bytes(10**7))]
    refused(
        rezip(plain_file(tmp_path / "f.pt"), tmp_path / "bomb.pt", extra=bomb), "compressed entry 'archive/data/99'"
    )


def test_a_zip_that_lists_its_content_twice_is_refused(tmp_path):
    path = tmp_path / "twice.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(5000))
        archive.filelist.append(archive.filelist[0])
    refused(path, "claims 10000 bytes of content but is only")


def test_a_record_shorter_than_its_tensor_is_refused(tmp_path):
    path = tmp_path / "short.pt"
    with zipfile.ZipFile(plain_file(tmp_path / "f.pt")) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data[:4] if "/data/" in entry.filename else data)
    refused(path)


class _Huge:
    """A tensor of 10^13 elements in the format before torch 1.6."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (_STORAGE, 0, (10**13,), (1,), False, collections.OrderedDict())


_STORAGE = object()


def test_an_old_file_that_claims_terabytes_is_refused(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 10**13, None) if obj is _STORAGE else None

    path = tmp_path / "claims.pt"
    with path.open("wb") as file:
        for header in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        Pickler(file, protocol=2).dump({4: ({"linear.0.weight": _Huge()}, {})})
        pickle.dump(["0"], file, protocol=2)
        file.write(bytes(64))
    refused(path)


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "no.pt", "does not exist")
    refused(tmp_path / "no folder" / "no.safetensors", "does not exist")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt", "is a folder")


def test_an_empty_file_is_refused(tmp_path):
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "is empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not an ordinary file")


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = plain_file(tmp_path / "f.pt")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused(path, "access is denied")


def test_a_name_that_cannot_be_a_path_is_refused():
    refused("nul\0byte.pt", "not a possible path")


@pytest.mark.parametrize("name", ["f.ckpt", "f", "f.pt.optim", "f.bin"])
def test_other_extensions_are_refused_by_name(name, tmp_path):
    refused(tmp_path / name, r"\.pt, \.safetensors")


def test_the_library_never_unpickles_without_restrictions(tmp_path):
    """Even where the environment asks torch to: the marker stays absent in a process with that variable set."""
    marker = tmp_path / "ran"
    path = write(tmp_path / "bad.pt", flat_dict({4: pair(4)}) | {"optional_info": RunsCode(marker)})
    script = (
        "import sys, hnkernels\n"
        "try: hnkernels.load_hypernetwork(sys.argv[1])\n"
        "except hnkernels.CheckpointError: sys.exit(7)\n"
    )
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False, timeout=120)
    assert done.returncode == 7
    assert not marker.exists()
