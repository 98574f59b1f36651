"""Which objects a folder or a CSV asks for: layouts, names, and what has no place, which is reported and not passed over."""

import os
import sys
from pathlib import Path

import pytest

from sam3d_tvm.batch.jobs import Job, natural, read_jobs


def touch(folder: Path, *names: str) -> Path:
    """Empty files: what they hold is looked at later."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(source: Path, **options) -> dict[str, Job]:
    jobs = read_jobs(source, **options).objects
    assert len({job.name for job in jobs}) == len(jobs)
    return {job.name: job for job in jobs}


def table(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_layouts_beside_each_other(tmp_path):
    files = ("a.png", "a_mask.png", "b.JPG", "b_mask_2.png", "b_mask_10.png", "b_pointmap.npz", "own alpha.webp")
    touch(tmp_path, *files, "c/image.png", "c/0.png", "c/1.png", "c/10.npy", "c/pointmap.npy", ".hidden.png", "notes.txt")
    jobs = read_jobs(tmp_path)
    assert jobs.objects == (
        Job("a", tmp_path / "a.png", tmp_path / "a_mask.png"),
        Job("b/2", tmp_path / "b.JPG", tmp_path / "b_mask_2.png", tmp_path / "b_pointmap.npz"),
        Job("b/10", tmp_path / "b.JPG", tmp_path / "b_mask_10.png", tmp_path / "b_pointmap.npz"),
        *(Job(f"c/{n}", tmp_path / "c/image.png", tmp_path / f"c/{n}.png", tmp_path / "c/pointmap.npy") for n in (0, 1)),
        Job("c/10", tmp_path / "c/image.png", tmp_path / "c/10.npy", tmp_path / "c/pointmap.npy"),
        Job("own alpha", tmp_path / "own alpha.webp"),
    )
    assert jobs.ignored == ("notes.txt",)
    assert jobs.shown(jobs.objects[3].mask) == "c/0.png" and jobs.shown(None) == ""


def test_a_folder_that_is_itself_an_example(tmp_path):
    touch(tmp_path, "image.png", "0.png", "12.png", "other.png", "other_mask.png")
    jobs = found(tmp_path)
    assert list(jobs) == ["image/0", "image/12", "other"] and not any(job.problem for job in jobs.values())
    assert jobs["image/12"].mask == tmp_path / "12.png"


def test_an_example_without_masks_has_its_own_alpha(tmp_path):
    assert found(touch(tmp_path, "c/image.png"))["c"] == Job("c", tmp_path / "c/image.png")


def test_the_order_is_natural():
    names = ["img10", "img2", "Img1", "img02", "img", "a/10", "a/9", "é", "9", "10", ""]
    assert sorted(names, key=natural) == ["", "9", "10", "a/9", "a/10", "img", "Img1", "img02", "img2", "img10", "é"]


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        (["lost_mask.png"], "lost_mask.png", "a mask without a photo: expected lost.png"),
        (["lost_mask_3.npy"], "lost_mask_3.npy", "a mask without a photo"),
        (["lost_pointmap.npy"], "lost_pointmap.npy", "a point map without a photo"),
        (["x.png", "x.jpg", "x_mask.png"], "x", "photos of one name: expected one, given x.jpg, x.png"),
        (["x.png", "x_pointmap.npy", "x_pointmap.npz"], "x", "point maps of one name: expected one, given"),
        (["x.png", "x_mask.png", "x_mask.jpg"], "x", "name: expected one object called 'x'"),
        (["x.png", "x_mask_1.png", "x/image.png", "x/1.png"], "x/1", "given 2: rename all but one"),
        (["X.png", "x.jpg"], "x", "upper or lower case"),
        (["d/photo.png"], "d", "folder 'd': expected image.png"),
        (["d/image.png", "d/image.jpg", "d/0.png"], "d", "photos of one name"),
        (["d/image.png", "d/0.png", "d/stray.png"], "d/stray.png", "expected image.png and masks called 0.png"),
        (["n" * 201 + ".png"], "n" * 201, "of at most 200 bytes each, given 201"),
        (["line\nbreak.png"], "line\nbreak", "without characters that no folder can have"),
    ],
)
def test_what_has_no_place_is_reported(tmp_path, files, name, says):
    touch(tmp_path, "good.png", "good_mask.png", *files)
    jobs = read_jobs(tmp_path).objects
    problems = [job.problem for job in jobs if job.name == name]
    assert problems and all(says in problem for problem in problems)
    assert not next(job.problem for job in jobs if job.name == "good")


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not tell")
def test_a_name_that_is_no_text_is_reported(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "w"):
        pass
    (job,) = read_jobs(tmp_path).objects
    assert job.name == "caf\\udce9" and "in UTF-8" in job.problem
    assert read_jobs(tmp_path).shown(job.photo) == "caf\\udce9.png"


def test_results_inside_of_the_photos_are_none(tmp_path):
    touch(tmp_path, "a.png", "out/a/views.png", "out/deep/photo.png", "empty/notes.txt", "d/image.png", "d/deeper/0.png")
    jobs = read_jobs(tmp_path, tmp_path / "out")
    assert [job.name for job in jobs.objects] == ["a", "d"] and jobs.ignored == ("d/deeper/", "empty/")
    assert [job.name for job in read_jobs(tmp_path, tmp_path / "out" / "deeper").objects] == ["a", "d"]


def test_nothing_found_says_the_layouts(tmp_path):
    touch(tmp_path, "notes.txt", ".hidden.png", "empty/")
    with pytest.raises(ValueError, match=r"photos: expected photos and masks as name.png with name_mask.png.*found none in"):
        read_jobs(tmp_path)
    for source in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r"photos: expected a folder or a \.csv file"):
            read_jobs(source)


def test_a_csv_in_the_order_of_its_lines(tmp_path):
    text = (
        '\ufeffphoto,mask,name,seed,pointmap\r\nsub/b.png,m.png,,7,\r\n"a, b.png","m1.png; m2.png",set/thing,,p.npy\r\n'
        "\r\n/else/where.png,,,,\r\n"
    )
    jobs = read_jobs(table(tmp_path / "list.csv", text)).objects
    assert jobs == (
        Job("sub/b", tmp_path / "sub/b.png", tmp_path / "m.png", None, 7),
        Job("set/thing/1", tmp_path / "a, b.png", tmp_path / "m1.png", tmp_path / "p.npy"),
        Job("set/thing/2", tmp_path / "a, b.png", tmp_path / "m2.png", tmp_path / "p.npy"),
        Job("where", Path("/else/where.png")),
    )
    assert read_jobs(table(tmp_path / "list.csv", text[1:])).objects == jobs  # without the mark of UTF-8


@pytest.mark.parametrize("name", ["../out", "a/../../b", "/tmp/b", "..", "a//b", ".", ".hidden", "a/", "a/.b", " /b"])
def test_names_that_leave_the_folder_are_reported(tmp_path, name):
    good, bad = read_jobs(table(tmp_path / "l.csv", f"photo,name\na.png,\nb.png,{name}\n")).objects
    assert not good.problem and bad.problem.startswith("name: expected the name of a folder")


def test_photos_outside_of_the_folder_have_the_name_of_their_file(tmp_path):
    jobs = read_jobs(table(tmp_path / "l.csv", "photo\n../../x/y.png\na/../../b.png\n")).objects
    assert [job.name for job in jobs] == ["y", "b"] and not any(job.problem for job in jobs)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (",m.png,,", "line 2: photo: expected a file, given none"),
        ("a.png,,-1,", "line 2: seed: expected an integer of at least 0, given '-1'"),
        ("a.png,,1.5,", "seed: expected an integer"),
        (f"a.png,,{'9' * 5000},", "seed: expected an integer"),
        ("a.png,,,,more", "expected no more values than columns"),
        ('"a\nb.png",,,', "expected no control characters"),
        ("a\x01b.png,,,", "expected no control characters"),
    ],
)
def test_a_bad_line_is_reported(tmp_path, row, says):
    bad, good = read_jobs(table(tmp_path / "l.csv", f"photo,mask,seed,name\n{row}\nb.png,,0,\n")).objects
    assert says in bad.problem and not good.problem and good.seed == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("photo,masks\na.png,b.png\n", "expected columns among photo, mask, pointmap, seed, name, given 'masks' too"),
        ("photo,photo\n", "expected each column once, given photo twice"),
        ("mask\nb.png\n", "expected a column photo, given mask"),
        ("", "expected a column photo, given an empty file"),
        ("photo;mask\na.png;b.png\n", "expected commas between columns"),
        ("photo\n", "expected photos and masks as"),
        ('photo\n"a.png\n', "unexpected end of data"),
        ("photo\ncafé.png\n".encode("latin-1"), "expected text in UTF-8, given bytes that are none"),
        ("photo\na.png\n".encode("utf-16"), "expected text in UTF-8, given UTF-16: save it as CSV UTF-8"),
        ("photo\n" + "a" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_a_csv_of_another_kind_is_refused(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_jobs(table(tmp_path / "l.csv", text))
    with pytest.raises(ValueError, match=r"list .*none\.csv.*: "):
        read_jobs(tmp_path / "none.csv")


def test_results_are_not_put_between_the_photos(tmp_path):
    with pytest.raises(ValueError, match="output: expected another folder than that of the photos"):
        read_jobs(tmp_path, tmp_path / "below" / "..")
