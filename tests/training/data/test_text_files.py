"""Text files as editors on every system save them."""

import json

import pytest

from hnkernels.training.data.text_files import parse_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_not_part_of_the_text(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("a café\u2028, 猫".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "a café\u2028, 猫"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_refused_with_what_to_do(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("a café".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text: .*; save it as UTF-8"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["none.txt", "."])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="cannot read "):
        read_text(tmp_path / name)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 2}}]', "[" * 100_000])
def test_json_that_is_broken_or_says_a_key_twice_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_may_have_a_byte_order_mark(tmp_path, encoding):
    pytest.importorskip("typer")
    from hnkernels.cli.training import read_config

    file = tmp_path / "config.json"
    file.write_bytes(json.dumps({"training": {"max_steps": 1}}).encode(encoding))
    assert read_config(file) == {"training": {"max_steps": 1}, "network": {}}
    for broken in (b"{", b"\xff\xfe\xff", b'{"training": {"seed": 1, "seed": 2}}'):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"cannot read the config .*config\.json"):
            read_config(file)
