"""What only a GPU can show: ``pytest --device cuda``. The same as ``make gpu-check`` finds right or wrong."""

from __future__ import annotations

import pytest

from benchmarks.gpu_check import SKIPPED, WRONG, Clock, Journal, Session, correctness
from benchmarks.rows import Environment

pytestmark = pytest.mark.on_device

HERE = Environment("cuda", "fp16")


@pytest.mark.parametrize("task", [pytest.param(task, id=name) for name, task in correctness.tasks(HERE)])
def test_layers_of_real_size_graphs_streams_devices_and_many_elements(task, tmp_path):
    findings = list(task(Session(HERE, Clock(3600), Journal(tmp_path))))
    assert findings
    assert not [f for f in findings if f.outcome == WRONG]
    if all(f.outcome == SKIPPED for f in findings):
        pytest.skip(findings[0].note)
