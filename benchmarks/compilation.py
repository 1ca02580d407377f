"""From a captured launch to machine code, for any target, without its driver."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from triton.backends.compiler import GPUTarget

from hnkernels.triton.direct import VERSION
from hnkernels.triton.launch import Call
from hnkernels.triton.target import Target

CACHE = Path(__file__).parents[1] / ".benchmarks" / "triton"
"""Where compiled kernels are kept from one run to the next."""


_OPTIONAL = {
    "pre_ptr": "pre", "query_w_ptr": "query", "z_ptr": "second product", "h_ptr": "h", "dq_ptr": "query",
    "scale_ptr": "scale", "index_ptr": "index", "table_ptr": "table", "stats_ptr": "norm",
    "vectors_ptr": "finishes a norm", "u_ptr": "u",
}  # fmt: skip

T = TypeVar("T")

_work: list[Any] = []  # of forked processes; a kernel does not pickle

_OPTIONS = ("num_warps", "num_stages", "launch_pdl")


@dataclass(frozen=True)
class Configuration:
    """A kernel with all that the compiler looks at; launches that agree in it share their machine code.

    Attributes:
        kernel: the jit function.
        target: what it is compiled for.
        signature: Triton's type of every argument.
        constants: the arguments that are compiled in.
        attributes: what is known of the others, such as divisibility by 16.
        options: warps, stages, and whether it may be set up while another kernel runs.
        origin: the first launch that was found to need it; no part of its identity.
    """

    kernel: Any
    target: Target
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[Any, Any], ...]
    attributes: tuple[tuple[Any, str], ...]
    options: tuple[tuple[str, Any], ...]
    origin: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.fn.__name__

    def constant(self, name: str) -> Any:
        """A constant argument's value; ``None`` if there is none of that name."""
        names = list(dict(self.signature))
        return {names[path[0]]: value for path, value in self.constants}.get(name)

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix kernel."""
        return self.constant("GROUP_M") is not None

    @property
    def product_rows(self) -> int:
        """Rows of the product of a step: of a gradient that is summed over tokens, those of the weight."""
        summed = self.name in ("weight_gradient_kernel", "lowrank_factor_gradient_kernel")
        return self.constant("BLOCK_N" if summed else "BLOCK_M")

    @property
    def warps(self) -> int:
        """Per program."""
        return dict(self.options)["num_warps"]

    @property
    def dtype(self) -> str:
        """The element type of the operands: ``"fp16"``, ``"bf16"``, or fp32 where there are only sums."""
        types = {kind.lstrip("*") for _, kind in self.signature if kind.startswith("*")}
        return next((t for t in ("fp16", "bf16") if t in types), "fp32")

    @property
    def variant(self) -> str:
        """The flags that are set, the activation, and which optional pointers there are, without the tiles."""
        types = dict(self.signature)
        words = []
        for path, value in self.constants:
            name = list(types)[path[0]]
            if name == "ACT":
                words.append(value)
            elif value is True and name not in ("EVEN", "ALIGNED"):
                words.append(name.lower())
            elif value is False and name == "EVEN":
                words.append("uneven")
        words += [word for name, word in _OPTIONAL.items() if types.get(name, "constexpr") != "constexpr"]
        return " ".join(words)

    @property
    def tiles(self) -> str:
        """Blocks, warps and stages: ``"128x64x64 w4 s3"``."""
        blocks = [self.constant(f"BLOCK_{axis}") for axis in "MNKRP"]
        options = dict(self.options)
        return f"{'x'.join(str(b) for b in blocks if b)} w{options['num_warps']} s{options['num_stages']}"


def gpu_target(target: Target) -> GPUTarget:
    """The target as Triton's compiler names it."""
    return GPUTarget(target.backend, target.arch, 64 if str(target.arch).startswith("gfx9") else 32)


def configuration(call: Call, target: Target, origin: str = "") -> Configuration:
    """What the compiler gets for a launch, by the specialisation that Triton itself uses when it launches.

    Raises:
        RuntimeError: Triton is older than 3.3, and specialises in another way.
    """
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    if VERSION < (3, 3):
        raise RuntimeError("kernels are compiled without a launch from Triton 3.3 on; this one is older")

    kernel, backend = call.kernel, make_backend(gpu_target(target))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**call.arguments)
    names = [p.name for p in kernel.params]
    signature = tuple((name, s[0]) for name, s in zip(names, specialization, strict=True))
    constants = tuple(((i,), bound[name]) for i, (name, kind) in enumerate(signature) if kind == "constexpr")
    # From 3.7 on with an empty one for each constant: so Triton's cache has the kernel when it is launched.
    known = ["" if s[0] == "constexpr" and VERSION >= (3, 7) else s[1] for s in specialization]
    attributes = tuple(((i,), text) for i, text in enumerate(known) if isinstance(text, str))
    options = {name: call.arguments[name] for name in _OPTIONS if name in call.arguments}
    defaults = backend.parse_options({})
    return Configuration(
        kernel,
        target,
        signature,
        constants,
        attributes,
        tuple((n, options.get(n, getattr(defaults, n))) for n in _OPTIONS if hasattr(defaults, n)),
        origin,
    )


def distinct(calls: Iterable[tuple[str, Call]], target: Target) -> list[Configuration]:
    """The configurations of the calls, each once."""
    found: dict[Configuration, None] = {}
    for origin, call in calls:
        found.setdefault(configuration(call, target, origin))
    return list(found)


def compiled(config: Configuration) -> Any:
    """Triton's compiled kernel, from the cache if it is there.

    Raises:
        RuntimeError: under the interpreter, whose kernels cannot be compiled.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set; kernels compile only without it, so unset it")
    import triton
    from triton.compiler import ASTSource, make_backend

    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))
    target = gpu_target(config.target)
    backend = make_backend(target)
    attributes = {path: backend.parse_attr(text) for path, text in config.attributes}
    source = ASTSource(config.kernel, dict(config.signature), dict(config.constants), attributes)
    return triton.compile(source, target=target, options=dict(config.options))


def in_processes(function: Callable[[Configuration], T], configurations: Sequence[Configuration]) -> Iterator[T]:
    """What the function makes of every configuration, in order, by as many processes as there are processors."""
    _work[:] = configurations
    with multiprocessing.get_context("fork").Pool() as pool:
        yield from pool.imap(partial(_call, function), range(len(_work)))


def _call(function: Callable[[Configuration], T], index: int) -> T:
    return function(_work[index])
