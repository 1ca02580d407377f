"""The guides name the options that there are."""

import re
from pathlib import Path

from hnkernels.integrations.kohya import arguments

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def test_the_guide_to_kohya_names_all_arguments():
    text = (GUIDES / "kohya.md").read_text(encoding="utf-8")
    names = {name for options in (arguments._COMMON, *arguments._OPTIONS.values()) for name in options}
    assert names == set(re.findall(r"`(\w+)=[^`]*`", text.partition("| `--network_args`")[2].partition("###")[0]))
