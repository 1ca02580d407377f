"""Whether a change made anything slower: two versions of the library, side by side on the same benchmarks.

``versions.py`` checks both out, ``worker.py`` is the process that each of them runs in, ``verdict.py`` tells a change
from noise. ``python -m benchmarks.compare REF`` runs it.
"""
