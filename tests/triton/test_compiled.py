"""Every kernel compiles for every target, keeps within its registers and shared memory, and uses its matrix units."""

import csv
import itertools
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks import machine_code
from benchmarks.compiled import faults
from benchmarks.forms import EVERY_KERNEL, sample
from benchmarks.machine_code import Configuration, MachineCode, compiled, configuration
from hnkernels.triton._compat import DEPENDENT_LAUNCHES
from hnkernels.triton.cards import occupancy
from hnkernels.triton.compiling import xcds
from hnkernels.triton.launch import Call
from hnkernels.triton.target import TARGETS, planned_for, target_of
from tests.marks import compiles_beforehand, counted

KERNELS = {
    "mlp_layer_forward_kernel",
    "layer_output_forward_kernel",
    "norm_vectors_kernel",
    "linear_streams_kernel",
    "grouped_linear_kernel",
    "grouped_input_gradient_kernel",
    "hidden_gradient_kernel",
    "input_gradient_kernel",
    "layer_output_backward_kernel",
    "weight_gradient_kernel",
    "sum_rows_kernel",
    "normed_gradient_kernel",
    "normed_weight_gradient_kernel",
    "lowrank_forward_kernel",
    "lowrank_add_kernel",
    "lowrank_shrink_kernel",
    "lowrank_input_gradient_kernel",
    "lowrank_factor_gradient_kernel",
    "lowrank_sum_kernel",
    "hidden_and_projection_kernel",
}
ONLY_ON = {"hidden_and_projection_kernel": "sm_90"}
# The most instructions outside the loop that the value and the derivative may take for 64 elements a thread.
EPILOGUES = {
    "relu": (600, 785), "silu": (1100, 1400), "gelu": (1500, 1860), "tanh": (1200, 1200), "mish": (1250, 1600),
}  # fmt: skip
GOOD = MachineCode(128, 0, 0, 65536, "HGMMA", 0.04, 16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict[str, str]]:
    """The figures of the sample. Compiled in a process of its own, for interpreted kernels cannot be compiled."""
    if compiles_beforehand.args[0]:
        pytest.skip(compiles_beforehand.kwargs["reason"])
    folder = tmp_path_factory.mktemp("compiled")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", "--sample", "--out", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    file = folder / "compiled.csv"
    assert file.exists(), done.stderr
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def configurations() -> list[Configuration]:
    return sample()


def test_no_kernel_of_the_sample_has_a_fault(rows):
    assert [r for r in rows if r["faults"]] == []


@pytest.mark.parametrize("target", EVERY_KERNEL)
def test_the_sample_has_every_kernel(rows, target):
    expected = {kernel for kernel in KERNELS if ONLY_ON.get(kernel, target) == target}
    assert {r["kernel"] for r in rows if r["target"] == target} == expected


def test_the_sample_has_every_target_and_dtype(rows):
    assert {r["target"] for r in rows} == set(TARGETS)
    assert {r["dtype"] for r in rows} >= {"fp16", "bf16"}


def test_hopper_multiplies_by_wgmma(rows):
    products = [r for r in rows if r["target"] == "sm_90" and r["matrix"]]
    assert products
    assert {r["matrix"] for r in products} == {"HGMMA"}


@triton.jit
def _xcds_kernel(out_ptr):
    tl.store(out_ptr, xcds())


@compiles_beforehand
@pytest.mark.parametrize("name", TARGETS)
def test_kernels_know_the_xcds_of_what_they_are_compiled_for(name):
    call = Call(_xcds_kernel, {"out_ptr": torch.empty(1, dtype=torch.int32, device="meta")})
    stored = 8 if name == "gfx942" else 1
    assert f"arith.constant {stored} : i32" in compiled(configuration(call, TARGETS[name])).asm["ttir"]


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.backend == "cuda"])
def test_kernels_wait_for_the_launches_before_they_touch_memory(rows, configurations, name):
    """In PTX; that the machine code does too is part of what its figures say."""
    target = TARGETS[name]
    for config in (c for c in configurations if c.target == target):
        kernel = compiled(config)  # from the cache, where the sample's figures come from
        body = kernel.asm["ptx"].split(".entry", 1)[1]
        waits = int(DEPENDENT_LAUNCHES and target.launches_dependents)
        assert body.count("griddepcontrol.wait") == body.count("griddepcontrol.launch_dependents") == waits, config
        if waits:
            before = body[: body.index("griddepcontrol.wait")]
            assert "griddepcontrol.launch_dependents" in before, config
            assert not re.search(r"\b(ld\.global|st\.global|cp\.async|atom|red|bra|ret)\b", before), config


