"""``python -m benchmarks.counts``: what a layer with a hypernetwork launches, moves and keeps, against eager PyTorch.

Counted, not measured: exact on any machine, for K and V of one attention layer of Stable Diffusion 1.x (d = 320) over
8192 tokens, projections frozen, fp16. Writes the table into the README.
"""

from __future__ import annotations

from pathlib import Path

import torch

import reference
from benchmarks.accounting import Account, Counting, saved_bytes
from benchmarks.result import replace_between
from hnkernels import Hypernetwork, explain

WIDTH, TOKENS = 320, 8192
NETWORKS = (("relu", False), ("silu", False), ("relu", True), ("silu", True))
MARKS = "<!-- counts: written by `make counts` -->", "<!-- /counts -->"


def eager(activation: str, layer_norm: bool) -> tuple[Account, int, int]:
    """A training step of the A1111-style modules: its account, how many operations are forward, the bytes it saves."""
    with torch.device("meta"):
        mlp_k, mlp_v = (reference.MLP(WIDTH, (1, 2, 1), activation, layer_norm).half() for _ in "kv")
        x = torch.empty(TOKENS, WIDTH, dtype=torch.float16, requires_grad=True)
        w_k, w_v = torch.empty(2, WIDTH, WIDTH, dtype=torch.float16)
    with Counting() as counting:
        kv = reference.project_kv(x, [mlp_k], [mlp_v], w_k, w_v)
        forward = len(counting.account.operations)
        torch.autograd.backward(kv, [torch.empty_like(t) for t in kv])
    saved = saved_bytes(lambda: (mlp_k(x), mlp_v(x)), [*mlp_k.parameters(), *mlp_v.parameters()])
    return counting.account, forward, saved


def table() -> list[str]:
    """The table as lines of Markdown."""
    lines = [
        "| network `[1, 2, 1]` | launches: inference | forward | backward | bytes moved by a training step "
        "| bytes saved for backward |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for activation, layer_norm in NETWORKS:
        account, forward, saved = eager(activation, layer_norm)
        net = Hypernetwork((WIDTH,), activation=activation, layer_norm=layer_norm)
        training = explain(*net[WIDTH], TOKENS, WIDTH)
        inference = explain(*net[WIDTH], TOKENS, WIDTH, training=False)
        lines.append(
            f"| {activation}{', LayerNorm' if layer_norm else ''} "
            f"| {len(inference.forward)} (eager {forward}) | {len(training.forward)} ({forward}) "
            f"| {len(training.backward)} ({len(account.operations) - forward}) "
            f"| {training.bytes_moved / account.bytes_moved:.2f} of eager's "
            f"| {training.saved_bytes / saved:.2f} of eager's |"
        )
    return lines


def main() -> None:
    """Prints the table and puts it into the README."""
    lines = table()
    print("\n".join(lines))
    replace_between(Path(__file__).parent.parent / "README.md", *MARKS, lines)


if __name__ == "__main__":
    main()
