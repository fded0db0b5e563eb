"""Files of data sets that are damaged, or made to lead astray: read, or refused by name, soon."""

import contextlib
import gzip
import itertools
import json
import math
import pathlib
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import nibabel
import numpy as np
import pytest
from helpers.fuzz import ROUNDS, damaged
from helpers.mangled import encode, exif, write
from PIL import Image, ImageFile, ImageOps

from jseg import cli
from jseg import config as configs
from jseg.arithmetic import cdiv
from jseg.data import MAX_PIXELS, ClassInfo, check_folder, pixel_limit, read_image, read_volume
from jseg.data.files.classes import EXAMPLE, voc_colormap
from jseg.data.files.images import canonical_image, decode_image
from jseg.data.files.masks import make_label, read_mask
from jseg.data.files.nifti import read_image_file, read_mask_file
from jseg.types import InputError

MIB = 1 << 20
RGB = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (11, 14), np.uint8)
ABC = ClassInfo(("a", "b", "c"))

# A damaged tag is worth a warning to Pillow, which a user's program prints and a test would raise.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def refused(function, path, content=None):
  """The message about a file, for which no more than 64 MiB are taken."""
  if content is not None:
    path.write_bytes(content)
  tracemalloc.start()
  with pytest.raises(InputError, match=re.escape(path.name)) as error:
    function(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 64 * MIB
  assert len(str(error.value)) < 1000
  return str(error.value)


def read_or_refused(reader, content, path):
  """Whether a file of this content is read; otherwise it is refused by its name."""
  path.write_bytes(content)
  try:
    reader(path)
  except InputError as error:
    message = str(error)
  else:
    return True
  assert path.name in message
  assert len(message) < 2000
  return False


# classes.json.


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("palette", True),
    ("palette", False),
    ("palette", 5),
    ("palette", "red"),
    ("palette", {"a": [0, 0, 0]}),
    ("palette", [[0, 0, 10**30], [1, 1, 1]]),
    ("palette", [[0, 0], [1, 1]]),
    ("ignore_label", [255]),
    ("ignore_label", 10**4000),
    ("mask_values", {"a": 0}),
    ("mask_values", [0, 10**4000]),
    ("mask_values", [[0], [1]]),
    ("ignore_color", True),
    ("task", ["instance"]),
    ("task", {"a": {}}),
    ("classes", "ab"),
    ("classes", [["a"]]),
    ("classes", {"a": 0}),
    ("classes", ["a", "b" * 1001]),
  ],
  ids=lambda value: repr(value)[:20],
)
def test_classes_of_the_wrong_kind_are_named(key, value, tmp_path):
  content = json.dumps({"classes": ["a", "b"], key: value}).encode()
  assert key in refused(ClassInfo.load, tmp_path / "classes.json", content)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"classes": 1' + b"0" * 5000 + b"}", b"\0"])
def test_classes_that_json_cannot_hold(content, tmp_path):
  message = refused(ClassInfo.load, tmp_path / "classes.json", content)
  assert "is not valid JSON" in message
  assert EXAMPLE in message


def test_damaged_classes_are_read_or_refused(tmp_path):
  content = {
    "classes": ["sky", "road"],
    "palette": [[1, 2, 3], [4, 5, 6]],
    "ignore_color": [7, 8, 9],
    "mask_values": [3, 300],
    "task": "semantic",
  }
  odd = [None, True, [], {}, "", "x", -1, 1e300, 10**30, 0.5, [[]], [1], {"a": 1}, "\ud800", [True]]
  rng = np.random.default_rng(0)
  outcomes = [0, 0]
  for i in range(ROUNDS):
    if i % 2:
      data = damaged(json.dumps(content).encode(), rng)
    else:
      changed = dict(content)
      for _ in range(rng.integers(1, 3)):
        changed[list(content)[rng.integers(len(content))]] = odd[rng.integers(len(odd))]
      data = json.dumps(changed).encode()
    outcomes[read_or_refused(ClassInfo.load, data, tmp_path / "classes.json")] += 1
  assert min(outcomes) > 0


# Images and masks.

KINDS = {
  "png": lambda: encode(RGB),
  "gray.png": lambda: encode(LABELS),
  "indexed.png": lambda: encode(Image.fromarray(LABELS).convert("P"), bits=4),
  "jpg": lambda: encode(RGB, "JPEG", exif=exif(6)),
  "tif": lambda: encode(RGB, "TIFF"),
  "lzw.tif": lambda: encode(LABELS, "TIFF", compression="tiff_lzw"),
  "bmp": lambda: encode(RGB, "BMP"),
  "webp": lambda: encode(RGB, "WEBP", lossless=True),
  "gif": lambda: encode(LABELS, "GIF"),
  "pgm": lambda: encode(LABELS, "PPM"),
  "tga": lambda: encode(RGB, "TGA"),
  "jp2": lambda: encode(RGB, "JPEG2000"),
}


