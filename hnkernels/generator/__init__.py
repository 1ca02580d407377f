"""The weight hypernetwork: condition → encoder → latent → weight generator → decoder → low-rank weights."""

from hnkernels.generator.decoder import HypernetworkDecoder
from hnkernels.generator.encoder import HypernetworkEncoder
from hnkernels.generator.hypernetwork import WeightHypernetwork
from hnkernels.generator.lora import weights_of_loras
from hnkernels.generator.targets import TargetLayer
from hnkernels.generator.trunk import WeightGenerator
from hnkernels.generator.weights import GeneratedWeights

__all__ = [
    "GeneratedWeights",
    "HypernetworkDecoder",
    "HypernetworkEncoder",
    "TargetLayer",
    "WeightGenerator",
    "WeightHypernetwork",
    "weights_of_loras",
]
