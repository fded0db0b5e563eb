"""Scientific images: files of every kind, their preparation, scaling, and what is refused."""

import functools
import io
import json
import pathlib
import pickle
import re
import sys

import cv2
import jax
import numpy as np
import pytest
import tifffile
from helpers.fuzz import ROUNDS, damaged
from helpers.mangled import encode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import jseg
from jseg import cli, data
from jseg import config as configs
from jseg.augment import Example, make_augment
from jseg.data.files import attempt
from jseg.data.files.scientific import decode_scientific
from jseg.data.pipeline import as_channels, eval_batches, train_iterator
from jseg.data.sources.scientific import matches
from jseg.images import Statistics, denormalize, normalize, picture
from jseg.scaling import about_scaling, check_scaling, fit_scaling
from jseg.types import InputError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 4096, (9, 11)).astype(np.uint16)
BANDS = RNG.normal(size=(9, 11, 6)).astype(np.float32)
FIRST = np.ascontiguousarray(np.moveaxis(BANDS, -1, 0))


def tiff(array, **options):
  stream = io.BytesIO()
  tifffile.imwrite(stream, array, **{"photometric": "minisblack", **options})
  return stream.getvalue()


def npy(array, **options):
  stream = io.BytesIO()
  np.save(stream, array, **options)
  return stream.getvalue()


# Readers.

KINDS = {
  "gray.tif": (lambda: tiff(GRAY), GRAY[..., None]),
  "big endian.tif": (lambda: tiff(GRAY, byteorder=">"), GRAY[..., None]),
  "bigtiff.tif": (lambda: tiff(GRAY, bigtiff=True), GRAY[..., None]),
  "deflate.tif": (lambda: tiff(GRAY, compression="zlib", rowsperstrip=4), GRAY[..., None]),
  "tiled.tif": (lambda: tiff(BANDS, tile=(16, 16), planarconfig="contig"), BANDS),
  "planar.tif": (lambda: tiff(FIRST, planarconfig="separate"), BANDS),
  "imagej.tif": (lambda: tiff(FIRST, imagej=True, metadata={"axes": "CYX"}), BANDS),
  "ome.tif": (lambda: tiff(FIRST, ome=True, metadata={"axes": "CYX"}), BANDS),
  "half.tif": (lambda: tiff(BANDS.astype(np.float16)), BANDS.astype(np.float16)),
  "gray.npy": (lambda: npy(GRAY), GRAY[..., None]),
  "bands.npy": (lambda: npy(BANDS), BANDS),
  "fortran.npy": (lambda: npy(np.asfortranarray(BANDS)), BANDS),
  "big endian.npy": (lambda: npy(GRAY.astype(">u2")), GRAY[..., None]),
  "double.npy": (lambda: npy(BANDS.astype(np.float64)), BANDS),
  "gray.png": (lambda: encode(GRAY), GRAY[..., None]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_what_was_written(kind, tmp_path):
  make, expected = KINDS[kind]
  if kind == "half.tif":  # six pages of nine rows, to tifffile: bands must be said
    make = functools.partial(tiff, BANDS.astype(np.float16), planarconfig="contig")
  path = tmp_path / kind
  path.write_bytes(make())
  image = data.read_scientific(path)
  np.testing.assert_array_equal(image, expected)
  assert image.dtype == (np.float32 if expected.dtype.kind == "f" else expected.dtype)
  assert image.dtype.isnative


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
@pytest.mark.parametrize("write", [tiff, npy])
def test_every_type_of_number_is_kept(dtype, write):
  info = np.finfo(dtype) if dtype == "f4" else np.iinfo(dtype)
  array = np.array([[info.min, 0, 1, info.max]], dtype)
  image = decode_scientific(write(array), "x")
  assert image.dtype == np.dtype(dtype)
  np.testing.assert_array_equal(image[..., 0], array)


@pytest.mark.parametrize("write", [tiff, npy])
def test_a_first_axis_of_channels_is_declared(write):
  image = decode_scientific(write(FIRST), "x", channels_first=True)
  np.testing.assert_array_equal(image, BANDS)


def with_tag(code, value):
  return tiff(GRAY, extratags=[(code, "H", 1, value, True)])


def several_sizes():
  stream = io.BytesIO()
  with tifffile.TiffWriter(stream) as writer:
    writer.write(GRAY)
    writer.write(GRAY[:4])
  return stream.getvalue()


def without(value):
  array = BANDS.copy()
  array[0, 0, 2] = array[3, 3, 4] = value
  return array


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (lambda: tiff(FIRST), r"holds 6 pages, and doesn't say what they are.*channels_first=True"),
    (lambda: tiff(np.stack([BANDS] * 3), planarconfig="contig"), r"its axes are QYXS"),
    (several_sizes, "holds 2 images of different kinds"),
    (lambda: with_tag(274, 6), r"is to be turned \(orientation 6\)"),
    (lambda: encode(Image.fromarray(GRAY.astype(np.uint8)).convert("P"), "TIFF"), "PALETTE"),
    (lambda: tiff(GRAY.astype(np.complex64)), "type complex64, which isn't read"),
    (lambda: npy(GRAY.astype(np.int64)), "type int64, which isn't read"),
    (lambda: npy(GRAY > 9), "type bool, which isn't read"),
    (lambda: npy(np.array([{}, 1], object), allow_pickle=True), "a pickle.*never read"),
    (lambda: pickle.dumps(GRAY), "damaged or no image"),
    (lambda: npy(GRAY[0]), r"is an array of shape \(11,\)"),
    (lambda: npy(np.zeros((0, 4), np.uint8)), r"is an array of shape \(0, 4\)"),
    (lambda: npy(GRAY)[:-2], "198 bytes of numbers, and 196 follow"),
    (lambda: npy(GRAY) + b"\0", "198 bytes of numbers, and 199 follow"),
    (lambda: npy(without(np.nan)), r"2 of 594 values are infinite or no number \(NaN\).*2, 4"),
    (lambda: tiff(without(np.inf), planarconfig="contig"), "2 of 594 values are infinite"),
    (lambda: npy(BANDS.astype(np.float64) * 1e300), "594 of 594 values are infinite"),
    (lambda: encode(Image.fromarray(GRAY.astype(np.uint8)).convert("P")), "PNG of mode P"),
    (lambda: encode(np.zeros((4, 4, 3), np.uint8), "JPEG"), "JPEG of mode RGB"),
    (lambda: tiff(GRAY)[:60], "damaged or no scientific image"),
  ],
)
def test_what_is_not_read_is_named(content, message):
  with pytest.raises(InputError, match=rf"cell\.tif: .*{message}") as error:
    decode_scientific(content(), "cell.tif")
  assert len(str(error.value)) < 500