def with_checksums(png):
  """A damaged PNG whose checksums tell nothing."""
  data, place = bytearray(png), 8
  while place + 12 <= len(data):
    end = place + 8 + int.from_bytes(data[place : place + 4], "big")
    data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
    place = end + 4
  return bytes(data)


def read_as_image(path):
  """What prediction reads is what training will."""
  content = canonical_image(path.read_bytes(), path)
  # NumPy's own assertion would take more memory than what is tested.
  assert np.array_equal(decode_image(content.data), read_image(path))


def read_as_mask(path):
  make_label(read_mask(path.read_bytes(), path), ABC, ABC.table(), path)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_and_masks_are_read_or_refused(kind, tmp_path):
  whole, rng = KINDS[kind](), np.random.default_rng(0)
  outcomes = [0, 0]
  for i in range(max(ROUNDS // len(KINDS), 1)):
    reader, content = (read_as_image, read_as_mask)[i % 2], damaged(whole, rng)
    if kind.endswith("png") and i % 4 > 1:
      content = with_checksums(content)
    outcomes[read_or_refused(reader, content, tmp_path / f"x.{kind}")] += 1
  assert outcomes[0] > 0


SCENE = np.asarray(Image.fromarray(RGB).resize((70, 50), Image.Resampling.BICUBIC))
JPEGS = {
  "color": {"subsampling": 2},
  "full color": {"subsampling": 0},
  "optimized": {"optimize": True, "quality": 20},
  "in parts": {"restart_marker_blocks": 3},
  "progressive": {"progressive": True},
}


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_cut_jpeg_is_told(kind, gray):
  """Wherever it is cut, and whatever follows; decoders fill the rest with gray."""
  picture = Image.fromarray(SCENE).convert("L" if gray else "RGB")
  content = encode(picture, "JPEG", **JPEGS[kind])
  whole = canonical_image(content, "x.jpg")
  assert content[-2:] == b"\xff\xd9"
  assert whole.data == content
  start = content.index(b"\xff\xda") + 14
  for place in [*np.linspace(start, len(content) - 24, 12, dtype=int).tolist(), len(content) - 12]:
    for behind in (b"", b"\xff\xd9", b"\xff\xd9" + bytes(400)):
      with pytest.raises(InputError, match=r"x\.jpg: .*(truncated|was cut|broken).*\. Restore it"):
        canonical_image(content[:place] + behind, "x.jpg")


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize(
  "behind", [b"garbage", bytes(1000), b"\xff\xd9\xff\xd8\xff", encode(RGB, "JPEG")]
)
def test_what_follows_a_jpeg_does_not_matter(kind, behind):
  content = encode(SCENE, "JPEG", **JPEGS[kind])
  expected = decode_image(content)
  for more in (content + behind, content[:-2] + bytes(30) + content[-2:]):
    np.testing.assert_array_equal(decode_image(canonical_image(more, "x.jpg").data), expected)


def test_a_jpeg_of_many_passes_is_refused():
  """Each takes the time of an image that may be of any size."""
  content = encode(SCENE, "JPEG", progressive=True)
  start = content.rindex(b"\xff\xda")
  longer = content[:-2] + content[start:-2] * 100 + content[-2:]
  with pytest.raises(InputError, match=r"comes in 110 scans, of 100 at most"):
    canonical_image(longer, "x.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "indexed"])
def test_an_image_is_turned_as_pillow_turns_it(kind, orientation, tmp_path):
  picture = Image.fromarray(RGB).convert("P" if kind == "indexed" else "RGB")
  content = encode(picture, kind.replace("indexed", "PNG"), exif=exif(orientation))
  path = tmp_path / "x"
  path.write_bytes(content)
  upright = ImageOps.exif_transpose(Image.open(path))
  np.testing.assert_array_equal(read_image(path), np.asarray(upright.convert("RGB")))
  read_as_image(path)
  if kind != "JPEG":
    np.testing.assert_array_equal(read_mask(content, path).values, np.asarray(upright))


@pytest.mark.parametrize(
  "damage",
  [b"garbage!", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(20)],
)
def test_damaged_exif_is_told(damage, tmp_path):
  """The image itself is whole; only whether it is to be turned isn't known."""
  root = tmp_path / "set"
  for kind in ("images", "masks"):
    (root / "train" / kind).mkdir(parents=True)
  (root / "classes.json").write_text('{"classes": ["a", "b", "c"]}')
  (root / "train" / "images" / "x.jpg").write_bytes(encode(RGB, "JPEG", exif=b"Exif\0\0" + damage))
  (root / "train" / "images" / "y.png").write_bytes(encode(RGB, exif=damage))
  (root / "train" / "images" / "z.jpg").write_bytes(encode(RGB, "JPEG", exif=exif(1)))
  for name in "xyz":
    (root / "train" / "masks" / f"{name}.png").write_bytes(encode(LABELS))
  report = check_folder(root)
  assert report.problems == []
  (note,) = report.notes
  assert "2 file(s) (train/x, train/y): the image's EXIF data are damaged" in str(note)
  np.testing.assert_array_equal(read_image(root / "train" / "images" / "y.png"), RGB)


def test_no_program_is_started_for_an_image(tmp_path):
  """Pillow hands EPS to Ghostscript, whatever the file is called."""
  drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
  assert "damaged or no image" in refused(read_image, tmp_path / "x.png", drawing)


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
  """A file of some hundred bytes that says it is of 400 million pixels."""
  content = encode(RGB)
  header = content[12:16] + struct.pack(">II", 20_000, 20_000) + content[24:29]
  content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
  assert "400,000,000 pixels" in refused(read_image, tmp_path / "x.png", content)


def peak_of(function):
  """Bytes that a call takes at its peak, of libraries too, where the system tells."""
  process = pathlib.Path("/proc/self")
  if not (process / "clear_refs").exists():
    pytest.skip("no /proc to measure memory by")

  def kilobytes(what):
    return int(re.search(rf"{what}:\s*(\d+) kB", (process / "status").read_text())[1])

  (process / "clear_refs").write_text("5")
  before = kilobytes("VmRSS")
  function()
  return (kilobytes("VmHWM") - before) * 1024


def on_canvas(gif, side):
  """A GIF whose picture lies in the corner of a square canvas, which is valid."""
  return gif[:6] + struct.pack("<HH", side, side) + gif[10:]


COLORED = Image.fromarray(LABELS).convert("P")
COLORED.putpalette(voc_colormap(256).tobytes())


@pytest.mark.parametrize(
  ("picture", "reader", "bytes_each"),
  [
    (COLORED, lambda path: canonical_image(path.read_bytes(), path), 3),
    (COLORED, read_image, 3),
    (Image.fromarray(LABELS), read_as_mask, 2),
    (COLORED, read_as_mask, 2),
  ],
  ids=["prepared image", "image", "gray mask", "colored mask"],
)
def test_a_large_canvas_takes_few_bytes_a_pixel(picture, reader, bytes_each, tmp_path):
  path, side = tmp_path / "x.gif", 3000
  path.write_bytes(on_canvas(encode(picture, "GIF", transparency=0), side))
  assert peak_of(lambda: reader(path)) < bytes_each * side**2 + 12 * MIB  # of strips and the PNG


@pytest.mark.parametrize(
  ("options", "bytes_each"),
  [
    ({"kind": "JPEG"}, 6),  # of OpenCV, whose array is copied; after Pillow's were given back
    ({"kind": "JPEG", "exif": exif(6)}, 7),
    ({"kind": "PNG", "compress_level": 1}, 6),
  ],
  ids=["photo", "turned photo", "PNG"],
)
def test_a_large_image_takes_as_much_as_the_limit_counts(options, bytes_each, tmp_path):
  side, path = 3600, tmp_path / "x"  # arrays that are returned to the system at once
  path.write_bytes(encode(Image.new("RGB", (side, side), (90, 60, 30)), **options))

  def prepare():
    canonical_image(path.read_bytes(), path)

  assert peak_of(prepare) < bytes_each * side**2 + 8 * MIB  # of strips and the file
  assert peak_of(lambda: read_image(path)) < 7 * side**2 + 8 * MIB


READS = """
import pathlib, sys
from jseg.data import read_image
read_image(sys.argv[1])
print(pathlib.Path("/proc/self/status").read_text())
"""


@pytest.mark.parametrize("options", [{"kind": "JPEG"}, {"kind": "PNG", "exif": exif(6)}])
def test_the_largest_image_is_read_by_a_process_of_less_than_a_gibibyte(options, tmp_path):
  if not pathlib.Path("/proc/self/status").exists():
    pytest.skip("no /proc to measure memory by")
  path, size = tmp_path / "x", (12_000, 9_000)
  assert math.prod(size) == MAX_PIXELS
  path.write_bytes(encode(Image.new("RGB", size, (90, 60, 30)), compress_level=1, **options))
  command = [sys.executable, "-c", READS, str(path)]
  status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
  assert 7 * MAX_PIXELS < peak < 1024 * MIB


def test_what_follows_a_picture_takes_no_memory(tmp_path):
  """Pillow would make it as it opens the file."""
  content = encode(COLORED, "GIF", disposal=2)
  place = content.index(b",\0\0\0\0") + 5
  path, side = tmp_path / "x.gif", 20_000
  content = content[:place] + struct.pack("<HH", side, side) + content[place + 4 :]
  assert peak_of(lambda: refused(read_image, path, content)) < 64 * MIB


def composed(webp, side):
  """An animation of one frame, which lies in the corner of a square canvas."""

  def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data

  def number(value):
    return struct.pack("<I", value)[:3]

  # Where it lies, its size, how long it is shown, and that it is blended.
  frame = number(0) * 2 + number(RGB.shape[1] - 1) + number(RGB.shape[0] - 1) + number(9) + b"\0"
  header = chunk(b"VP8X", b"\x12\0\0\0" + number(side - 1) * 2) + chunk(b"ANIM", bytes(6))
  return chunk(b"RIFF", b"WEBP" + header + chunk(b"ANMF", frame + webp[12:]))


@pytest.mark.parametrize(
  ("kind", "options", "bytes_each"),
  [
    ("WEBP", {}, 16),
    ("AVIF", {}, 16),
    ("JPEG2000", {}, 20),
    ("JPEG2000", {"tile_size": (7, 11)}, 12),  # half of the image
    ("JPEG", {"progressive": True, "subsampling": 0}, 10),  # 6 of them for coefficients
  ],
)
def test_what_takes_many_bytes_a_pixel_has_fewer_of_them(kind, options, bytes_each, tmp_path):
  path, content = tmp_path / "x", encode(RGB, kind, **options)
  check_limit(read_image, path, content, bytes_each)


@pytest.mark.parametrize(("dtype", "bytes_each"), [(np.int32, 9), (np.float32, 13)])
def test_what_takes_many_bytes_as_a_mask(dtype, bytes_each, tmp_path):
  check_limit(read_as_mask, tmp_path / "x", encode(LABELS.astype(dtype), "TIFF"), bytes_each)


def check_limit(reader, path, content, bytes_each):
  """Each of 154 pixels takes so many bytes."""
  fewest = cdiv(154 * bytes_each, 7)
  with pixel_limit(fewest - 1):
    message = refused(reader, path, content)
  assert f"154 pixels, and the limit is 153 where each takes {bytes_each} bytes" in message
  assert "save it as PNG" in message
  with pixel_limit(fewest):
    reader(path)


def test_a_canvas_of_webp_is_limited_before_it_is_composed(tmp_path, monkeypatch):
  path, content = tmp_path / "x.webp", encode(RGB, "WEBP", lossless=True)
  path.write_bytes(composed(content, 20))
  np.testing.assert_array_equal(read_image(path)[:11, :14], RGB)
  monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # all decode by it
  assert "the limit is 47,250,000" in refused(read_image, path, composed(content, 8000))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_counted_before_one_is_decoded(kind, tmp_path, monkeypatch):
  first = Image.fromarray(RGB)
  second = first.transpose(Image.Transpose.ROTATE_180)
  content = encode(first, kind, save_all=True, append_images=[second])
  monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # all decode by it
  assert re.search("holds 2 (frame|page)s", refused(read_image, tmp_path / "x", content))


def test_a_chunk_that_says_it_is_of_gigabytes_takes_none():
  """Pillow passes over it, and OpenCV would make room for it."""
  content = encode(RGB)
  assert canonical_image(content, "x").data == content
  place = content.index(b"IDAT") - 4
  longer = content[:place] + b"\xa4" + content[place + 1 :]
  image = canonical_image(longer, "x")
  assert image.data != longer
  np.testing.assert_array_equal(decode_image(image.data), RGB)


def test_check_and_training_have_the_same_limit(tmp_path, capsys):
  root = tmp_path / "set"
  for split, kind in itertools.product(("train", "val"), ("images", "masks")):
    write(root / split / kind / "x.png", encode(RGB if kind == "images" else LABELS))
  write(root / "classes.json", b'{"classes": ["a", "b", "c"]}')
  config = configs.default("unet")
  config.data.update({"name": "folder", "root": str(root), "data_dir": str(tmp_path / "data")})
  for limit, allowed in {153: False, 154: True}.items():
    config.data.max_pixels = limit
    command = ["check-data", str(root), "--max-pixels", str(limit), "--json"]
    with contextlib.nullcontext() if allowed else pytest.raises(SystemExit, match="4 problem"):
      cli.main(command)
    assert ("the limit is 153" in capsys.readouterr().out) is not allowed
    refusal = pytest.raises(InputError, match=r"the limit is 153\. .*raise data.max_pixels")
    with contextlib.nullcontext() if allowed else refusal:
      assert configs.load_dataset(config).splits == {"train": 1, "val": 1}
  with pytest.raises(InputError, match=r"data.max_pixels: 0 must be at least 1"):
    configs.change(config, {"data.max_pixels": 0})


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_is_to_prediction_what_it_is_to_training(subsampling, progressive, tmp_path):
  options = {"subsampling": subsampling, "progressive": progressive, "quality": 60}
  (tmp_path / "x.jpg").write_bytes(encode(RGB, "JPEG", **options))
  read_as_image(tmp_path / "x.jpg")


# NIfTI.


VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5) % 3
SCAN = nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes()


def with_shape(*shape):
  """A file of 60 voxels that says it has this shape."""
  return SCAN[:40] + struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape))) + SCAN[56:]


