"""A written file is what A1111's strict loader takes, and a write that fails changes nothing."""

import os
import pickletools
import zipfile

import pytest
import torch
from torch import nn

from hnkernels import CheckpointError, Hypernetwork, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint import a1111, safetensors_format
from tests.checkpoint.a1111_files import assert_same_function, strict_load, tensors_of
from tests.checkpoint.nets import assert_same_tensors, make

FORMATS = [".pt", ".safetensors"]


@pytest.mark.parametrize("activation", [None, "linear", "relu", "prelu", "silu"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dropouts", [None, (0, 0.1, 0, 0), (0, 0, 0.2, 0), (0, 0.1, 0.2, 0.3)])
def test_a_pt_file_passes_the_strict_loader_of_a1111(activation, layer_norm, dropouts, tmp_path):
    net = make(layer_structure=(1, 1.5, 2, 1), activation=activation, layer_norm=layer_norm, dropout_structure=dropouts)
    save_hypernetwork(net, tmp_path / "f.pt")
    pairs, _ = strict_load(tmp_path / "f.pt")
    assert tuple(pairs) == net.sizes
    for dim in net:
        for mlp, expected in zip(net[dim], pairs[dim], strict=True):
            assert_same_function(mlp, expected, dim)


def test_a_pt_file_states_every_option(tmp_path):
    net = make(
        layer_structure=[1, 2, 1.5, 1], dropout_structure=[0, 0.1, 0.3, 0], init="xavier_normal", layer_norm=True
    )
    save_hypernetwork(net, tmp_path / "f.pt")
    assert strict_load(tmp_path / "f.pt")[1] == {
        "step": 1234, "name": "näme", "layer_structure": [1, 2, 1.5, 1], "activation_func": "relu",
        "is_layer_norm": True, "weight_initialization": "XavierNormal", "use_dropout": True,
        "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5-pruned", "activate_output": False,
        "last_layer_dropout": True, "dropout_structure": [0, 0.1, 0.3, 0], "optional_info": "100 pictures",
    }  # fmt: skip


def test_a_pt_file_names_no_activation_linear_and_identity_kaiming(tmp_path):
    save_hypernetwork(make(activation=None, init="identity"), tmp_path / "f.pt")
    metadata = strict_load(tmp_path / "f.pt")[1]
    assert metadata["activation_func"] == "linear"
    assert metadata["weight_initialization"] == "KaimingNormal"
    assert metadata["use_dropout"] is False
    assert metadata["dropout_structure"] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_pt_file_is_fp32_and_plain(dtype, tmp_path):
    net = make().to(dtype)
    save_hypernetwork(net, tmp_path / "f.pt")
    content = torch.load(tmp_path / "f.pt", weights_only=True)
    for (dim, stream, key), tensor in tensors_of(content).items():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype is torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, net[dim][stream].state_dict()[key].float())
    assert all(type(value) is tuple for key, value in content.items() if type(key) is int)


def test_the_same_network_gives_the_same_pt_bytes(tmp_path):
    net = make()
    for name in ("a.pt", "b.pt"):
        save_hypernetwork(net, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_views_do_not_drag_their_storage_into_the_file(tmp_path):
    net = Hypernetwork((4,))
    big = torch.randn(10**6)
    net[4][0].linear[0].weight = nn.Parameter(big[:32].view(8, 4))
    net[4][1].linear[0].weight = net[4][0].linear[0].weight
    net[4][1].linear[2].weight = nn.Parameter(torch.randn(8, 4).t())
    for extension in FORMATS:
        path = tmp_path / f"f{extension}"
        save_hypernetwork(net, path)
        assert path.stat().st_size < 10**4
        assert_same_tensors(load_hypernetwork(path), net)


def test_saving_leaves_the_network_as_it_was(tmp_path):
    net = make().train()
    net.set_multiplier(0.5)
    before = {key: (t.data_ptr(), t._version) for key, t in net.state_dict(keep_vars=True).items()}
    for extension in FORMATS:
        save_hypernetwork(net, tmp_path / f"f{extension}")
    assert before == {key: (t.data_ptr(), t._version) for key, t in net.state_dict(keep_vars=True).items()}
    assert net.training
    assert net[4][0].multiplier == 0.5


def unwritable():
    nan = make()
    nan[10][1].linear[0].bias.data[3] = float("nan")
    huge = make().double()
    huge[4][0].linear[0].bias.data[0] = 1e300
    odd = make()
    odd[4][0].linear[0] = nn.Linear(4, 9)
    longer = make()
    longer[4][0].linear.append(nn.Linear(4, 4))
    mixed = make()
    mixed[4].__getitem__(0).half()
    with torch.device("meta"):
        empty = Hypernetwork((4,))
    step = make()
    step.provenance.step = "many"
    thing = make()
    thing.provenance.name = object()
    return {
        "NaN": (nan, FORMATS, "width 10, V: linear.0.bias holds NaN"),
        "beyond fp32": (huge, [".pt"], "infinite"),
        "another shape": (odd, FORMATS, "does not follow from width 4"),
        "a linear too many": (longer, FORMATS, "has other sub-layers|has 3 linear layers"),
        "several dtypes": (mixed, [".safetensors"], "mixes dtypes"),
        "no data": (empty, FORMATS, "meta device"),
        "a step that is not a number": (step, FORMATS, "step"),
        "a name that is not a string": (thing, FORMATS, "provenance|name"),
    }


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("name", unwritable())
def test_what_could_not_be_read_back_is_not_written(name, extension, tmp_path):
    net, extensions, match = unwritable()[name]
    path = tmp_path / f"f{extension}"
    save_hypernetwork(make(), path)
    before = path.read_bytes()
    if extension in extensions:
        with pytest.raises(CheckpointError, match=match) as caught:
            save_hypernetwork(net, path)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before
    else:
        save_hypernetwork(net, path)
        load_hypernetwork(path)
    assert os.listdir(tmp_path) == [path.name]


FAILURES = {
    "the disk is full": ("os.fsync", OSError(28, "No space left on device"), CheckpointError),
    "the rename is denied": ("os.replace", PermissionError(13, "Permission denied"), CheckpointError),
    "the user interrupts": ("os.fsync", KeyboardInterrupt(), KeyboardInterrupt),
}


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("existing", [True, False], ids=["replacing", "new"])
def test_a_failing_write_leaves_the_folder_as_it_was(name, extension, existing, tmp_path, monkeypatch):
    function, error, expected = FAILURES[name]
    path = tmp_path / f"f{extension}"
    if existing:
        save_hypernetwork(make(), path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr(function, fail)
    with pytest.raises(expected):
        save_hypernetwork(make(), path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("module", [(a1111, "flatten", ".pt"), (safetensors_format, "to_bytes", ".safetensors")])
def test_a_failure_while_the_content_is_made_leaves_the_folder_as_it_was(module, tmp_path, monkeypatch):
    where, function, extension = module
    monkeypatch.setattr(where, function, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_hypernetwork(make(), tmp_path / f"f{extension}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", FORMATS)
def test_a_new_file_has_the_permissions_of_any_new_file(extension, tmp_path):
    old = os.umask(0o027)
    try:
        save_hypernetwork(make(), tmp_path / f"f{extension}")
    finally:
        os.umask(old)
    assert (tmp_path / f"f{extension}").stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real" / "style.pt")
    save_hypernetwork(make(), tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert load_hypernetwork(tmp_path / "real" / "style.pt").sizes == (4, 10)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("f.ckpt", r"\.pt, \.safetensors"),
        ("f", r"\.pt, \.safetensors"),
        ("folder.pt", "is a folder"),
        ("no/such/f.pt", "create the folder"),
    ],
)
def test_impossible_targets_are_refused(name, match, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match=match):
        save_hypernetwork(make(), tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.pt"]


def test_arguments_in_the_wrong_order_are_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="takes a network and a path"):
        save_hypernetwork(tmp_path / "f.pt", make())


def test_the_pickle_names_only_what_the_restricted_unpickler_of_a1111_knows(tmp_path):
    save_hypernetwork(make(layer_norm=True), tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        operations = list(pickletools.genops(archive.read("archive/data.pkl")))
    assert {argument for operation, argument, _ in operations if operation.name == "GLOBAL"} == {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "collections OrderedDict",
    }
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)


def test_the_zip_is_stored_not_compressed(tmp_path):
    save_hypernetwork(make(), tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
