"""``python -m tests.fuzz.guided <target> [-max_total_time=60 …]``: cases that reach new lines are changed further.

Needs ``pip install atheris``, and takes the options of libFuzzer. For targets whose cases are bytes or a text.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

INSTRUMENTED = ["hnkernels", "torch._weights_only_unpickler", "zipfile"]
SEEDS = 300


def main(name: str, *options: str) -> None:
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.campaign import Figures, attempt, case
        from tests.fuzz.targets import target

        chosen = target(name)
    first = [case(chosen, 0, number) for number in range(SEEDS)]
    is_text = isinstance(first[0], str)

    def one(data: bytes) -> None:
        figures = Figures()
        attempt(chosen, data.decode("utf-8", "surrogateescape") if is_text else data, figures)
        if figures.failed:
            raise RuntimeError(figures.failed[0][1])

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(first):
            data = seed.encode("utf-8", "surrogatepass") if is_text else seed
            Path(corpus, str(number)).write_bytes(data)
        warnings.simplefilter("ignore")
        # The fuzzer's own guards use the alarm.
        atheris.Setup([sys.argv[0], corpus, "-handle_alrm=0", "-timeout=0", "-rss_limit_mb=8192", *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
