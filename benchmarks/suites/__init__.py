"""The benchmarks. Importing this package registers them; a new one is a decorated function in one of its files."""

from benchmarks.suites import attention, layout, lowrank, projection, scaling, unet

__all__ = ["attention", "layout", "lowrank", "projection", "scaling", "unet"]