def test_the_meta_device_stands_for_the_planned_target():
    meta = torch.device("meta")
    with planned_for(TARGETS["gfx942"]):
        assert target_of(meta).name == "gfx942"
    assert target_of(meta).name == "sm_80"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"spills": 2}, "2 spills"),
        ({"shared": 228 * 1024}, "shared memory"),
        ({"matrix": "", "matrix_share": 0.0}, "no matrix instructions"),
        ({"matrix_share": 0.0}, "no matrix instructions in a loop"),
        ({"matrix": "HMMA"}, "no wgmma"),
        ({"load_bytes": 2}, "2 bytes at a time"),
        ({"early": "LDG.E"}, "LDG.E before it waits"),
    ],
)
def test_a_fault_is_reported(change, complaint):
    config = _product("sm_90")
    assert faults(config, GOOD) == []
    found = faults(config, replace(GOOD, **change))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "share"),
    [
        ("sm_80", 128, 65536, 8, 2 * 8 / 64),  # both registers and shared memory allow two programs
        ("sm_80", 130, 0, 8, 1 * 8 / 64),  # registers come in eights: 136, three warps a scheduler
        ("sm_86", 64, 51200, 4, 1 * 4 / 48),  # one KB is taken from every program
        ("gfx942", 128, 16384, 4, 4 * 4 / 32),
        ("gfx1100", 96, 0, 4, 1.0),
    ],
)
def test_occupancy(target, registers, shared, warps, share):
    assert occupancy(TARGETS[target], registers, shared, warps) == pytest.approx(share)


SASS = (
    "LDG.E.U16 R1, [R2.64] ;",
    "LDGSTS.E.BYPASS.128 [R1], [R2.64], P0 ;",
    "HMMA.16816.F32 R4, R8, R12, R4 ;",
    "IADD3 R1, R1, 0x1, RZ ;",
    "@!P4 BRA 0x10                &req={2}         ?WAIT5_END_GROUP;",
    "STL [R1], R2 ;",
    "BRA 0x60;",
)
WAITS = "ACQBULK ;"

AMDGCN = """
\tglobal_load_ushort v1, v2, s[0:1]
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\tv_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_cbranch_execz .LBB0_2
.LBB0_2:
\ts_cbranch_scc0 .LBB0_1
\ts_endpgm
.Lfunc_end0:
    .private_segment_fixed_size: 4
    .sgpr_spill_count: 1
    .vgpr_count:     94
    .vgpr_spill_count: 2
"""


class _Compiled:
    """Stands for Triton's compiled kernel."""

    metadata = type("Metadata", (), {"shared": 1024})

    def __init__(self, **asm):
        self.asm = asm


def _cubin(instructions):
    """An ELF file with one kernel, of 16 bytes an instruction."""
    names, code = b"\0.text.kernel\0", bytes(16 * len(instructions))
    sections = [(0, 64, 0), (1, 64, len(code)), (0, 64 + len(code), len(names))]  # place of the name, start and size
    header = struct.pack("<40xQ10x3H", 64 + len(code) + len(names), 64, len(sections), 2)
    assert len(header) == 64
    return header + code + names + b"".join(struct.pack("<II4Q24x", n, 1, 0, 0, *place) for n, *place in sections)


@pytest.fixture
def in_sass(monkeypatch):
    """Kernels of these instructions, for sm_90, with tools that say so."""

    def make(*kernels, ptx=""):
        lines = [
            f"        /*{16 * i:04x}*/                   {line}" for i, line in enumerate(itertools.chain(*kernels))
        ]
        answers = {"cuobjdump": "REG:40 STACK:8 SHARED:0", "nvdisasm": "\n".join(['\t.headerflags\t@""', *lines])}

        def output(tool, file, *arguments):
            if tool == "nvdisasm":
                assert (len(file), arguments) == (16 * len(lines), ("--no-dataflow", "--binary", "SM90a"))
            return answers[tool]

        monkeypatch.setattr(machine_code, "_output", output)
        return [_Compiled(cubin=_cubin(lines), ptx=f".target sm_90a\n{ptx}") for lines in kernels]

    return make