def test_the_limit_counts_values():
  for content in (npy(BANDS), tiff(FIRST, planarconfig="separate")):
    with data.pixel_limit(238):
      decode_scientific(content, "x")
    with data.pixel_limit(237), pytest.raises(InputError, match="are 594 values, and the limit is"):
      decode_scientific(content, "x")


def test_a_tiff_that_says_more_than_it_holds():
  """Of a shape that would unpack to gigabytes, and with a list of pages that never ends."""
  content = bytearray(tiff(GRAY, compression="zlib"))
  with tifffile.TiffFile(io.BytesIO(content)) as file:
    place = {tag.code: tag.valueoffset for tag in file.pages[0].tags}
    end = 8 + 2 + 12 * len(file.pages[0].tags)
  for code in (256, 257, 278):  # width, height, rows of a strip
    content[place[code] : place[code] + 4] = (16000).to_bytes(4, "little")
  with pytest.raises(InputError, match="bytes are too few for 512,000,000 of pixels"):
    decode_scientific(bytes(content), "x")
  content = bytearray(tiff(GRAY))
  content[end : end + 4] = (8).to_bytes(4, "little")
  with pytest.raises(InputError, match="list of pages leads back to itself"):
    decode_scientific(bytes(content), "x")


def test_the_header_tells_what_an_image_is(tmp_path):
  colors = np.zeros((9, 11, 3), np.uint8)
  cases = {
    "deep.png": (encode(GRAY)[:60], True),  # of what follows nothing is needed
    "deep_colors.png": (cv2.imencode(".png", colors.astype(np.uint16))[1].tobytes()[:60], True),
    "colors.png": (encode(colors)[:60], False),
    "bands.tif": (tiff(BANDS, planarconfig="contig")[:-50], True),
    "float.tif": (tiff(GRAY.astype(np.float32))[:-50], True),
    "pages.tif": (tiff(FIRST.astype(np.uint8)), True),
    "alpha.tif": (tiff(np.zeros((9, 11, 4), np.uint8), photometric="rgb", extrasamples=[0]), True),
    "colors.tif": (tiff(colors, photometric="rgb"), False),
    "gray.tif": (tiff(colors[..., 0]), False),
    "text.tif": (b"II*\0 and no more", False),
    "empty.png": (b"", False),
  }
  for name, (content, expected) in cases.items():
    folder = tmp_path / name
    (folder / "images").mkdir(parents=True)
    (folder / "images" / name).write_bytes(content)
    (folder / "classes.json").write_text("{}")
    assert matches(folder) == expected, name


