"""One launch: by a program, and by hand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.host.sides import Side

WIDTH = 320
BATCH = 500


def launch() -> dict[str, Side]:
    """One linear: as an operator runs its program, from where the pointers are known, and by hand.

    All of them allocate the output; by hand all the rest is ready.
    """
    from hnkernels.triton import direct  # Triton is optional
    from hnkernels.triton.ops.linear import linear
    from hnkernels.triton.program import Planned
    from hnkernels.triton.trace import Ref

    def operator(x: Tensor, w: Tensor) -> Tensor:
        return linear.function([x], [w], [], False)[0]

    x, w = torch.randn(1, WIDTH), torch.randn(WIDTH, WIDTH)
    planned = Planned(operator)
    planned(x, w)
    (program,) = planned.kept.programs.values()
    (bound,) = program._bound.values()
    assert bound is not None  # else launches would be Triton's own
    (step,) = program.layout.steps
    (buffer,), launch = step.allocate, step.what
    make = program.layout.make[buffer.slot]

    tensors = [x, w, make()]
    compiled = launch.run(tensors)
    ready = [launch.arguments[name] for name in direct.positional(launch.kernel)]
    ready = [v.of(tensors) if isinstance(v, Ref) else v for v in ready]
    ready = [v.data_ptr() if isinstance(v, Tensor) else v for v in ready]
    enter, function, metadata = direct.entry(compiled)
    stream = direct.stream_source()(0)
    by_hand = partial(enter, *launch.grid, stream, function, metadata, None, None, None, *ready)

    def allocate_and_launch() -> Tensor:
        y = make()
        by_hand()
        return y

    return {
        "program": Side(partial(program.run, [x, w]), batch=BATCH),
        "bound": Side(partial(bound.run, [x, w], [x.data_ptr(), w.data_ptr()]), batch=BATCH),
        "by hand": Side(allocate_and_launch, batch=BATCH),
    }
