"""The GPUs that can be planned for without being here, by the names that people know them by."""

from __future__ import annotations

from collections.abc import Mapping

from hnkernels.errors import InputError
from hnkernels.wording import shown

GPUS: Mapping[str, str] = {
    "A100": "sm_80",
    "RTX 3090": "sm_86",
    "RTX 4090": "sm_89",
    "H100": "sm_90",
    "B200": "sm_100",
    "RTX 5090": "sm_120",
    "MI300X": "gfx942",
    "RX 7900 XTX": "gfx1100",
}
"""Name → architecture, as ``explain(target=…)`` takes it."""


def gpu_named(text: str) -> str:
    """The name in ``GPUS`` for a name or an architecture, however it is spelt: ``"rtx4090"``, ``"sm_89"``.

    Raises:
        InputError: it is none of them; names them.
    """
    spelt = _spelling(text)
    for name, target in GPUS.items():
        if spelt in (_spelling(name), _spelling(target)):
            return name
    raise InputError(f"no figures are known of the GPU {shown(text)}; known are {', '.join(GPUS)}")


def _spelling(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())
