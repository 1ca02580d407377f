"""``.pt`` files and optimizer files: bytes, zip directories, pickle programs and the values in them, spoilt."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch._weights_only_unpickler import _get_allowed_globals

from hnkernels import CheckpointError, Hypernetwork, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint import (
    load_optimizer_state,
    restore_optimizer_state,
    safetensors_format,
    save_optimizer_state,
)
from hnkernels.checkpoint.record import record_of
from tests.checkpoint.a1111_files import flat_dict, pair
from tests.fuzz.campaign import Target
from tests.fuzz.mutations import odd_text, odd_value, packed, spoilt_bytes, spoilt_value

FOLDER = Path(tempfile.mkdtemp(prefix="hnkernels-fuzz-"))
MARKER = FOLDER / "ran"


class Calls:
    """Unpickled without restrictions this calls ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


_HOSTILE = (
    (os.mkdir, (str(MARKER),)),
    (os.system, (f"mkdir {MARKER}",)),
    (eval, (f"__import__('os').mkdir({str(MARKER)!r})",)),
    (exec, (f"import os; os.mkdir({str(MARKER)!r})",)),
    (getattr, (os, "getcwd")),
    (torch.load, ("/dev/zero",)),
    (__import__, ("antigravity",)),
)


@cache
def contents() -> tuple[dict[Any, Any], ...]:
    """A dict of every variant."""
    torch.manual_seed(0)
    relu = {"activation_func": "relu", "activate_output": False}
    old = {
        4: tuple(
            {
                key.replace("linear.0", "linear1").replace("linear.1", "linear2"): t
                for key, t in mlp.state_dict().items()
            }
            for mlp in pair(4)
        )
    }
    deep = {"layer_structure": [1, 2, 1.5, 1], "activation": "prelu", "layer_norm": True}
    dropped = {"layer_structure": [1, 2, 2, 1], "activation": "mish", "dropout_structure": [0, 0.3, 0.1, 0]}
    return (
        flat_dict({4: pair(4)}),
        old,
        flat_dict({4: pair(4, activation="relu"), 10: pair(10, activation="relu")}, step=7, name="n", **relu),
        flat_dict(
            {4: pair(4, **deep)},
            layer_structure=[1, 2, 1.5, 1], activation_func="prelu", is_layer_norm=True, activate_output=False,
            weight_initialization="KaimingNormal", sd_checkpoint="81761151", sd_checkpoint_name="v1", optional_info="x",
        ),
        flat_dict(
            {6: pair(6, **dropped)},
            layer_structure=[1, 2, 2, 1], activation_func="mish", dropout_structure=[0, 0.3, 0.1, 0], use_dropout=True,
            last_layer_dropout=True, activate_output=False,
        ),
    )  # fmt: skip


def torch_bytes(value: Any, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@cache
def valid_files() -> tuple[bytes, ...]:
    """Every variant in both containers."""
    return tuple(torch_bytes(content, zipped) for content in contents() for zipped in (True, False))


def spoilt(values: tuple[Any, ...], files: tuple[bytes, ...], random: Random) -> bytes:
    """A file in which something is not as it was."""
    match random.randrange(10):
        case 0 | 1:
            return spoilt_bytes(random.choice(files), random, random.choice(files))
        case 2 | 3:
            return _rezipped(random.choice(files[::2]), random)
        case 4:
            return _directory(random.choice(files[::2]), random)
    value = random.choice(values)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = spoilt_value(value, random)
    if random.random() < 0.2:
        value = _with_call(value, random)
    try:
        return torch_bytes(value, random.random() < 0.7)
    except Exception:  # torch.save does not write everything
        return pickle.dumps(repr(value), protocol=random.randrange(5))


def _with_call(value: Any, random: Random) -> Any:
    """``value`` with an object somewhere whose unpickling calls a function that is allowed, or one that is not."""
    if random.random() < 0.5:
        function, arguments = random.choice(_HOSTILE)
    else:
        function = random.choice([f for f in _get_allowed_globals().values() if callable(f)])
        likely = (
            0,
            (4, 8),
            (8, 1),
            10**12,
            2**30,
            "punycode",
            "cpu",
            False,
            torch.zeros(4),
            torch.float32,
            None,
            {},
            "rot13",
            (10**7, 10**7),
        )
        arguments = tuple(
            random.choice((*likely, odd_value(random))) for _ in range(random.choice((0, 1, 1, 2, 4, 6, 7)))
        )
    call = Calls(function, *arguments)
    return random.choice((call, {**value, "name": call}, {**value, call: 1})) if isinstance(value, dict) else call


def _rezipped(data: bytes, random: Random) -> bytes:
    """The zip with another content of its entries, of which the check sums are right again."""
    entries = _entries(data)
    name = random.choice([name for name in entries if name.endswith("data.pkl")] * 6 + list(entries))
    content = entries[name]
    if name.endswith(".pkl") and random.random() < 0.6:
        content = _other_program(content, random)
    else:
        content = spoilt_bytes(content, random, random.choice(list(entries.values())))
    entries[name] = content
    return _zip(list(entries.items()))


def _other_program(program: bytes, random: Random) -> bytes:
    """The pickle with opcodes replaced, moved, repeated and put in."""
    starts = [at for _, _, at in pickletools.genops(program) if at is not None]
    steps = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(steps)), random.randrange(len(steps))
        match random.randrange(6):
            case 0:
                steps[at] = random.choice(pickletools.opcodes).code.encode("latin-1") + steps[at][1:]
            case 1:
                steps.insert(at, steps[other])
            case 2:
                del steps[at]
            case 3:
                steps[at], steps[other] = steps[other], steps[at]
            case 4:
                module, name = random.choice(list(_get_allowed_globals())).rsplit(".", 1)
                forbidden = random.choice(
                    (("os", "mkdir"), ("builtins", "eval"), ("torch", "load"), ("nt", odd_text(random)))
                )
                chosen = random.choice(((module, name), forbidden))
                steps.insert(at, b"c" + "\n".join((*chosen, "")).encode("utf-8", "surrogatepass"))
            case 5:
                number = packed(int(random.choice((0, 1, 5, 2**20, 2**31 - 1))), 4)
                steps.insert(at, random.choice((b"j", b"J", b"r")) + number)
        if not steps:
            break
    return b"".join(steps)


