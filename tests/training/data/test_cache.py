"""Encoded pictures kept on disk and in memory."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from random import Random

import pytest
import torch
from PIL import Image

from hnkernels.training.data import cache as module
from hnkernels.training.data.cache import CACHE_NAME, DiskCache, MemoryCache

TENSORS = {"mean": torch.arange(12.0).reshape(3, 4), "text": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture(params=["disk", "memory"])
def cache(request, tmp_path):
    with MemoryCache() if request.param == "memory" else DiskCache(tmp_path / "new" / "folder") as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    """A cache on disk with one entry."""
    with DiskCache(tmp_path / "cache") as cache:
        cache.put("a", TENSORS)
    return tmp_path / "cache"


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def opened_files(monkeypatch):
    """The pictures that are read from now on."""
    seen = []
    for name in ("hash_of", "picture_size"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda source, f=function: (seen.append(source), f(source))[1])
    return seen


def test_what_is_put_is_got(cache):
    assert cache.get("a") is None
    cache.put("a", TENSORS)
    cache.put_all({"b": {"x": torch.zeros(0)}, "": {}})
    assert equal(cache.get("a"), TENSORS)
    assert cache.get("a")["text"].dtype == torch.bfloat16
    assert cache.get("b")["x"].shape == (0,)
    assert cache.get("") == {}


def test_an_entry_is_replaced(cache):
    cache.put("a", TENSORS)
    cache.put("a", {"x": torch.ones(1)})
    assert equal(cache.get("a"), {"x": torch.ones(1)})


def test_tensors_of_any_layout_are_copied(cache):
    x = torch.arange(12.0).reshape(3, 4).requires_grad_()
    views = {"turned": x.T, "part": x[1:, ::2], "again": x, "wide": torch.ones(1).expand(5)}
    cache.put("a", views)
    with torch.no_grad():
        expected = {name: view.clone() for name, view in views.items()}
        x.zero_()
    assert equal(cache.get("a"), expected)
    assert not any(tensor.requires_grad for tensor in cache.get("a").values())


def test_the_keys_without_an_entry_are_told_each_once_in_their_order(cache):
    cache.put_all({f"{i}": {} for i in range(0, 1200, 2)})
    wanted = [str(i) for i in reversed(range(1200))]
    assert cache.missing(iter(wanted + wanted)) == [key for key in wanted if int(key) % 2]
    assert cache.missing([]) == []


@pytest.mark.parametrize("key", ["", "a\0b", "猫", "\ud800", "'; DROP TABLE entries; --", "x" * 10_000])
def test_any_text_is_a_key(cache, key):
    cache.put(key, TENSORS)
    assert cache.missing([key, key + "x"]) == [key + "x"]
    assert equal(cache.get(key), TENSORS)


def test_a_picture_is_read_once(cache, picture, monkeypatch):
    seen = opened_files(monkeypatch)
    for _ in range(3):
        assert cache.picture_size(picture) == (6, 4)
        assert len(cache.content_hash(picture)) == 64
    assert len(seen) == 2


def test_a_picture_that_has_changed_is_read_again(cache, picture):
    before = cache.content_hash(picture)
    Image.new("RGB", (8, 2), "blue").save(picture)
    os.utime(picture, ns=(1, 1))
    assert cache.content_hash(picture) != before
    assert cache.picture_size(picture) == (8, 2)


def test_an_image_in_memory_has_hash_and_size(cache):
    image = Image.new("RGB", (6, 4), "red")
    assert cache.content_hash(image) == cache.content_hash(image.copy())
    assert cache.picture_size(image) == (6, 4)


def test_a_picture_that_cannot_be_read_is_named(cache, picture):
    with pytest.raises(ValueError, match=r"cannot read the image .*none\.png"):
        cache.content_hash(picture.with_name("none.png"))
    picture.write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png"):
        cache.picture_size(picture)


def test_another_start_finds_all_and_opens_no_picture(tmp_path, folder, picture, monkeypatch):
    pictures = [shutil.copy(picture, tmp_path / f"{i}.png") for i in range(700)]  # more than are kept unwritten
    with DiskCache(folder) as cache:
        known = [(cache.picture_size(path), cache.content_hash(path)) for path in pictures]
    seen = opened_files(monkeypatch)
    with DiskCache(folder) as cache:
        assert [(cache.picture_size(path), cache.content_hash(path)) for path in pictures] == known
        assert equal(cache.get("a"), TENSORS)
    assert not seen


def test_hash_and_size_may_be_learned_by_different_runs(folder, picture, monkeypatch):
    with DiskCache(folder) as cache:
        cache.picture_size(picture)
    with DiskCache(folder) as cache:
        cache.content_hash(picture)
    seen = opened_files(monkeypatch)
    with DiskCache(folder) as cache:
        assert (cache.picture_size(picture), len(cache.content_hash(picture))) == ((6, 4), 64)
    assert not seen


def test_a_process_that_is_killed_leaves_whole_entries(folder):
    code = (
        "import os, sys, torch; from hnkernels.training.data.cache import DiskCache\n"
        "cache = DiskCache(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    cache.put(str(i), {'x': torch.full((9999,), i)})\n"
        "    print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    last = [int(process.stdout.readline()) for _ in range(5)][-1]
    process.kill()
    process.wait()
    with DiskCache(folder) as cache:
        assert cache.missing(map(str, range(last + 1))) == []
        assert all(cache.get(str(i))["x"].eq(i).all() for i in range(last + 1))
        cache.put("b", TENSORS)


def test_two_processes_and_their_threads_may_write_at_once(folder, picture):
    code = """
