"""A small file cannot keep PyTorch's restricted unpickler busy, or fill the memory with it."""

import codecs
import io
import pickle
import zipfile

import pytest
import torch

from hnkernels import load_hypernetwork
from hnkernels.checkpoint.errors import Fault
from hnkernels.checkpoint.program import check_program
from tests.checkpoint.a1111_files import flat_dict, pair, write
from tests.checkpoint.hostile import refused


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        function, *arguments = self.call
        return function, tuple(arguments)


CALLS = {"bytearray": Calls(bytearray, 10), "encode": Calls(codecs.encode, "é", "punycode")}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_that_take_time_or_memory_are_refused(name, zipped, tmp_path):
    content = flat_dict({4: pair(4)}) | {"extra": CALLS[name]}
    path = write(tmp_path / "bad.pt", content, _use_new_zipfile_serialization=zipped)
    refused(path, rf"more than tensors and plain values \(\w+\.{name}\)")


def tower(levels):
    """The program of a dict whose key is a tuple that holds twice a tuple that holds twice … the empty one."""
    return b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * levels + b"}h\x00K\x01s."


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_key_whose_hash_would_never_be_done_is_refused(zipped, tmp_path):
    path = tmp_path / "bad.pt"
    if zipped:
        whole = io.BytesIO()
        torch.save({}, whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                is_program = entry.filename.endswith("data.pkl")
                new.writestr(entry.filename, tower(100) if is_program else old.read(entry))
    else:
        headers = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(header, protocol=2) for header in headers) + tower(100))
    refused(path, "tuples within tuples")


@pytest.mark.parametrize("wrap", [lambda t: (t, t, None), lambda t: (None, t, (), t), lambda t: (t,) * 50])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_tower_of_any_kind_is_refused(wrap, protocol):
    value = (1.0, 2.0)
    for _ in range(30):
        value = wrap(value)
    with pytest.raises(Fault, match="tuples within tuples"):
        check_program(pickle.dumps([value], protocol=protocol))


def test_tuples_that_are_shared_as_optimizers_do_are_read(tmp_path):
    betas = (0.9, 0.999)
    groups = [{"betas": betas, "params": [i]} for i in range(1000)]
    check_program(pickle.dumps({"param_groups": groups, "shape": (4, 8)}, protocol=2))
    path = write(tmp_path / "f.pt", flat_dict({4: pair(4)}) | {"groups": groups})
    assert load_hypernetwork(path).sizes == (4,)
