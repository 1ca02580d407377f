"""A folder of training data in which a picture, a caption, a table or a shard is spoilt."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import tarfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageCms

from hnkernels.training.data.contents import file_of
from hnkernels.training.data.example import Example
from hnkernels.training.data.examples import read_image_folder
from hnkernels.training.data.pictures import read_picture
from hnkernels.training.data.shard_member import ShardMember
from tests.fuzz.campaign import Target
from tests.fuzz.mutations import odd_text, packed, spoilt_bytes, spoilt_text, spoilt_value
from tests.fuzz.torch_files import FOLDER as TEMPORARY

_FOLDER = TEMPORARY / "data"
_SIDE = 8  # of what the pictures become
_PIECES = (
    ",",
    '"',
    "\n",
    "\r\n",
    "\\",
    "{",
    "}",
    "file_name",
    "text",
    "condition",
    "a.png",
    "../a.png",
    "sub/b.jpg",
    "\ufeff",
    "null",
)

Files = dict[str, bytes]


@cache
def _pictures() -> dict[str, bytes]:
    """Small pictures of many kinds: file name → content."""
    plain = Image.linear_gradient("L").resize((9, 7)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (plain, {"icc_profile": profile}),
        "rgba.png": (plain.convert("RGBA"), {}),
        "palette.png": (plain.convert("P"), {"transparency": 0}),
        "deep.png": (Image.frombytes("I;16", (4, 4), bytes(range(32))), {}),
        "turned.jpg": (plain, {"exif": exif}),
        "cmyk.jpg": (plain.convert("CMYK"), {}),
        "a.gif": (plain.convert("P"), {"save_all": True, "append_images": [plain.convert("P")]}),
        "a.webp": (plain, {"exif": exif}),
        "a.tif": (plain, {"compression": "tiff_lzw"}),
        "float.tif": (Image.new("F", (4, 4), 0.5), {}),
        "a.bmp": (plain, {}),
        "a.tga": (plain, {}),
        "a.ppm": (plain, {}),
        "a.jp2": (plain, {}),
    }
    found = {}
    for name, (picture, options) in kinds.items():
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = buffer.getvalue()
    return found


def _draw(random: Random) -> Files:
    name, picture = random.choice(list(_pictures().items()))
    files: Files = {f"a{Path(name).suffix}": picture, "sub/b.png": _pictures()["rgb.png"]}
    first = next(iter(files))
    match random.randrange(6):
        case 0:
            files[first] = _spoilt_picture(picture, random)
            files["a.txt"] = b"a castle"
        case 1:
            text = spoilt_text("a castle, at night\nink", random, _PIECES)
            files["a.txt"] = (
                spoilt_bytes(_encoded(text, random), random) if random.random() < 0.3 else _encoded(text, random)
            )
        case 2:
            files["metadata.jsonl"] = _jsonl(first, random)
        case 3:
            files["metadata.csv"] = _csv(first, random)
        case 4:
            files["meta_cap.json"] = _kohya(first, random)
        case 5:
            files["0.tar"] = spoilt_bytes(_shard(first, picture, random), random)
            files["a.txt"] = files["sub/b.txt"] = b"a castle"
    if random.random() < 0.1:
        extra = random.choice(
            ("b.txt", "a.caption", "metadata.csv", "sub/metadata.jsonl", ".hidden.png", "x.json", "A.TXT")
        )
        files.setdefault(extra, random.randbytes(5))
    return files


def _spoilt_picture(data: bytes, random: Random) -> bytes:
    if data.startswith(b"\x89PNG") and random.random() < 0.4:  # chunks of right check sums, with other content
        chunks, at = [], 8
        while at + 8 <= len(data):
            length = struct.unpack(">I", data[at : at + 4])[0]
            chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
            at += 12 + length
        number = random.randrange(len(chunks))
        kind, content = chunks[number]
        chunks[number] = (kind, spoilt_bytes(content, random, data))
        if random.random() < 0.3:
            chunks.insert(
                random.randrange(1, len(chunks)),
                (random.choice((b"iCCP", b"tRNS", b"eXIf", b"zTXt", b"PLTE")), content),
            )
        return data[:8] + b"".join(
            struct.pack(">I", len(c)) + k + c + struct.pack(">I", _crc(k + c)) for k, c in chunks
        )
    if random.random() < 0.2:  # a dimension, wherever it may be
        at = random.randrange(min(len(data), 60))
        return (
            data[:at]
            + packed(random.choice((0, 1, 10**4, 2**16 - 1, 2**31 - 1)), random.choice((2, 4)))
            + data[at + 4 :]
        )
    return spoilt_bytes(data, random, random.choice(list(_pictures().values())))


def _crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def _encoded(text: str, random: Random) -> bytes:
    return text.encode(random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le")), "surrogatepass")


def _jsonl(first: str, random: Random) -> bytes:
    rows: list[Any] = [
        {"file_name": first, "text": "a castle", "condition": {"ink": 0.7, "oil": 0.3}},
        {"file_name": "sub/b.png", "text": "night", "condition": "ink"},
    ]
    rows = spoilt_value(rows, random, tensors=False)
    rows = rows if isinstance(rows, list) else [rows]
    text = "\n".join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows)
    return _encoded(spoilt_text(text, random, _PIECES) if random.random() < 0.4 else text, random)


def _csv(first: str, random: Random) -> bytes:
    buffer = io.StringIO()
    rows = [["file_name", "text", "condition"], [first, "a castle, grey", "ink"], ["sub/b.png", "night", ""]]
    row = random.choice(rows)
    row[random.randrange(3)] = random.choice((odd_text(random), *row, "../data/sub/b.png", "sub\\b.png", first.upper()))
    csv.writer(buffer).writerows(rows)
    text = buffer.getvalue()
    return _encoded(spoilt_text(text, random, _PIECES) if random.random() < 0.5 else text, random)


def _kohya(first: str, random: Random) -> bytes:
    entries: Any = {first: {"caption": "a castle", "tags": "grey, tall"}, "sub/b": {"tags": "night"}}
    return _encoded(json.dumps(spoilt_value(entries, random, tensors=False)), random)


def _shard(first: str, picture: bytes, random: Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for name, content in (
            (first, picture),
            ("a.txt", b"a castle"),
            ("x" * random.choice((1, 150)) + ".json", b"{}"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()[:-8192]  # of the zeros at the end, too many to be worth spoiling


def _place(files: Files) -> Path:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    (_FOLDER / "sub").mkdir(parents=True)
    for name, content in files.items():
        (_FOLDER / name).write_bytes(content)
    return _FOLDER


def _read(folder: Path) -> list[tuple[Example, torch.Tensor]]:
    return [(example, example.pixels(_SIDE)) for example in read_image_folder(folder)]


def _check(_: Files, examples: list[tuple[Example, torch.Tensor]]) -> None:
    assert examples
    for example, pixels in examples:
        assert isinstance(example.image, (Path, ShardMember))
        assert file_of(example.image).resolve().is_relative_to(_FOLDER.resolve())
        assert isinstance(example.caption, str)
        assert example.picture_size() == read_picture(example.image, _SIDE).original_size
        assert bool(((weights := example.weights(_SIDE)) >= 0).all() and (weights <= 1).all())
        assert pixels.shape == (3, _SIDE, _SIDE)
        assert bool((pixels.abs() <= 1).all())


FOLDER = Target(draw=_draw, prepare=_place, run=_read, check=_check, refusals=(ValueError,))
