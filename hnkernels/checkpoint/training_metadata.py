"""What the metadata of a safetensors file says of training, under names that other programs know.

``modelspec.…`` are those of Stability AI's Model Metadata Standard 1.0.0, ``ss_…`` those of kohya's sd-scripts, which
the web UIs show. Keys and values are texts that anybody may have written: they are kept and shown, and nothing depends
on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnkernels.checkpoint.errors import Fault, brief

SPECIFICATION = "modelspec.sai_model_spec"
"""The key that says that a file follows the standard."""

HASH = "modelspec.hash_sha256"
"""Of the bytes of the tensors; written with the file, never taken from another."""

_PREFIXES = ("modelspec.", "ss_")
_MOST_BYTES = 2**24  # of keys and values; safetensors itself ends at 10⁸ bytes for the whole header


def kept_of(header: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """The entries of a file's metadata that are about training, in alphabetical order.

    Args:
        header: the metadata.
        notes: gets a sentence if there are more than 16 MiB of entries. Then none is kept, for the network could not
            be saved again.
    """
    found = {key: header[key] for key in sorted(header) if key.startswith(_PREFIXES) and key != HASH}
    if _size(found) <= _MOST_BYTES:
        return found
    notes.append(f"{_size(found)} bytes of metadata about training were left out; {_MOST_BYTES} are accepted")
    return {}


def checked(training: Any) -> dict[str, str]:
    """``training``, if a file can hold it.

    Raises:
        Fault: it is not a mapping of texts to texts under the names above, or larger than 16 MiB.
    """
    if not isinstance(training, Mapping):
        raise Fault(f"cannot hold provenance.training = {brief(training)}", "give a dict of texts")
    for key, value in training.items():
        if not isinstance(key, str) or not key.startswith(_PREFIXES) or key == HASH:
            raise Fault(
                f"cannot hold the entry {brief(key)} of provenance.training",
                f"use names that begin with {' or '.join(_PREFIXES)}; {HASH} is written by itself",
            )
        if not isinstance(value, str) or not _is_text(key + value):
            raise Fault(f"cannot hold provenance.training[{brief(key)}] = {brief(value)}", "give a text")
    if _size(training) > _MOST_BYTES:
        raise Fault(
            f"cannot hold {_size(training)} bytes of provenance.training",
            f"shorten it to {_MOST_BYTES} bytes, for example by leaving out rare tags of ss_tag_frequency",
        )
    return dict(training)


def _size(entries: Mapping[str, str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for entry in entries.items() for text in entry)


def _is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: lone surrogates, which names of files may have, are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
