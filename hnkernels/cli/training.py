"""Training: ``train``, and what shows and measures it, ``demo`` and ``study``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hnkernels.cli.arguments import Model, check_target
from hnkernels.cli.terminal import say
from hnkernels.errors import InputError


def train(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Folder of pictures with captions beside them or in a table.")],
    config: Annotated[Path | None, typer.Option(help="JSON file with the objects 'training' and 'network'.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Of a new network: 'context' as in the web UIs (the default), or 'weights', which generates weights."
        ),
    ] = None,
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
    name: Annotated[str | None, typer.Option(help="Name of the hypernetwork; 'hypernetwork' for a new one.")] = None,
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

    settings = read_config(config)
    if init_from is not None and kind is not None:
        raise InputError(f"--init-from takes the network as it is; leave out --kind {kind}")
    unused = init_from is not None and bool(settings["network"])
    kind = kind or "context"
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
        title = "hypernetwork" if name is None else name
        net = new_network(kind, unet, training.target_layers, title, settings["network"], contents.rows)
    else:
        net = load_hypernetwork(init_from)
        if name is not None:
            net.provenance.name = name
    check_fit(net, unet, training.target_layers)
    folder = RunFolder(training.output_dir)
    folder.files_for(net)
    if processes.main:
        with folder.locked():
            folder.check_resumable() if resume else folder.check_unused(net)
        if unused:
            say(f"the config's 'network' is left aside: {init_from} is taken as it is")
        if unnamed:
            say(f"settings that the config leaves out come from the recipe {recipe}; --recipe none takes the defaults")
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
    say(f"{result.step} steps, mean loss {result.loss:.4f}, {result.iterations_per_second:.2f} it/s")
    for file in result.files:
        say(f"wrote {file}")


def demo(
    kind: Annotated[
        str, typer.Option(help="context: one network learns handwriting; weight: one network learns several styles.")
    ] = "context",
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures, networks and summary; runs/demo or runs/demo-weight.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Only write its training pictures, with captions, to this new folder.")
    ] = None,
) -> None:
    """Train a hypernetwork of either kind with the embedded model, and show what it does (CPU, minutes)."""
    if data is not None:
        from hnkernels.demo.sample_pictures import write_sample_pictures

        if data.exists():
            raise InputError(f"--data {data} exists already; name a new folder")
        check_target(data, force=False)
        write_sample_pictures(data)
        say(f"wrote {data}")
    elif kind == "context":
        from hnkernels.demo.run import run_demo

        run_demo(out or Path("runs/demo"), seed)
    elif kind == "weight":
        from hnkernels.demo.styles import run_styles_demo

        run_styles_demo(out or Path("runs/demo-weight"), seed)
    else:
        raise InputError(f"--kind must be context or weight, not {kind!r}")


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
    say(f"wrote {run_study(out, questions_named(names), minutes, processes)}")


def read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """The file's objects ``training`` and ``network``; both may be missing."""
    if path is None:
        return {"training": {}, "network": {}}
    from hnkernels.training.data.text_files import parse_json, read_text
    from hnkernels.wording import shown

    if not path.exists() or path.is_dir():
        raise InputError(f"cannot read the config {path}: there is no such file; check the path")
    try:
        settings = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f'cannot read the config {path}: it is not JSON ({error}); write {{"training": {{…}}, "network": {{…}}}}'
        ) from error
    except ValueError as error:
        raise InputError(f"cannot read the config {path}: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise InputError(f'{path} must hold {{"training": {{…}}, "network": {{…}}}}')
    if unknown := set(settings) - {"training", "network"}:
        raise InputError(f"{path} has {shown(sorted(unknown))}; accepted are 'training' and 'network'")
    return {"training": {}, "network": {}, **settings}
