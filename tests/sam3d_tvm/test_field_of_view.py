"""The field of view by EXIF data: of the film's format, of the sensor, turned with the photo, and photos that say nothing."""

import io
import math

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from sam3d_tvm.photo.field_of_view import fov_x_of_photo

FILM = {"FocalLengthIn35mmFilm": 28}
# A sensor of 36 x 24 mm behind a lens of 50 mm, of which 6000 x 4000 pixels were written.
SENSOR = {"FocalLength": 50.0, "FocalPlaneXResolution": 6000 / 36, "FocalPlaneYResolution": 4000 / 24}
SENSOR |= {"FocalPlaneResolutionUnit": 4, "ExifImageWidth": 6000, "ExifImageHeight": 4000}


def saved(path, tags, size=(60, 40), orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name]: value for name, value in tags.items()})
    Image.new("RGB", size).save(path, exif=exif)
    return path


def angle(side, focal):
    return math.degrees(2 * math.atan(side / 2 / focal))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_by_the_focal_length_on_film(tmp_path, kind):
    assert fov_x_of_photo(saved(tmp_path / f"photo.{kind}", FILM)) == pytest.approx(angle(36, 28))


def test_the_diagonal_counts_where_the_shape_is_another(tmp_path):
    path = saved(tmp_path / "photo.jpg", FILM, (40, 30))
    assert fov_x_of_photo(path) == pytest.approx(angle(math.hypot(36, 24) * 0.8, 28))


@pytest.mark.parametrize(("orientation", "side"), [(1, 36), (2, 36), (3, 36), (6, 24), (8, 24), (5, 24)])
@pytest.mark.parametrize(("tags", "focal"), [(FILM, 28), (SENSOR, 50)], ids=["film", "sensor"])
def test_a_turned_photo_is_as_wide_as_it_is_seen(tmp_path, tags, focal, orientation, side):
    assert fov_x_of_photo(saved(tmp_path / "photo.jpg", tags, orientation=orientation)) == pytest.approx(
        angle(side, focal), 1e-4
    )


def test_film_goes_before_the_sensor(tmp_path):
    assert fov_x_of_photo(saved(tmp_path / "photo.jpg", SENSOR | FILM)) == pytest.approx(angle(36, 28))


@pytest.mark.parametrize(("unit", "millimetres"), [(2, 25.4), (3, 10), (4, 1), (5, 1e-3), (None, 25.4)])
def test_units_of_the_sensor(tmp_path, unit, millimetres):
    tags = SENSOR | {"FocalPlaneXResolution": 6000 / (36 / millimetres), "FocalPlaneResolutionUnit": unit}
    tags = {name: value for name, value in tags.items() if value is not None}
    assert fov_x_of_photo(saved(tmp_path / "photo.jpg", tags)) == pytest.approx(angle(36, 50), rel=1e-3)


def test_the_resolution_is_of_the_picture_where_no_size_is_written_or_one_of_another_shape(tmp_path):
    tags = SENSOR | {"FocalPlaneXResolution": 60 / 36}
    for change in ({"ExifImageWidth": 0}, {"ExifImageWidth": 4000, "ExifImageHeight": 4000}):
        assert fov_x_of_photo(saved(tmp_path / "photo.jpg", tags | change)) == pytest.approx(angle(36, 50), rel=1e-4)


def test_pictures_of_pillow(tmp_path):
    with Image.open(saved(tmp_path / "photo.jpg", FILM)) as picture:
        assert fov_x_of_photo(picture) == pytest.approx(angle(36, 28))


@pytest.mark.parametrize(
    ("tags", "given"),
    [
        ({}, "given none"),
        ({"FocalLengthIn35mmFilm": 0}, "given none"),
        ({"FocalLength": 4.2}, "given 4.2 mm without the size of the sensor"),
        ({"FocalLength": TiffImagePlugin.IFDRational(0, 0)}, "given none"),
        (SENSOR | {"FocalPlaneResolutionUnit": 9}, "given 50 mm without the size of the sensor"),
        (SENSOR | {"FocalPlaneXResolution": 0.0, "FocalPlaneYResolution": 0.0}, "given 50 mm without"),
        ({"FocalPlaneXResolution": 100.0}, "given none"),
    ],
)
def test_photos_that_do_not_say(tmp_path, tags, given):
    with pytest.raises(ValueError, match=rf"image '.*photo.jpg': expected the focal length in its EXIF data.*{given}"):
        fov_x_of_photo(saved(tmp_path / "photo.jpg", tags))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_data_is_told(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (60, 40)).save(stream, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 20)
    (path := tmp_path / "photo.jpg").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"expected .*EXIF data"):
        fov_x_of_photo(path)


@pytest.mark.parametrize("value", [np.zeros((4, 5, 3), np.uint8), None, 3])
def test_arrays_have_no_exif(value):
    with pytest.raises(ValueError, match="image: expected a file or a Pillow image, whose EXIF data is read"):
        fov_x_of_photo(value)


def test_files_that_are_no_pictures(tmp_path):
    (path := tmp_path / "photo.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="expected a picture"):
        fov_x_of_photo(path)
    with pytest.raises(ValueError, match="expected a picture"):
        fov_x_of_photo(tmp_path / "none.jpg")