def test_a_missing_reader_is_named(monkeypatch):
  content = tiff(GRAY)
  monkeypatch.setitem(sys.modules, "tifffile", None)
  with pytest.raises(InputError, match=r"read by tifffile, which is not installed: .*tifffile"):
    decode_scientific(content, "x")
  np.testing.assert_array_equal(decode_scientific(npy(GRAY), "x")[..., 0], GRAY)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind):
  whole, rng, refusals = KINDS[kind][0](), np.random.default_rng(0), 0
  for i in range(ROUNDS // len(KINDS)):
    content, first = damaged(whole, rng), bool(i % 2)
    image, problems = attempt(decode_scientific, content, "x.tif", channels_first=first)
    refusals += len(problems)
    assert all("x.tif" in str(problem) and len(str(problem)) < 1000 for problem in problems)
    assert image is None or (image.ndim == 3 and np.isfinite(image).all())
  assert refusals > 0


# Scaling.


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "'' is no range; give \"16bit\""),
    ("yes", "'yes' is no range"),
    ("0:", "is no range"),
    ("1%:99", "is no range"),
    ("5:5", "the lower one first"),
    ("9:5", "the lower one first"),
    ("0:1e999", "the lower one first"),
    ("-1%:99%", "percentiles from 0% to 100%"),
    ("0%:101%", "percentiles from 0% to 100%"),
    ("0bit", "1 to 32 bits"),
    ("33bit", "1 to 32 bits"),
    ("0:1,", "'' is no range"),
  ],
)
def test_impossible_scalings(text, message):
  with pytest.raises(InputError, match=rf"data\.scaling: .*{message}"):
    data.parse_scaling(text)


def test_ends_of_ranges():
  sample = np.stack([np.arange(101), np.arange(101) ** 2], 1)
  for text, low, high in [
    ("12bit", (0, 0), (4095, 4095)),
    ("-1.5:2e3", (-1.5, -1.5), (2000, 2000)),
    ("1%:99%", (1, 1), (99, 99**2)),
    ("8bit, 10%:90%", (0, 100), (255, 8100)),
  ]:
    ends = data.find_ends(text, sample)
    np.testing.assert_allclose(ends, (low, high))
  with pytest.raises(InputError, match="has 3 ranges, but the images have 2 channels"):
    data.find_ends("8bit,8bit,8bit", sample)
  with pytest.raises(InputError, match=r"leaves nothing of channel 1, .*percentiles are 7;"):
    data.find_ends("1%:99%", np.stack([np.arange(9), np.full(9, 7)], 1))


def test_scaling_by_hand():
  image = np.array([[[100, 0], [300, 50], [500, 100], [65535, 7]]], np.uint16)
  scaled = data.scale(image, (100, 0), (500, 100))
  assert scaled.dtype == np.float32
  np.testing.assert_allclose(scaled[0], [[0, 0], [127.5, 127.5], [255, 255], [255, 17.85]], 1e-6)
  with pytest.raises(InputError, match=r"2 channel\(s\), but the network was made for 3"):
    data.scale(image, (0, 0, 0), (1, 1, 1))


