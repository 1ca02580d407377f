"""Settings go into a PNG and come back, and a PNG that is made to do harm does none."""

import errno
import json
import struct
import zlib
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnkernels.checkpoint import atomic
from hnkernels.drawing.png import OWN, PARAMETERS, save_picture, settings_in
from hnkernels.drawing.request import NetworkUse

PICTURE = Image.new("RGB", (32, 24), "red")


def png_with(path, **texts):
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    PICTURE.save(path, pnginfo=info)
    return path


def test_what_was_drawn_comes_back(asks, tmp_path):
    full = replace(
        asks.with_network("ink", strength=0.5, parts={"down": 0.25}, styles={"öl": 1.0}),
        prompt="digit <hypernet:ink:0.5>, ‘printed’\nnow", negative="blur", seed=2**63 - 1, width=32, height=24,
    )  # fmt: skip
    path = save_picture(PICTURE, tmp_path / "pictures", full, {"grid": {}})
    assert path.parent == tmp_path / "pictures"
    assert settings_in(path) == full.to_json()
    with Image.open(path) as image:
        image.load()
        assert image.convert("RGB").tobytes() == PICTURE.tobytes()
        assert json.loads(image.text[OWN])["grid"] == {}


def test_a1111_finds_its_parameters(asks, tmp_path):
    with_negative = replace(asks, negative="blur", model_name="my, model: one")
    with Image.open(save_picture(PICTURE, tmp_path, with_negative)) as image:
        assert image.text[PARAMETERS] == (
            "digit seven <hypernet:ink:1>\nNegative prompt: blur\n"
            "Steps: 2, CFG scale: 3, Seed: 3, Size: 32x24, Model: my model one"
        )


def test_what_a1111_wrote_is_read(tmp_path):
    text = (
        "a castle,\nat night <hypernet:ink:0.7>\nNegative prompt: blur,\nfog\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12, Size: 512x768, Model hash: abc, Model: sd, VAE: "a, b"'
    )
    assert settings_in(png_with(tmp_path / "a.png", parameters=text)) == {
        "prompt": "a castle,\nat night <hypernet:ink:0.7>", "negative": "blur,\nfog", "model": "sd",
        "steps": 20, "seed": 12, "guidance": 7.5, "width": 512, "height": 768,
    }  # fmt: skip


def test_pictures_of_one_second_get_names_of_their_own(asks, tmp_path):
    paths = {save_picture(PICTURE, tmp_path, asks) for _ in range(5)}
    assert len(paths) == 5
    assert sorted(paths) == sorted(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(asks, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ValueError, match="could not be saved: No space left on device; make room and draw again"):
        save_picture(PICTURE, tmp_path, asks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PNG, or is damaged"),
        (b"GIF89a" + bytes(100), "is not a PNG, or is damaged"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "is not a PNG, or is damaged"),
        (b"\x89PNG\r\n\x1a\n", "is not a PNG, or is damaged"),
    ],
)
def test_what_is_not_a_png_is_refused(content, message, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        settings_in(path)
    with pytest.raises(ValueError, match=message):
        settings_in(tmp_path / "none.png")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def crafted(path, *chunks, width=32, height=24):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_texts_that_unpack_to_megabytes_are_not_unpacked(tmp_path):
    bomb = zlib.compress(bytes(20_000_000), 9)
    for kind, head in ((b"zTXt", b"parameters\0\0"), (b"iTXt", b"hnkernels\0\1\0\0\0")):
        with pytest.raises(ValueError, match="png has no settings"):
            settings_in(crafted(tmp_path / "a.png", chunk(kind, head + bomb)))


def test_a_picture_that_would_be_gigabytes_is_not_decoded(tmp_path):
    with pytest.raises(ValueError, match="no settings"):
        settings_in(crafted(tmp_path / "a.png", width=2**31 - 1, height=2**31 - 1))


NOTHING = "has no settings inside; take a PNG that was drawn here, or by A1111"


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "[]", "3", "null", '"a"', "{}", "[" * 100_000, '{"a":' * 50_000, "\0", "{" + '"a":1,' * 9,
        '{"prompt": 3, "steps": "20", "seed": -1, "guidance": "x", "width": 1e99, "networks": 7}',
        '{"steps": true, "seed": 1.5, "guidance": NaN, "model": ["x"], "networks": {"name": "a", "strength": 1}}',
    ],
)  # fmt: skip
def test_settings_of_the_wrong_form_are_passed_over(text, tmp_path):
    with pytest.raises(ValueError, match=NOTHING):
        settings_in(png_with(tmp_path / "a.png", **{OWN: text}))


def test_networks_of_the_wrong_form_are_passed_over(tmp_path):
    text = '{"networks": [1, [], {"name": 1}, {"name": "a"}, {"name": "b", "strength": true}]}'
    assert settings_in(png_with(tmp_path / "a.png", **{OWN: text})) == {"networks": []}


def test_what_can_be_used_is_taken_and_paths_are_names(tmp_path):
    content = {
        "prompt": "ok", "steps": 10**9, "seed": 4, "file": "/etc/passwd",
        "networks": [
            {"name": "../../etc/passwd", "strength": 1, "parts": {"down": "x", "up": 2}, "styles": [], "file": "/a"},
            {"name": "b", "strength": float("inf")},
            *[{"name": "c", "strength": 0.5}] * 50,
        ],
    }  # fmt: skip
    found = settings_in(png_with(tmp_path / "a.png", **{OWN: json.dumps(content)}))
    assert {key: found[key] for key in ("prompt", "seed")} == {"prompt": "ok", "seed": 4}
    assert set(found) == {"prompt", "seed", "networks"}
    assert found["networks"][0] == {"name": "../../etc/passwd", "strength": 1.0, "parts": {"up": 2.0}, "styles": {}}
    assert 1 < len(found["networks"]) <= 16


@pytest.mark.parametrize(
    "text",
    [
        "", "a prompt alone", "Steps: x, Seed: 99999999999999999999999, CFG scale: 1e400, Size: 9x9x9", "Steps: ²",
        "\n" * 99, 'Steps: "' + '\\"' * 5000, "Steps: " + "A: " * 5000,
    ],
)  # fmt: skip
def test_parameters_of_the_wrong_form_are_passed_over(text, tmp_path):
    path = png_with(tmp_path / "a.png", **{PARAMETERS: text})
    if text.startswith("Steps"):
        assert settings_in(path) == {"prompt": "", "negative": ""}
    else:
        with pytest.raises(ValueError, match=NOTHING):
            settings_in(path)


def test_a_network_without_a_tag_becomes_one(asks, tmp_path, ink):
    two = replace(asks, prompt="a <hypernet:ink:0.25>", networks=(*asks.networks, NetworkUse(ink, "other", 0.5)))
    with Image.open(save_picture(PICTURE, tmp_path, two)) as image:
        assert image.text[PARAMETERS].startswith("a <hypernet:ink:0.25><hypernet:other:0.5>\n")
