"""A kernel's machine code for any target, without its driver: made from a captured launch, then read.

It says how many registers it takes, what it spills, its loops, its matrix instructions and the widths of its loads.
NVIDIA's is read by the disassembler that comes with Triton, AMD's from the assembly that the compiler leaves.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

_OPTIONS = ("num_warps", "num_stages", "launch_pdl")

_SASS = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)(.*?);", re.MULTILINE)
# Some disassemblers write after the operands what an instruction waits for: &req={2} ?WAIT5_END_GROUP.
_SASS_JUMP = re.compile(r"0x([0-9a-f]+)\s*(?:[&?].*)?$")
_SASS_MATRIX = re.compile(r"[HU]\w*MMA")
_SASS_SPILL = ("STL", "LDL")
# What touches global memory, or after which a thread may have ended.
_SASS_MEMORY_OR_END = ("LDG", "STG", "LD.", "ST.", "LDL", "STL", "RED", "ATOM", "UTMA", "UBLK", "BRA", "EXIT", "RET")
_SASS_WAIT = "ACQBULK"
_SASS_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_AMD_MATRIX = re.compile(r"v_(?:mfma|wmma)_\w+")
_AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_(\w+)")
_AMD_BYTES = {"dwordx4": 16, "b128": 16, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}  # the longest name first


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
    defaults = backend.parse_options({})
    options = tuple(
        (name, call.arguments.get(name, getattr(defaults, name))) for name in _OPTIONS if hasattr(defaults, name)
    )
    return Configuration(kernel, target, signature, constants, attributes, options, origin)


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


@dataclass(frozen=True)
class Instruction:
    """An instruction: what it is called, the label or address it jumps to if it does, and whether the next one may
    follow it."""

    name: str
    jumps_to: str | None = None
    falls_through: bool = True


@dataclass(frozen=True)
class MachineCode:
    """A kernel's figures.

    Attributes:
        registers: per thread; of AMD's, vector registers.
        stack: bytes per thread that do not live in registers.
        spills: instructions (NVIDIA) or registers (AMD) that spill.
        shared: bytes per program.
        matrix: the kinds of matrix instructions, joined by spaces; empty if there are none.
        matrix_share: of the instructions of the innermost loops that multiply; 0 if there is none.
        load_bytes: of the loads from global memory that bring in most of what these loops read, or the kernel where
            there are none.
        early: the first instruction that touches global memory, or may end the thread, before the kernel waits for the
            launches before it; empty if there is none, or if it does not wait.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    matrix: str
    matrix_share: float
    load_bytes: int
    early: str = ""


def read(kernels: Sequence[Any]) -> list[MachineCode]:
    """The figures of kernels compiled by Triton. The disassembler takes a while to start, and then serves them all."""
    return [_figures(kernel, *code) for kernel, code in zip(kernels, _instructions(kernels), strict=True)]


def _figures(kernel: Any, code: Sequence[Instruction], labels: dict[str, int]) -> MachineCode:
    early = ""
    if "amdgcn" in kernel.asm:
        matrix_of, load_of = _amd_matrix, _amd_load

        def value(key: str) -> int:
            return int(re.findall(rf"\.{key}:\s+(\d+)", kernel.asm["amdgcn"])[-1])

        registers, stack = value("vgpr_count"), value("private_segment_fixed_size")
        spills = value("vgpr_spill_count") + value("sgpr_spill_count")
    else:
        matrix_of, load_of = _sass_matrix, _sass_load
        usage = _output("cuobjdump", kernel.asm["cubin"], "-res-usage")
        registers, stack = (int(re.findall(rf"{word}:(\d+)", usage)[-1]) for word in ("REG", "STACK"))
        spills = sum(i.name.split(".")[0] in _SASS_SPILL for i in code)
        if "griddepcontrol.wait" in kernel.asm.get("ptx", ""):
            early = _before_waiting([i.name for i in code])
    inside = [code[i] for body in _innermost(code, labels, matrix_of) for i in sorted(body)]
    loads = [b for b in map(load_of, inside or code) if b]
    return MachineCode(
        registers, stack, spills, kernel.metadata.shared,
        matrix=" ".join(sorted({m for m in map(matrix_of, code) if m})),
        matrix_share=sum(matrix_of(i) is not None for i in inside) / len(inside) if inside else 0.0,
        load_bytes=max(set(loads), key=lambda width: width * loads.count(width), default=0), early=early,
    )  # fmt: skip


def _before_waiting(names: Sequence[str]) -> str:
    wait = next((at for at, name in enumerate(names) if name.startswith(_SASS_WAIT)), len(names))
    return next((name for name in names[:wait] if name.startswith(_SASS_MEMORY_OR_END)), "")


def outside_loops(kernels: Sequence[Any]) -> list[int]:
    """The instructions of kernels outside their innermost loops that multiply: what comes before, and epilogues."""
    counts = []
    for kernel, (code, labels) in zip(kernels, _instructions(kernels), strict=True):
        matrix_of = _amd_matrix if "amdgcn" in kernel.asm else _sass_matrix
        counts.append(len(code) - len(set().union(*_innermost(code, labels, matrix_of))))
    return counts


