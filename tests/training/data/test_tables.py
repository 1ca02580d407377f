"""Tables of pictures and captions."""

import json

import pytest
from PIL import Image

from hnkernels.training import read_image_folder
from hnkernels.training.data import tables


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
        (
            '{"file_name": "a.png", "text": "x\\ud800"}\n',
            "text has half of a character in it, .*; write it whole, or leave it out",
        ),
        (rows(("a.png", True)), "text must be"),
        (rows(("a.png", ["x", "y"])), "text must be"),
        (rows(("a.png", {"en": "x"})), "text must be"),
        ('{"file_name": "a.png", "text": "x", "condition": 5}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": ["ink"]}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": {"ink": "0.5"}}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "condition": {"ink": NaN}}', "condition must be"),
        (f'{{"file_name": "a.png", "text": "x", "condition": {{"ink": 1{"0" * 400}}}}}', "condition must be"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "'text' is given twice"),
        ('{"file_name": "a.png", "title": "x"}', "expected"),
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
    with pytest.raises(ValueError, match=r"holds both metadata\.csv and metadata\.jsonl; remove one"):
        read(folder)


@pytest.mark.parametrize("column", ["caption", "prompt", "edit_prompt"])
def test_the_caption_may_have_another_column(folder, column):
    table(folder, json.dumps({"file_name": "a.png", column: "an a"}) + "\n" + rows(("b.png", "a b")))
    assert read(folder) == BOTH[::-1]
    (folder / "metadata.jsonl").unlink()
    table(folder, f"{column},file_name\na b,b.png\nan a,a.png\n", "metadata.csv")
    assert read(folder) == BOTH


def test_of_two_columns_of_captions_the_text_counts(folder):
    table(folder, "file_name,caption,text\nb.png,x,a b\na.png,x,an a\n", "metadata.csv")
    with pytest.warns(UserWarning, match=r"unknown columns of tables \(1: caption\)"):
        assert read(folder) == BOTH


@pytest.mark.parametrize("columns", [("file_name", "source_file_name"), ("file_name", "input_image_file_name"),
                                     ("edited_image_file_name", "input_image_file_name")])  # fmt: skip
def test_a_column_names_the_picture_that_is_edited(folder, columns, recwarn):
    table(folder, f"{','.join(columns)},edit_prompt\na.png,b.png,make it an a\n", "metadata.csv")
    (example,) = read_image_folder(folder)
    assert (example.image.name, example.source.name, example.caption) == ("a.png", "b.png", "make it an a")
    assert not recwarn.list


def test_a_row_may_have_nothing_to_start_from(folder):
    table(folder, "file_name,source_file_name,text\na.png,,x\nb.png,a.png,y\n", "metadata.csv")
    assert [e.source and e.source.name for e in read_image_folder(folder)] == [None, "a.png"]


def test_a_picture_to_start_from_that_is_not_there_is_named(folder):
    table(folder, "file_name,source_file_name,text\na.png,none.png,x\n", "metadata.csv")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: there is no file 'none\.png'"):
        read(folder)


def test_pictures_of_a_table_in_a_numbered_folder_have_its_repeats(tmp_path):
    data = tmp_path / "10_cat"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(data / "a.png")
    table(data, rows(("a.png", "x")))
    assert [(e.caption, e.repeats) for e in read_image_folder(tmp_path)] == [("x", 10)]


def parquet(folder, columns):
    pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads parquet, is not installed")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), folder / "metadata.parquet")


def test_a_parquet_file_says_the_same(folder, recwarn):
    parquet(folder, {"file_name": ["b.png", "a.png"], "text": ["a b", "an a"]})
    assert read(folder) == BOTH
    assert not recwarn.list


