"""Kernels: what a layer with a network would launch on a GPU, beside eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hnkernels.accounting.comparison import Comparison, compare
from hnkernels.accounting.gpus import GPUS
from hnkernels.accounting.layers import KNOWN, LayerShape, layers_of
from hnkernels.accounting.timing import measure
from hnkernels.adapter import AdapterError
from hnkernels.checkpoint import CheckpointError, load_hypernetwork
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.library.facts import CONTEXT
from hnkernels.home.library.library import Library
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.triton.launch import Launch
from hnkernels.ui import offered
from hnkernels.ui.bars import Bar, bars
from hnkernels.ui.events import PRIVATE, refused, said
from hnkernels.units import operations, size, time

_NEW: dict[str, dict[str, Any]] = {
    "a new one: 1, 2, 1, silu": {"activation": "silu"},
    "a new one: 1, 2, 1, relu, layer norm": {"activation": "relu", "layer_norm": True},
    "a new one: 1, 2, 1, without activation": {"activation": None},
}
_CARDS = {f"{name} ({target})": target for name, target in GPUS.items()}
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_INFERENCE, _TRAINING = "inference", "training"
_MOST_ROWS = 2**24  # of a context
_OURS, _EAGER = "hnkernels", "eager PyTorch"


def build(home: Home) -> None:
    """The page."""
    _Page(home)


class _Page:
    """The page's components and what they do."""

    def __init__(self, home: Home):
        self.home, self.library = home, Library(home)
        models = [*home.models(), *KNOWN]
        gr.Markdown(
            "# Kernels\nWhat the keys and values of a layer take, with a network before them: what would be launched, "
            "counted, beside eager PyTorch on the same network."
        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.network = gr.Dropdown(list(_NEW), value=next(iter(_NEW)), label="Network", elem_id="network")
                self.model = gr.Dropdown(models, value=next(iter(KNOWN)), label="Model", elem_id="model")
            with gr.Column(min_width=280):
                self.layer = gr.Dropdown([], label="Layer", elem_id="layer")
                self.card = gr.Dropdown(list(_CARDS), value="H100 (sm_90)", label="GPU", elem_id="card")
            with gr.Column(min_width=280):
                self.tokens = gr.Number(4096, label="Tokens of one picture", precision=0, minimum=1, elem_id="tokens")
                self.batch = gr.Number(2, label="Pictures at once", precision=0, minimum=1, elem_id="batch")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.dtype = gr.Radio(list(_DTYPES), value="fp16", label="Computed in")
            with gr.Column(min_width=280):
                self.mode = gr.Radio([_INFERENCE, _TRAINING], value=_INFERENCE, label="For", elem_id="mode")
        self.said = gr.HTML(elem_classes="sentence", elem_id="kernels-said")
        self.picture = gr.HTML(elem_id="kernels-picture")
        here = torch.cuda.is_available()
        self.measure = gr.Button("Measure both on this GPU", size="sm", visible=here, elem_id="measure")
        self.measured = gr.HTML(elem_classes="sentence", elem_id="measured")
        self.table = gr.HTML(elem_id="kernels-table")
        with gr.Accordion("What eager PyTorch launches", open=False):
            self.other = gr.HTML(elem_id="eager-table")
        self._connect()

    def _connect(self) -> None:
        page: Any = gr.context.Context.root_block
        chosen = [self.network, self.model, self.layer, self.tokens, self.batch, self.dtype, self.card, self.mode]
        shown: dict[str, Any] = {
            "inputs": chosen,
            "outputs": [self.said, self.picture, self.table, self.other, self.measured],
            "trigger_mode": "always_last",
            **PRIVATE,
        }
        layers: dict[str, Any] = {
            "inputs": [self.network, self.model], "outputs": [self.layer, self.tokens, self.said], **PRIVATE
        }  # fmt: skip
        page.load(self._opened, outputs=[self.network, self.model], **PRIVATE).then(self._layers, **layers).then(
            self._explained, **shown
        )
        gr.on([self.network.input, self.model.input], self._layers, **layers).then(self._explained, **shown)
        self.layer.input(self._tokens, inputs=[self.model, self.layer], outputs=self.tokens, **PRIVATE).then(
            self._explained, **shown
        )
        changed: list[Any] = [self.tokens, self.batch, self.dtype, self.card, self.mode]
        gr.on([component.input for component in changed], self._explained, **shown)
        self.measure.click(self._measured, inputs=chosen, outputs=self.measured, concurrency_limit=1, **PRIVATE)

    def _opened(self, request: gr.Request) -> list[Any]:
        """The lists as they are now; a network of the address is chosen."""
        own = list(offered.networks(self.library, (CONTEXT,)))
        asked = [name for name in request.query_params.getlist("network") if name in own]
        return [
            gr.Dropdown([*_NEW, *own], value=asked[0] if asked else next(iter(_NEW))),
            gr.Dropdown([*self.home.models(), *KNOWN], value=next(iter(self.home.models() if asked else KNOWN))),
        ]

    def _shapes(self, model: str) -> dict[str, LayerShape]:
        shapes = KNOWN[model] if model in KNOWN else layers_of(self.home.model(model))
        return {shape.label: shape for shape in shapes}

    def _layers(self, network: str, model: str) -> list[Any]:
        """The layers of a model in which a network acts."""
        try:
            shapes = self._shapes(model)
            if network not in _NEW:
                widths = self._network(network, 0).sizes
                shapes = {label: shape for label, shape in shapes.items() if shape.width in widths}
                if not shapes:
                    raise InputError(f"{network} is for widths {widths}, and {model} has none of them; choose another")
        except (ValueError, OSError, CheckpointError, AdapterError) as error:
            return [gr.Dropdown([], value=None), gr.skip(), refused(error)]
        first = next(iter(shapes))
        return [gr.Dropdown(list(shapes), value=first), shapes[first].tokens, ""]

    def _tokens(self, model: str, layer: str | None) -> Any:
        shape = self._shapes(model).get(layer or "")
        return shape.tokens if shape else gr.skip()

    def _network(self, network: str, width: int) -> Hypernetwork:
        """A network of the list; a new one for a width.

        Raises:
            ValueError: it is not there any more.
            CheckpointError: it cannot be read.
        """
        if network in _NEW:
            with torch.device("meta"):
                return Hypernetwork((width,), **_NEW[network])
        known = offered.networks(self.library, (CONTEXT,))
        if network not in known:
            raise InputError(f"there is no network {network!r} any more; choose another, or reload the page")
        file = known[network].file()
        return _loaded(file, file.stat().st_mtime_ns)

    def _asked(
        self, network: str, model: str, layer: str | None, tokens: Any, batch: Any, dtype: str, card: str, mode: str
    ) -> tuple[tuple[HypernetworkMLP, HypernetworkMLP], int, int, dict[str, Any]]:
        """The arguments of ``compare``, without the card.

        Raises:
            ValueError: something cannot be used.
        """
        shape = self._shapes(model).get(layer or "")
        if shape is None:
            raise InputError(f"no layer of {model} is chosen in which the network acts; choose one")
        for name, number in (("tokens", tokens), ("pictures", batch)):
            if type(number) is not int or not 1 <= number <= _MOST_ROWS:
                raise InputError(f"{name} must be an integer from 1 to {_MOST_ROWS}, not {number!r}")
        if tokens * batch > _MOST_ROWS:
            raise InputError(f"{tokens} tokens of {batch} pictures are more than {_MOST_ROWS} rows; give fewer")
        net = self._network(network, shape.width)
        how = {"train": mode == _TRAINING, "dtype": _DTYPES[dtype]}
        return net[shape.width], tokens * batch, shape.out_features, how

    def _explained(self, *chosen: Any) -> list[Any]:
        try:
            mlps, rows, out_features, how = self._asked(*chosen)
            compared = compare(mlps, rows, out_features, **how, target=_CARDS[chosen[6]])
        except (ValueError, OSError, CheckpointError, AdapterError) as error:
            return [refused(error), "", "", "", ""]
        return [
            _words(compared, chosen[6]),
            _pictures(compared, chosen[6]),
            _table("What hnkernels launches, counted", _passes(compared)),
            _table("What eager PyTorch launches, counted", [("", compared.eager.launches)]),
            "",
        ]

    @said
    def _measured(self, *chosen: Any) -> str:
        mlps, rows, out_features, how = self._asked(*chosen)
        ours, eager = measure(mlps, rows, out_features, **how)
        return (
            f"Measured on {torch.cuda.get_device_name()}: {time(ours)} by {_OURS}, {time(eager)} by {_EAGER}, "
            f"{eager / ours:.2f} times as long; medians of runs in turns."
        )


@lru_cache(8)
def _loaded(file: Path, modified: int) -> Hypernetwork:
    return load_hypernetwork(file)


def _words(compared: Comparison, card: str) -> str:
    ours, eager = compared.ours, compared.eager
    text = (
        f"Counted: {_plural(len(ours.launches), 'launch')} instead of {len(eager.launches)}, "
        f"{size(ours.bytes_moved)} moved instead of {size(eager.bytes_moved)}"
    )
    if compared.saved[1]:
        text += f", {size(compared.saved[0])} kept for the backward pass instead of {size(compared.saved[1])}"
    if compared.seconds is None:
        return f"{text}. For fp32 no time is modelled."
    least, most = map(time, compared.seconds)
    return f"{text}. Modelled by the data sheet of {escape(card)}: at least {least} instead of {most}."


def _pictures(compared: Comparison, card: str) -> str:
    both = ((_OURS, compared.ours.launches, 0), (_EAGER, compared.eager.launches, 1))

    def figure(title: str, said: Any, amount: Any) -> str:
        drawn = [Bar(who, [(_name(one), float(amount(one))) for one in some], colour) for who, some, colour in both]
        return bars(title, drawn, said)

    figures = [
        figure("Bytes read and written, counted", size, lambda one: one.bytes_read + one.bytes_written),
        figure("Operations of the products, counted", operations, lambda one: one.flops),
        figure("Launches, counted", lambda n: f"{n:.0f}", lambda one: 1),
    ]
    if compared.seconds is not None:
        both_times = zip((_OURS, _EAGER), compared.seconds, strict=True)
        drawn = [Bar(who, [("all launches", seconds)], n) for n, (who, seconds) in enumerate(both_times)]
        figures.append(bars(f"Least time on {card}, modelled", drawn, time))
    return f'<div class="curves">{"".join(figures)}</div>'


def _passes(compared: Comparison) -> list[tuple[str, Sequence[Launch]]]:
    ours = compared.ours
    return [("forward", ours.forward), ("backward", ours.backward)] if ours.backward else [("", ours.forward)]


def _table(caption: str, passes: Sequence[tuple[str, Sequence[Launch]]]) -> str:
    heads = ("Launch", "Tiles", "Programs", "Operations", "Read", "Written", "Computed by")
    rows = []
    for name, launches in passes:
        if name:
            rows.append(f'<tr><th scope="rowgroup" colspan="{len(heads)}">{name}</th></tr>')
        for one in launches:
            tiles = one.tiles
            cells = (
                _name(one),
                f"{tiles.block_m} × {tiles.block_n} × {tiles.block_k}" if tiles else "",
                f"{one.programs:,}" if tiles else "",
                operations(one.flops) if one.flops else "",
                size(one.bytes_read),
                size(one.bytes_written),
                one.why,
            )
            rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    title = f'<caption style="text-align:left;font-weight:600">{caption}</caption>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _name(one: Launch) -> str:
    return one.kernel.removesuffix("_kernel").removeprefix("aten.").replace("_", " ")


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}es"