@pytest.mark.parametrize("reader", [read_image_file, read_mask_file, read_volume])
@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((3, 0, 5), "which is empty"),
    ((3, 4, 5, 0), "which is empty"),
    ((-3, 4, 5), "which is empty"),
    ((2048, 2048, 2048), "8,589,934,592 values, and the limit is 270,000,000.*data.max_pixels"),
    ((512, 512, 512), "it is too short for 268,435,456 bytes of voxels"),
    ((3, 4, 6), "it is too short for 144 bytes"),
  ],
)
def test_shapes_that_mislead(reader, shape, message, tmp_path):
  assert re.search(message, refused(reader, tmp_path / "x.nii", with_shape(*shape)))


@pytest.mark.parametrize("shape", [(512, 512, 512), (30_000, 30_000, 30_000)])
def test_a_packed_bomb_is_refused_before_it_goes_off(shape, tmp_path):
  content = gzip.compress(with_shape(*shape) + bytes(4 * MIB), 9)
  assert len(content) < 8000
  refused(read_image_file, tmp_path / "x.nii.gz", content)


def test_what_lies_behind_or_before_the_voxels_is_bounded(tmp_path):
  path = tmp_path / "x.nii.gz"
  path.write_bytes(gzip.compress(SCAN + bytes(100 * MIB), 1))
  tracemalloc.start()
  assert read_mask_file(path).size == (5, 4, 3)
  assert tracemalloc.get_traced_memory()[1] < MIB
  tracemalloc.stop()
  far = SCAN[:108] + struct.pack("<f", 2.0**30) + SCAN[112:]
  assert "its voxels begin at byte" in refused(read_mask_file, path, gzip.compress(far))