import sys, threading, torch
from hnkernels.training.data.cache import DiskCache
folder, picture, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache = DiskCache(folder)
print("ready", flush=True)
sys.stdin.readline()
def work(start):
    for i in range(start, start + 8):
        cache.put(str(i), {"x": torch.full((5000,), i)})
        cache.put("shared", {"x": torch.full((5000,), i)})
        assert cache.get("shared")["x"].unique().numel() == 1
        cache.content_hash(picture)
threads = [threading.Thread(target=work, args=(number * 100 + 8 * i,)) for i in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
cache.close()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder.parent / "new"), str(picture), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[1] for process in processes]
    assert said == ["", ""]
    with DiskCache(folder.parent / "new") as cache:
        keys = [str(100 * number + i) for number in range(2) for i in range(16)]
        assert cache.missing(keys) == []
        assert all(cache.get(key)["x"].eq(int(key)).all() for key in keys)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_opens_the_cache_for_itself(folder):
    with DiskCache(folder) as cache:
        child = os.fork()
        if not child:
            try:
                cache.put("child", TENSORS)
                cache.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        cache.put("parent", TENSORS)
        assert cache.missing(["child", "parent"]) == []


def test_threads_may_share_one(cache):
    def work(number):
        for i in range(20):
            cache.put(f"{number}-{i}", {"x": torch.full((9,), i)})
            assert cache.get(f"{number}-{i}")["x"].eq(i).all()

    failed = []
    hook, threading.excepthook = threading.excepthook, failed.append
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = hook
    assert not failed


@pytest.mark.parametrize(
    "change",
    [
        "tensors = x'00'",
        "tensors = zeroblob(length(tensors))",
        "tensors = 5",
        "tensors = CAST(x'ff' AS TEXT)",
        "checksum = x''",
        "key = CAST('b' AS BLOB)",
    ],
)
def test_a_damaged_entry_counts_as_none_and_is_replaced(folder, change):
    with sqlite3.connect(folder / CACHE_NAME) as database:
        database.execute(f"UPDATE entries SET {change}")
    database.close()
    with DiskCache(folder) as cache:
        assert cache.get("a") is None
        assert cache.get("b") is None
        cache.put("a", TENSORS)
        assert equal(cache.get("a"), TENSORS)


def test_whatever_bytes_are_spoilt_no_other_tensors_come_back(folder):
    with DiskCache(folder) as cache:
        for i in range(20):
            cache.put(str(i), {"x": torch.full((2000,), i)})
    path, random = folder / CACHE_NAME, Random(0)
    whole = path.read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        at = random.randrange(len(data))
        data[at : at + 8] = random.randbytes(8)
        path.write_bytes(data)
        try:
            with DiskCache(folder) as cache:
                for i in range(20):
                    found = cache.get(str(i))
                    assert found is None or found["x"].eq(i).all()
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


def is_a_text(path):
    path.write_text("no cache" * 100)


def is_another_database(path):
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE x (y)")
    database.close()


def is_of_another_application(path):
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA application_id = 7")
    database.close()


def is_cut(path):
    path.write_bytes(path.read_bytes()[:20_000])


def is_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (is_a_text, "is not a cache; move it elsewhere, or give another cache_dir"),
        (is_another_database, "is a database, but not a cache that this version can use; move it"),
        (is_of_another_application, "is a database, but not a cache"),
        (is_cut, "is damaged .*; delete it, and everything is encoded again"),
        (is_a_folder, "cannot use the cache .*; see that its folder is there"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_left_as_it_is(folder, spoil, said):
    path = folder / CACHE_NAME
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=said) as refusal:
        DiskCache(folder).put("b", TENSORS)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert before is None or path.read_bytes() == before


def test_an_empty_file_becomes_a_cache(tmp_path):
    (tmp_path / CACHE_NAME).touch()
    with DiskCache(tmp_path) as cache:
        cache.put("a", TENSORS)
        assert equal(cache.get("a"), TENSORS)


@pytest.mark.parametrize("pragma", ["query_only = 1", "max_page_count = 1"], ids=["read-only", "full"])
def test_a_disk_that_takes_no_more_is_said_in_one_sentence_and_what_was_there_stays(folder, picture, pragma):
    cache = DiskCache(folder)
    cache._connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(ValueError, match=r"cannot use the cache .*sqlite \(.*(full|readonly).*\); see that its folder"):
        cache.put("b", {"x": torch.zeros(10**5)})
    assert equal(cache.get("a"), TENSORS)
    assert cache.get("b") is None
    cache.close()


def test_a_folder_that_vanishes_is_said_in_one_sentence(folder):
    cache = DiskCache(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"cannot use the cache .*; see that its folder is there"):
        cache.put("b", TENSORS)
    cache.close()


def test_a_cache_that_stays_locked_is_said_in_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_S", 0.1)
    other = sqlite3.connect(folder / CACHE_NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"has been locked by another process for 0\.1 s; wait"):
        DiskCache(folder)
    other.close()


def test_a_folder_that_cannot_be_made_is_named(picture):
    with pytest.raises(ValueError, match=r"cannot make the folder of the cache .*a\.png"):
        DiskCache(picture / "cache")


def test_a_closed_cache_says_so_and_may_be_closed_again(folder):
    cache = DiskCache(folder)
    cache.close()
    cache.close()
    for use in (lambda: cache.get("a"), lambda: cache.put("a", TENSORS), lambda: cache.missing(["a"])):
        with pytest.raises(ValueError, match="is closed; open it again"):
            use()