def _directory(data: bytes, random: Random) -> bytes:
    """The zip with a directory that lies: names twice, missing, elsewhere; other sizes, methods, offsets, comments."""
    entries = list(_entries(data).items())
    at = random.randrange(len(entries))
    match random.randrange(7):
        case 0:
            entries.append(entries[at])
        case 1:
            del entries[at]
        case 2:
            entries[at] = (
                random.choice((odd_text(random).replace("\ud800", "") or "x", "../../x", "archive/data/1")),
                entries[at][1],
            )
        case 3:
            entries.insert(0, (f"{entries[0][0]}/../evil", b"x" * random.choice((0, 10, 10**5))))
        case 4:
            return _zip(entries, random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
        case 5:
            return bytes(random.choice((1, 4, 100))) + _zip(entries) + bytes(random.choice((0, 4, 100)))
        case 6:  # a field of a local header, of the directory, or of its end
            zipped = bytearray(_zip(entries))
            found = [i for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for i in _all(zipped, mark)]
            place = random.choice(found) + random.randrange(4, 46)
            size = random.choice((1, 2, 4))
            zipped[place : place + size] = packed(
                int(random.choice((0, 1, 8, 0xFFFF, 0xFFFFFFFF, random.randrange(2**16)))), size
            )
            return bytes(zipped)
    return _zip(entries)


def _all(data: bytes | bytearray, mark: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(mark, i)]


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def written(name: str) -> Callable[[bytes], Path]:
    """Puts the bytes of a case into a file of this name."""
    path = FOLDER / name

    def prepare(data: bytes) -> Path:
        path.write_bytes(data)
        return path

    return prepare


def read(path: Path) -> Hypernetwork:
    """Loads a hypernetwork with any activation."""
    return load_hypernetwork(path, allow_legacy_activations=True)


def check_net(_: Any, net: Hypernetwork) -> None:
    """What was read is finite, has memory of its own, and could be saved and read again."""
    assert not MARKER.exists(), "the file was executed"
    assert all(bool(p.isfinite().all()) and p.is_contiguous() for p in net.parameters())
    header, tensors = safetensors_format.header_and_tensors(record_of(net))
    again = safetensors_format.parse(header, tensors, "", allow_legacy_activations=True)
    assert (again.config, again.provenance) == (net.config, net.provenance)
    assert all(torch.equal(t, dict(net.named_parameters())[_name(key)]) for key, t in tensors.items())


def _name(key: str) -> str:
    """``4.k.linear.0.weight`` → ``layers.4.0.linear.0.weight``."""
    width, stream, rest = key.split(".", 2)
    return f"layers.{width}.{'kv'.index(stream)}.{rest}"


PT = Target(
    draw=lambda random: spoilt(contents(), valid_files(), random),
    prepare=written("case.pt"),
    run=read,
    check=check_net,
    refusals=(CheckpointError,),
)


@cache
def _optimizer_files() -> tuple[dict[str, Any], ...]:
    """The content of the side files of one network, which is written beside them."""
    torch.manual_seed(0)
    net = Hypernetwork((4, 10))
    path = FOLDER / "trained.pt"
    save_hypernetwork(net, path)
    found = []
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop):
        optimizer = kind(net.parameters(), lr=1e-3)
        sum(p.square().sum() for p in net.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
        save_optimizer_state(path, optimizer)
        found.append(torch.load(f"{path}.optim", weights_only=True))
    return tuple(found)


@cache
def _optimizer_bytes() -> tuple[bytes, ...]:
    return tuple(torch_bytes(content, zipped) for content in _optimizer_files() for zipped in (True, False))


def _optimizer_argument(data: bytes) -> Path:
    path = FOLDER / "trained.pt"
    Path(f"{path}.optim").write_bytes(data)
    return path


def _check_optimizer(_: Any, state: Any) -> None:
    """What was read numbers the parameters; an AdamW that takes it up can make a step."""
    assert not MARKER.exists(), "the file was executed"
    if state is not None:
        assert isinstance(state.optimizer_name, str)
        assert [i for group in state.state_dict["param_groups"] for i in group["params"]] == list(range(16))
        if state.optimizer_name == "AdamW":
            path = FOLDER / "trained.pt"
            net = load_hypernetwork(path)
            optimizer = torch.optim.AdamW(net.parameters())
            with suppress(CheckpointError):
                restore_optimizer_state(path, net, optimizer)
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()


OPTIM = Target(
    draw=lambda random: spoilt(_optimizer_files(), _optimizer_bytes(), random),
    prepare=_optimizer_argument,
    run=load_optimizer_state,
    check=_check_optimizer,
    refusals=(CheckpointError,),
)
