"""The command line: ``hnkernels demo | study | info | convert | interpolate | merge | train | sample`` and others."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from hnkernels.cli_home import library, runs, ui
from hnkernels.errors import InputError
from hnkernels.terminal import console, errors, printable

app = typer.Typer(
    help="Stable Diffusion hypernetworks: look at files, convert them, train and sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (ui, runs, library):
    app.command()(command)


@app.command()
def demo(
    kind: Annotated[
        str, typer.Option(help="context: one network learns handwriting; weight: one network learns several styles.")
    ] = "context",
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures, networks and summary; runs/demo or runs/demo-weight.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train a hypernetwork of either kind with the embedded model, and show what it does (CPU, minutes)."""
    if kind == "context":
        from hnkernels.demo.run import run_demo

        run_demo(out or Path("runs/demo"), seed)
    elif kind == "weight":
        from hnkernels.demo.styles import run_styles_demo

        run_styles_demo(out or Path("runs/demo-weight"), seed)
    else:
        raise InputError(f"--kind must be context or weight, not {kind!r}")


@app.command()
def study(
    questions: Annotated[
        list[str] | None, typer.Option(help="A question to answer; several options or commas for several; else all.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no run after so many minutes; the next start goes on from there.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results, page and plots.")] = Path("runs/study"),
    processes: Annotated[
        int | None, typer.Option(help="Runs side by side, each in one thread; one per core by default.")
    ] = None,
) -> None:
    """Measure what settings do to a hypernetwork, on the embedded model (CPU, about an hour of one core)."""
    from hnkernels.study.questions import questions_named
    from hnkernels.study.study import run_study

    names = [name.strip() for text in questions or () for name in text.split(",")]
    console.print(f"wrote {run_study(out, questions_named(names), minutes, processes)}")


@app.command()
def info(
    file: Annotated[Path | None, typer.Argument(help="A hypernetwork, .pt or .safetensors.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model: diffusers folder, or checkpoint in one file; its weights stay unread.")
    ] = None,
) -> None:
    """Show what a hypernetwork file holds, which context widths a model has, or with both whether they fit."""
    from hnkernels.checkpoint import describe, load_hypernetwork
    from hnkernels.convert.survey import attention_on_disk, widths_table
    from hnkernels.generator.summary import describe as describe_weights

    if file is None and model is None:
        raise InputError("give a hypernetwork file, or a model with --model, or both")
    if file is not None:
        weights = describe_weights(file)
        if weights is not None and model is not None:
            raise InputError(f"{file} says itself which layers it is for; attach refuses any other model")
        table = Table(show_header=False, box=None)
        said = weights or describe(file)
        training = said.pop("training", {})
        for key, value in (said | training).items():
            table.add_row(printable(key), printable(value))
        console.print(table)
    if model is not None:
        known = None if file is None else load_hypernetwork(file, allow_legacy_activations=True).sizes
        table = Table("context width", "attention", "layers", *(() if known is None else ("acts there",)), box=None)
        for row in widths_table(attention_on_disk(model), known):
            table.add_row(*row)
        console.print(table)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A hypernetwork, .pt or .safetensors.")],
    target: Annotated[Path, typer.Argument(help="The file to write; its extension says the format.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite TARGET.")] = False,
) -> None:
    """Convert between A1111's .pt and .safetensors; .pt has no place for metadata about training."""
    from hnkernels.checkpoint import load_hypernetwork, save_hypernetwork
    from hnkernels.checkpoint.files import extension_of

    extension_of(target)
    _check_target(target, force)
    save_hypernetwork(load_hypernetwork(source, allow_legacy_activations=True), target)
    console.print(f"wrote {target}")


@app.command()
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
    _check_target(out, force)
    save_hypernetwork(mix(load_hypernetwork(a), load_hypernetwork(b), t), out)
    console.print(f"wrote {out}")


