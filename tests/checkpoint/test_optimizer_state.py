"""The optimizer's side file belongs to exactly one .pt file, and fits the loaded network's parameters."""

import hashlib

import pytest
import torch

from hnkernels import CheckpointError, Hypernetwork, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint import load_optimizer_state, restore_optimizer_state, save_optimizer_state
from tests.checkpoint.a1111_files import flat_dict, pair, write
from tests.checkpoint.hostile import RunsCode


def step(net, optimizer):
    torch.manual_seed(1)
    loss = sum(mlp.train()(torch.randn(3, dim)).square().mean() for dim in net for mlp in net[dim])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def optimizer_of(net, kind=torch.optim.AdamW, **options):
    return kind(net.parameters(), lr=1e-2, **options)


def saved(tmp_path, kind=torch.optim.AdamW, **options):
    net = Hypernetwork((4, 10))
    optimizer = optimizer_of(net, kind, **options)
    step(net, optimizer)
    path = tmp_path / "style.pt"
    save_hypernetwork(net, path)
    save_optimizer_state(path, optimizer)
    return net, optimizer, path


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_training_goes_on_as_if_it_had_not_stopped(kind, tmp_path):
    net, optimizer, path = saved(tmp_path, kind)
    resumed = load_hypernetwork(path)
    state = load_optimizer_state(path)
    assert state.optimizer_name == kind.__name__
    again = optimizer_of(resumed, getattr(torch.optim, state.optimizer_name))
    again.load_state_dict(state.state_dict)
    for _ in range(3):
        step(net, optimizer)
        step(resumed, again)
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_side_file_is_as_a1111_writes_it(tmp_path):
    _, optimizer, path = saved(tmp_path)
    content = torch.load(tmp_path / "style.pt.optim", weights_only=True)
    assert set(content) == {"optimizer_name", "hash", "optimizer_state_dict"}
    assert content["optimizer_name"] == "AdamW"
    assert content["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    assert content["optimizer_state_dict"]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_state_of_other_weights_is_ignored(tmp_path):
    net, _, path = saved(tmp_path)
    with torch.no_grad():
        net[4][0].linear[0].bias.add_(1)
    save_hypernetwork(net, path)
    assert load_optimizer_state(path) is None


def test_without_a_side_file_there_is_no_state(tmp_path):
    save_hypernetwork(Hypernetwork((4,)), tmp_path / "f.pt")
    assert load_optimizer_state(tmp_path / "f.pt") is None


def rewrite(path, **changes):
    side = path.with_name(path.name + ".optim")
    content = torch.load(side, weights_only=True) | changes
    torch.save({key: value for key, value in content.items() if value is not ...}, side)
    return side


def test_a_side_file_without_hash_or_state_is_ignored(tmp_path):
    *_, path = saved(tmp_path)
    rewrite(path, hash=...)
    assert load_optimizer_state(path) is None
    rewrite(path, hash=hashlib.sha256(path.read_bytes()).hexdigest()[:10], optimizer_state_dict=None)
    assert load_optimizer_state(path) is None


def test_a_side_file_without_a_name_is_adamw(tmp_path):
    *_, path = saved(tmp_path)
    rewrite(path, optimizer_name=...)
    assert load_optimizer_state(path).optimizer_name == "AdamW"


def test_a_legacy_hash_counts_where_the_file_has_the_bytes_it_covers(tmp_path):
    net = Hypernetwork((4,), layer_structure=(1, 40_000, 1))
    optimizer = optimizer_of(net, torch.optim.SGD)
    path = tmp_path / "large.pt"
    save_hypernetwork(net, path)
    save_optimizer_state(path, optimizer)
    part = path.read_bytes()[0x100000:0x110000]
    rewrite(path, hash=hashlib.sha256(part).hexdigest()[:8])
    assert load_optimizer_state(path).optimizer_name == "SGD"


def test_a_legacy_hash_of_no_bytes_at_all_is_ignored(tmp_path):
    *_, path = saved(tmp_path)
    rewrite(path, hash=hashlib.sha256(b"").hexdigest()[:8])
    assert load_optimizer_state(path) is None


def test_a_state_in_the_files_order_of_widths_is_renumbered(tmp_path):
    """A1111 numbers parameters as its file lists the widths, for example 768 before 320."""
    modules = {10: pair(10), 4: pair(4)}
    parameters = [p for mlps in modules.values() for mlp in mlps for p in mlp.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    path = write(tmp_path / "style.pt", flat_dict(modules))
    save_optimizer_state(path, optimizer)
    net = load_hypernetwork(path)
    fresh = optimizer_of(net)
    fresh.load_state_dict(load_optimizer_state(path).state_dict)
    for dim, mlps in modules.items():
        for stream, mlp in enumerate(mlps):
            for theirs, ours in zip(mlp.parameters(), net[dim][stream].parameters(), strict=True):
                assert torch.equal(optimizer.state[theirs]["exp_avg"], fresh.state[ours]["exp_avg"])


def group(*indices):
    return {"param_groups": [{"params": list(indices)}], "state": {}}


BAD_STATES = {
    "a list": ([1], "no optimizer state dict"),
    "no groups": ({"state": {}}, "no optimizer state dict"),
    "groups of another kind": ({"state": {}, "param_groups": [3]}, "no optimizer state dict"),
    "too few parameters": (group(0, 1), "does not number the 16 parameters"),
    "a foreign parameter": (group(*range(16)) | {"state": {99: {}}}, "foreign entry 99"),
    "a string as parameter": (group(*range(16)) | {"state": {"0": {}}}, "foreign entry '0'"),
    "NaN": (group(*range(16)) | {"state": {0: {"exp_avg": torch.tensor([float("nan")])}}}, "holds NaN"),
    "an expanded tensor": (
        group(*range(16)) | {"state": {0: {"exp_avg": torch.zeros(1).expand(10**9)}}}, "claims 4000000000 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_bad_state_is_refused(name, tmp_path):
    state, match = BAD_STATES[name]
    *_, path = saved(tmp_path)
    side = rewrite(path, optimizer_state_dict=state)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_optimizer_state(path)
    assert str(caught.value).startswith(f"{side}: ")


def test_code_in_a_side_file_does_not_run(tmp_path):
    *_, path = saved(tmp_path)
    marker = tmp_path / "ran"
    torch.save({"optimizer_state_dict": RunsCode(marker)}, tmp_path / "style.pt.optim")
    with pytest.raises(CheckpointError, match="refused"):
        load_optimizer_state(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken"])
def test_a_damaged_side_file_is_refused(content, tmp_path):
    *_, path = saved(tmp_path)
    (tmp_path / "style.pt.optim").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"style\.pt\.optim: "):
        load_optimizer_state(path)


def test_only_an_existing_pt_file_has_a_side_file(tmp_path):
    optimizer = optimizer_of(Hypernetwork((4,)))
    for call in (load_optimizer_state, lambda path: save_optimizer_state(path, optimizer)):
        with pytest.raises(CheckpointError, match="does not exist"):
            call(tmp_path / "no.pt")
        with pytest.raises(CheckpointError, match=r"only \.pt files"):
            call(tmp_path / "f.safetensors")


def test_a_state_that_a_file_cannot_hold_is_refused_when_saving(tmp_path):
    _, optimizer, path = saved(tmp_path)
    before = (tmp_path / "style.pt.optim").read_bytes()
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(CheckpointError, match="cannot hold"):
        save_optimizer_state(path, optimizer)
    assert (tmp_path / "style.pt.optim").read_bytes() == before


def test_views_do_not_drag_their_storage_into_the_side_file(tmp_path):
    _, optimizer, path = saved(tmp_path)
    big = torch.randn(10**6)
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = big[: state[key].numel()].view_as(state[key])
    save_optimizer_state(path, optimizer)
    assert (tmp_path / "style.pt.optim").stat().st_size < 10**5
    loaded = load_optimizer_state(path).state_dict["state"]
    assert torch.equal(loaded[0]["exp_avg"], next(iter(optimizer.state.values()))["exp_avg"])


def grouped(net):
    """As a trainer groups parameters: by weight decay, and in an order of its own."""
    biases = [p for p in net.parameters() if p.ndim == 1]
    weights = [p for p in net.parameters() if p.ndim > 1]
    groups = [
        {"params": biases[::-1], "weight_decay": 0.0},
        {"params": weights[:1], "lr": 3e-3},
        {"params": weights[1:]},
    ]
    return torch.optim.AdamW(groups, lr=1e-2)


def test_groups_become_the_one_that_a1111_reads(tmp_path):
    net = Hypernetwork((4, 10))
    optimizer = grouped(net)
    step(net, optimizer)
    path = tmp_path / "style.pt"
    save_hypernetwork(net, path)
    save_optimizer_state(path, optimizer, net)
    content = torch.load(tmp_path / "style.pt.optim", weights_only=True)
    assert content["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    (one,) = content["optimizer_state_dict"]["param_groups"]
    assert one["params"] == list(range(16))
    assert one["lr"] == 1e-2
    theirs = torch.optim.AdamW(load_hypernetwork(path).parameters())
    theirs.load_state_dict(content["optimizer_state_dict"])
    for ours, their in zip(net.parameters(), theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(optimizer.state[ours]["exp_avg"], theirs.state[their]["exp_avg"])
        assert torch.equal(optimizer.state[ours]["exp_avg_sq"], theirs.state[their]["exp_avg_sq"])


@pytest.mark.parametrize("written", [grouped, optimizer_of])
@pytest.mark.parametrize("read", [grouped, optimizer_of])
def test_a_state_goes_on_in_any_groups(tmp_path, written, read):
    net = Hypernetwork((4, 10))
    optimizer = written(net)
    step(net, optimizer)
    path = tmp_path / "style.pt"
    save_hypernetwork(net, path)
    save_optimizer_state(path, optimizer, net)
    resumed = load_hypernetwork(path)
    again = read(resumed)
    options = [{**group, "params": len(group["params"])} for group in again.param_groups]
    assert restore_optimizer_state(path, resumed, again)
    assert [{**group, "params": len(group["params"])} for group in again.param_groups] == options
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        assert optimizer.state[a]["step"] == again.state[b]["step"]
        assert torch.equal(optimizer.state[a]["exp_avg"], again.state[b]["exp_avg"])
        assert torch.equal(optimizer.state[a]["exp_avg_sq"], again.state[b]["exp_avg_sq"])
    if written is read:
        for _ in range(3):
            step(net, optimizer)
            step(resumed, again)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))


def test_the_state_of_a_file_of_a1111_in_its_own_order_is_taken_up(tmp_path):
    modules = {width: pair(width) for width in (10, 4)}
    path = write(tmp_path / "f.pt", flat_dict(modules, layer_structure=[1, 2, 1]))
    theirs = torch.optim.AdamW([p for two in modules.values() for mlp in two for p in mlp.parameters()])
    sum(p.square().sum() for group in theirs.param_groups for p in group["params"]).backward()
    theirs.step()
    save_optimizer_state(path, theirs)
    net = load_hypernetwork(path)
    ours = grouped(net)
    assert restore_optimizer_state(path, net, ours)
    expected = [p for width in (4, 10) for mlp in modules[width] for p in mlp.parameters()]
    for parameter, their in zip(net.parameters(), expected, strict=True):
        assert torch.equal(ours.state[parameter]["exp_avg"], theirs.state[their]["exp_avg"])


def test_without_a_state_that_belongs_to_the_file_nothing_is_restored(tmp_path):
    net, _, path = saved(tmp_path)
    with torch.no_grad():
        net[4][0].linear[0].bias.add_(1)
    save_hypernetwork(net, path)
    optimizer = optimizer_of(net)
    assert not restore_optimizer_state(path, net, optimizer)
    assert not optimizer.state


def test_a_state_that_does_not_fit_is_refused_and_the_optimizer_stays(tmp_path):
    net, _, path = saved(tmp_path)
    sgd = optimizer_of(net, torch.optim.SGD)
    with pytest.raises(
        CheckpointError, match=r"style\.pt\.optim: holds the state of 'AdamW', and the optimizer is SGD"
    ):
        restore_optimizer_state(path, net, sgd)
    foreign = optimizer_of(Hypernetwork((4, 10)))
    with pytest.raises(CheckpointError, match="of other parameters; give the network that it trains"):
        restore_optimizer_state(path, net, foreign)
    with pytest.raises(CheckpointError, match="of other parameters"):
        save_optimizer_state(path, foreign, net)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exp_avg", torch.zeros(2), r"has \[2\] for 'exp_avg' of parameter 0, which must be \[8, 4\]"),
        ("exp_avg", 1.0, r"has 1\.0 for 'exp_avg' of parameter 0, which must be \[8, 4\]"),
        ("exp_avg", None, "has None for 'exp_avg'"),
        ("exp_avg_sq", ..., "has no exp_avg_sq of parameter 0"),
        ("step", ..., "has no step of parameter 0"),
        ("step", torch.zeros(3), r"has \[3\] for 'step'"),
        ("step", "ten", "has 'ten' for 'step'"),
        ("step", torch.tensor(-1.0), "'step' of parameter 0 with values that are not numbers >= 0"),
        ("step", torch.tensor(True), "'step' of parameter 0 with values that are not numbers >= 0"),
        ("exp_avg_sq", -torch.ones(8, 4), "'exp_avg_sq' of parameter 0 with values that are not numbers >= 0"),
        ("note", "abc", "has 'abc' for 'note'"),
        ("note", [1, [2]], "has a list for 'note'"),
    ],
)
def test_what_would_fail_in_a_later_step_is_refused(tmp_path, key, value, message):
    net, _, path = saved(tmp_path)
    state = torch.load(tmp_path / "style.pt.optim", weights_only=True)["optimizer_state_dict"]
    entries = {**state["state"][0], key: value}
    state["state"][0] = {key: value for key, value in entries.items() if value is not ...}
    rewrite(path, optimizer_state_dict=state)
    optimizer = optimizer_of(net)
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer_state(path, net, optimizer)
    assert not optimizer.state


def test_a_count_of_steps_that_is_not_a_tensor_is_taken_up(tmp_path):
    net, _, path = saved(tmp_path)
    state = torch.load(tmp_path / "style.pt.optim", weights_only=True)["optimizer_state_dict"]
    for entries in state["state"].values():
        entries["step"] = 1
    rewrite(path, optimizer_state_dict=state)
    optimizer = optimizer_of(net)
    assert restore_optimizer_state(path, net, optimizer)
    step(net, optimizer)
    assert all(entries["step"] == 2 for entries in optimizer.state.values())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adafactor, {}),
        (torch.optim.Adam, {"amsgrad": True}),
    ],
)
def test_other_optimizers_go_on_too(tmp_path, kind, options):
    net, optimizer, path = saved(tmp_path, kind, **options)
    resumed = load_hypernetwork(path)
    again = optimizer_of(resumed, kind, **options)
    assert restore_optimizer_state(path, resumed, again)
    step(net, optimizer)
    step(resumed, again)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))


def test_a_state_of_a_larger_network_is_refused(tmp_path):
    *_, path = saved(tmp_path)
    smaller = Hypernetwork((4,))
    with pytest.raises(CheckpointError, match="more than the 8 parameters of the network; load that from the file"):
        restore_optimizer_state(path, smaller, optimizer_of(smaller))
