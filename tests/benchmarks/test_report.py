"""Tables and pictures come from the rows alone, and say where, when and how their figures are known."""

from __future__ import annotations

import re

import pytest

from benchmarks import plots, report, tables
from benchmarks import rows as results
from benchmarks import tables as claims
from benchmarks.rows import Row
from benchmarks.tables import Times, slope


def timing(benchmark: str, mode: str, shape: str, provider: str, seconds: float, **more) -> Row:
    return Row("measured", benchmark, mode, shape, "fp32", provider, "time", seconds, "s", machine="box", date="today",
               samples=5, **more)  # fmt: skip


ROWS = [
    timing("projection", "inference", "320 x 4096", "reference", 3.0),
    timing("projection", "inference", "320 x 4096", "portable", 2.0),
    timing("projection", "inference", "16 x 24", "triton", 99.0, target="interpreter"),
    *(timing("scaling: tokens", "inference", str(n), p, c * n**e) for n in (64, 256, 1024)
      for p, c, e in (("reference", 2e-6, 1.0), ("portable", 1e-6, 0.5))),
    *(timing("scaling: layers", "new prompt", str(n), p, s) for n in (2, 4, 8)
      for p, s in (("reference", 5.0 * n), ("portable", 1.0 * n + 3), ("bare", 1.0 * n))),
    Row("measured", "ceiling", "copy", "large", "fp32", "torch", "bandwidth", 1e10, "B/s", machine="box"),
    Row("measured", "ceiling", "gemm", "large", "fp32", "torch", "rate", 1e11, "FLOP/s", machine="box"),
    Row("counted", "projection", "inference", "320 x 4096", "fp32", "bound", "flops", 4e9, "FLOP", machine="box"),
    Row("counted", "projection", "inference", "320 x 4096", "fp32", "bound", "bytes", 2e8, "B", machine="box"),
    Row("measured", "training step", "training step", "SD 1.5, 256 px", "fp32", "reference", "peak", 9e9, "B"),
    Row("measured", "training step", "training step", "SD 1.5, 256 px", "fp32", "portable", "peak", 5e9, "B"),
]  # fmt: skip


def test_rows_come_back_as_they_were_written(tmp_path):
    results.write(ROWS, tmp_path / "a" / "rows.csv")
    assert results.read(tmp_path / "a" / "rows.csv") == ROWS


def test_a_row_of_unknown_kind_and_a_file_of_other_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind 'guessed' is unknown; accepted are measured, counted"):
        Row("guessed", "", "", "", "", "", "", 0, "")
    (tmp_path / "old.csv").write_text("benchmark,figure\n")
    with pytest.raises(ValueError, match=r"old.csv has the columns \['benchmark', 'figure'\]; expected are"):
        results.read(tmp_path / "old.csv")


def test_speed_is_the_ratio_of_medians_and_the_interpreters_time_is_not_speed():
    lines = "\n".join(tables.speed(ROWS))
    assert "| projection, inference, 320 x 4096 | fp32 | 5 | 1.50 |" in lines
    assert "16 x 24" not in lines


def test_exponents_are_fitted_and_stand_beside_the_expected_ones():
    lines = tables.scaling(ROWS)
    assert "| tokens of a layer 320 wide | 64 | 1024 | reference | 1.00 | 1.00 |" in lines
    assert "| tokens of a layer 320 wide | 64 | 1024 | portable | 0.50 | 1.00 |" in lines
    assert "| cross-attention layers of 640 channels | 2 | 8 | reference | 1.00 | 1.00 |" in lines
    # 12288 for the two networks and 2560 a layer: between 17408 and 32768
    assert "| cross-attention layers of 640 channels | 2 | 8 | portable | 0.57 | 0.46 |" in lines


def test_slope():
    assert slope([(1, 3), (2, 12), (4, 48)]) == pytest.approx(2)
    assert slope([(1, 3)]) != slope([(1, 3)])  # nan: one point has none


def test_a_target_that_is_missed_says_so():
    lines = claims.table([*ROWS, timing("projection", "inference", "1280 x 256", "reference", 1.0),
                          timing("projection", "inference", "1280 x 256", "portable", 2.0)])  # fmt: skip
    assert any(line.endswith("| 1.50 x | ≥ 1 | yes |") for line in lines)
    assert any(line.endswith("| 0.50 x | ≥ 1 | no |") for line in lines)
    assert any("peak memory saved" in line and "4.00 GB" in line for line in lines)


def test_every_target_names_cases_that_are_run():
    from benchmarks.cases import cases
    from benchmarks.rows import Environment

    known = [(c.benchmark.name, c.mode, str(c.shape), c.benchmark.providers) for c in cases(Environment("cpu", "fp32"))]
    everything = [timing(*key, provider, 1.0 + i) for *key, providers in known for i, provider in enumerate(providers)]
    peaks = [Row("measured", "training step", "training step", "SD 1.5, 256 px", "fp32", p, "peak", 1.0, "B")
             for p in ("reference", "portable", "reference checkpointing", "checkpointing")]  # fmt: skip
    times = Times(everything)
    for claim in claims.CLAIMS:
        claim.figure(times, everything + peaks)  # a KeyError would say what is missing


def test_pictures_carry_a_digest_of_their_rows(tmp_path):
    names = {file.stem for file in plots.draw(ROWS, tmp_path)}
    assert names == {"speed", "memory", "roofline", "cost-tokens", "cost-layers"}
    assert plots.stale(ROWS, tmp_path) == []
    assert len(plots.stale(ROWS[1:], tmp_path)) == 5


def test_every_table_says_where_when_and_how_it_is_known():
    for folder in report.folders():
        for text in report.pages(folder, report.rows_of(folder)).values():
            if folder.name == report.ANY:
                assert "not measured" in text
            else:
                assert re.search(r"Measured on \d{4}-\d\d-\d\d: .+; hnkernels .+, torch .+, triton .+", text)


def test_a_mark_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="any/nonsense, and there is none"):
        report.filled("<!-- table: any/nonsense -->\n<!-- /table -->")


def test_times_on_pages_are_ratios():
    assert report.texts()
    text = "".join(file.read_text(encoding="utf-8") for file in report.texts())
    tables = "".join(re.findall(r"<!-- table: .*?<!-- /table -->", text, flags=re.DOTALL))
    assert not re.search(r"\d (?:s|ms|µs|us)\b", tables.replace("modelled", ""))
