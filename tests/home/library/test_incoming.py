"""Files from elsewhere: taken in whole, or refused with a sentence and nothing left behind."""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import hnkernels as hn
from hnkernels import CheckpointError
from hnkernels.home.library import incoming
from hnkernels.home.library.incoming import take_in
from tests.checkpoint.hostile import RunsCode
from tests.home.library.conftest import contents


@pytest.fixture
def arrival(tmp_path):
    """Writes a network outside of the home; returns its path."""

    def write(name="style.pt"):
        folder = tmp_path / "arrived"
        folder.mkdir(exist_ok=True)
        hn.save_hypernetwork(hn.Hypernetwork((8,)), folder / name)
        return folder / name

    return write


def refused(library, home, source, message, error=CheckpointError, **options):
    before = contents(home.path)
    with pytest.raises(error, match=message) as caught:
        take_in(library, source, **options)
    assert contents(home.path) == before
    assert [path.name for path in home.networks.iterdir() if path.name.startswith(".")] == []
    assert str(home.path) not in str(caught.value)


def test_a_file_is_taken_in(library, home, arrival):
    source = arrival()
    assert take_in(library, source) == "networks/style"
    assert (home.networks / "style.pt").read_bytes() == source.read_bytes()
    assert list(contents(home.networks)) == ["style.pt"]


def test_a_name_that_is_taken_gets_a_number(library, home, arrival):
    take_in(library, arrival("style.pt"))
    assert take_in(library, arrival("style.safetensors")) == "networks/style-2"
    assert take_in(library, arrival("style.pt"), "Style.v2.PT") == "networks/Style.v2"
    assert sorted(contents(home.networks)) == ["Style.v2.pt", "style-2.safetensors", "style.pt"]


def test_two_at_once_get_two_names(library, home, arrival):
    sources = [arrival()] * 6
    with ThreadPoolExecutor() as threads:
        keys = list(threads.map(lambda source: take_in(library, source), sources))
    assert len(set(keys)) == 6
    assert len(contents(home.networks)) == 6


@pytest.mark.parametrize(
    "name", ["../x.pt", "/x.pt", "a\\b.pt", ".x.pt", "x\0.pt", "x\n.pt", f"{'x' * 100}.pt", "con.pt", " x.pt"]
)
def test_names_that_are_none(library, home, arrival, name):
    refused(library, home, arrival(), "is not a name", ValueError, name=name)


@pytest.mark.parametrize("name", ["x", "x.ckpt", "x.pt.optim", "x.zip", "x.pt.exe", "pt"])
def test_other_extensions(library, home, arrival, name):
    refused(library, home, arrival(), r"ends in \.pt or \.safetensors", ValueError, name=name)


def test_a_file_that_runs_code(library, home, tmp_path):
    torch.save({"x": RunsCode(tmp_path / "ran")}, tmp_path / "evil.pt")
    refused(library, home, tmp_path / "evil.pt", r"^evil\.pt: .*nothing of it was run; ")
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb(library, home, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    refused(library, home, tmp_path / "bomb.pt", r"^bomb\.pt: holds the compressed entry")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\xff" * 100])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_files(library, home, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(library, home, tmp_path / name, rf"^{name}: is (damaged|empty)")


def test_a_network_cut_short_and_one_with_another_extension_than_its_own(library, home, arrival):
    source = arrival()
    source.write_bytes(source.read_bytes()[:-50])
    refused(library, home, source, "is damaged or cut short")
    refused(library, home, arrival("style.pt"), "not a safetensors file", name="style.safetensors")


def test_a_lora_is_not_a_hypernetwork(library, home, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"unet.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    refused(library, home, tmp_path / "lora.safetensors", "not a LoRA")


def test_what_is_not_an_ordinary_file(library, home, arrival, tmp_path):
    link, pipe = tmp_path / "link.pt", tmp_path / "pipe.pt"
    link.symlink_to(arrival())
    os.mkfifo(pipe)
    refused(library, home, link, r"link\.pt is not taken in", ValueError)
    refused(library, home, pipe, "not an ordinary file", ValueError)
    (tmp_path / "folder.pt").mkdir()
    refused(library, home, tmp_path / "folder.pt", r"folder\.pt is not taken in", ValueError)
    refused(library, home, tmp_path / "none.pt", r"none\.pt is not taken in: No such file", ValueError)


def test_a_file_that_is_too_large(library, home, arrival, monkeypatch):
    source = arrival()
    monkeypatch.setattr(incoming, "LARGEST", source.stat().st_size - 1)
    refused(library, home, source, "bytes, and .* are accepted", ValueError)
    monkeypatch.setattr(incoming, "LARGEST", source.stat().st_size)
    take_in(library, source)


def test_a_full_disk(library, home, arrival, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    source = arrival()
    monkeypatch.setattr(os, "fsync", full)
    refused(library, home, source, "No space left on device", ValueError)


def test_a_folder_that_is_gone(library, home, arrival):
    home.networks.rmdir()
    with pytest.raises(ValueError, match="No such file or directory; check disk and folder"):
        take_in(library, arrival())
    assert not home.networks.exists()
