"""What hostile files are made of, and what a refusal looks like."""

from __future__ import annotations

import os

import pytest

from hnkernels import CheckpointError, load_hypernetwork


class RunsCode:
    """Unpickling this without restrictions creates a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def refused(path, match=None, load=load_hypernetwork):
    """Loading raises one short CheckpointError that names the file, the fault (``match``) and a remedy."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "; " in message, "the message says what to do"
    assert len(message) < 500 + len(str(path))
