"""The embedded model's tokenizer, built from the words of its captions and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPTokenizer

from hnkernels.errors import InputError

MAX_TOKENS = 16
WORD_END = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer(words: Sequence[str], folder: Path) -> CLIPTokenizer:
    """Makes a CLIP tokenizer that has one token for each of `words` and spells everything else in bytes.

    The vocabulary is CLIP's layout in small: 256 byte letters, the same 256 as word ends, one token per merge, start
    and end of text. Any text can be encoded; texts are cut at MAX_TOKENS.

    Args:
        words: lower-case words.
        folder: gets vocab.json and merges.txt, which every version of transformers can read (version 5 itself saves
            only tokenizer.json).

    Raises:
        ValueError: if the merges of one word break up another, so that it takes more than one token.
    """
    alphabet = _byte_letters()
    merges = list(dict.fromkeys(merge for word in words for merge in _merges(word)))
    vocabulary = [
        *alphabet,
        *(letter + WORD_END for letter in alphabet),
        *("".join(m) for m in merges),
        *SPECIAL_TOKENS,
    ]
    ids = {token: index for index, token in enumerate(vocabulary)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    for word in words:
        tokens = tokenizer.tokenize(word)
        if tokens != [word + WORD_END]:
            raise InputError(f"the word {word!r} is encoded as {tokens}; reorder or change the word list")
    return tokenizer


def _merges(word: str) -> list[tuple[str, str]]:
    """Grows a word from its first letter: s e, se v, sev e, seve n</w>."""
    letters = [*word[:-1], word[-1] + WORD_END]
    return [("".join(letters[:i]), letters[i]) for i in range(1, len(letters))]


def _byte_letters() -> list[str]:
    """One printable character for each byte value, as GPT-2 and CLIP assign them (Radford et al., 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return [chr(value) for value in printable] + [chr(256 + index) for index in range(len(others))]
