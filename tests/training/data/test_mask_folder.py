"""Folders of masks."""

import unicodedata

import pytest
from PIL import Image

from hnkernels.training import Example, read_image_folder
from hnkernels.training.data.examples import as_examples


def save(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 4)).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    for name in ("a.png", "below/b.jpg"):
        save(tmp_path / "data" / name)
        (tmp_path / "data" / name).with_suffix(".txt").write_text("x")
    for name in ("a.png", "below/b.webp"):
        save(tmp_path / "masks" / name, "L")
    return tmp_path / "data", tmp_path / "masks"


def read(data, masks):
    return [e.mask.relative_to(masks).as_posix() for e in read_image_folder(data, masks)]


def test_a_mask_has_the_path_of_its_picture_and_any_suffix(folders, recwarn):
    assert read(*folders) == ["a.png", "below/b.webp"]
    assert not recwarn.list


def test_of_two_masks_the_one_with_the_suffix_of_the_picture_counts(folders):
    save(folders[1] / "a.jpg", "L")
    with pytest.warns(UserWarning, match=r"masks without a picture \(1: \.\./masks/a\.jpg\)"):
        assert read(*folders) == ["a.png", "below/b.webp"]


def test_case_and_composition_of_accents_do_not_matter(tmp_path):
    save(tmp_path / "data" / unicodedata.normalize("NFC", "CAFÉ.PNG"))
    save(tmp_path / "masks" / unicodedata.normalize("NFD", "café.png"), "L")
    assert len(read(tmp_path / "data", tmp_path / "masks")) == 1


def test_masks_without_a_picture_are_named(folders):
    save(folders[1] / "spare.png", "L")
    with pytest.warns(UserWarning, match=r"masks without a picture \(1: \.\./masks/spare\.png\)"):
        read(*folders)


def test_pictures_without_a_mask_are_named(folders):
    for name in ("below/b.webp", "a.png"):
        (folders[1] / name).unlink()
        with pytest.raises(ValueError, match=r"holds no mask of (a\.png, )?below/b\.jpg \([12] in all\); a mask has"):
            read(*folders)


def test_masks_may_lie_inside_the_folder_of_the_data(folders, recwarn):
    data, masks = folders
    masks.rename(data / "masks")
    assert read(data, data / "masks") == ["a.png", "below/b.webp"]
    assert not recwarn.list


def test_the_summary_counts_masks(folders, capsys):
    as_examples(folders[0], progress=True, mask_data=folders[1])
    assert "masks (2)" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("none", "is not a folder"), ("data", "is the folder of the pictures")])
def test_a_folder_that_cannot_hold_the_masks_is_refused(folders, name, said):
    with pytest.raises(ValueError, match=f"mask_data .*{name} {said}"):
        read_image_folder(folders[0], folders[0].parent / name)


def test_examples_in_memory_bring_their_own_masks(folders):
    example = Example(folders[0] / "a.png", "x", mask=folders[1] / "a.png")
    assert as_examples([example])[0].mask == folders[1] / "a.png"
    with pytest.raises(ValueError, match="mask_data is for a folder of pictures"):
        as_examples([example, (folders[0] / "a.png", "y")], mask_data=folders[1])


def test_examples_that_were_read_with_their_masks_may_be_given_with_the_folder(folders):
    examples = read_image_folder(*folders)
    assert as_examples(examples, mask_data=folders[1]) == examples
