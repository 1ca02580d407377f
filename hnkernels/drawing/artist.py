"""Draws, one request at a time, with a pipeline that stays loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hnkernels import pipeline as pipelines
from hnkernels.adapter import WeightAdapter, attach
from hnkernels.convert.survey import model_without_weights
from hnkernels.drawing.networks import Net, Networks, check_fit
from hnkernels.drawing.request import DrawRequest
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.training.data.text_encoder import text_embedding

_LOOK = 0.1  # seconds between two looks at whether one who waits is still to wait


class Stopped(Exception):
    """Somebody did not want the picture any more."""


@dataclass(frozen=True)
class Progress:
    """How far a picture has come.

    Attributes:
        step, steps: denoising steps done, and all.
        preview: draws what there is so far, which takes about as long as a step; nothing where that is not known.
    """

    step: int
    steps: int
    preview: Callable[[], list[Image.Image]]


class Artist:
    """Draws what is asked, from whichever thread, one after the other.

    Args:
        device: where the model goes; ``None`` for the GPU if there is one.
    """

    def __init__(self, device: Any = None):
        self._device = device
        self._turn = threading.RLock()
        self._networks = Networks()
        self._model: Path | None = None
        self._pipeline: Any = None

    @contextmanager
    def turn(self, stop: threading.Event | None = None, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Within it, nobody else draws.

        Args:
            stop: set from another thread, ends the wait.
            waiting: called once if another drawing has the turn.

        Raises:
            Stopped: ``stop`` was set.
        """
        if not self._turn.acquire(blocking=False):
            waiting()
            while not self._turn.acquire(timeout=_LOOK):
                _check(stop)
        try:
            _check(stop)
            yield
        finally:
            self._turn.release()

    def draw(
        self,
        request: DrawRequest,
        stop: threading.Event | None = None,
        progress: Callable[[Progress], object] = lambda progress: None,
    ) -> list[Image.Image]:
        """The pictures of a request.

        Everything is checked before the model is loaded; its networks are off the model again when it ends, however it
        ends.

        Args:
            request: what to draw.
            stop: set from another thread, ends it after the denoising step at hand.
            progress: called after every step.

        Raises:
            ValueError: the request cannot be drawn, or there is too little memory.
            CheckpointError: a network's file is gone, or cannot be read.
            AdapterError: a network is for another model.
            Stopped: ``stop`` was set.
        """
        request.check()
        with self.turn(stop):
            request = request.called({}, "choose it as well")
            nets = self._networks.of(request.networks)
            pipelines.check_pipeline(request.model)
            if nets and self._model != request.model:
                check_fit(request.networks, nets, model_without_weights(request.model))
            pipeline = self._loaded(request.model)
            _check(stop)
            with attached(pipeline, request, nets), _memory():
                return _drawn(pipeline, request, stop, progress)

    def _loaded(self, model: Path) -> Any:
        if self._model != model:
            self._model = self._pipeline = None  # two would need the memory of two
            pipeline = pipelines.load_pipeline(model, self._device)
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline, self._model = pipeline, model
        return self._pipeline


@contextmanager
def attached(pipeline: Any, request: DrawRequest, nets: list[Net]) -> Iterator[None]:
    """Within it, the networks of a request act on a pipeline as the request says."""
    handles = []
    try:
        for use, net in zip(request.networks, nets, strict=True):
            handle = attach(pipeline, net, use.acting, name=use.name)
            handles.append(handle)
            if isinstance(handle, WeightAdapter):
                assert isinstance(net, WeightHypernetwork)
                with torch.no_grad():
                    condition = dict(use.styles) if use.styles else text_embedding(pipeline, request.text)
                    handle.weights = net.generate_weights(condition)
        yield
    finally:
        for handle in reversed(handles):
            handle.detach()


def _drawn(
    pipeline: Any, request: DrawRequest, stop: threading.Event | None, progress: Callable[[Progress], object]
) -> list[Image.Image]:
    def after_step(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        _check(stop)
        progress(Progress(step + 1, request.steps, lambda: _preview(pipe, given.get("latents"))))
        return given

    sides = {name: side for name in ("width", "height") if (side := getattr(request, name)) is not None}
    return pipeline(
        request.text,
        negative_prompt=request.negative or None,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in request.seeds()],
        num_images_per_prompt=request.batch,
        callback_on_step_end=after_step,
        **sides,
    ).images


@torch.no_grad()
def _preview(pipeline: Any, latents: Any) -> list[Image.Image]:
    vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
    if vae is None or processor is None or getattr(latents, "ndim", 0) != 4:
        return []
    scaled = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return processor.postprocess(vae.decode(scaled.to(vae.dtype), return_dict=False)[0])


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped("stopped")


@contextmanager
def _memory() -> Iterator[None]:
    """Turns want of memory into a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
            raise InputError("there is too little memory for this; draw fewer or smaller pictures at a time") from error
        raise