def _instructions(kernels: Sequence[Any]) -> list[tuple[list[Instruction], dict[str, int]]]:
    """Of each kernel, with the place of every label or address that is jumped to."""
    lines = {}
    targets = [None if "amdgcn" in k.asm else re.findall(r"\.target sm_(\w+)", k.asm["ptx"])[0] for k in kernels]
    for target in {target for target in targets if target is not None}:
        numbers = [i for i, other in enumerate(targets) if other == target]
        lines |= zip(numbers, _disassembled([kernels[i].asm["cubin"] for i in numbers], target), strict=True)
    return [_parse_sass(lines[i]) if i in lines else _parse_amd(k.asm["amdgcn"]) for i, k in enumerate(kernels)]


def disassembler() -> Path:
    """Where NVIDIA's is, if Triton came with it."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"


def _disassembled(cubins: Sequence[bytes], target: str) -> list[list[re.Match]]:
    """The instructions of kernels for one target, at addresses as if these followed one another in memory."""
    codes = [_code(cubin) for cubin in cubins]
    ends = list(itertools.accumulate(map(len, codes)))
    found: list[list[re.Match]] = [[] for _ in codes]
    for line in _SASS.finditer(_output("nvdisasm", b"".join(codes), "--no-dataflow", "--binary", f"SM{target}")):
        found[bisect.bisect_right(ends, int(line[1], 16))].append(line)
    return found


def _code(cubin: bytes) -> bytes:
    """What the one kernel of an ELF file has in its section ``.text.<name>``."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<II4Q", cubin, table + i * size) for i in range(count)]
    (code,) = (s for s in sections if cubin.startswith(b".text.", sections[names][4] + s[0]))
    return cubin[code[4] : code[4] + code[5]]


def _innermost(code: Sequence[Instruction], labels: dict[str, int], matrix_of) -> list[set[int]]:
    """The natural loops with matrix instructions and no such loop in them, each as the places of its instructions.

    A loop is closed by an edge to a place through which every way to the edge leads. Blocks need not lie in the order
    in which they run, and that edge may be a mere falling through.
    """
    sources: list[list[int]] = [[] for _ in code]
    for at in _reached(code, labels, around=-1):
        for to in _successors(code, labels, at):
            sources[to].append(at)
    loops: dict[int, set[int]] = {}
    for head in set(labels.values()) & set(range(len(code))):
        around = _reached(code, labels, around=head)
        for at in sources[head]:
            if at not in around:
                body, rest = loops.setdefault(head, {head}), [at]
                while rest:
                    i = rest.pop()
                    if i not in body:
                        body.add(i)
                        rest += sources[i]
    bodies = [body for body in loops.values() if any(matrix_of(code[i]) for i in body)]
    return [body for body in bodies if not any(other < body for other in bodies)]


def _successors(code: Sequence[Instruction], labels: dict[str, int], at: int) -> list[int]:
    ways = [at + 1] if code[at].falls_through else []
    if code[at].jumps_to in labels:
        ways.append(labels[code[at].jumps_to or ""])
    return [to for to in ways if to < len(code)]


def _reached(code: Sequence[Instruction], labels: dict[str, int], around: int) -> set[int]:
    """The places that can be reached without passing one of them."""
    seen, rest = set(), [0]
    while rest:
        i = rest.pop()
        if i not in seen and i != around:
            seen.add(i)
            rest += _successors(code, labels, i)
    return seen


def _parse_sass(lines: Sequence[re.Match]) -> tuple[list[Instruction], dict[str, int]]:
    code, places = [], {}
    for line in lines:
        address, condition, name, operands = line.groups()
        places[f"{int(address, 16):x}"] = len(code)
        family = name.split(".")[0]
        target = _SASS_JUMP.search(operands) if family == "BRA" else None
        # A branch may have its condition among its operands: BRA.U UP0, 0x10.
        always = operands.lstrip().startswith("0x") if family == "BRA" else family in ("EXIT", "RET")
        code.append(Instruction(name, target and target[1], bool(condition) or not always))
    return code, {i.jumps_to: places[i.jumps_to] for i in code if i.jumps_to in places}


def _parse_amd(text: str) -> tuple[list[Instruction], dict[str, int]]:
    code, labels = [], {}
    for line in text.splitlines():
        if line.startswith(".LBB"):
            labels[line.split(":")[0]] = len(code)
        elif line.startswith(".Lfunc_end"):
            break
        elif found := re.match(r"\t([a-z]\w+)\s*(\S*)", line):
            name, operand = found.groups()
            jumps = name.startswith(("s_branch", "s_cbranch"))
            code.append(Instruction(name, operand if jumps else None, name not in ("s_branch", "s_endpgm")))
    return code, labels


def _sass_matrix(instruction: Instruction) -> str | None:
    family = instruction.name.split(".")[0]
    return family if _SASS_MATRIX.fullmatch(family) else None


def _amd_matrix(instruction: Instruction) -> str | None:
    return instruction.name if _AMD_MATRIX.fullmatch(instruction.name) else None


def _sass_load(instruction: Instruction) -> int:
    family, *modifiers = instruction.name.split(".")
    if family not in ("LDG", "LDGSTS"):
        return 0
    return next((_SASS_BYTES[m] for m in modifiers if m in _SASS_BYTES), 4)


def _amd_load(instruction: Instruction) -> int:
    found = _AMD_LOAD.match(instruction.name)
    return next((size for word, size in _AMD_BYTES.items() if word in found[1]), 2) if found else 0


def _output(tool: str, file: bytes, *arguments: str) -> str:
    """What one of NVIDIA's tools says of a file with this content."""
    with tempfile.NamedTemporaryFile() as written:
        written.write(file)
        written.flush()
        command = [disassembler().with_name(tool), *arguments, written.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
