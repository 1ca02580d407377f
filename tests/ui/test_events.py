"""What handlers say is text: names of files are not markup."""

import pytest

from hnkernels.ui.events import refused, said, sentence


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("it is 'done'", "It is 'done'."),
        ("a_b_c #1", "a_b_c #1."),
        ("<b>*bold*</b> & [a](b)", "&lt;b&gt;*bold*&lt;/b&gt; &amp; [a](b)."),
        ("why not?", "Why not?"),
        (ValueError(" `x` | y! "), "`x` | y!"),
        ("my-style cannot be started", "my-style cannot be started."),
    ],
)
def test_a_message_becomes_a_sentence_that_screen_readers_say(message, shown):
    assert sentence(message) == f'<p role="status">{shown}</p>'
    assert refused(message) == f'<p role="alert" class="fault">{shown}</p>'


def test_a_fault_stands_where_the_sentence_would():
    def handler(name):
        if name == "bad":
            raise ValueError("no <i>")
        return f"saved {name}"

    assert said(handler)("x_y") == sentence("saved x_y")
    assert said(handler)("bad") == refused("no <i>")
