"""A1111's prompt tags."""

import pytest

from hnkernels import parse_prompt
from hnkernels.prompt import resolve_name


@pytest.mark.parametrize(
    ("prompt", "text", "strengths"),
    [
        ("a castle", "a castle", {}),
        ("a castle <hypernet:ink:0.7> at night", "a castle at night", {"ink": 0.7}),
        ("<hypernet:ink>a  castle", "a castle", {"ink": 1.0}),
        ("a <hypernet:my style v2:-.5><hypernet:b:2> castle", "a castle", {"my style v2": -0.5, "b": 2.0}),
        ("two  spaces, no tag", "two  spaces, no tag", {}),
        ("<lora:x:0.5> (castle:1.2) <HYPERNET:ink:1e-1>", "<lora:x:0.5> (castle:1.2)", {"ink": 0.1}),
    ],
)
def test_tags_are_taken_out(prompt, text, strengths):
    assert parse_prompt(prompt) == (text, strengths)


@pytest.mark.parametrize("tag", ["", ":0.5", "ink:strong", "ink:1:2", "ink:nan"])
def test_a_tag_that_is_none_is_refused(tag):
    with pytest.raises(ValueError, match=r"is not a hypernetwork tag; it must be <hypernet:name> or"):
        parse_prompt(f"a castle <hypernet:{tag}>")


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="names the hypernetwork 'ink' twice"):
        parse_prompt("<hypernet:ink:1> <hypernet:ink:0.5>")


@pytest.mark.parametrize(
    "prompt",
    [
        "a <hypernet:ink:1 castle",
        "a <hypernet:<lora:x:1>:1>",
        "a <hypernet:<hypernet:ink>:1>",
        "a <hypernet:ink<2:1>",
        "a <hypernet:b:1> <hypernet:",
    ],
)
def test_a_tag_that_is_not_closed_is_refused(prompt):
    with pytest.raises(ValueError, match="is not closed before the next one"):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("ink(1a2b3c4d)", ["ink"], "ink"),
        ("ink (1A2B3C4D5E)", ["ink"], "ink"),
        ("ink(1a2b3c4d)", ["ink", "ink(1a2b3c4d)"], "ink(1a2b3c4d)"),
        ("ink(v2)(1a2b3c4d)", ["ink", "ink(v2)"], "ink(v2)"),
        ("ink(1a2b3c4d)", ["oil"], "ink(1a2b3c4d)"),
        ("ink(deluxe)", ["ink"], "ink(deluxe)"),
        ("(1a2b3c4d)", [""], "(1a2b3c4d)"),
        ("ink", ["ink"], "ink"),
    ],
)
def test_a_name_with_the_hash_of_old_prompts_is_that_before_it(name, known, meant):
    assert parse_prompt(f"<hypernet:{name}:0.5>").strengths == {name: 0.5}
    assert resolve_name(name, known) == meant


def test_a_long_tag_is_shown_cut():
    with pytest.raises(ValueError) as caught:
        parse_prompt(f"<hypernet:ink:{'x' * 10**6}>")
    assert len(str(caught.value)) < 400