@given(arrays.arrays(np.int32, (4, 1)), st.integers(-(2**31), 2**31 - 2))
def test_whole_numbers_of_32_bits_are_scaled_without_loss(image, low):
  """Neighbors beyond 2^24, which a float32 can't tell apart, are 255 apart if that is the range."""
  scaled = data.scale(image, (low,), (low + 1,))
  np.testing.assert_array_equal(scaled, np.where(image > low, 255, 0))


# Data sets.


def make_set(root, images, masks=None, suffix="npy", **content):
  """A data set of images by split, whose masks are 1 where the first channel is above its mean."""
  for split, members in images.items():
    for kind in ("images", "masks"):
      (root / split / kind).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(members):
      np.save(root / split / "images" / f"{i}.npy", image)
      first = image.reshape(*image.shape[:2], -1)[..., 0]
      mask = (first > first.mean()).astype(np.uint8)
      Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
  (root / "classes.json").write_text(json.dumps({"classes": ["a", "b"], **content}))
  return root


def ramp(height=2, width=4, channels=2):
  return np.arange(height * width * channels, dtype=np.uint16).reshape(height, width, channels)


@pytest.fixture
def root(tmp_path):
  images = {"train": [ramp(), ramp() + 100], "val": [ramp() + 50]}
  return make_set(tmp_path / "set", images)


def config_of(root, data_dir, **keys):
  config = configs.default("unet", **jseg.models.get("unet").TINY)
  values = {"name": "scientific", "root": str(root), "data_dir": str(data_dir), "channels": 2}
  config.data.update({**values, "size": (8, 8), "scaling": "0:255", **keys})
  configs.validate(config)
  return config


def test_numbers_are_prepared_as_they_are_and_scaled_as_they_are_read(root, tmp_path):
  config = config_of(root, tmp_path, scaling="0%:100%")
  dataset = configs.load_dataset(config)
  assert (dataset.scientific, dataset.dtype, dataset.channels, dataset.ndim) == (
    True,
    "uint16",
    2,
    2,
  )
  np.testing.assert_array_equal(dataset.source("train")[1]["image"], ramp() + 100)
  fitted, scaled = fit_scaling(config, dataset)
  # Channel 0 holds 0, 2, ... 14 and 100 to 114; channel 1 the same and one more.
  assert fitted.data.low == (0, 1)
  assert fitted.data.high == (114, 115)
  values = np.concatenate([np.arange(0, 16, 2), np.arange(100, 116, 2)]) / 114
  np.testing.assert_allclose(fitted.data.mean, (values.mean(),) * 2, 1e-6)
  np.testing.assert_allclose(fitted.data.deviation, (values.std(),) * 2, 1e-6)
  image = scaled.source("train")[1]["image"]
  np.testing.assert_allclose(image[..., 0], (ramp()[..., 0] + 100) * (255 / 114), 1e-6)
  assert scaled.source("val")[0]["image"].dtype == np.float32
  # The same declaration on the same data gives the same numbers, so that a run is resumed.
  again, _ = fit_scaling(fitted, dataset)
  assert again.data == fitted.data
  with pytest.raises(
    InputError, match=r"data.low: \(0.0, 1.0\).*leave low, high, mean and deviation"
  ):
    fit_scaling(configs.change(fitted, {"data.scaling": "8bit"}), dataset)
  # A run without a declaration uses what it has.
  kept, same = fit_scaling(configs.change(fitted, {"data.scaling": ""}), dataset)
  assert kept.data.high == (114, 115)
  assert same.ends == scaled.ends


