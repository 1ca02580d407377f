"""Pictures with their settings inside, as A1111 writes them and as JSON, and the settings read back.

A1111 keeps a text chunk ``parameters``: the prompt, a line ``Negative prompt: …``, and a line of settings beginning
with ``Steps: …``.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnkernels.checkpoint.atomic import replacing
from hnkernels.drawing.request import BATCH, LONGEST_PROMPT, SEED, SIDE, STEPS, DrawRequest
from hnkernels.errors import InputError
from hnkernels.home.names import free_name

PARAMETERS, OWN = "parameters", "hnkernels"
"""Keywords of the text chunks."""

_LARGEST = 2**26  # bytes of a file whose settings are read
_MOST_NETWORKS = 16
_SETTING = re.compile(r'([A-Z][A-Za-z ]{0,40}): ("(?:[^"\\]|\\.)*"|[^,"]*)')
_A1111 = {"Steps": "steps", "Seed": "seed", "CFG scale": "guidance", "Model": "model"}
_NUMBERS = {"steps": STEPS, "seed": SEED, "batch": BATCH, "width": SIDE, "height": SIDE}
_saving = threading.Lock()


def save_picture(
    picture: Image.Image,
    folder: Path,
    request: DrawRequest,
    also: Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Writes a picture, under a name that is new in the folder: whole, or not at all.

    Args:
        picture: what was drawn.
        folder: made if it is gone.
        request: how it was drawn.
        also: more to keep with the request, as JSON; what it has in common with the request's goes before.
        size: width and height that were drawn, where ``picture`` is larger.

    Raises:
        ValueError: it cannot be written; says why.
    """
    info = PngInfo()
    for keyword, text in texts(request, size or picture.size, also).items():
        info.add_itxt(keyword, text)
    with _saving:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / free_name(folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{request.seed}.png")
            with replacing(path) as file:
                picture.save(file, "PNG", pnginfo=info)
        except OSError as error:
            raise InputError(
                f"the picture could not be saved: {error.strerror or error}; make room and draw again"
            ) from error
    return path


def texts(request: DrawRequest, size: tuple[int, int], also: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The texts that a picture of a request has inside, by keyword; see ``save_picture``."""
    return {PARAMETERS: parameters(request, size), OWN: json.dumps({**request.to_json(), **(also or {})})}


def parameters(request: DrawRequest, size: tuple[int, int]) -> str:
    """The settings in A1111's form; networks are tags of the prompt, with the strength of the whole."""
    called = request.called({}, "choose it as well")
    tags = "".join(f"<hypernet:{use.name}:{use.strength:g}>" for use in called.networks)
    lines = [f"{request.text} {tags}".strip()]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    model = re.sub(r'[,:"\s]+', " ", request.model_name or request.model.name)
    lines.append(
        f"Steps: {request.steps}, CFG scale: {request.guidance:g}, Seed: {request.seed}, "
        f"Size: {size[0]}x{size[1]}, Model: {model}"
    )
    return "\n".join(lines)


def settings_in(path: Path) -> dict[str, Any]:
    """The settings that a PNG holds, hnkernels' own or A1111's: those among them that can be used, by the names of
    ``DrawRequest``.

    Networks are dicts of ``name``, ``strength``, ``parts`` and ``styles``; files are never named. The picture itself is
    not decoded.

    Raises:
        ValueError: it is not a PNG, is damaged, or has no settings inside.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"it has more than {_LARGEST // 2**20} MiB")
        with Image.open(path, formats=["PNG"]) as image:
            chunks = dict(getattr(image, "text", {}))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, OverflowError) as error:
        reason = "it is not a PNG, or is damaged" if isinstance(error, (OSError, SyntaxError)) else error
        raise InputError(f"{path.name} has no settings that can be read: {reason}") from error
    found = _from_json(chunks[OWN]) if OWN in chunks else {}
    if not found and PARAMETERS in chunks:
        found = _from_parameters(chunks[PARAMETERS])
    if not found:
        raise InputError(f"{path.name} has no settings inside; take a PNG that was drawn here, or by A1111")
    return found


def _from_json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    found = {name: content[name] for name in ("prompt", "negative", "model") if _is_text(content.get(name))}
    for name, (least, most) in _NUMBERS.items():
        if type(content.get(name)) is int and least <= content[name] <= most:
            found[name] = content[name]
    if _is_number(content.get("guidance")):
        found["guidance"] = float(content["guidance"])
    networks = content.get("networks")
    if isinstance(networks, list):
        found["networks"] = [_network(one) for one in networks[:_MOST_NETWORKS] if _is_network(one)]
    return found


def _from_parameters(text: str) -> dict[str, Any]:
    lines = text[: 3 * LONGEST_PROMPT].splitlines()
    last = lines.pop() if lines and lines[-1].startswith("Steps: ") else ""
    found: dict[str, Any] = {}
    given = {match[1]: match[2].strip('" ') for match in _SETTING.finditer(last)}
    for theirs, ours in _A1111.items():
        value = given.get(theirs, "")
        if ours == "model":
            found |= {ours: value} if value else {}
        elif ours == "guidance":
            found |= {ours: float(value)} if _is_decimal(value) and math.isfinite(float(value)) else {}
        elif value.isascii() and value.isdigit() and len(value) < 20 and _within(int(value), _NUMBERS[ours]):
            found[ours] = int(value)
    if size := re.fullmatch(r"(\d{1,4})x(\d{1,4})", given.get("Size", ""), re.ASCII):
        found |= {n: int(v) for n, v in zip(("width", "height"), size.groups(), strict=True) if _within(int(v), SIDE)}
    place = next((n for n, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    prompt, negative = "\n".join(lines[:place]), "\n".join(lines[place:]).removeprefix("Negative prompt: ")
    if last or negative:
        found |= {n: t for n, t in (("prompt", prompt), ("negative", negative)) if _is_text(t)}
    return found


def _is_network(content: Any) -> bool:
    return isinstance(content, dict) and _is_text(content.get("name")) and _is_number(content.get("strength"))


def _network(content: dict[str, Any]) -> dict[str, Any]:
    tables = {
        key: {name: float(n) for name, n in table.items() if _is_number(n)}
        for key in ("parts", "styles")
        if isinstance(table := content.get(key), dict)
    }
    return {"name": content["name"], "strength": float(content["strength"]), "parts": {}, "styles": {}, **tables}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_PROMPT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN and infinity are not


def _is_decimal(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}(\.\d{1,20})?", text, re.ASCII) is not None


def _within(number: int, limits: tuple[int, int]) -> bool:
    return limits[0] <= number <= limits[1]
