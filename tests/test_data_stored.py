"""Large TIFF images whose rows are read when they are needed: the same as if read whole."""

import itertools
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from jseg import data
from jseg.data import FileError, pixel_limit
from jseg.data.files import stored
from jseg.data.files.rows import StoredImage, open_rows, write_rows
from jseg.data.files.stored import open_image, open_scientific
from jseg.types import InputError

rng = np.random.default_rng(0)
SHAPE = (101, 83)
GRAY = {"photometric": "minisblack"}
DEFLATED = {"compression": "deflate"}
IMAGEJ = {"imagej": True, "metadata": {"axes": "CYX"}}


def numbers(dtype, *channels):
  return rng.integers(0, 200, (*SHAPE, *channels)).astype(dtype)


# What is written, how, and whether its channels are declared to come first.
LAYOUTS = {
  "strips": (numbers("u2"), {**GRAY, "rowsperstrip": 7}),
  "one strip": (numbers("f4"), {**GRAY, "rowsperstrip": SHAPE[0]}),
  "deflated strips": (numbers("u2"), {**GRAY, **DEFLATED, "rowsperstrip": 7, "predictor": 2}),
  "tiles": (numbers("u2"), {**GRAY, "tile": (32, 16)}),
  "tiles as wide": (numbers("u1")[:96, :64], {**GRAY, "tile": (32, 64)}),
  "deflated tiles": (numbers("f4", 5), {**GRAY, **DEFLATED, "tile": (16, 32), "planarconfig": 1}),
  "planes": (numbers("u2", 3).transpose(2, 0, 1), {**GRAY, "tile": (16, 32), "planarconfig": 2}),
  "planes in strips": (numbers("i2", 2).transpose(2, 0, 1), {**GRAY, "planarconfig": 2}),
  "big-endian": (numbers("u4"), {**GRAY, "byteorder": ">", "tile": (32, 32)}),
  "big-endian strips": (numbers("u2"), {**GRAY, "byteorder": ">", "bigtiff": True}),
  "pages": (numbers("u2", 4).transpose(2, 0, 1), {**GRAY, "tile": (32, 16), "metadata": None}),
  "ImageJ": (numbers("u2", 4).transpose(2, 0, 1), IMAGEJ),
  "ImageJ's first page": (numbers("u2", 4).transpose(2, 0, 1), {**IMAGEJ, "truncate": True}),
}
WHOLE = ("ImageJ's first page",)  # which doesn't say where the others are


def write(path, array, options):
  options = dict(options)
  make = {name: options.pop(name) for name in ("byteorder", "bigtiff", "imagej") if name in options}
  with tifffile.TiffWriter(path, **make) as file:
    if options.get("metadata", ()) is None:
      for page in array:
        file.write(page, contiguous=False, **options)
    else:
      file.write(array, **options)
  return path


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
  monkeypatch.setattr(stored, "LARGE", 0)


@pytest.mark.parametrize("least", [1, 2**22])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_whole_image(layout, least, tmp_path, monkeypatch):
  monkeypatch.setattr(stored, "_LEAST_BYTES", least)
  array, options = LAYOUTS[layout]
  path = write(tmp_path / "a.tif", array, options)
  whole = data.read_scientific(path, channels_first=layout == "pages")
  image = open_scientific(path, channels_first=layout == "pages")
  assert isinstance(image, StoredImage) == (layout not in WHOLE)
  assert (image.shape, image.dtype, image.ndim, image.size) == (
    whole.shape,
    whole.dtype,
    3,
    whole.size,
  )
  for first, stop in [(0, 9), (4, 40), (33, 64), (60, 61), (5, 6), (90, len(whole))]:
    np.testing.assert_array_equal(image[first:stop], whole[first:stop])
    np.testing.assert_array_equal(image[first:stop, 3:50], whole[first:stop, 3:50])
  index = np.ix_([3, 2, 1, 0, 1, 2, 3, 4], [7, 6, 7])  # as a tile's beyond the edge
  np.testing.assert_array_equal(image[index], whole[index])
  np.testing.assert_array_equal(np.asarray(image), whole)
  if isinstance(image, StoredImage):
    doubled = image.map(lambda part: np.repeat(part[..., :1], 2, -1).astype("f4") / 2)
    assert (doubled.shape, doubled.dtype) == ((*whole.shape[:2], 2), np.dtype("f4"))
    np.testing.assert_array_equal(doubled[8:11][..., 1], whole[8:11, :, 0].astype("f4") / 2)


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("options", [{"tile": (32, 16)}, {"rowsperstrip": 8, **DEFLATED}])
def test_colors_are_those_of_the_whole_image(channels, options, tmp_path):
  photometric = "rgb" if channels else "minisblack"
  path = write(
    tmp_path / "a.tif", numbers("u1", *channels), {"photometric": photometric, **options}
  )
  image = open_image(path)
  assert isinstance(image, StoredImage)
  np.testing.assert_array_equal(np.asarray(image), data.read_image(path))


