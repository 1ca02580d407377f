"""Pictures with networks: ``sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming
from hnkernels.cli.arguments import Model, check_target, mixture, one_each
from hnkernels.cli.terminal import say
from hnkernels.errors import InputError


def sample(
    model: Model,
    prompt: Annotated[
        str, typer.Argument(help="What to draw; <hypernet:name:0.7> sets the strength of the file with that name.")
    ],
    out: Annotated[Path, typer.Option(help="The image file to write.")] = Path("sample.png"),
    hypernetwork: Annotated[list[Path] | None, typer.Option(help="A hypernetwork; several chain in order.")] = None,
    strength: Annotated[list[float] | None, typer.Option(help="Strength, one per hypernetwork.")] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="For weight hypernetworks: a style, or STYLE:0.7; several are mixed.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the starting noise.")] = 0,
) -> None:
    """Draw a picture with a pipeline and any number of hypernetworks.

    A weight hypernetwork without --style is conditioned on the prompt.
    """
    from hnkernels.drawing.artist import Artist
    from hnkernels.drawing.request import DrawRequest, NetworkUse, SettingError
    from hnkernels.generator import files as kinds
    from hnkernels.generator.summary import kind_of

    files = hypernetwork or []
    strengths = one_each(strength, files)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out must end in .png, .jpg or .webp, not {out.name!r}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file inside it")
    check_target(out, force=True, make_parents=True)
    try:
        styled = [kind_of(file) == kinds.NETWORK for file in files]
        if style and not any(styled):
            raise InputError("--style is for weight hypernetworks; give one with --hypernetwork")
        mixed = mixture(style or [])
        networks = tuple(
            NetworkUse(file, file.stem, factor, styles=mixed if takes_styles else {})
            for file, factor, takes_styles in zip(files, strengths, styled, strict=True)
        )
        request = DrawRequest(model, prompt, negative, networks, seed, steps, guidance)
        request = request.called({}, "give its file with --hypernetwork")
        image = Artist().draw(request)[0]
    except SettingError as error:
        raise InputError(f"--{error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out), replacing(out) as file:
        image.save(file, {".png": "PNG", ".webp": "WEBP"}.get(out.suffix.lower(), "JPEG"))
    say(f"wrote {out}")