def test_the_limit_of_values_is_a_setting(tmp_path):
  path = tmp_path / "x.nii"
  path.write_bytes(SCAN)
  with pixel_limit(23):
    assert "3 x 4 x 5 are 60 values, and the limit is 57, 2.5 for a" in refused(read_volume, path)
  with pixel_limit(24):
    assert read_volume(path).shape == (5, 4, 3, 1)


@pytest.mark.parametrize("number", [np.inf, np.nan, 0])
def test_an_affine_without_an_inverse(number, tmp_path):
  content = SCAN[:280] + struct.pack("<f", number) + SCAN[284:]
  assert "affine has no inverse" in refused(read_mask_file, tmp_path / "x.nii", content)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "unpacked.gz"])
def test_damaged_volumes_are_read_or_refused(suffix, tmp_path):
  """Damaged as they are, or before they are packed, so that no checksum tells."""
  rng = np.random.default_rng(0)
  path = tmp_path / ("x.nii" if suffix == "nii" else "x.nii.gz")
  outcomes = [0, 0]
  for i in range(ROUNDS // 3):
    content = {
      "nii": lambda: damaged(SCAN, rng),
      "nii.gz": lambda: damaged(gzip.compress(SCAN), rng),
      "unpacked.gz": lambda: gzip.compress(damaged(SCAN, rng), 1),
    }[suffix]()
    outcomes[read_or_refused((read_volume, read_mask_file)[i % 2], content, path)] += 1
  assert outcomes[0] > 0
