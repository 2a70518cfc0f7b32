"""Which slides lie in a folder, and which encoder reads them."""

import shutil

import pytest
from PIL import Image

from slideway.core.errors import SlideAccessError
from slideway.pipeline.folder import find_slides, read_slides
from slideway.registry import DEFAULT_ENCODER, find_encoder
from slideway.slides.resolution import load_profiles


def test_link_that_leads_back_gives_each_slide_once(tmp_path):
    Image.new("RGB", (300, 300), "white").save(tmp_path / "one.tif")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert [path.name for path in find_slides([tmp_path])] == ["one.tif"]


def test_folder_that_cannot_be_listed_is_a_typed_error(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(SlideAccessError, match="cannot be listed"):
        find_slides([tmp_path])


def test_encoder_given_as_a_folder_here_reads_and_is_not_taken_for_an_id(tmp_path, monkeypatch):
    shutil.copytree(find_encoder(DEFAULT_ENCODER).folder, tmp_path / "mine")
    Image.new("RGB", (300, 300), "white").save(tmp_path / "blank.tif")
    monkeypatch.chdir(tmp_path)
    card = find_encoder("./mine")
    (outcome,) = read_slides(
        [tmp_path / "blank.tif"], out=tmp_path / "out", card=card, mpp=0.5, profiles=load_profiles(None)
    )
    assert outcome.error is None
    assert outcome.result is not None
    assert outcome.result["encoder"]["fingerprint"] == card.fingerprint
