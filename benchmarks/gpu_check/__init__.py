"""Is everything right on this GPU, and how fast? One command, eight minutes: ``python -m benchmarks.gpu_check``.

``machine``, ``correctness`` and ``speed`` are the phases, in order of worth; ``session`` is what each of them gets: how
much time is left, where findings go as soon as there are any, and the page that can be read, and sent, at any moment.
"""
