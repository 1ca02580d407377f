"""The errors of the library: what it refuses is an ``HNKernelsError``, and the built-in error that fits besides.

``AdapterError`` is in ``adapter/layers.py``, ``CheckpointError`` in ``checkpoint/errors.py``, ``DivergenceError`` in
``training/run.py``.
"""


class HNKernelsError(Exception):
    """The base of all errors that hnkernels raises on purpose.

    The message says what was given, what is accepted, and what to do. Errors of the system (``OSError``), of a missing
    package (``ImportError``) and of PyTorch pass through as they are.
    """


class InputError(HNKernelsError, ValueError):
    """An argument, a setting or data that cannot be used."""