def test_sass_is_read(in_sass):
    assert machine_code.read(in_sass(SASS)) == [MachineCode(40, 8, 1, 1024, "HMMA", 0.25, 16)]


def test_kernels_are_read_together(in_sass):
    jumps = [line.replace("0x10 ", "0x50 ").replace("0x60", "0xa0") for line in SASS]  # after four of the first's
    kernels = in_sass(SASS[2:6], jumps)
    kernels.insert(1, _Compiled(amdgcn=AMDGCN))
    first, amd, second = machine_code.read(kernels)
    assert (first.matrix, first.matrix_share) == ("HMMA", 0.0)
    assert amd.matrix == "v_mfma_f32_32x32x8_f16"
    assert second == MachineCode(40, 8, 1, 1024, "HMMA", 0.25, 16)
    assert machine_code.read([]) == []


@pytest.mark.parametrize(
    ("code", "early"), [((WAITS, *SASS), ""), ((SASS[0], WAITS, *SASS[1:]), "LDG.E.U16"), (SASS, "LDG.E.U16")]
)
def test_what_comes_before_the_wait_is_found(in_sass, code, early):
    assert machine_code.read(in_sass(code, ptx="griddepcontrol.wait;"))[0].early == early
    assert machine_code.read(in_sass(code))[0].early == ""  # it is not set up early


def test_amdgcn_is_read():
    (code,) = machine_code.read([_Compiled(amdgcn=AMDGCN)])
    assert code == MachineCode(94, 4, 3, 1024, "v_mfma_f32_32x32x8_f16", 0.25, 16)


def test_what_is_outside_the_loops_is_counted(in_sass):
    assert machine_code.outside_loops([*in_sass(SASS), _Compiled(amdgcn=AMDGCN)]) == [3, 2]


@pytest.fixture(scope="module")
def instructions() -> dict[str, tuple[int, ...]]:
    """Per activation those of the value's and the derivative's kernel outside the loop, on sm_90."""
    if not machine_code.disassembler().exists():
        pytest.skip("this Triton came without nvdisasm, which reads the machine code")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", "--epilogues", *EPILOGUES]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {act: tuple(map(int, counts)) for act, *counts in csv.reader(done.stdout.splitlines()[1:])}


@counted
@pytest.mark.parametrize("act", EPILOGUES)
def test_epilogues_are_short(instructions, act):
    value, derivative, _ = instructions[act]
    assert value <= EPILOGUES[act][0]
    assert derivative <= EPILOGUES[act][1]


def test_a_jump_back_to_a_common_exit_is_not_a_loop():
    entry = "\ts_cbranch_scc1 .LBB0_3\n\ts_branch .LBB0_1\n.LBB0_3:\n\ts_endpgm\n"
    jumps_back = AMDGCN.replace("\ts_endpgm", "\ts_branch .LBB0_3")
    (code,) = machine_code.read([_Compiled(amdgcn=entry + jumps_back)])
    assert code.matrix_share == 0.25


def _product(target: str) -> Configuration:
    """A matrix kernel with 64 rows to a tile."""
    kernel = SimpleNamespace(fn=SimpleNamespace(__name__="linear_streams_kernel"))
    signature = (("BLOCK_M", "constexpr"), ("GROUP_M", "constexpr"))
    return Configuration(kernel, TARGETS[target], signature, (((0,), 64), ((1,), 8)), (), ())


def test_a_loop_may_be_closed_by_falling_through():
    rotated = (
        "\ts_branch .LBB0_2\n.LBB0_1:\n\tv_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]\n"
        "\ts_cbranch_scc0 .LBB0_3\n.LBB0_2:\n\tglobal_load_dwordx4 v[0:3], v4, s[0:1]\n\ts_branch .LBB0_1\n"
        ".LBB0_3:\n\ts_endpgm\n"
    )
    (code,) = machine_code.read([_Compiled(amdgcn=rotated + AMDGCN[AMDGCN.index(".Lfunc_end0") :])])
    assert code.matrix_share == 0.25
