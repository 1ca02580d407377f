"""Files that the package brings along."""

from pathlib import Path

TINY_SD = Path(__file__).parent / "tiny-sd"
"""A small but genuine ``StableDiffusionPipeline`` folder; ``hnkernels/demo/tiny_sd.py`` makes it."""
