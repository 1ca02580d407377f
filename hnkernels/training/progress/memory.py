"""How much memory a run takes."""

from __future__ import annotations

import torch


def memory_gb(device: torch.device) -> float:
    """Gigabytes, of 10⁹ bytes: on a GPU the most that PyTorch has allocated at once, elsewhere what the process holds.

    The device is not waited for.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import psutil  # for a run alone, and not where settings are only looked at

    return psutil.Process().memory_info().rss / 1e9
