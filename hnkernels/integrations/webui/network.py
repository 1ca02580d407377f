"""What ``<hypernet:…>`` in a prompt means while the extension is on: the web UI's own class, replaced and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import extra_networks, script_callbacks, shared  # the web UI's own

from hnkernels.integrations.webui import settings
from hnkernels.integrations.webui.acting import Acting
from hnkernels.integrations.webui.files import Files, Use
from hnkernels.integrations.webui.session import Session

KIND = "hypernet"
HASHES = "Hypernetwork hashes"

SESSION = Session(Files(settings.hypernetworks()))
"""The web UI has one model, and so there is one of this."""


@contextmanager
def commented(p: Any) -> Iterator[None]:
    """Says what goes wrong inside below the picture as well: the web UI prints an error, and draws without."""
    try:
        yield
    except Exception as error:
        p.comment(f"hnkernels: {error}")
        raise


class Network(extra_networks.ExtraNetwork):
    """Lets the session apply the hypernetworks of a prompt.

    Args:
        replaced: what stood in its place, which is put back when the extension is switched off.
    """

    def __init__(self, replaced: Any):
        super().__init__(KIND)
        self.replaced = replaced

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Called by the web UI before every batch, without parameters where the prompt names no hypernetwork."""
        acting = getattr(p, "hnkernels", Acting())
        SESSION.end()
        if acting is None:  # the panel said something that cannot be, and the picture says so
            return
        if p.all_prompts is None:  # not a picture: the web UI has loaded a model, and encodes an empty prompt
            return
        with commented(p):
            uses = [Use.of(params.items) for params in params_list]
            always = shared.opts.sd_hypernetwork
            if always not in ("None", "") and all(use.name != always for use in uses):
                strength = shared.opts.extra_networks_default_multiplier
                uses.append(Use(always, strength))
                p.all_prompts = [f"{prompt}<{KIND}:{always}:{strength}>" for prompt in p.all_prompts]
            hashes = SESSION.begin(uses, acting, p.sd_model)
        if hashes:
            p.extra_generation_params[HASHES] = ", ".join(f"{name}: {value}" for name, value in hashes.items())

    def deactivate(self, p: Any) -> None:
        """Called by the web UI after the last batch."""
        SESSION.end()


def follow_setting() -> None:
    """Puts the class into the web UI's registry, or takes it out, as the setting says."""
    registry = extra_networks.extra_network_registry
    there = registry.get(KIND)
    if settings.enabled() and not isinstance(there, Network):
        shared.loaded_hypernetworks.clear()  # those that the web UI has loaded for the last prompt, and would apply
        extra_networks.register_extra_network(Network(there))
    elif not settings.enabled() and isinstance(there, Network):
        SESSION.end()
        if there.replaced is None:
            del registry[KIND]
        else:
            registry[KIND] = there.replaced


def follow_step(params: script_callbacks.CFGDenoiserParams) -> None:
    """Called by the web UI before every call of the UNet."""
    if settings.enabled():
        SESSION.step(shared.sd_model, params.sampling_step, params.total_sampling_steps)