@app.command()
def merge(
    model: Annotated[Path, typer.Argument(help="Folder of a diffusers pipeline, or a .safetensors or .ckpt file.")],
    out: Annotated[Path, typer.Argument(help="The folder or file to write.")],
    hypernetwork: Annotated[list[Path], typer.Option(help="An affine hypernetwork; several chain in order.")],
    strength: Annotated[list[float] | None, typer.Option(help="Strength, one per hypernetwork.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Merge affine hypernetworks into a copy of a model, exactly."""
    from hnkernels.checkpoint import load_hypernetwork
    from hnkernels.convert.model_files import merge_files

    strengths = _one_each(strength, hypernetwork)
    _check_target(out, force)
    merge_files(model, out, [load_hypernetwork(file) for file in hypernetwork], strengths)
    console.print(f"wrote {out}")


@app.command()
def export_lora(
    file: Annotated[Path, typer.Argument(help="An affine hypernetwork, .pt or .safetensors.")],
    model: Annotated[Path, typer.Argument(help="Folder of the diffusers pipeline that the LoRA is for.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")] = 16,
    strength: Annotated[float, typer.Option(help="Strength that the LoRA has at weight 1.")] = 1.0,
    biases: Annotated[
        bool, typer.Option("--biases", help="Keep the constants on V, as biases that only diffusers reads.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write an affine hypernetwork as a LoRA, and how close it comes."""
    from hnkernels import to_lora
    from hnkernels.checkpoint import load_hypernetwork
    from hnkernels.convert.model_files import read_unet, write_tensors

    if out.suffix.lower() != ".safetensors":
        raise InputError(f"a LoRA is written as .safetensors, not {out.name!r}")
    _check_target(out, force)
    state, report = to_lora(load_hypernetwork(file), read_unet(model), rank, strength, biases=biases)
    write_tensors(out, state)
    title, caption = f"LoRA of rank {report.rank}", "lost: the share of a constant that the LoRA cannot hold"
    # The names must come out whole on 80 columns.
    table = Table(Column("projection", overflow="fold"), "error", "lost", title=title, caption=caption, box=None)
    for layer in report.layers:
        table.add_row(layer.name, f"{layer.error:.2%}", f"{layer.dropped:.2%}")
    table.add_section()
    table.add_row("worst", f"{report.worst:.2%}", f"{report.dropped:.2%}")
    table.add_row("mean", f"{report.mean:.2%}", "")
    console.print(table)
    console.print(f"wrote {out}")


@app.command()
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
    _check_target(out, force)
    with torch.no_grad():
        weights = WeightHypernetwork.load(network).generate_weights(_mixture(style)).scaled(strength)
    write_tensors(out, weights.to_lora_state_dict())
    console.print(f"wrote {out}")


@app.command()
def train(
    model: Annotated[Path, typer.Argument(help="Folder of a diffusers pipeline.")],
    data: Annotated[Path, typer.Argument(help="Folder of pictures with captions beside them or in a table.")],
    config: Annotated[Path | None, typer.Option(help="JSON file with the objects 'training' and 'network'.")] = None,
    kind: Annotated[
        str, typer.Option(help="Of a new network: 'context' as in the web UIs, or 'weights', which generates weights.")
    ] = "context",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A preset: style, subject or fast; what the config sets goes before it. Style for a new network that "
            "changes the context; 'none' for the defaults of TrainingConfig."
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Continue from this hypernetwork instead of a new one, with the .optim file beside it."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of a new hypernetwork.")] = "hypernetwork",
    output_dir: Annotated[Path | None, typer.Option(help="Overrides the config's output_dir.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in output_dir.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with other settings, data or versions too.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read, and name them.")
    ] = False,
    model_dtype: Annotated[
        str, typer.Option(help="Of the base model: fp32, fp16, bf16, or fp8 (stored, and computed in bf16).")
    ] = "fp32",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep the base model in CPU memory, and on the GPU a part at a time.")
    ] = False,
) -> None:
    """Train a hypernetwork on a folder of images. Several processes: accelerate launch -m hnkernels train ..."""
    from hnkernels import HypernetworkTrainer, TrainingConfig, load_hypernetwork
    from hnkernels.convert.survey import model_without_weights
    from hnkernels.pipeline import MODEL_DTYPES, check_pipeline, load_pipeline, offload_by_groups
    from hnkernels.training.data.examples import examples_of
    from hnkernels.training.data.folder import read_folder
    from hnkernels.training.networks import check_fit, new_network
    from hnkernels.training.persistence.run_folder import RunFolder
    from hnkernels.training.processes import Processes
    from hnkernels.training.recipes import DEFAULT, recipe_named

    settings = _read_config(config)
    unnamed = recipe is None and kind == "context" and init_from is None
    if unnamed:
        recipe = DEFAULT
    if recipe not in (None, "none"):
        preset = recipe_named(recipe)
        if kind != "context":
            raise InputError(f"--recipe {recipe} is for networks that change the context; leave out --kind {kind}")
        settings = {
            "training": preset.training_with(settings["training"]),
            "network": preset.network_with(settings["network"]),
        }
    given = {"output_dir": str(output_dir) if output_dir else None, "skip_broken": skip_broken or None}
    training = TrainingConfig.of(settings["training"] | {key: v for key, v in given.items() if v is not None})
    if model_dtype not in MODEL_DTYPES:
        raise InputError(f"--model-dtype must be one of {', '.join(MODEL_DTYPES)}, not {model_dtype!r}")
    check_pipeline(model)
    processes = Processes.of()
    contents = read_folder(data, training.mask_data, training.regularization_data)
    unet = model_without_weights(model)
    if init_from is None:
        net = new_network(kind, unet, training.target_layers, name, settings["network"], contents.rows)
    else:
        net = load_hypernetwork(init_from)
    check_fit(net, unet, training.target_layers)
    folder = RunFolder(training.output_dir)
    folder.files_for(net)
    if processes.main:
        with folder.locked():
            folder.check_resumable() if resume else folder.check_unused(net)
        if unnamed:
            console.print(
                f"settings of the recipe {recipe} where the config says nothing; --recipe none for plain ones"
            )
    processes.wait()
    examples = examples_of(contents, training.progress and processes.main)
    pipeline = load_pipeline(model, processes.device, model_dtype)
    if offload:
        offload_by_groups(pipeline)
    trainer = HypernetworkTrainer(net, pipeline, training, examples, accelerator=processes.accelerator)
    optimizer_from = init_from if init_from is not None and init_from.suffix == ".pt" else None
    result = trainer.train(resume=resume, allow_changes=allow_changes, optimizer_from=optimizer_from)
    if not processes.main:
        return
    console.print(f"{result.step} steps, mean loss {result.loss:.4f}, {result.iterations_per_second:.2f} it/s")
    for file in result.files:
        console.print(f"wrote {file}")


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Folder of a diffusers Stable Diffusion pipeline.")],
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
    strengths = _one_each(strength, files)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out must end in .png, .jpg or .webp, not {out.name!r}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file inside it")
    _check_target(out, force=True, make_parents=True)
    try:
        styled = [kind_of(file) == kinds.NETWORK for file in files]
        if style and not any(styled):
            raise InputError("--style is for weight hypernetworks; give one with --hypernetwork")
        mixed = _mixture(style or [])
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
    image.save(out)
    console.print(f"wrote {out}")


def _check_target(path: Path, force: bool, make_parents: bool = False) -> None:
    """Raises ``ValueError`` if ``path`` could not be written in the end."""
    if path.exists() and not force:
        raise InputError(f"{path} exists already; overwrite it with --force")
    folder = path.absolute().parent
    while make_parents and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is not a folder; create it first, or name another place")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: access to {folder} is denied; name another place")


def _mixture(styles: list[str]) -> dict[str, float]:
    """Style → weight of ``STYLE`` or ``STYLE:WEIGHT``."""
    mixture: dict[str, float] = {}
    for text in styles:
        name, colon, weight = text.rpartition(":")
        try:
            mixture[name if colon else text] = float(weight) if colon else 1.0
        except ValueError:
            raise InputError(f"--style must be STYLE or STYLE:WEIGHT, not {text!r}") from None
    return mixture


def _one_each(strengths: list[float] | None, files: list[Path]) -> list[float]:
    """A strength per file, 1 where none is given."""
    if strengths and len(strengths) != len(files):
        raise InputError(
            f"--strength is given {len(strengths)} times and --hypernetwork {len(files)} times; give one each"
        )
    if bad := [factor for factor in strengths or () if not math.isfinite(factor)]:
        raise InputError(f"--strength must be a finite number, not {bad[0]}")
    return strengths or [1.0] * len(files)


def _read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """The file's objects ``training`` and ``network``; both may be missing."""
    if path is None:
        return {"training": {}, "network": {}}
    from hnkernels.training.data.text_files import parse_json, read_text
    from hnkernels.wording import shown

    try:
        settings = parse_json(read_text(path))
    except ValueError as error:
        raise InputError(f"cannot read the config {path}: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise InputError(f'{path} must hold {{"training": {{…}}, "network": {{…}}}}')
    if unknown := set(settings) - {"training", "network"}:
        raise InputError(f"{path} has {shown(sorted(unknown))}; accepted are 'training' and 'network'")
    return {"training": {}, "network": {}, **settings}


def main() -> None:
    """Runs the command line; a user's mistake ends it with one line on stderr and exit code 1."""
    from hnkernels.adapter.layers import AdapterError
    from hnkernels.checkpoint import CheckpointError

    try:
        app(prog_name="hnkernels")
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except (ValueError, CheckpointError, AdapterError, OSError) as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except ImportError as error:
        errors.print(
            f"[red]error:[/red] {escape(str(error))}; install what this needs with: pip install 'hnkernels\\[train]'",
            soft_wrap=True,
        )
        sys.exit(1)
