"""Networks into models, and into LoRAs for them: ``merge`` and ``export-lora``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hnkernels.cli.arguments import Model, check_target, model_folder, one_each, print_json
from hnkernels.cli.terminal import say, show
from hnkernels.errors import InputError


def merge(
    model: Annotated[
        Path,
        typer.Argument(
            parser=model_folder,
            metavar="MODEL",
            help="Folder of a diffusers pipeline, or a .safetensors or .ckpt file; tiny-sd is the embedded pipeline.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder or file to write.")],
    hypernetwork: Annotated[list[Path], typer.Option(help="An affine hypernetwork; several chain in order.")],
    strength: Annotated[list[float] | None, typer.Option(help="Strength, one per hypernetwork.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Merge affine hypernetworks into a copy of a model, exactly."""
    from hnkernels.checkpoint import load_hypernetwork
    from hnkernels.convert.model_files import merge_files

    strengths = one_each(strength, hypernetwork)
    check_target(out, force)
    merge_files(model, out, [load_hypernetwork(file) for file in hypernetwork], strengths)
    say(f"wrote {out}")


def export_lora(
    file: Annotated[Path, typer.Argument(help="An affine hypernetwork, .pt or .safetensors.")],
    model: Model,
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")] = 16,
    strength: Annotated[float, typer.Option(help="Strength that the LoRA has at weight 1.")] = 1.0,
    biases: Annotated[
        bool, typer.Option("--biases", help="Keep the constants on V, as biases that only diffusers reads.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write an affine hypernetwork as a LoRA, and how close it comes."""
    from hnkernels import to_lora
    from hnkernels.checkpoint import load_hypernetwork
    from hnkernels.convert.model_files import read_unet, write_tensors

    if out.suffix.lower() != ".safetensors":
        raise InputError(f"a LoRA is written as .safetensors, not {out.name!r}")
    check_target(out, force)
    state, report = to_lora(load_hypernetwork(file), read_unet(model), rank, strength, biases=biases)
    write_tensors(out, state)
    if as_json:
        print_json({"file": str(out), **asdict(report), "worst": report.worst, "mean": report.mean})
        return
    title, caption = f"LoRA of rank {report.rank}", "lost: the share of a constant that the LoRA cannot hold"
    table = Table("projection", "error", "lost", title=title, caption=caption, box=None)
    for layer in report.layers:
        table.add_row(layer.name, f"{layer.error:.2%}", f"{layer.dropped:.2%}")
    table.add_section()
    table.add_row("worst", f"{report.worst:.2%}", f"{report.dropped:.2%}")
    table.add_row("mean", f"{report.mean:.2%}", "")
    show(table)
    say(f"wrote {out}")
