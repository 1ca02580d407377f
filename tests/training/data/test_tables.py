"""Tables of pictures and captions."""

import json

import pytest
from PIL import Image

from hnkernels.training import read_image_folder


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in (data / "a.png", data / "b.png", tmp_path / "outside.png"):
        Image.new("RGB", (4, 4)).save(path)
    return data


def table(folder, text, name="metadata.jsonl"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def rows(*given):
    return "".join(json.dumps({"file_name": name, "text": text}, ensure_ascii=False) + "\n" for name, text in given)


def read(folder):
    return [(e.image.relative_to(folder).as_posix(), e.caption, e.condition) for e in read_image_folder(folder)]


BOTH = [("b.png", "a b", None), ("a.png", "an a", None)]


@pytest.mark.parametrize("name", ["metadata.jsonl", "METADATA.JSONL"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_are_taken_in_their_order(folder, encoding, name, recwarn):
    table(folder, rows(("b.png", "a b"), ("a.png", "an a")).replace("\n", "\r\n").encode(encoding), name)
    assert read(folder) == BOTH
    assert not recwarn.list


@pytest.mark.parametrize("start", ["file_name,text\n", "\ufefffile_name, text\r\n", '"file_name","text"\n\n'])
def test_a_csv_says_the_same(folder, start, recwarn):
    table(folder, start + "b.png,a b\na.png, an a\n", "metadata.csv")
    assert read(folder) == BOTH
    assert not recwarn.list


def test_a_csv_may_hold_commas_lines_and_conditions(folder):
    table(folder, 'file_name,condition,text\nb.png,ink,"a, ""b"""\na.png,,"an\na"\n', "metadata.csv")
    assert read(folder) == [("b.png", 'a, "b"', "ink"), ("a.png", "an\na", None)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_a_line_feed_alone(folder, separator):
    table(folder, rows(("a.png", f"an{separator}a"), ("b.png", "a b")))
    assert [caption for _, caption, _ in read(folder)] == [f"an{separator}a", "a b"]


@pytest.mark.parametrize("name", ["./a.png", "x/../a.png", "{folder}/a.png"])
def test_a_picture_may_be_named_in_several_ways(folder, name):
    table(folder, rows((name.format(folder=folder), "an a"), ("b.png", "a b")))
    link = folder.parent / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert read(folder) == read(link) == BOTH[::-1]


def test_a_backslash_separates_folders(folder):
    (folder / "x").mkdir()
    (folder / "a.png").rename(folder / "x" / "a.png")
    table(folder, rows(("x\\a.png", "an a"), ("b.png", "a b")))
    assert read(folder) == [("x/a.png", "an a", None), BOTH[0]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (rows(("../outside.png", "x")), "lies outside"),
        (rows(("/dev/null", "x")), "lies outside"),
        (rows(("none.png", "x")), "there is no file"),
        (rows(("a.png\0", "x")), "there is no file"),
        (rows(("x" * 9999, "x")), "there is no file"),
        (rows((None, "x")), "file_name must be"),
        (rows(("", "x")), "file_name must be"),
        (rows((["a.png"], "x")), "file_name must be"),
        (rows(("a.png", None)), "text must be a text in quotes, .* not None"),
        (rows(("a.png", 5)), "text must be"),
        (rows(("a.png", True)), "text must be"),
        (rows(("a.png", ["x", "y"])), "text must be"),
        (rows(("a.png", {"en": "x"})), "text must be"),
        ('{"file_name": "a.png", "text": "x", "condition": 5}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": ["ink"]}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": {"ink": "0.5"}}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": {"ink": NaN}}', "condition must be"),
        (f'{{"file_name": "a.png", "text": "x", "condition": {{"ink": 1{"0" * 400}}}}}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "'text' is given twice"),
        ('{"file_name": "a.png", "caption": "x"}', "expected"),
        ("[" * 5000, "expected"),
        ('"a.png"', "expected"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(folder, line, said):
    table(folder, rows(("b.png", "a b")) + line)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, line 2: .*{said}"):
        read(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name;text\na.png;x", "line 1: expected the columns file_name,text"),
        ("", "line 1: expected the columns"),
        ("file_name,text,text\na.png,x,y", "line 1: expected the columns"),
        ("file_name,text\na.png,a cat, sitting", "line 2: expected 2 cells, found 3; put quotes"),
        ("file_name,text\n\na.png", "line 3: expected 2 cells, found 1"),
        ('file_name,text\na.png,"x', "line 2: "),
        ("file_name,text\nnone.png,x", "line 2: there is no file"),
        ("file_name,text\na.png," + "x" * 200_000, "line 2: field larger"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(folder, text, said):
    table(folder, text, "metadata.csv")
    with pytest.raises(ValueError, match=rf"metadata\.csv, {said}"):
        read(folder)


@pytest.mark.parametrize(
    "raw", [b'{"file_name": "a.png", "text": "caf\xe9"}', rows(("a.png", "x")).encode("utf-16-le")]
)
def test_another_encoding_is_refused(folder, raw):
    table(folder, raw)
    with pytest.raises(ValueError, match=r"metadata\.jsonl is not UTF-8 text: .*; save it as UTF-8"):
        read(folder)


def test_a_picture_may_have_several_captions_and_a_repeated_line_counts_once(folder):
    table(folder, rows(("a.png", "x"), ("a.png", "y"), ("./a.png", "x"), ("b.png", "z")))
    with pytest.warns(UserWarning, match=r"repeat another \(1: metadata\.jsonl, line 3\); tables name pictures again"):
        assert [row[:2] for row in read(folder)] == [("a.png", "x"), ("a.png", "y"), ("b.png", "z")]


def test_columns_that_nothing_reads_are_named(folder):
    table(folder, '{"file_name": "a.png", "text": "x", "conditon": "ink"}\n' + rows(("b.png", "y")))
    with pytest.warns(UserWarning, match=r"unknown columns of tables \(1: conditon\)"):
        assert len(read(folder)) == 2


def test_two_tables_in_a_folder_are_refused(folder):
    table(folder, rows(("a.png", "x")))
    table(folder, "file_name,text\na.png,y\n", "metadata.csv")
    with pytest.raises(ValueError, match=r"holds both metadata\.jsonl and metadata\.csv; remove one"):
        read(folder)
