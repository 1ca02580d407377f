"""Prompts with tags, and schedules."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from hnkernels.prompt import ParsedPrompt, parse_prompt
from hnkernels.training.schedule import Schedule
from tests.fuzz.campaign import Target
from tests.fuzz.mutations import odd_number, odd_value, spoilt_text

_PROMPTS = (
    "a castle <hypernet:ink:0.7>, at night",
    "<hypernet:ink><hypernet:oil:-1.5> a (castle:1.2) [a:b:0.5]",
    "<HYPERNET: ink : 1e-2 >, <lora:style:0.5>",
    "",
)
_TAG_PIECES = (
    "<",
    ">",
    ":",
    "<hypernet:",
    "hypernet",
    "<hypernet:a:1>",
    ":1",
    ":nan",
    ":1e999",
    ">>",
    "<<",
    " ",
    "<lora:x:1>",
)

_SCHEDULES = ("5e-5:100, 5e-6:1000, 1e-6", "1e-4", "0.001:10,0.0001:-1", "1:1, 2:2, 3:3,")
_SCHEDULE_PIECES = (
    ",",
    ":",
    ", ",
    "-1",
    "e-5",
    "0",
    "1,000",
    "0,5",
    "inf",
    "nan",
    "1e400",
    ":-1",
    ":0",
    "1_0",
    "٣",
    "+1",
    "1e-3:5",
)


def _spoilt(texts: tuple[str, ...], pieces: tuple[str, ...], random: Random) -> str:
    text = random.choice(texts)
    for _ in range(random.choice((1, 1, 2, 3))):
        text = spoilt_text(text, random, pieces)
    return text


def _check_prompt(prompt: str, parsed: ParsedPrompt) -> None:
    assert all(name and name == name.strip() and math.isfinite(s) for name, s in parsed.strengths.items())
    if not parsed.strengths:
        assert parsed.text == prompt
    else:
        assert "<hypernet:" not in prompt.lower().replace(" ", "") or len(parsed.text) < len(prompt)


PROMPT = Target(
    draw=lambda random: _spoilt(_PROMPTS, _TAG_PIECES, random),
    run=parse_prompt,
    refusals=(ValueError,),
    check=_check_prompt,
)


def _schedule(random: Random) -> tuple[Any, int]:
    text = _spoilt(_SCHEDULES, _SCHEDULE_PIECES, random)
    given = random.choice((text,) * 8 + (odd_number(random), odd_value(random)))
    return given, random.choice((1, 50, 1000, 2**40))


def _check_schedule(case: tuple[Any, int], schedule: Schedule) -> None:
    _, last = case
    untils = [until for _, until in schedule.segments]
    assert untils == sorted(set(untils))
    assert untils[-1] <= last
    starts = [0, *untils]
    for (value, until), start in zip(schedule.segments, starts, strict=False):
        assert math.isfinite(value)
        assert value >= 0
        assert schedule.at(start) == schedule.at(until - 1) == value
    assert schedule.at(last) is None
    assert schedule.held_at(last) == schedule.segments[-1][0]


SCHEDULE = Target(draw=_schedule, run=lambda case: Schedule(*case), refusals=(ValueError,), check=_check_schedule)
