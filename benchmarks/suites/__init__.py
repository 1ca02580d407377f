"""The benchmarks. Importing this package registers them; a new one is a decorated function in one of its files."""

from benchmarks.suites import layers, unets

__all__ = ["layers", "unets"]
