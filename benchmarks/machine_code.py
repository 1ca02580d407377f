"""What machine code says of itself: registers, spills, loops, matrix instructions, widths of loads; and its faults.

NVIDIA's is read by the disassembler that comes with Triton, AMD's from the assembly that the compiler leaves.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compilation import Configuration
from hnkernels.triton.cards import CARDS

_TOOLS = Path("backends/nvidia/bin")  # in Triton's folder
_SASS = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)(.*?);")
_SASS_MATRIX = re.compile(r"[HU]\w*MMA")
_SASS_SPILL = ("STL", "LDL")
_SASS_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_AMD_MATRIX = re.compile(r"v_(?:mfma|wmma)_\w+")
_AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_(\w+)")
_AMD_BYTES = {"dwordx4": 16, "b128": 16, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}  # the longest name first

LEAST_WGMMA_ROWS = 64
WIDE_LOAD = 16


@dataclass(frozen=True)
class Instruction:
    """An instruction: what it is called, the label it jumps to if it does, and whether the next one may follow it."""

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
    """

    registers: int
    stack: int
    spills: int
    shared: int
    matrix: str
    matrix_share: float
    load_bytes: int


def read(kernel: Any) -> MachineCode:
    """The figures of a kernel compiled by Triton."""
    shared = kernel.metadata.shared
    return _read_amd(kernel.asm["amdgcn"], shared) if "amdgcn" in kernel.asm else _read_nvidia(kernel, shared)


def faults(config: Configuration, code: MachineCode) -> list[str]:
    """What is wrong with a kernel; nothing, if it is fine."""
    found = []
    if code.stack or code.spills:
        found.append(f"{code.stack} bytes of stack, {code.spills} spills")
    limit = CARDS[config.target.name].shared
    if code.shared > limit:
        found.append(f"{code.shared} bytes of shared memory, {limit} are there")
    if not config.is_product:
        return found
    if not code.matrix:
        found.append("no matrix instructions")
    elif not code.matrix_share:
        found.append("no matrix instructions in a loop")
    elif config.target.name == "sm_90" and config.product_rows >= LEAST_WGMMA_ROWS and "HGMMA" not in code.matrix:
        found.append("no wgmma")
    if code.load_bytes < WIDE_LOAD:
        found.append(f"loads {code.load_bytes} bytes at a time in the loop")
    return found


def outside_loops(kernel: Any) -> int:
    """The instructions of a kernel outside its innermost loops that multiply: what comes before and its epilogue."""
    code, labels = _instructions(kernel)
    matrix_of = _amd_matrix if "amdgcn" in kernel.asm else _sass_matrix
    return len(code) - len(set().union(*_innermost(code, labels, matrix_of)))


def instructions(kernel: Any) -> list[str]:
    """The names of a kernel's instructions as they follow one another."""
    return [instruction.name for instruction in _instructions(kernel)[0]]


def _instructions(kernel: Any) -> tuple[list[Instruction], dict[str, int]]:
    if "amdgcn" in kernel.asm:
        return _parse_amd(kernel.asm["amdgcn"])
    return _parse_sass(_disassembled(kernel, "nvdisasm", "-ndf", "-c"))


def disassembler() -> Path:
    """Where NVIDIA's is, if Triton came with it."""
    import triton

    return Path(triton.__file__).parent / _TOOLS / "nvdisasm"


def _disassembled(kernel: Any, tool: str, *arguments: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return _output(disassembler().with_name(tool), *arguments, file.name)


def _read_nvidia(kernel: Any, shared: int) -> MachineCode:
    usage = _disassembled(kernel, "cuobjdump", "-res-usage")
    sass = _disassembled(kernel, "nvdisasm", "-ndf", "-c")
    registers, stack = (int(re.findall(rf"{word}:(\d+)", usage)[-1]) for word in ("REG", "STACK"))
    code, labels = _parse_sass(sass)
    spills = sum(i.name.split(".")[0] in _SASS_SPILL for i in code)
    return _figures(code, labels, registers, stack, spills, shared, _sass_matrix, _sass_load)


def _read_amd(assembly: str, shared: int) -> MachineCode:
    def value(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", assembly)[-1])

    code, labels = _parse_amd(assembly)
    spills = value("vgpr_spill_count") + value("sgpr_spill_count")
    stack = value("private_segment_fixed_size")
    return _figures(code, labels, value("vgpr_count"), stack, spills, shared, _amd_matrix, _amd_load)


def _figures(code, labels, registers, stack, spills, shared, matrix_of, load_of) -> MachineCode:
    loops = _innermost(code, labels, matrix_of)
    inside = [code[i] for body in loops for i in sorted(body)]
    loads = [b for b in map(load_of, inside or code) if b]
    count = sum(matrix_of(i) is not None for i in inside)
    return MachineCode(
        registers,
        stack,
        spills,
        shared,
        matrix=" ".join(sorted({m for m in map(matrix_of, code) if m})),
        matrix_share=count / len(inside) if inside else 0.0,
        load_bytes=max(set(loads), key=lambda width: width * loads.count(width), default=0),
    )


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


def _parse_sass(text: str) -> tuple[list[Instruction], dict[str, int]]:
    code, labels = [], {}
    for line in text.splitlines():
        if line.startswith(".L_"):
            labels[line.split(":")[0]] = len(code)
        elif found := _SASS.match(line):
            condition, name, operands = found.groups()
            target = re.search(r"\((\.L_\w+)\)", operands) if name.startswith("BRA") else None
            family = name.split(".")[0]
            # A branch may have its condition among its operands: BRA.U UP0, `(.L_x_1).
            always = operands.lstrip().startswith("`(") if family == "BRA" else family in ("EXIT", "RET")
            leaves = condition is None and always
            code.append(Instruction(name, target[1] if target else None, not leaves))
    return code, labels


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


def _output(*command: Any) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
