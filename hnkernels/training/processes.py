"""Several processes that train one network together, as accelerate starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.errors import InputError


class Processes:
    """The processes of a run: one without an ``Accelerator``.

    Args:
        accelerator: accelerate's, which knows the others; ``None`` for a process alone.

    Attributes:
        rank: this one's number.
        count: how many there are.
    """

    def __init__(self, accelerator: Any = None):
        self.accelerator = accelerator
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self.count = 1 if accelerator is None else int(accelerator.num_processes)

    @classmethod
    def of(cls, accelerator: Any = None) -> Processes:
        """The processes of an ``Accelerator``, or those that ``accelerate launch`` or ``torchrun`` started.

        Raises:
            ValueError: several were started, and the ``Accelerator`` does not know of them.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator is None and started > 1:
            from accelerate import Accelerator

            accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        if accelerator is not None and accelerator.num_processes == 1 < started:
            raise InputError(
                f"{started} processes were started and this Accelerator knows of one; where there are no GPUs, make it "
                "with Accelerator(cpu=True)"
            )
        return cls(accelerator)

    @property
    def device(self) -> torch.device | None:
        """Where this process's model belongs; ``None`` if that is the program's choice."""
        return None if self.accelerator is None else torch.device(self.accelerator.device)

    @property
    def main(self) -> bool:
        """Whether this one writes what the run keeps."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of the items: consecutive ones, as many as the others have or one less."""
        return [items[i] for i in range(*self.bounds(len(items)))]

    def bounds(self, count: int) -> tuple[int, int]:
        """Where this process's part of as many items begins and ends."""
        return count * self.rank // self.count, count * (self.rank + 1) // self.count

    def add_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """Adds up the gradients of all processes, in place, and further numbers [n], in one transfer."""
        if self.count == 1:
            return numbers
        own = [p for p in parameters if p.requires_grad]
        for p in own:
            if p.grad is None:  # every process must send as many numbers, also one without examples
                p.grad = torch.zeros_like(p)
        pieces = [p.grad.flatten() for p in own if p.grad is not None]
        flat = torch.cat([*pieces, numbers.to(pieces[0])])
        torch.distributed.all_reduce(flat)
        start = 0
        for p in own:
            assert p.grad is not None
            p.grad.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()
        return flat[start:]

    def all_of(self, value: Any) -> list[Any]:
        """What every process has for this, in their order. Any value that can be pickled."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def wait(self) -> None:
        """Until all have come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


ALONE = Processes()
"""One process, which is all there is."""