def test_what_a_training_tells(root, tmp_path):
  fitted, dataset = fit_scaling(
    config_of(root, tmp_path, scaling="5:1e4"),
    data.load("scientific", root=root, data_dir=tmp_path),
  )
  lines = about_scaling(fitted, dataset)
  assert lines[0].startswith("images: uint16 of 2 channel(s), scaled from 5:10000; 16 % of")
  assert "pictures show channel(s) 0 (data.shown)" in lines[1]
  assert "uses 1.1 % of its range" in lines[2]
  assert about_scaling(config_of(root, tmp_path), dataset) == []


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"scaling": ""}, "data.channels: 2 must be 3.*scientific"),
    ({"channels": 0}, "data.channels: 0"),
    ({"scaling": "1%"}, "data.scaling: '1%' is no range"),
    ({"shown": (0, 1)}, r"data.shown: \(0, 1\) must be one or three channels"),
    ({"shown": (2,)}, r"data.shown: \(2,\) must be .* from 0 to 1"),
    ({"low": (0, 0)}, "data.high: .*a training writes"),
    ({"mean": (0, 0)}, "data.mean: .*leave all four"),
    (dict.fromkeys(("low", "high", "mean", "deviation"), (1,)), "must be one finite number for"),
    (dict.fromkeys(("low", "high", "mean", "deviation"), ("a", "b")), "data.low: .*numbers"),
    (dict.fromkeys(("low", "high", "mean", "deviation"), (1, 1)), "data.high: .* must be above"),
    (
      {"low": (0, 0), "high": (1, 1), "mean": (0, 0), "deviation": (1, 0)},
      "data.deviation: .* above 0",
    ),
  ],
)
def test_impossible_keys(keys, message, tmp_path):
  with pytest.raises(InputError, match=message):
    config_of(tmp_path, tmp_path, **keys)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"channels": 1}, "data.channels: 1, but the images have 2; set data.channels to 2"),
    ({"channels": 3, "scaling": ""}, "data.channels: 3, but the images have 2"),
    ({"scaling": "8bit,8bit,8bit"}, "has 3 ranges, but the images have 2 channels"),
  ],
)
def test_keys_that_do_not_fit_the_data(keys, message, root, tmp_path):
  config = config_of(root, tmp_path, **keys)
  with pytest.raises(InputError, match=message):
    configs.make_task(config)


def test_a_missing_scaling_tells_what_was_found(tmp_path):
  root = make_set(tmp_path / "set", {"train": [ramp(channels=1)], "val": [ramp(channels=1)]})
  config = config_of(root, tmp_path, channels=1, scaling="")
  with pytest.raises(InputError, match=r"data.scaling is missing: .* uint16 from 0 to 7; give"):
    configs.make_task(config)


def test_scaling_and_networks_for_colors(root, tmp_path):
  config = configs.default("unet", **jseg.models.get("unet").TINY)
  config.data.update({"data_dir": str(tmp_path), "scaling": "8bit", "size": (64, 64)})
  config.data.options = {"size": 32, "train": 2, "val": 2, "test": 1}
  with pytest.raises(InputError, match=r"data.scaling: '8bit' is for scientific"):
    configs.make_task(config)
  segnet = configs.default("segnet_basic", **jseg.models.get("segnet_basic").TINY)
  segnet.data = config_of(root, tmp_path).data
  with pytest.raises(InputError, match="segnet_basic is made for colors"):
    configs.make_task(segnet)
  with pytest.raises(InputError, match=r"crf.train: a CRF compares colors"):
    configs.make_task(configs.change(config_of(root, tmp_path), {"crf.train": True}))
  for name in ("hue", "saturation"):
    config = config_of(root, tmp_path)
    config.augment[name] = 0.1
    with pytest.raises(InputError, match=rf"{name}: 0.1 must be 0: images of 2 channel"):
      configs.make_task(config)


def test_the_check_tells_what_numbers_there_are(tmp_path, capsys):
  images = [np.dstack([ramp(channels=1), np.full((2, 4), 9, np.uint16)]) for _ in range(2)]
  root = make_set(tmp_path / "set", {"train": images, "val": images})
  report = data.check_folder(root)
  assert report.ok
  (note,) = report.notes
  assert "split train: 1 channel(s) never change: 1 (always 9)" in str(note)
  found = report.to_dict()["splits"]["train"]
  assert found["values"] == [{"type": "uint16", "channels": 2, "images": 2}]
  assert found["ranges"] == [[0, 7], [9, 9]]
  cli.main(["check-data", str(root), "--sheet", str(tmp_path / "sheet.png")])
  printed = " ".join(capsys.readouterr().out.split())
  for text in ("uint16 (2)", "0 to 7 (3 bits); 9 to 9 (4 bits)", "data.name=scientific"):
    assert text in printed
  with Image.open(tmp_path / "sheet.png") as sheet:
    assert sheet.width > 500


