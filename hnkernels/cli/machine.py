"""What runs where: ``doctor`` for this machine, ``explain`` for GPUs that need not be here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from hnkernels.cli.arguments import model_folder, print_json
from hnkernels.cli.terminal import printable, say, show
from hnkernels.errors import InputError

MODELS = {"sd15": "Stable Diffusion 1.5, 512 pixels", "sdxl": "Stable Diffusion XL, 1024 pixels"}
"""Word → name in ``accounting.layers.KNOWN``."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, which backend runs and why, and try whether the answers are right; exit 1 if not."""
    from hnkernels.doctor import PACKAGES, examine

    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        table = Table("what", "version", "", show_header=False, box=None)
        for name, version in report.versions.items():
            purpose = "" if version else f"for {printable(PACKAGES[name])}"
            table.add_row(name, version or "not installed", purpose)
        for name, value in report.variables.items():
            table.add_row(name, printable(value), "set in the environment")
        for name, folder in report.caches.items():
            table.add_row(f"cache of {name}", printable(folder), "" if Path(folder).exists() else "nothing there yet")
        show(table)
        devices = Table("device", "", "backend", "why not the kernels", box=None)
        for device in report.devices:
            devices.add_row(device.name, printable(device.what), device.backend, printable(device.why))
        show(devices)
        checks = Table("device", "tried", "error", "", box=None)
        for check in report.checks:
            error = "" if check.error is None else f"{check.error:.2f} x eager's"
            said = Text(printable(check.fault), "red") if check.fault else "right"
            checks.add_row(check.device, check.what, error, said)
        show(checks)
    if not report.right:
        raise typer.Exit(1)


def explain(
    file: Annotated[Path | None, typer.Argument(help="A hypernetwork; a new one, 1, 2, 1, if none is given.")] = None,
    model: Annotated[
        str, typer.Option(help="sd15, sdxl, tiny-sd, or a diffusers folder, whose weights stay unread.")
    ] = "sd15",
    gpu: Annotated[str, typer.Option(help="A100, RTX 4090, H100 …, or an architecture: sm_80, gfx942.")] = "A100",
    layer: Annotated[
        int | None,
        typer.Option(help="One by one, the launches of the layers in this row of the table."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Rows of the batch; guidance doubles them.")] = 2,
    training: Annotated[bool, typer.Option("--training", help="A forward and a backward pass.")] = False,
    dtype: Annotated[str, typer.Option(help="What is computed in: fp16, bf16 or fp32.")] = "fp16",
    activation: Annotated[str, typer.Option(help="Of a new network.")] = "relu",
    layer_norm: Annotated[bool, typer.Option("--layer-norm", help="Of a new network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what the layers of a model would launch, move and compute on a GPU, beside eager PyTorch. Needs no GPU."""
    import torch

    from hnkernels.accounting.gpus import GPUS, gpu_named
    from hnkernels.accounting.layers import KNOWN, layers_of
    from hnkernels.accounting.models import work_of
    from hnkernels.checkpoint import load_hypernetwork
    from hnkernels.network.hypernetwork import Hypernetwork
    from hnkernels.units import operations, size, time

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in dtypes:
        raise InputError(f"--dtype must be one of {', '.join(dtypes)}, not {dtype!r}")
    card = gpu_named(gpu)
    what = MODELS.get(model, model)
    if model in MODELS:
        shapes = KNOWN[what]
    elif (folder := model_folder(model)).exists():
        shapes = layers_of(folder)
    else:
        raise InputError(f"--model must be {', '.join(MODELS)}, tiny-sd or a diffusers folder, not {model!r}")
    if file is None:
        with torch.device("meta"):
            widths = sorted({shape.width for shape in shapes})
            net = Hypernetwork(widths, activation=activation, layer_norm=layer_norm)
    else:
        net = load_hypernetwork(file, allow_legacy_activations=True)
    work = work_of(net, shapes, pictures, train=training, dtype=dtypes[dtype], target=GPUS[card])
    if layer is not None and not 1 <= layer <= len(work):
        raise InputError(f"--layer must be from 1 to {len(work)}, the rows of the table, not {layer}")
    if as_json:
        found = {"model": what, "gpu": card, "dtype": dtype, "training": training, "counted": True, "measured": False}
        print_json({**found, "layers": [one.to_json() for one in work]})
        return
    if layer is not None:
        say(str(work[layer - 1].one.ours))
        return
    rows = [one.to_json() for one in work]
    kind = "a training step" if training else "inference"
    title = f"{printable(what)}, {pictures} pictures, {dtype}, {kind}, {card}"
    caption = (
        "In brackets: of what eager PyTorch takes. Counted; times are the least by the card's data sheet, modelled. "
        "Nothing is measured."
    )
    figures = ("launches", "moved", "operations", "least time")
    table = Table("", "layers", Column("", justify="right"), *figures, title=title, caption=caption, box=None)

    def cells(some: Sequence[dict[str, Any]]) -> Iterator[str]:
        yield str(sum(row["count"] for row in some))
        for key, said in (("launches", str), ("bytes_moved", size), ("flops", operations), ("modelled_seconds", time)):
            ours, eager = (sum(row[side][key] or 0 for row in some) for side in ("hnkernels", "eager"))
            yield f"{said(ours)} ({ours / eager:.2f})" if eager else "–"

    for number, (one, row) in enumerate(zip(work, rows, strict=True), 1):
        table.add_row(str(number), one.shape.label, *cells([row]))
    table.add_section()
    table.add_row("", "all", *cells(rows))
    show(table)