def save_turned(path):
  exif = Image.Exif()
  exif[274] = 6
  Image.fromarray(numbers("u1", 3)).save(path, exif=exif)


def test_what_pillow_does_more_to_is_read_whole(tmp_path):
  path = tmp_path / "a.tif"
  for save in (
    save_turned,
    lambda path: Image.fromarray(numbers("u1")).convert("P").save(path),
    lambda path: Image.fromarray(numbers("u1", 4), "RGBA").save(path),
    lambda path: Image.fromarray(numbers("u1") > 99).save(path),
    lambda path: write(path, numbers("u1"), {"photometric": "miniswhite"}),
    lambda path: Image.fromarray(numbers("u1", 3)).save(path, compression="jpeg"),
  ):
    save(path)
    image = open_image(path)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, data.read_image(path))
  for content in (b"II*\0", b"II*\0\xff\xff\0\0", b""):
    path.write_bytes(content)
    for read in (open_image, open_scientific):
      with pytest.raises(FileError, match=r"a\.tif"):
        read(path)


def test_small_images_and_other_files_are_arrays(tmp_path, monkeypatch):
  np.save(tmp_path / "a.npy", numbers("u2"))
  assert isinstance(open_scientific(tmp_path / "a.npy"), np.ndarray)
  path = write(tmp_path / "a.tif", numbers("u2"), GRAY)
  monkeypatch.setattr(stored, "LARGE", SHAPE[0] * SHAPE[1])
  assert isinstance(open_scientific(path), np.ndarray)


def test_damage_is_told_when_it_is_met(tmp_path, monkeypatch):
  monkeypatch.setattr(stored, "_LEAST_BYTES", 1)
  array = numbers("f4")
  array[70, 3] = np.nan
  image = open_scientific(write(tmp_path / "a.tif", array, {**GRAY, **DEFLATED, "tile": (16, 16)}))
  image[:64]
  with pytest.raises(FileError, match=r"a\.tif: 1 of .* are infinite or no number"):
    image[64:80]
  content = bytearray((tmp_path / "a.tif").read_bytes())
  with tifffile.TiffFile(tmp_path / "a.tif") as file:
    start = file.pages[0].dataoffsets[12]  # of the third row of tiles
  content[start : start + 8] = b"\xff" * 8
  (tmp_path / "a.tif").write_bytes(content)
  image = open_scientific(tmp_path / "a.tif")
  image[:16]
  with pytest.raises(FileError, match=r"a\.tif: damaged"):
    image[16:48]
  (tmp_path / "a.tif").unlink()
  with pytest.raises(FileError, match=r"a\.tif: No such file"):
    image[:16]


def test_the_limit_counts_pixels(tmp_path):
  path = write(tmp_path / "a.tif", numbers("u2", 6), {**GRAY, "tile": (32, 32), "planarconfig": 1})
  with pixel_limit(SHAPE[0] * SHAPE[1]):
    assert open_scientific(path).shape == (*SHAPE, 6)
    with pytest.raises(FileError, match=r"6 are 50,298 values, and the limit is 20,957"):
      data.read_scientific(path)
  with (
    pixel_limit(SHAPE[0] * SHAPE[1] - 1),
    pytest.raises(FileError, match=r"83 wide x 101 high are 8,383 pixels.*raise data.max_pixels"),
  ):
    open_scientific(path)


def test_little_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(stored, "_LEAST_BYTES", 1)
  array = np.zeros((4096, 512), np.uint16)
  path = write(tmp_path / "a.tif", array, {**GRAY, **DEFLATED, "tile": (64, 64)})
  image = open_scientific(path)
  image[:64]  # imports
  tracemalloc.start()
  for first, x in itertools.product(range(0, 4096 - 128, 96), (0, 300)):
    image[first : first + 128, x : x + 128]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < array.nbytes / 4


