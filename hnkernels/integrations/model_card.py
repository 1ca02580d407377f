"""Model cards: the README.md with YAML metadata that the Hugging Face hub shows for a hypernetwork.

Nothing is uploaded. The text comes from what a network's file says of itself: ``provenance.training``, which
``HypernetworkTrainer`` and kohya's trainers fill.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork

_TAGS = ("stable-diffusion", "hypernetwork", "hnkernels", "text-to-image")
_SHOWN = {
    "modelspec.architecture": "architecture",
    "ss_steps": "steps",
    "ss_batch_size_per_device": "batch size",
    "ss_gradient_accumulation_steps": "gradient accumulation",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "learning rate of the UNet",
    "ss_lr_scheduler": "learning-rate scheduler",
    "ss_lr_warmup_steps": "warm-up steps",
    "ss_optimizer": "optimiser",
    "ss_mixed_precision": "mixed precision",
    "ss_min_snr_gamma": "Min-SNR γ",
    "ss_noise_offset": "noise offset",
    "ss_caption_dropout_rate": "caption dropout",
    "ss_resolution": "resolution",
    "ss_num_train_images": "training images",
    "ss_seed": "seed",
}
"""Entry of the metadata → what the card calls it; in this order, those that are there."""


def model_card(
    net: Hypernetwork | WeightHypernetwork,
    *,
    base_model: str | os.PathLike[str],
    file: str,
    prompt: str = "a photo",
    images: Sequence[tuple[str, str]] = (),
    license: str | None = None,
    tags: Sequence[str] = (),
    description: str | None = None,
) -> Any:
    """The card of a trained network.

    Args:
        net: as trained or loaded; its ``provenance`` says how it was trained.
        base_model: id on the hub, or path, of the model that it was trained on.
        file: name of the network's file next to the card.
        prompt: for the snippet.
        images: (path relative to the card, prompt) of pictures made with the network; they become the hub's gallery.
        license: identifier on the hub, such as ``"apache-2.0"``; ``None`` leaves it to whoever publishes.
        tags: further ones.
        description: a paragraph at the top.

    Returns:
        A ``huggingface_hub.ModelCard``; ``.save(path)`` writes it, ``.data`` is its metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base_model = os.fspath(base_model)
    data = ModelCardData(
        base_model=base_model,
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=list(dict.fromkeys((*_TAGS, *tags))),
        widget=[{"text": text, "output": {"url": path}} for path, text in images] or None,
    )
    training = net.provenance.training
    kind = "weight hypernetwork" if isinstance(net, WeightHypernetwork) else "hypernetwork"
    settings = [
        (label, training[key]) for key, label in _SHOWN.items() if training.get(key, "None") not in ("None", "")
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_one_line(net.provenance.name)}",
        description or f"A {kind} for `{base_model}`, trained for {net.provenance.step} steps.",
        *(["<Gallery />"] if images else []),
        "## Use",
        f"With hnkernels and diffusers installed:\n\n```python\n{_snippet(net, base_model, file, prompt)}\n```",
        *(["## Training", _table(settings)] if settings else []),
        "## Network",
        _table(_shape(net)),
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def _snippet(net: Hypernetwork | WeightHypernetwork, base_model: str, file: str, prompt: str) -> str:
    lines = [
        "import hnkernels as hn",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({base_model!r})",
        f"prompt = {prompt!r}",
    ]
    if not isinstance(net, WeightHypernetwork):
        lines += [
            f"net = hn.load_hypernetwork({file!r})",
            "adapter = hn.attach(pipe, net, strength=1.0)",
            "image = pipe(prompt).images[0]",
        ]
        return "\n".join(lines)
    styles: Sequence[str] = net.encoder.styles  # type: ignore[assignment]
    lines += [f"net = hn.WeightHypernetwork.load({file!r})", "adapter = hn.attach(pipe, net)"]
    if styles:
        lines += [f"condition = {styles[0]!r}"]
    else:
        options = "device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False"
        lines += [f"condition = pipe.encode_prompt(prompt, {options})[0]"]
    return "\n".join([*lines, "with adapter.condition(condition):", "    image = pipe(prompt).images[0]"])


def _shape(net: Hypernetwork | WeightHypernetwork) -> list[tuple[str, Any]]:
    parameters = ("parameters", f"{sum(p.numel() for p in net.parameters()):,}")
    if not isinstance(net, WeightHypernetwork):
        config = net.config
        return [
            ("context widths", ", ".join(map(str, net.sizes))),
            ("layer structure", ", ".join(map(str, config.layer_structure))),
            ("activation", config.activation or "none"),
            ("LayerNorm", "yes" if config.layer_norm else "no"),
            parameters,
        ]
    ranks = sorted({layer.rank for layer in net.layers})
    styles: Sequence[str] = net.encoder.styles  # type: ignore[assignment]
    condition = ", ".join(styles) if styles else "text embeddings"
    return [("condition", condition), ("layers", len(net.layers)), ("rank", ", ".join(map(str, ranks))), parameters]


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {label} | {_one_line(value)} |" for label, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _one_line(value: Any) -> str:
    """As it can stand in a heading or a table: what it says may come from a stranger's file."""
    return " ".join(str(value).replace("|", "\\|").split())
