"""The former name of ``hnkernels.adapter.layers``."""

from hnkernels.adapter.layers import *  # noqa: F403