@pytest.mark.parametrize("array", [numbers("u2", 4), numbers("u1"), numbers("f4", 1)])
def test_rows_that_are_written_are_read_again(array, tmp_path):
  data = write_rows(array, tmp_path / "a.npy")
  found = open_rows(data, tmp_path)
  assert (found.shape, found.dtype, found.nbytes) == (array.shape, array.dtype, array.nbytes)
  for first, stop in [(0, 9), (4, 40), (90, 101), (3, 4)]:
    np.testing.assert_array_equal(found[first:stop], array[first:stop])
  np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
  assert open_rows(b"\x89PNG", tmp_path) is None
  (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"a\.npy has .* bytes of"):
    open_rows(data, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "scientific"])
def test_a_prepared_set_has_rows_of_large_images_and_their_labels(kind, tmp_path, monkeypatch):
  image = {"folder": numbers("u1", 3), "scientific": numbers("u2", 5)}[kind]
  layout = {"photometric": "rgb" if kind == "folder" else "minisblack", "planarconfig": 1}
  mask = (numbers("u1") > 99).astype(np.uint8)
  for split in ("train", "val"):
    for name in ("images", "masks"):
      (tmp_path / "set" / split / name).mkdir(parents=True)
    write(tmp_path / "set" / split / "images" / "a.tif", image, {**layout, "tile": (32, 16)})
    write(tmp_path / "set" / split / "masks" / "a.tif", mask, GRAY)
  (tmp_path / "set" / "classes.json").write_text('{"classes": ["ground", "water"]}')

  def load(name):
    return data.load(kind, root=tmp_path / "set", data_dir=tmp_path / name)

  rows = load("rows")
  assert data.contact_sheet(tmp_path / "set", tmp_path / "rows.png")
  monkeypatch.setattr(stored, "LARGE", 2**26)
  whole = load("whole")
  assert data.contact_sheet(tmp_path / "set", tmp_path / "whole.png")
  assert (tmp_path / "rows.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
  assert isinstance(whole.source("val").open(0)["image"], np.ndarray)
  np.testing.assert_array_equal(rows.pixel_counts("train"), whole.pixel_counts("train"))
  assert (rows.max_size("val"), rows.channels) == (whole.max_size("val"), whole.channels)
  for index, expected in ((0, image), (0, mask)):
    key = "image" if expected is image else "label"
    np.testing.assert_array_equal(rows.source("val")[index][key], expected)
    np.testing.assert_array_equal(whole.source("val")[index][key], expected)
  if kind == "scientific":
    assert rows.sample("train").shape[1] == 5
    assert set(np.unique(rows.sample("train"))) <= set(np.unique(image))
    rows, whole = (each.scaled([0] * 5, [200] * 5) for each in (rows, whole))
    np.testing.assert_array_equal(rows.source("val")[0]["image"], whole.source("val")[0]["image"])
  monkeypatch.setattr("jseg.data.dataset._CACHE_BYTES", 0)
  rows = load("rows")
  example = rows.source("val").open(0)
  assert example["name"] == "a"
  for key, expected in (("image", image), ("label", mask)):
    assert isinstance(example[key], StoredImage)
    np.testing.assert_array_equal(example[key][30:70], expected[30:70])
  for path in (tmp_path / "rows").rglob("val_0_label.npy"):
    path.unlink()
  with pytest.raises(InputError, match="remove that folder: the next start prepares them again"):
    rows.source("val").open(0)


def test_damage_of_a_large_image_is_told_where_it_is_prepared(tmp_path):
  for name in ("images", "masks"):
    (tmp_path / "train" / name).mkdir(parents=True)
  array = numbers("u1", 3)
  path = tmp_path / "train" / "images" / "a.tif"
  write(path, array, {"photometric": "rgb", **DEFLATED, "tile": (16, 16)})
  write(tmp_path / "train" / "masks" / "a.tif", numbers("u1") // 100, GRAY)
  (tmp_path / "classes.json").write_text('{"classes": ["ground", "water"]}')
  content = bytearray(path.read_bytes())
  with tifffile.TiffFile(path) as file:
    start = file.pages[0].dataoffsets[-1]
  content[start : start + 8] = b"\xff" * 8
  path.write_bytes(content)
  report = data.check_folder(tmp_path)
  assert "a.tif: damaged" in str(report)
  with pytest.raises(FileError, match=r"a\.tif: damaged"):
    data.load("folder", root=tmp_path, data_dir=tmp_path / "prepared")
