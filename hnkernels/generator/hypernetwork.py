"""The weight hypernetwork: from conditions to low-rank weights for a model's attention."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.adapter.strength import PROJECTIONS
from hnkernels.checkpoint.errors import Fault, naming
from hnkernels.checkpoint.metadata import Metadata, provenance, provenance_to_json
from hnkernels.checkpoint.training_metadata import checked
from hnkernels.errors import InputError
from hnkernels.generator import files, targets
from hnkernels.generator.architectures import projections_of
from hnkernels.generator.decoder import HypernetworkDecoder
from hnkernels.generator.encoder import HypernetworkEncoder
from hnkernels.generator.targets import TargetLayer, select_layers
from hnkernels.generator.trunk import WeightGenerator
from hnkernels.generator.weights import GeneratedWeights
from hnkernels.network.hypernetwork import Provenance

_PARTS: dict[str, Any] = {
    "encoder": HypernetworkEncoder,
    "generator": WeightGenerator,
    "decoder": HypernetworkDecoder,
}


class WeightHypernetwork(nn.Module):
    """Generates weights for the attention projections of a model from a condition: text, image features, task, style.

    encoder → latent [B, H] → weight generator → features [layers, B, H] → decoder → low-rank factors, one set per row
    of the batch. At the start all ΔW are exactly 0.

    Args:
        target_layers: selectors of projections, such as ``"attn2"``, ``"down.block_1"`` or ``"*.to_v"``; see
            ``targets.fits``.
        embedding_dim: width of the conditions, for tokens and features.
        hidden_dim: H.
        rank: of the factors, at most 64: one for all layers, or selector → rank, of which the first that fits counts.
            The dense head does without.
        model: ``"sd15"``, ``"sd21"``, ``"sdxl"``, or a diffusers pipeline or module, whose layers are read; it is not
            kept. See ``architectures.projections_of``.
        projections: some of ``"q"``, ``"k"``, ``"v"``, ``"out"``; others are left out.
        head, init, rank_dropout: see ``HypernetworkDecoder``.
        pooling, tasks, styles, latent_norm: see ``HypernetworkEncoder``.
        name: display name, kept in files.
        encoder: a module in place of the encoder, (x, mask) → [B, H].
        generator: a module in place of the weight generator, [B, H] → [layers, B, H].
        decoder: a module in place of the decoder, [layers, B, H] → ``GeneratedWeights``.

    Attributes:
        layers: what weights are generated for, in the order of the data.
        encoder, generator, decoder: the parts.
        provenance: name, training steps and how it was trained, kept in files.

    Raises:
        ValueError: an option is outside its range; the message says which and what is accepted.
    """

    def __init__(
        self,
        target_layers: str | Sequence[str] = ("attn1", "attn2"),
        embedding_dim: int = 768,
        hidden_dim: int = 1024,
        rank: int | Mapping[str, int] = 4,
        *,
        model: Any = "sd15",
        projections: str | Sequence[str] = PROJECTIONS,
        head: str = "lora",
        init: str = "hyperfan-in",
        pooling: str = "perceiver",
        tasks: int = 0,
        styles: Sequence[str] = (),
        latent_norm: bool = True,
        rank_dropout: float = 0.0,
        name: str = "hypernetwork",
        encoder: nn.Module | None = None,
        generator: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        layers = select_layers(projections_of(model), target_layers, rank if head != "dense" else None, projections)
        if encoder is None:
            encoder = HypernetworkEncoder(embedding_dim, hidden_dim, pooling, tasks, styles, latent_norm)
        if generator is None:
            generator = WeightGenerator(hidden_dim, layers)
        if decoder is None:
            decoder = HypernetworkDecoder(hidden_dim, layers, head, init=init, rank_dropout=rank_dropout)
        self._assemble(layers, encoder, generator, decoder, Provenance(name=name))

    def _assemble(
        self,
        layers: tuple[TargetLayer, ...],
        encoder: nn.Module,
        generator: nn.Module,
        decoder: nn.Module,
        provenance: Provenance,
    ) -> None:
        self.layers = layers
        self.provenance = provenance
        self.encoder, self.generator, self.decoder = encoder, generator, decoder
        for part in (generator, decoder):
            if isinstance(part, (WeightGenerator, HypernetworkDecoder)) and part.layers != layers:
                raise InputError(
                    f"the {type(part).__name__} is for other layers or ranks than model, target_layers and rank say; "
                    "build it with those of select_layers"
                )
        widths = {
            type(part).__name__: part.config["hidden_dim"]
            for part in (encoder, generator, decoder)
            if isinstance(part, (HypernetworkEncoder, WeightGenerator, HypernetworkDecoder))
        }
        if len(set(widths.values())) > 1:
            raise InputError(f"the parts have different hidden_dim: {widths}; build them with the same")

    def listing(self) -> str:
        """The layers as a table: path, kind, projection, shape and rank."""
        return targets.listing(self.layers)

    def encode(self, x: Any, mask: Tensor | None = None) -> Tensor:
        """The latents [B, H] of a batch of conditions; see ``HypernetworkEncoder.forward`` for what they may be."""
        return self.encoder(x, mask)

    def generate_weights(
        self, x: Any = None, mask: Tensor | None = None, *, latent: Tensor | None = None
    ) -> GeneratedWeights:
        """The weights for a batch of conditions, one set per row.

        Args:
            x, mask: the conditions; see ``HypernetworkEncoder.forward``.
            latent: [B, H] instead, what ``encode`` gave, or a mixture of such.

        Raises:
            ValueError: neither or both are given, or what is given is not as described.
        """
        if (x is None) == (latent is None) or (mask is not None and x is None):
            raise InputError("give either conditions x, with a mask if need be, or a latent")
        if latent is None:
            latent = self.encode(x, mask)
        weights = self.decoder(self.generator(latent))
        if not isinstance(weights, GeneratedWeights):
            raise InputError(f"the decoder must return GeneratedWeights, not {type(weights).__name__}")
        return weights

    def forward(self, x: Any = None, mask: Tensor | None = None, *, latent: Tensor | None = None) -> GeneratedWeights:
        """The same as ``generate_weights``."""
        return self.generate_weights(x, mask, latent=latent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything into one safetensors file, whole or not at all.

        Raises:
            CheckpointError: it cannot be written; a part is a class of one's own, which a file cannot rebuild; or
                parameters are NaN, infinite, without data or of several dtypes.
        """
        with naming(path):
            for part, kind in _PARTS.items():
                if type(getattr(self, part)) is not kind:
                    raise Fault(
                        f"cannot hold the {part}, a {type(getattr(self, part)).__name__}, which is not hnkernels' own",
                        "save the state_dict() and build the parts again yourself",
                    )
            content: dict[str, Any] = {part: getattr(self, part).config for part in _PARTS}
            content |= {"layers": files.layers_to_json(self.layers), "provenance": provenance_to_json(self.provenance)}
            training = checked(self.provenance.training)
            tensors = self.state_dict()
            try:
                self._parse(content, dict(tensors))
            except (ValueError, RuntimeError) as error:
                what = str(error).partition("\n")[0][:300]
                raise Fault(f"could not be read back: {what}", "undo the change to the parts") from error
        files.write(path, files.NETWORK, content, tensors, training)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightHypernetwork:
        """Reads what ``save`` wrote, onto the CPU and in eval mode; nothing in the file is executed.

        Raises:
            CheckpointError: the file is missing, damaged, hostile, of another kind, or contradicts itself.
        """
        return files.read(path, files.NETWORK, cls._parse).eval()

    @classmethod
    def _parse(cls, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> WeightHypernetwork:
        layers = files.layers_from_json(content.get("layers"))
        options: dict[str, Any] = {part: content.get(part) for part in (*_PARTS, "provenance")}
        for part, values in options.items():
            if not isinstance(values, dict):
                raise InputError(f"it says nothing of the {part}")
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) != 1 or not dtypes <= set(files.DTYPES):
            raise InputError(f"the parameters must be of one floating dtype, not of {sorted(map(str, dtypes))}")
        with torch.device("meta"):  # what the file claims is not allocated before it is seen to be there
            encoder = HypernetworkEncoder(**options["encoder"])
            generator = WeightGenerator(layers=layers, **options["generator"])
            decoder = HypernetworkDecoder(layers=layers, **options["decoder"])
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        origin = Metadata(options["provenance"])
        name = origin.text("name", "hypernetwork")
        net._assemble(layers, encoder, generator, decoder, provenance(origin, name, content.get("training")))
        expected = net.state_dict()
        for name in sorted(expected.keys() ^ tensors.keys()):
            raise InputError(f"the tensor {name!r} is {'missing' if name in expected else 'foreign'}")
        for name, parameter in expected.items():
            if parameter.shape != tensors[name].shape:
                raise InputError(f"{name} is {list(tensors[name].shape)}, and must be {list(parameter.shape)}")
        net.load_state_dict(tensors, assign=True)
        return net
