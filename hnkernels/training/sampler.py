"""Which examples a step sees."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Generator


class Sampler:
    """The examples of every step, as a function of the seed and the step's number alone.

    In an epoch every example comes as often as it is repeated, in an order of that epoch. The examples of a batch are
    of one group (pictures of one size); the last batch of a group may be smaller. With examples for prior preservation
    a batch has as many of these as others, of the same group, if there are any.

    Args:
        groups: of every example.
        own: the examples to train on.
        batch_size: examples per batch, over all processes.
        accumulation: batches per step.
        seed: of the run.
        repeats: how often every example comes in an epoch; once without it.
        prior: the examples for prior preservation.
    """

    def __init__(
        self,
        groups: Sequence[Hashable],
        own: Sequence[int],
        batch_size: int,
        accumulation: int,
        seed: int,
        repeats: Sequence[int] | None = None,
        prior: Sequence[int] = (),
    ):
        self._groups, self._size, self._accumulation, self._seed = groups, batch_size, accumulation, seed
        self._uses = [i for i in own for _ in range(1 if repeats is None else repeats[i])]
        self._prior = defaultdict(list)
        for i in prior:
            self._prior[groups[i]].append(i)
        sizes = Counter(groups[i] for i in self._uses)
        batches = sum(math.ceil(count / batch_size) for count in sizes.values())
        self.steps_per_epoch = math.ceil(batches / accumulation)
        self._epoch, self._batches = -1, list[list[int]]()

    def step(self, number: int) -> list[list[int]]:
        """The examples of the step with this number (from 0), batch by batch."""
        epoch, position = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._of_epoch(epoch)
        start = position * self._accumulation
        return self._batches[start : start + self._accumulation]

    def _of_epoch(self, epoch: int) -> list[list[int]]:
        generator = generator_of(self._seed, "epoch", epoch)
        by_group: dict[Hashable, list[int]] = defaultdict(list)
        for place in torch.randperm(len(self._uses), generator=generator).tolist():
            by_group[self._groups[self._uses[place]]].append(self._uses[place])
        batches = [
            self._with_prior(epoch, group, members[i : i + self._size], i)
            for group, members in by_group.items()
            for i in range(0, len(members), self._size)
        ]
        if len(by_group) == 1:
            return batches
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _with_prior(self, epoch: int, group: Hashable, batch: list[int], start: int) -> list[int]:
        """The batch, and as many examples for prior preservation after it."""
        others = self._prior.get(group)
        if not others:
            return batch
        order = torch.randperm(len(others), generator=generator_of(self._seed, "prior", epoch)).tolist()
        return [*batch, *(others[order[i % len(order)]] for i in range(start, start + len(batch)))]


def generator_of(seed: int, *purpose: str | int) -> Generator:
    """A generator for one purpose, independent of every other one's."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
