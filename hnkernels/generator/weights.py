"""What a weight hypernetwork makes of its conditions: low-rank factors for every layer, one set per condition."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hnkernels.convert.merging import check_number
from hnkernels.errors import InputError
from hnkernels.generator import files
from hnkernels.generator.algebra import at_full_rank, at_least_fp32, recompressed, squared_norms
from hnkernels.generator.blocks import check_count
from hnkernels.generator.targets import Shape, TargetLayer, by_shape, check_selectors, fits
from hnkernels.ops.checks import HIGHEST_RANK


class GeneratedWeights:
    """Low-rank weights for the attention projections of a model: G sets of them, ``ΔW = scale · B A`` at each layer.

    What the methods return shares the factors where it can; nothing is changed in place.

    Args:
        layers: what the weights are for.
        groups: by shape (n, d, r) the factors of all layers of that shape, in their order: a [layers, G, r, d] and b
            [layers, G, n, r], contiguous, of one floating dtype on one device.
        scales: layer name → [G]; a layer that is not there has scale 1.
        index: [S] integers below G, which set serves which row of a batch; ``None`` where every set serves as
            many consecutive rows.

    Attributes:
        layers: as given.
        index: as given, int64.

    Raises:
        ValueError: the groups are not those of the layers.
    """

    def __init__(
        self,
        layers: Sequence[TargetLayer],
        groups: Mapping[Shape, tuple[Tensor, Tensor]],
        scales: Mapping[str, Tensor] | None = None,
        index: Tensor | None = None,
    ):
        self.layers = tuple(layers)
        self._groups = dict(groups)
        self._scales = dict(scales or {})
        self.index = index
        shapes = by_shape(self.layers)
        if not shapes or shapes.keys() != self._groups.keys():
            raise InputError(f"the groups are of the shapes {list(self._groups)}, the layers of {list(shapes)}")
        self._places = {layer.name: (shape, i) for shape, group in shapes.items() for i, layer in enumerate(group)}
        for shape, (a, b) in self._groups.items():
            n, d, rank = shape
            count = len(shapes[shape])
            if a.shape != (count, self.sets, rank, d) or b.shape != (count, self.sets, n, rank):
                raise InputError(
                    f"the factors of {count} layers [{n}, {d}] must be [{count}, G, {rank}, {d}] and [{count}, G, {n}, "
                    f"{rank}] with the same G everywhere, not {list(a.shape)} and {list(b.shape)}"
                )

    @classmethod
    def from_factors(
        cls, layers: Sequence[TargetLayer], factors: Mapping[str, tuple[Tensor, Tensor]], index: Tensor | None = None
    ) -> GeneratedWeights:
        """Those with these factors, copied: layer name → a [G, r, d] and b [G, n, r]."""
        groups = {
            shape: (
                torch.stack([factors[layer.name][0] for layer in group]),
                torch.stack([factors[layer.name][1] for layer in group]),
            )
            for shape, group in by_shape(layers).items()
        }
        return cls(layers, groups, index=index)

    @property
    def sets(self) -> int:
        """G, the number of sets: one per condition."""
        return next(iter(self._groups.values()))[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors. Scales are in fp32 or wider."""
        return next(iter(self._groups.values()))[0].dtype

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return next(iter(self._groups.values()))[0].device

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The factors of a layer, a [G, r, d] and b [G, n, r]: contiguous views."""
        shape, i = self._place(name)
        a, b = self._groups[shape]
        return a[i], b[i]

    def scales(self, name: str) -> Tensor | None:
        """The scale of a layer, [G]; ``None`` for 1."""
        self._place(name)
        return self._scales.get(name)

    def _place(self, name: str) -> tuple[Shape, int]:
        if name not in self._places:
            raise KeyError(f"no weights for {name!r}; there are {len(self.layers)} layers, see .layers")
        return self._places[name]

    def scaled(self, value: float | Tensor | Mapping[str, float | Tensor]) -> GeneratedWeights:
        """These weights with a further factor on their scales.

        Args:
            value: a number; a tensor [G], one per set; or selector → one of these, for the layers that the selector
                fits (``targets.fits``). Where several fit they multiply.

        Raises:
            ValueError: a selector fits no layer, or a value is not as described.
        """
        table = value if isinstance(value, Mapping) else {"*": value}
        check_selectors(table, self.layers, "the scale")
        scales = dict(self._scales)
        for selector, factor in table.items():
            factor = self._scale_of(factor)
            for layer in self.layers:
                if fits(layer, selector):
                    before = scales.get(layer.name)
                    scales[layer.name] = factor if before is None else before * factor
        return self._with(scales=scales)

    def _scale_of(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            check_number("a scale", value)
            wide = torch.promote_types(self.dtype, torch.float32)
            return torch.full((self.sets,), float(value), dtype=wide, device=self.device)
        if not value.is_floating_point() or value.shape not in ((), (self.sets,)):
            raise InputError(
                f"a scale must be a number or a floating-point tensor [{self.sets}], one per set, not {value.dtype} "
                f"{list(value.shape)}"
            )
        return at_least_fp32(value).to(self.device).expand(self.sets)

    def repeat(self, rows: int) -> GeneratedWeights:
        """These weights for a batch in which every set (every entry of the index, if there is one) serves ``rows``
        consecutive rows, as ``num_images_per_prompt`` makes it."""
        check_count("rows", rows, 1)
        index = torch.arange(self.sets, device=self.device) if self.index is None else self.index
        return self._with(index=index.repeat_interleave(rows))

    def with_index(self, index: Tensor | Sequence[int] | None) -> GeneratedWeights:
        """These weights with ``index[s]`` as the set that serves row s of a batch; ``None`` takes the index away.

        Raises:
            ValueError: the index is not [S] integers from 0 to G - 1.
        """
        if index is None:
            return self._with(index=None)
        given = torch.as_tensor(index, device=self.device)
        whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
        if given.numel() == 0:
            given, whole = given.long(), True
        if (
            given.ndim != 1
            or not whole
            or (given.numel() and not 0 <= int(given.min()) <= int(given.max()) < self.sets)
        ):
            raise InputError(f"index must be [S] integers from 0 to {self.sets - 1}, not {index!r}")
        return self._with(index=given.long())

    def __len__(self) -> int:
        return self.sets

    def __getitem__(self, which: Any) -> GeneratedWeights:
        """Some of the sets: a number, a slice, numbers or a mask, as for a tensor. They have no index any more.

        Raises:
            IndexError: there is no such set.
        """
        chosen = torch.arange(self.sets, device=self.device)[which].reshape(-1)
        return GeneratedWeights(
            self.layers,
            {shape: (a.index_select(1, chosen), b.index_select(1, chosen)) for shape, (a, b) in self._groups.items()},
            {name: scale[chosen] for name, scale in self._scales.items()},
        )

    def __iter__(self) -> Iterator[GeneratedWeights]:
        return (self[i] for i in range(self.sets))

    def dense(self, name: str | None = None) -> Any:
        """ΔW of a layer, [G, n, d], scale included; without a name, a dict of all layers'."""
        if name is None:
            return {layer.name: self.dense(layer.name) for layer in self.layers}
        a, b = self._folded(name)
        return b @ a

    def _folded(self, name: str) -> tuple[Tensor, Tensor]:
        """The factors of a layer, the scale in b."""
        a, b = self.factors(name)
        scale = self._scales.get(name)
        return a, b if scale is None else (b * scale[:, None, None]).to(b.dtype)

    def norms(self) -> dict[str, Tensor]:
        """The Frobenius norm of every layer's ΔW, [G] each in fp32 or wider, scale included; differentiable, with
        gradient 0 where ΔW is 0. ΔW itself is not formed."""
        return {name: _root(square) for name, square in self._squares().items()}

    def _squares(self) -> dict[str, Tensor]:
        groups = {shape: squared_norms(a, b) for shape, (a, b) in self._groups.items()}  # [layers, G]
        squares = {}
        for layer in self.layers:
            shape, i = self._places[layer.name]
            scale = self._scales.get(layer.name)
            squares[layer.name] = groups[shape][i] if scale is None else groups[shape][i] * scale.square()
        return squares

    def penalty(self, l1: float = 0.0, l2: float = 0.0) -> Tensor:
        """A term for the loss that keeps the weights small: ``l1·mean|factors| + l2·mean ΔW²``.

        Args:
            l1: weight of the mean absolute value of the factors of all layers and sets, scales left out.
            l2: weight of the mean square of the entries of ΔW of all layers and sets, scales included.

        Returns:
            One number in fp32 or wider, differentiable; 0 where there are no sets.
        """
        check_number("l1", l1)
        check_number("l2", l2)
        total = torch.zeros((), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        if l1:
            values = [at_least_fp32(t) for pair in self._groups.values() for t in pair]
            total = total + l1 * sum(v.abs().sum() for v in values) / max(sum(v.numel() for v in values), 1)
        if l2:
            entries = self.sets * sum(layer.out_features * layer.in_features for layer in self.layers)
            total = total + l2 * sum(square.sum() for square in self._squares().values()) / max(entries, 1)
        return total

    def interpolate(self, other: GeneratedWeights, t: float, rank: int | None = None) -> GeneratedWeights:
        """The weights with ``ΔW = (1 - t)·ΔW₁ + t·ΔW₂``, scales included.

        Args:
            other: weights of as many sets for the same layers, ranks aside, and with the same index.
            t: 0 gives these, 1 the other; values beyond extrapolate.
            rank: ``None`` is exact: the ranks of the two add up (to the smaller side of the layer at most). A number
                cuts every layer above it to the best approximation of that rank, which carries no gradient.

        Returns:
            Weights without scales.

        Raises:
            ValueError: the layers, the number of sets or the indices differ, an argument is outside its range, or the
                exact rank is above 64 and none is given.
        """
        check_number("t", t)
        if rank is not None:
            check_count("rank", rank, 1, HIGHEST_RANK)
        self._check_alike(other)
        layers, factors = [], {}
        for layer in self.layers:
            (a1, b1), (a2, b2) = self._folded(layer.name), other._folded(layer.name)
            a, b = torch.cat([a1, a2], dim=1), torch.cat([(1 - t) * b1, t * b2], dim=2)
            exact, side = a.shape[1], min(layer.shape[:2])
            if rank is not None and min(exact, side) > rank:
                a, b = recompressed(a, b, rank)
            elif side <= HIGHEST_RANK and exact > side:
                a, b = at_full_rank(a, b)
            elif exact > HIGHEST_RANK:
                raise InputError(
                    f"the exact rank at {layer.name} is {exact}, above {HIGHEST_RANK}; give a rank, at which it is cut"
                )
            layers.append(replace(layer, rank=a.shape[1]))
            factors[layer.name] = a, b
        return GeneratedWeights.from_factors(layers, factors, self.index)

    def _check_alike(self, other: GeneratedWeights) -> None:
        if not isinstance(other, GeneratedWeights):
            raise InputError(f"other must be GeneratedWeights, not {type(other).__name__}")
        mine, theirs = ({(x.name, *x.shape[:2]) for x in weights.layers} for weights in (self, other))
        if mine != theirs:
            name, n, d = min(mine ^ theirs)
            side = "these weights" if (name, n, d) in mine else "the other weights"
            raise InputError(f"the weights are for different layers: only {side} have {name} [{n}, {d}]")
        if self.sets != other.sets:
            raise InputError(f"the weights have {self.sets} and {other.sets} sets; select as many of both")
        first, second = (None if w.index is None else w.index.tolist() for w in (self, other))
        if first != second:
            raise InputError("the weights have different indices; interpolate first, then give the result an index")

    def to_lora_state_dict(self, i: int = 0, prefix: str = "unet") -> dict[str, Tensor]:
        """Set i as an ordinary LoRA of diffusers and PEFT; at weight 1 it does what the set does.

        Args:
            i: which set.
            prefix: the part of the pipeline that has the layers: ``"unet"``, or ``"transformer"``.

        Returns:
            What ``pipeline.load_lora_weights`` takes, fp32 on the CPU: ``<prefix>.<layer>.lora_A.weight`` [r, d] and
            ``lora_B.weight`` [n, r], the scale in the latter. r is the largest rank of all layers; others are padded
            with zeros, since without an alpha each, readers take every layer's for the same.

        Raises:
            IndexError: there is no such set.
        """
        chosen = self.detach()[i].to("cpu", torch.float32)
        rank = max(layer.rank for layer in self.layers)
        state = {}
        for layer in chosen.layers:
            a, b = chosen._folded(layer.name)
            missing = rank - layer.rank
            state[f"{prefix}.{layer.name}.lora_A.weight"] = pad(a[0], (0, 0, 0, missing)).clone()
            state[f"{prefix}.{layer.name}.lora_B.weight"] = pad(b[0], (0, missing)).clone()
        return state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with everything, index and scales included, whole or not at all.

        Raises:
            CheckpointError: it cannot be written, or the weights are not finite.
        """
        tensors = {}
        for (n, d, rank), pair in self._groups.items():
            for side, factor in zip("ab", pair, strict=True):
                tensors[f"{side}.{n}x{d}x{rank}"] = factor
        tensors.update({f"scale.{name}": scale for name, scale in self._scales.items()})
        if self.index is not None:
            tensors["index"] = self.index
        files.write(path, files.WEIGHTS, {"layers": files.layers_to_json(self.layers)}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GeneratedWeights:
        """Reads what ``save`` wrote, onto the CPU; nothing in the file is executed.

        Raises:
            CheckpointError: the file is missing, damaged, of another kind, or contradicts itself.
        """
        return files.read(path, files.WEIGHTS, cls._parse)

    @classmethod
    def _parse(cls, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> GeneratedWeights:
        layers = files.layers_from_json(content.get("layers"))
        groups, scales = {}, {}
        for n, d, rank in by_shape(layers):
            a, b = (tensors.pop(f"{side}.{n}x{d}x{rank}", None) for side in "ab")
            if a is None or b is None or a.dtype != b.dtype or a.dtype not in files.DTYPES or a.ndim != 4:
                raise InputError(f"the factors of the layers [{n}, {d}] are missing or no factors")
            groups[n, d, rank] = a, b
        if len({a.dtype for a, _ in groups.values()}) != 1:
            raise InputError("the factors are of several dtypes")
        index = tensors.pop("index", None)
        weights = cls(layers, groups)
        for layer in layers:
            scale = tensors.pop(f"scale.{layer.name}", None)
            if scale is not None:
                if scale.dtype not in files.DTYPES or scale.shape != (weights.sets,):
                    raise InputError(f"the scale of {layer.name} is not one number per set")
                scales[layer.name] = scale
        if tensors:
            raise InputError(f"there is the foreign tensor {min(tensors)!r}")
        return weights._with(scales=scales).with_index(index)

    def to(self, *args: Any, **kwargs: Any) -> GeneratedWeights:
        """These weights on another device, or in another floating dtype; arguments as of ``torch.Tensor.to``. Scales
        keep their dtype.

        Raises:
            ValueError: the dtype is not a floating one.
        """
        groups = {shape: (a.to(*args, **kwargs), b.to(*args, **kwargs)) for shape, (a, b) in self._groups.items()}
        moved = GeneratedWeights(self.layers, groups)
        if not moved.dtype.is_floating_point:
            raise InputError(f"weights must have a floating dtype, not {moved.dtype}")
        scales = {name: scale.to(moved.device) for name, scale in self._scales.items()}
        return moved._with(scales=scales, index=None if self.index is None else self.index.to(moved.device))

    def detach(self) -> GeneratedWeights:
        """These weights without their history."""
        groups = {shape: (a.detach(), b.detach()) for shape, (a, b) in self._groups.items()}
        return self._with(groups=groups, scales={name: scale.detach() for name, scale in self._scales.items()})

    def _with(self, **changed: Any) -> GeneratedWeights:
        kept = {"groups": self._groups, "scales": self._scales, "index": self.index}
        return GeneratedWeights(self.layers, **{**kept, **changed})

    def __repr__(self) -> str:
        ranks = sorted({layer.rank for layer in self.layers})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        rows = "" if self.index is None else f", for {len(self.index)} rows"
        dtype = str(self.dtype).removeprefix("torch.")
        sets = "1 set" if self.sets == 1 else f"{self.sets} sets"
        return f"GeneratedWeights({sets} for {len(self.layers)} layers, {rank}, {dtype} on {self.device}{rows})"


def _root(square: Tensor) -> Tensor:
    """√square with gradient 0 at 0, where the root's own is infinite."""
    positive = square > 0
    return torch.where(positive, square.where(positive, 1).sqrt(), 0)