def test_images_of_two_kinds_are_refused_by_name(tmp_path):
  deep, flat = ramp(), ramp().astype(np.uint8)
  root = make_set(tmp_path / "set", {"train": [deep, deep, flat], "val": [ramp(channels=3)]})
  problems = [str(problem) for problem in data.check_folder(root).problems]
  assert len(problems) == 2
  assert problems[0].startswith("1 file(s) (train/2): hold uint8 in 2 channel(s), but most")
  assert problems[1].startswith("1 file(s) (val/0): hold uint16 in 3 channel(s), but most")
  with pytest.raises(InputError, match=r"\(train/2\): hold uint8"):
    data.load("scientific", root=root, data_dir=tmp_path)


def test_masks_of_numpy(tmp_path):
  root = make_set(tmp_path / "set", {"train": [ramp()], "val": [ramp()]})
  for i, dtype in enumerate((np.int64, np.float32, bool)):
    path = root / "val" / "masks" / "0.npy"
    np.save(path, np.array([[0, 1, 1, 0], [0, 0, 0, 1]], dtype))
    (root / "val" / "masks" / "0.png").unlink(missing_ok=True)
    report = data.check_folder(root)
    assert report.ok, i
    assert report.splits["val"].pixels[:2].tolist() == [5, 3]
  for array, message in [
    (np.full((2, 4), 0.5), "value 0.5 is no whole number"),
    (np.full((2, 4), 7), r"value 7 \(8 pixels\) of no class"),
    (np.full((2, 4, 1), 1), r"of shape \(2, 4, 1\).*A mask is an array \[h w\]"),
    (np.full((2, 5), 1), "5 wide x 2 high, but its image"),
    (np.full((2, 4), 1 + 2j), "type complex128"),
  ]:
    np.save(path, array)
    (problem,) = data.check_folder(root).problems
    assert re.search(message, str(problem)), problem


def test_channels_that_come_first(tmp_path, capsys):
  root = make_set(tmp_path / "set", {"train": [ramp()], "val": [ramp()]})
  for path in root.glob("*/images/*.npy"):
    np.save(path, np.moveaxis(np.load(path), -1, 0))
  report = data.check_folder(root)
  assert "2 high" in str(report.problems[0]) or "wide x" in str(report.problems[0])
  cli.main(["check-data", str(root), "--option", "channels_first=True", "--json"])
  assert json.loads(capsys.readouterr().out)["ok"]
  loaded = [
    data.load("scientific", root=root, data_dir=tmp_path, options={"channels_first": True})
    for _ in range(2)
  ]
  np.testing.assert_array_equal(loaded[0].source("val")[0]["image"], ramp())
  with pytest.raises(InputError, match="scientific has no option chanels_first"):
    data.check_folder(root, {"chanels_first": True})


def test_a_source_of_ones_own(tmp_path):
  class Item:
    name = "x"

    def load(self):
      return data.Example.from_numbers(BANDS, (BANDS[..., 0] > 0).astype(np.uint8))

  splits = {"train": [Item()], "val": [Item()]}
  source = data.ListedSource(data.ClassInfo(("a", "b")), splits, lambda: "1", scientific=True)
  dataset = data.load(source, data_dir=tmp_path)
  np.testing.assert_array_equal(dataset.source("val")[0]["image"], BANDS)
  np.testing.assert_array_equal(dataset.sample("train+val"), np.tile(BANDS.reshape(-1, 6), (2, 1)))
  with pytest.raises(InputError, match="is no scientific image"):
    data.Example.from_numbers(without(np.nan))


# On the way to the network.


def test_batches_of_scaled_images():
  image = np.full((5, 4, 6), 7, np.float32)
  source = [{"image": image, "label": np.zeros((5, 4), np.uint8)}] * 3
  options = {"size": (8, 8), "channels": 6, "scaled": True}
  (_, last) = eval_batches(source, label_size=(8, 8), batch_size=2, **options)
  assert last["image"].dtype == np.float32
  np.testing.assert_array_equal(last["image"][0, :5, :4], image)
  assert last["image"][0, 5:].max() == last["image"][1].max() == 0
  batch = next(train_iterator(source, batch_size=2, seed=0, **options))
  np.testing.assert_array_equal(batch["image"][1, :5, :4], image)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (np.zeros((3, 4, 2), np.uint16), "type uint16 isn't scaled; .*jseg.data.scale"),
    (np.zeros((3, 4), np.float32), "isn't scaled"),
    (np.zeros((3, 4, 5), np.float32), "data.channels: 2, but an image has 5"),
    (np.full((3, 4, 2), 300, np.float32), "holds 300 to 300; bring it to 0..255"),
    (np.full((3, 4, 2), np.nan, np.float32), "holds nan to nan"),
  ],
)
def test_images_that_were_not_scaled(image, message):
  with pytest.raises(InputError, match=message):
    as_channels(image, 2, scaled=True)


