"""Networks in files: ``info``, ``convert``, ``interpolate``, ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hnkernels.cli.arguments import check_target, mixture, model_folder, print_json
from hnkernels.cli.terminal import printable, say, show
from hnkernels.errors import InputError


def info(
    file: Annotated[Path | None, typer.Argument(help="A hypernetwork, .pt or .safetensors.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            parser=model_folder,
            metavar="MODEL",
            help="A model: diffusers folder, or checkpoint in one file; its weights stay unread.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a hypernetwork file holds, which context widths a model has, or with both whether they fit."""
    from hnkernels.checkpoint import describe, load_hypernetwork
    from hnkernels.convert.survey import attention_on_disk, widths_table
    from hnkernels.generator.summary import describe as describe_weights

    if file is None and model is None:
        raise InputError("give a hypernetwork file, or a model with --model, or both")
    found: dict[str, Any] = {}
    tables: list[Table] = []
    if file is not None:
        weights = describe_weights(file)
        if weights is not None and model is not None:
            raise InputError(f"{file} says itself which layers it is for; attach refuses any other model")
        said = weights or describe(file)
        found |= {"file": str(file), **said}
        training = said.pop("training", {})
        table = Table(show_header=False, box=None)
        for key, value in (said | training).items():
            table.add_row(printable(key), printable(_said(value)))
        tables.append(table)
    if model is not None:
        known = None if file is None else load_hypernetwork(file, allow_legacy_activations=True).sizes
        columns = ("context width", "attention", "layers", *(() if known is None else ("acts there",)))
        rows = widths_table(attention_on_disk(model), known)
        widths: list[dict[str, Any]] = [
            {"width": int(width), "attention": kind, "layers": int(count)} for width, kind, count, *_ in rows
        ]
        if known is not None:
            for entry in widths:
                entry["acts"] = entry["width"] in known
        found |= {"model": str(model), "attention": widths}
        table = Table(*columns, box=None)
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    if as_json:
        print_json(found)
        return
    for table in tables:
        show(table)


def convert(
    source: Annotated[Path, typer.Argument(help="A hypernetwork, .pt or .safetensors.")],
    target: Annotated[Path, typer.Argument(help="The file to write; its extension says the format.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite TARGET.")] = False,
) -> None:
    """Convert between A1111's .pt and .safetensors; .pt has no place for metadata about training."""
    from hnkernels.checkpoint import load_hypernetwork, save_hypernetwork
    from hnkernels.checkpoint.files import extension_of

    extension_of(target)
    check_target(target, force)
    save_hypernetwork(load_hypernetwork(source, allow_legacy_activations=True), target)
    say(f"wrote {target}")


def interpolate(
    a: Annotated[Path, typer.Argument(help="A hypernetwork, .pt or .safetensors.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same structure.")],
    out: Annotated[Path, typer.Argument(help="The file to write; its extension says the format.")],
    t: Annotated[float, typer.Option(help="0 gives A, 1 gives B.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Mix two hypernetworks into a new one between them."""
    from hnkernels import interpolate as mix
    from hnkernels.checkpoint import load_hypernetwork, save_hypernetwork
    from hnkernels.checkpoint.files import extension_of

    extension_of(out)
    check_target(out, force)
    save_hypernetwork(mix(load_hypernetwork(a), load_hypernetwork(b), t), out)
    say(f"wrote {out}")


def generate(
    network: Annotated[Path, typer.Argument(help="A weight hypernetwork, .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The LoRA to write, .safetensors.")],
    style: Annotated[list[str], typer.Option(help="A style, or with a weight STYLE:0.7; several are mixed.")],
    strength: Annotated[float, typer.Option(help="Strength that the LoRA has at weight 1.")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write what a weight hypernetwork generates for a style as an ordinary LoRA."""
    import torch

    from hnkernels import WeightHypernetwork
    from hnkernels.convert.model_files import write_tensors

    if out.suffix.lower() != ".safetensors":
        raise InputError(f"a LoRA is written as .safetensors, not {out.name!r}")
    check_target(out, force)
    with torch.no_grad():
        weights = WeightHypernetwork.load(network).generate_weights(mixture(style)).scaled(strength)
    write_tensors(out, weights.to_lora_state_dict())
    say(f"wrote {out}")


def _said(value: Any) -> Any:
    """A value as people write it."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value
