"""Images and captions."""

import json

import pytest
import torch
from PIL import Image

from hnkernels.training import Example, read_image_folder
from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.examples import as_examples


def save(path, color="red", size=(4, 4), mode="RGB"):
    Image.new(mode, size, color).save(path)
    return path


def test_captions_come_from_the_text_file_beside_the_image_or_its_name(tmp_path):
    save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text(" a cat, sitting \n", encoding="utf-8")
    save(tmp_path / "01-02 a dog.jpg")
    (tmp_path / "notes.md").write_text("no caption")
    with pytest.warns(UserWarning, match=r"notes\.md.*no caption beside 01-02 a dog\.jpg"):
        examples = read_image_folder(tmp_path)
    assert [(e.image.name, e.caption) for e in examples] == [
        ("01-02 a dog.jpg", "a dog"),
        ("b.png", "a cat, sitting"),
    ]


def test_metadata_says_what_the_folder_holds(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "left out.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "an a"}) + "\n\n")
    with pytest.warns(UserWarning, match=r"does not name \(1: left out\.png\)"):
        examples = read_image_folder(tmp_path)
    assert [(e.image.name, e.caption) for e in examples] == [("a.png", "an a")]


@pytest.mark.parametrize("line", ["{", '{"file_name": "a.png"}', "[1]", '{"file_name": "none.png", "text": "x"}'])
def test_a_bad_line_of_metadata_is_named(tmp_path, line):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2"):
        read_image_folder(tmp_path)


def test_no_folder_and_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        read_image_folder(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (example,) = read_image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png"):
        example.pixels(4)


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        read_image_folder(tmp_path)


def test_pixels_are_cropped_to_the_centre_and_scaled_to_one():
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (2, 0, 6, 4))
    pixels = Example(image, "").pixels(4)
    assert pixels.shape == (3, 4, 4)
    assert torch.equal(pixels, torch.ones(3, 4, 4))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode):
    image = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert torch.equal(Example(image, "").pixels(4), torch.ones(3, 4, 4))


def test_an_opaque_rgba_image_is_its_colours():
    # A1111's alpha weighting divides 0 by 0 here.
    assert torch.equal(Example(Image.new("RGBA", (4, 4), (0, 0, 0, 255)), "").pixels(4), -torch.ones(3, 4, 4))


def test_examples_may_be_given_in_memory(tmp_path):
    image = Image.new("RGB", (4, 4))
    path = save(tmp_path / "a.png")
    examples = as_examples([(image, "x"), (str(path), "y"), Example(image, "z")])
    assert [e.caption for e in examples] == ["x", "y", "z"]
    for bad in ([], [5], [(image,)], ["ab"], [(image, None)], [(image, 5)], [(image, ["x"])], [Example(image, None)],
                [Example(image, "x", repeats=0)], [Example(image, "x", repeats=True)]):  # fmt: skip
        with pytest.raises(ValueError, match="data"):
            as_examples(bad)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_template_takes_caption_and_name():
    assert CaptionMaker("a [filewords] by [name]", "me")("cat", generator()) == "a cat by me"


def test_tags_are_shuffled_and_dropped():
    tags = ["a", "b", "c", "d", "e", "f"]
    shuffled = CaptionMaker("[filewords]", "n", shuffle_tags=True)
    seen = {shuffled(", ".join(tags), generator(seed)) for seed in range(5)}
    assert len(seen) > 1
    assert all(sorted(s.split(", ")) == tags for s in seen)
    dropped = CaptionMaker("[filewords]", "n", tag_dropout=0.5)(", ".join(tags), generator())
    assert 0 < len(dropped.split(", ")) < 6
    assert [t for t in tags if t in dropped] == dropped.split(", ")  # order kept


@pytest.mark.parametrize("options", [{"shuffle_tags": True}, {"tag_dropout": 0.7}, {"tag_dropout": 1.0}])
def test_the_first_tags_are_neither_shuffled_nor_dropped(options):
    maker = CaptionMaker("a [filewords]", "n", keep_tags=2, **options)
    seen = {maker("me,  a hat, c, d, e, f", generator(seed)) for seed in range(20)}
    assert all(caption.startswith("a me, a hat") for caption in seen)
    assert len(seen) > 1 or seen == {"a me, a hat"}


@pytest.mark.parametrize("caption", ["", "me", "me, a hat"])
def test_a_caption_of_few_tags_is_kept_whole(caption):
    assert CaptionMaker("[filewords]", "n", True, 1.0, keep_tags=2)(caption, generator()) == caption


def test_a_caption_of_which_tags_are_kept_may_be_dropped_as_a_whole():
    assert CaptionMaker("[filewords]", "n", caption_dropout=1.0, keep_tags=2)("a, b", generator()) == ""


def test_caption_dropout_trains_the_empty_caption():
    maker = CaptionMaker("a [filewords]", "n", caption_dropout=0.5)
    seen = [maker("cat", generator(seed)) for seed in range(40)]
    assert set(seen) == {"", "a cat"}


def test_captions_follow_the_generator_alone():
    maker = CaptionMaker("[filewords]", "n", shuffle_tags=True, tag_dropout=0.3, caption_dropout=0.3)
    seen = []
    for program in (1, 2):
        torch.manual_seed(program)
        seen.append([maker("a, b, c, d, e, f", generator(seed)) for seed in range(10)])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1