def test_a_parquet_file_may_hold_conditions_and_pictures_to_start_from(folder):
    parquet(
        folder,
        {
            "caption": ["x", "y"],
            "file_name": ["a.png", "b.png"],
            "condition": [{"ink": 0.5, "oil": 0.5}, {"ink": 1.0, "oil": None}],
            "source_file_name": ["b.png", None],
        },
    )
    first, second = read_image_folder(folder)
    assert (first.condition, second.condition) == ({"ink": 0.5, "oil": 0.5}, {"ink": 1.0})
    assert (first.source.name, second.source) == ("b.png", None)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"file_name": ["a.png"]}, "its header: expected the columns file_name,text, each once, found 'file_name'"),
        ({"file_name": ["a.png", "none.png"], "text": ["x", "y"]}, "row 2: there is no file"),
        ({"file_name": ["a.png"], "text": [None]}, "row 1: text must be a text"),
        ({"file_name": [None], "text": ["x"]}, "row 1: file_name must be the name of a picture, not None"),
        ({"file_name": ["a.png"], "text": [5]}, "row 1: text must be a text"),
    ],
)
def test_a_row_of_a_parquet_file_that_cannot_be_used_is_named(folder, columns, said):
    parquet(folder, columns)
    with pytest.raises(ValueError, match=rf"metadata\.parquet, {said}"):
        read(folder)


def test_a_file_that_is_not_parquet_is_named(folder):
    pytest.importorskip("pyarrow", reason="pyarrow, which reads parquet, is not installed")
    table(folder, "PAR1 nothing PAR1", "metadata.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*metadata\.parquet: "):
        read(folder)


def test_without_pyarrow_the_error_says_what_to_install(folder, monkeypatch):
    table(folder, "PAR1", "metadata.parquet")
    monkeypatch.setitem(tables.sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"only be read with pyarrow; install it \(pip install pyarrow\), or save .*csv"
    ):
        read(folder)


@pytest.mark.parametrize("name", ["meta_cap.json", "meta_lat.json", "metadata.json"])
@pytest.mark.parametrize("suffix", ["", ".png"])
def test_the_tables_of_kohyas_tools_are_read(folder, name, suffix, recwarn):
    (folder / "x").mkdir()
    (folder / "a.png").rename(folder / "x" / "a.png")
    entries = {
        f"b{suffix}": {"caption": "a b", "train_resolution": [64, 64]},
        f"x/a{suffix}": {"tags": "1a, sitting", "caption": "an a"},
    }
    table(folder, json.dumps(entries), name)
    assert read(folder) == [BOTH[0], ("x/a.png", "an a, 1a, sitting", None)]
    assert not recwarn.list


def test_tags_alone_are_the_caption(folder):
    table(folder, json.dumps({"a": {"tags": "1a, sitting"}, "b": {"tags": "1b", "caption": ""}}), "meta_cap.json")
    assert [caption for _, caption, _ in read(folder)] == ["1a, sitting", "1b"]


def test_of_the_tables_of_kohyas_tools_the_last_counts(folder):
    table(folder, json.dumps({"a": {"caption": "x"}}), "meta_cap.json")
    table(folder, json.dumps({"a": {"caption": "y"}, "b": {"caption": "z"}}), "meta_lat.json")
    with pytest.warns(UserWarning, match=r"that a later one of the same trainer replaces \(1: meta_cap\.json\)"):
        assert [caption for _, caption, _ in read(folder)] == ["y", "z"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"none": {"caption": "x"}}, "entry 'none': there is no file 'none'"),
        ({"../outside": {"caption": "x"}}, "entry '../outside': .* lies outside"),
        ({"a": {"caption": 5}}, "entry 'a': text must be a text"),
        ({"a": {"caption": "x"}, "b": {"train_resolution": [4, 4]}}, "entry 'b': text must be a text .* not None"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(folder, entries, said):
    table(folder, json.dumps(entries), "meta_cap.json")
    with pytest.raises(ValueError, match=rf"meta_cap\.json, {said}"):
        read(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": 5}', '{"a": {"width": 4}}', "5"])
def test_another_file_of_that_name_is_not_a_table(folder, text):
    for name in "ab":
        (folder / f"{name}.txt").write_text(name)
    table(folder, text, "metadata.json")
    with pytest.warns(UserWarning, match=r"files of other types \(1: metadata\.json\)"):
        assert [caption for _, caption, _ in read(folder)] == ["a", "b"]


def test_kohyas_table_beside_another_is_refused(folder):
    table(folder, rows(("a.png", "x")))
    table(folder, json.dumps({"a": {"caption": "x"}}), "meta_cap.json")
    with pytest.raises(ValueError, match=r"holds both metadata\.jsonl and meta_cap\.json; remove one"):
        read(folder)
