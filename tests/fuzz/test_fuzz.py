"""A few cases of every target; all that once failed; and proof that the fuzzer sees what it looks for.

``python -m tests.fuzz`` runs as many as are wanted.
"""

import os
import time
from random import Random

import pytest

from hnkernels.prompt import parse_prompt
from tests.fuzz import guards
from tests.fuzz.campaign import Target, numbered, run
from tests.fuzz.targets import NAMES, target

CASES = int(40 * float(os.environ.get("HNKERNELS_FUZZ", 1)))
GENEROUS = 30.0


@pytest.mark.parametrize("name", NAMES)
def test_every_case_is_accepted_and_right_or_refused_with_a_sentence(name):
    figures = run(target(name), numbered(target(name), 0, 0, CASES), GENEROUS)
    assert not figures.failed, figures.failed[0][1]
    assert figures.cases == CASES
    assert figures.accepted
    assert figures.refused


def fails(runs, seconds=GENEROUS, refusals=(ValueError,), check=lambda case, result: None):
    """What the fuzzer says of a library that does this."""
    figures = run(Target(lambda random: 0, runs, refusals, check=check), [0], seconds)
    assert figures.cases == 1
    return figures.failed[0][1] if figures.failed else None


def busy(_):
    while True:
        pass


def caught(_):
    try:
        busy(_)
    except Exception:
        return


def parse_nothing(_):
    parse_prompt(None)


def refuse(_):
    parse_prompt("<hypernet:>")


def wrong(case, result):
    assert result == 2


def test_the_fuzzer_sees_what_it_looks_for(tmp_path):
    assert fails(lambda _: (tmp_path / "made").mkdir()).startswith("runs os.mkdir")
    assert "os.system" in fails(lambda _: os.system("true"))
    assert fails(lambda _: exec("1")).startswith("runs compile")
    assert fails(busy, 0.01) == "takes more than 0.01 s"
    assert fails(caught, 0.01) == "takes more than 0.01 s"
    assert fails(lambda _: time.sleep(60), 0.001) == "takes more than 0.001 s"
    assert "raises what it may not" in fails(parse_nothing)
    assert "TypeError" in fails(parse_nothing)
    assert "by accident" in fails(lambda _: float("x"))
    assert fails(refuse) is None
    assert "raises what it may not" in fails(refuse, refusals=(KeyError,))
    assert "wrong result" in fails(lambda _: 1, check=wrong)
    assert fails(lambda _: 2, check=wrong) is None


def test_the_fuzzer_sees_memory_that_is_taken(monkeypatch):
    monkeypatch.setattr(guards, "peak", iter((0, 2**40)).__next__)
    assert fails(lambda _: 1) == "takes 1048576 MiB"


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_the_same_every_time(name):
    chosen = target(name)
    first, again = (chosen.draw(Random("3.1")) for _ in range(2))
    assert repr(first) == repr(again) or name in ("hyper", "training", "strength")  # modules have addresses