def test_floats_are_still_no_colors():
  with pytest.raises(InputError, match=r"Bring other types to 0..255"):
    as_channels(np.zeros((3, 4, 3), np.float32), 3)
  with pytest.raises(InputError, match=r"data.channels: 6, but the images are gray or RGB"):
    as_channels(np.zeros((3, 4, 3), np.uint8), 6)


def test_statistics_of_channels():
  image = np.array([[[0.0, 255, 51]]], np.float32)
  statistics = Statistics((0.5, 0.5, 0.0), (0.25, 0.5, 0.1))
  expected = [[[-2, 1, 2]]]
  np.testing.assert_allclose(normalize(image, statistics), expected, 1e-6)
  np.testing.assert_allclose(
    denormalize(normalize(image, statistics), statistics), image, atol=1e-4
  )
  with pytest.raises(ValueError, match="must end in the 3 channels"):
    normalize(image[..., :2], statistics)


def test_augmentation_of_any_channels():
  """Without change it normalizes alone; contrast 0 .. 1 keeps the order of a channel's values."""
  image = np.linspace(0, 255, 4 * 4 * 5, dtype=np.float32).reshape(4, 4, 5)
  example = Example(image=image, size=np.array([4, 4]), label=np.zeros((4, 4), np.uint8))
  statistics = Statistics((0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5)
  same = make_augment(size=(4, 4), scale=(1, 1), flip=0, statistics=statistics)
  out = same(jax.random.key(0), example).image
  np.testing.assert_allclose(out, normalize(image, statistics), atol=1e-5)
  changed = make_augment(size=(4, 4), scale=(1, 1), flip=0, contrast=0.5, statistics=statistics)
  colors = denormalize(changed(jax.random.key(1), example).image, statistics)
  slopes = np.diff(np.asarray(colors).ravel()) / np.diff(image.ravel())
  inner = slopes[(np.asarray(colors).ravel()[1:] < 254) & (np.asarray(colors).ravel()[:-1] > 1)]
  np.testing.assert_allclose(inner, inner[0], 1e-3)
  assert 0.5 <= inner[0] <= 1.5


def test_pictures():
  """Black and white are half a percent of the pixels; the channels that are asked for are shown."""
  image = np.stack([np.full((20, 20), 7.0), *np.random.default_rng(0).normal(size=(3, 20, 20))], -1)
  image = image.astype(np.float32)
  shown = picture(image)
  assert (shown.shape, shown.dtype) == ((20, 20, 3), np.uint8)
  assert shown[..., 0].max() == 0  # a constant channel
  assert [shown[..., i].min() for i in (1, 2)] == [0, 0]
  assert [shown[..., i].max() for i in (1, 2)] == [255, 255]
  np.testing.assert_array_equal(picture(image, (2, 1, 3))[..., 1], shown[..., 1])
  assert picture(image, (3,)).shape == picture(image[..., :2]).shape == (20, 20, 1)
  colors = np.zeros((2, 2, 3), np.uint8)
  assert picture(colors) is colors


def test_keys_of_ordinary_images_change_nothing():
  keys = configs.default("unet").data
  check_scaling(keys)
  assert (keys.low, keys.mean, keys.scaling) == ((), (), "")


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[1] / "docs" / "scientific_images.md"
  (code,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", page.read_text(), re.DOTALL)
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  exec(code, names)
  expected = [[0, 0, 0], [76.5, 0, 36.4286], [153, 0, 72.8571], [229.5, 0, 109.2857]]
  np.testing.assert_allclose(names["scaled"][0], expected, 1e-4)
