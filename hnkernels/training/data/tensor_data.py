"""Training data that is encoded already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Generator, Tensor

from hnkernels.errors import InputError
from hnkernels.training.objective import stacked


class TensorData:
    """Training data that is encoded already, for a UNet without its pipeline.

    Args:
        rows: mappings with ``latents`` [C, h, w], scaled as the UNet expects them, and ``encoder_hidden_states``
            [tokens, d]; and whatever else ``train_hypernetwork`` or the loss takes, one row each: ``condition``, say.
        denoises: whether latents and embeddings are needed; else ``condition`` is.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], denoises: bool = True):
        needed = {"latents", "encoder_hidden_states"} if denoises else {"condition"}
        for row in rows:
            if not needed <= set(row):
                names = " and ".join(map(repr, sorted(needed, reverse=True)))
                raise InputError(f"encoded data needs {names}, found {sorted(row)}")
            if set(row) != set(rows[0]):
                raise InputError(f"all rows need the same keys, found {sorted(rows[0])} and {sorted(row)}")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> list[Any]:
        """What rows must have in common to make a batch: the forms of their tensors."""
        return [tuple(tuple(t.shape) for t in row.values() if isinstance(t, Tensor)) for row in self.rows]

    def repeats(self) -> list[int]:
        """How often every row comes in an epoch: once."""
        return [1] * len(self.rows)

    def batch(self, indices: Sequence[int], generators: Sequence[Generator]) -> dict[str, Any]:
        """Latents [B, C, h, w], embeddings [B, tokens, d] and the rest of these rows."""
        return {key: stacked([self.rows[i][key] for i in indices]) for key in self.rows[0]}

    def plain_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same with nothing drawn, as it is in rows anyway."""
        return self.batch(indices, [])
