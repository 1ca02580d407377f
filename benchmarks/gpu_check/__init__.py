"""Is everything right on this GPU, and how fast? One command, eight minutes: ``python -m benchmarks.gpu_check``.

- ``journal``: what is found, on disk as soon as it is. ``clock``: how much time is left.
- ``machine``, ``correctness``, ``comparisons``, ``prediction``, ``tuning``: the phases, in order of worth.
- ``warming``: kernels compiled beforehand, in several processes.
- ``report``: a page that can be read, and sent, at any moment.
"""
