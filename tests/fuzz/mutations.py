"""Random changes to bytes, texts and nested values."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import nn

_INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
)


def spoilt_bytes(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """``data`` after one to four changes: flipped bits, cuts, repeats, splices with ``other``, numbers overwritten."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(changed) + 1)
        to = min(len(changed), at + random.choice((1, 2, 4, 8, 64, 1024)))
        match random.randrange(9):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 2 if at < len(changed):
                changed[at] = random.randrange(256)
            case 3:
                del changed[at:]
            case 4:
                del changed[at:to]
            case 5:
                changed[at:at] = changed[at:to] * random.choice((1, 2, 50))
            case 6:
                start = random.randrange(len(other) + 1)
                changed[at:to] = other[start : start + random.choice((4, 64, 4096))]
            case 7:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(_INTEGERS) % 256**size
                changed[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            case 8:
                changed[at:at] = random.randbytes(random.choice((1, 4, 16)))
    return bytes(changed)


def spoilt_text(text: str, random: Random, pieces: Sequence[str]) -> str:
    """``text`` after one to four changes, with ``pieces`` of its language put in."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(text) + 1)
        to = min(len(text), at + random.choice((1, 1, 3, 10)))
        piece = random.choice((*pieces, odd_text(random), chr(random.randrange(32, 127))))
        text = random.choice((text[:at] + piece + text[at:], text[:at] + piece + text[to:], text[:at] + text[to:]))
    return text


def odd_text(random: Random) -> str:
    """A text that programs stumble over."""
    return random.choice(
        (
            *("", " ", "\0", "\n", "\r", "\t", "\u2028", "\ufeff", "\u202e", "\ud800", "é", "e\u0301", "٣", "²", "𝟙"),
            *(
                "nan",
                "inf",
                "-inf",
                "1e999",
                "-0",
                "0x10",
                "1_000",
                "１",
                "None",
                "true",
                "../../etc/passwd",
                "/dev/zero",
            ),
            *(
                "%s%n",
                "{0}",
                "[x]",
                "\\",
                "'",
                '"',
                "x" * 5000,
                "9" * 5000,
                "(" * 3000,
                "a" * 30 + "!",
                "con",
                "*",
                "?",
            ),
            "".join(chr(random.choice((random.randrange(1, 128), random.randrange(1, 0x3000)))) for _ in range(6)),
        )
    )


def odd_number(random: Random) -> Any:
    """A number that programs stumble over."""
    return random.choice(
        (
            *_INTEGERS,
            *(
                0.0,
                -0.0,
                0.5,
                1.5,
                -2.5,
                1e-320,
                1e308,
                -1e308,
                math.inf,
                -math.inf,
                math.nan,
                10**40,
                10**400,
                -(10**400),
            ),
            *(True, False, random.random(), random.randrange(-5, 2000), random.gauss(0, 1)),
        )
    )


def odd_tensor(random: Random) -> torch.Tensor:
    """A tensor of an unusual kind."""
    shape = [random.choice((0, 1, 2, 4, 8)) for _ in range(random.randrange(4))]
    plain = torch.full(shape, random.choice((0.0, 1.0, math.nan, math.inf, 3e38, -1e-40)))
    match random.randrange(10):
        case 0:
            return plain.to(random.choice((torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2)))
        case 1:
            return plain.nan_to_num(0, 0, 0).to(random.choice((torch.int8, torch.int64, torch.bool, torch.uint8)))
        case 2:
            return plain.to(torch.complex64)
        case 3:
            return torch.zeros(1).expand(random.choice(((2**20, 2**20), (10**9,), (4, 8), (0, 7))))
        case 4:
            return plain.to_sparse() if plain.ndim else plain
        case 5:
            return torch.quantize_per_tensor(torch.ones(8, 4), 0.1, 0, torch.qint8)
        case 6:
            return torch.empty(random.choice(((4, 8), (2**20, 2**20))), device="meta")
        case 7:
            return nn.Parameter(plain, requires_grad=random.random() < 0.5)
        case 8:
            return torch.arange(64.0)[random.randrange(50) :].as_strided(
                (4, 2), random.choice(((0, 1), (1, 1), (2, 0)))
            )
    return plain


def odd_value(random: Random, tensors: bool = True) -> Any:
    """Anything, in the wrong place; with tensors or, as from JSON, without."""
    kind = random.randrange(10 if tensors else 6)
    match kind:
        case 0 | 1:
            return odd_number(random)
        case 2 | 3:
            return odd_text(random)
        case 4:
            return [odd_value(random, tensors) for _ in range(random.randrange(4))]
        case 5:
            entries = [(odd_text(random), odd_value(random, tensors)) for _ in range(random.randrange(3))]
            return random.choice((None, nested(random.choice((3, 90, 700))), dict(entries)))
        case 6 | 7:
            return odd_tensor(random)
    return random.choice(
        (
            b"",
            b"x" * 100,
            (),
            (1, 2, 1),
            OrderedDict(a=1),
            {1, 2},
            torch.Size([4]),
            torch.float16,
            torch.device("cpu"),
            1j,
            bytearray(4),
        )
    )


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def spoilt_value(value: Any, random: Random, tensors: bool = True) -> Any:
    """``value``, dicts and lists within each other, after a change somewhere in it; the original stays as it is."""
    if isinstance(value, (dict, list, tuple)) and len(value) and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, other = random.choice(keys), random.choice(keys)
        change = random.randrange(8)
        if not isinstance(value, dict):
            entries = list(value)
            if change == 0:
                del entries[key]
            elif change == 1:
                entries.insert(key, entries[other])
            elif change == 2:
                entries[key], entries[other] = entries[other], entries[key]
            else:
                entries[key] = spoilt_value(entries[key], random, tensors)
            return entries if isinstance(value, list) else tuple(entries)
        copy = dict(value)
        if change == 0:
            del copy[key]
        elif change == 1:
            new = random.choice((odd_text(random), odd_number(random), f"{key}", f"{key}.0"))
            copy = {(new if k is key else k): v for k, v in value.items()}
        elif change == 2:
            copy[key], copy[other] = copy[other], copy[key]
        else:
            copy[key] = spoilt_value(copy[key], random, tensors)
        return copy
    if isinstance(value, torch.Tensor) and random.random() < 0.6:
        return _spoilt_tensor(value, random)
    return odd_value(random, tensors)


def _spoilt_tensor(tensor: torch.Tensor, random: Random) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.numel() > 2**16:
        return odd_tensor(random)
    with torch.no_grad():
        match random.randrange(6):
            case 0:
                return tensor.to(random.choice((torch.float16, torch.bfloat16, torch.float64, torch.int32)))
            case 1:
                return tensor.t() if tensor.ndim <= 2 else tensor.transpose(0, -1)
            case 2:
                return tensor.reshape(-1)[random.randrange(3) :]
            case 3:
                return torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
            case 4:
                return tensor[:1].expand_as(tensor) if tensor.ndim else tensor
            case _:
                changed = tensor.clone().reshape(-1)
                if changed.numel() and changed.is_floating_point():
                    changed[random.randrange(changed.numel())] = random.choice((math.nan, math.inf, 1e30, 0.0))
                return changed.reshape(tensor.shape)


def packed(number: int, size: int) -> bytes:
    """A number of this many bytes as files have it."""
    return struct.pack({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[size], number % 256**size)
