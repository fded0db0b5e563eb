"""A label map is what it was, whatever file it was written to; and files that are no label map."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from helpers.mangled import encode, exif, indexed, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from jseg.data import ClassInfo, FileError, pixel_limit, read_image
from jseg.data.files.classes import voc_colormap
from jseg.data.files.images import canonical_image
from jseg.data.files.masks import make_label, read_mask
from jseg.data.files.opening import open_checked
from jseg.types import IGNORE, InputError

ABC = ClassInfo(("a", "b", "c"))
TWO = ClassInfo(("a", "b"), mask_values=(0, 255), ignore_label=None)


def label_of(data, classes=ABC):
  return make_label(read_mask(data, "m"), classes, classes.table(), "m").ids


def traits_of(data, classes=ABC):
  return make_label(read_mask(data, "m"), classes, classes.table(), "m").traits


# Writers: of a label map with k classes, in every way that is read.


def gray(labels, kind="PNG", **options):
  return encode(labels.astype(np.uint8), kind, **options)


def chunk(name, data):
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def gray_png(labels, bits):
  """A gray PNG of 1, 2, 4, 8 or 16 bits, by hand: few libraries write the small ones."""
  height, width = labels.shape
  rows = b""
  for row in labels.tolist():
    text = "".join(f"{value:0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
  header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(labels, bits, photometric, writer="", kind=1):
  """A gray TIFF of any depth and photometric interpretation, its samples stored as they are."""
  height, width = labels.shape
  if kind == 3:
    body = labels.astype("<f4").tobytes()
  elif bits >= 8:
    body = labels.astype(f"<u{bits // 8}").tobytes()
  else:
    body = b""
    for row in labels.tolist():
      text = "".join(f"{value:0{bits}b}" for value in row)
      text += "0" * (-len(text) % 8)
      body += int(text, 2).to_bytes(len(text) // 8, "big")
  name = writer.encode() + b"\0" * (2 - len(writer) % 2)
  tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1)]
  tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height)]
  tags += [(279, 4, 1, len(body)), (339, 3, 1, kind)]
  body += b"\0" * (len(body) % 2)
  if writer:
    tags.insert(9, (305, 2, len(name), 8 + len(body)))
    body += name
  entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
  return (
    struct.pack("<2sHI", b"II", 42, 8 + len(body))
    + body
    + (struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
  )


def pnm(labels, maximum, plain=False):
  height, width = labels.shape
  if plain:
    return (
      f"P2\n# by hand\n{width} {height}\n{maximum}\n".encode()
      + " ".join(map(str, labels.ravel().tolist())).encode()
    )
  kind = ">u2" if maximum > 255 else "u1"
  return f"P5 {width} {height} {maximum}\n".encode() + labels.astype(kind).tobytes()


def shuffled(labels, mode="P", kind="PNG"):
  """An indexed file whose palette has the VOC colors in another order."""
  order = np.random.default_rng(labels.size).permutation(256)
  places = np.argsort(order)
  image = Image.fromarray(places[labels].astype(np.uint8), "P")
  image.putpalette(voc_colormap()[order].ravel().tolist())
  return encode(image.convert(mode) if mode != "P" else image, kind)


def voc(labels, kind="PNG", bits=8):
  image = Image.fromarray(labels.astype(np.uint8), "P")
  image.putpalette(voc_colormap().ravel().tolist())
  options = {"bits": bits} if kind == "PNG" else {}
  return encode(image, kind, **options)


def alpha(labels):
  return encode(np.dstack([labels, 255 - labels]).astype(np.uint8), mode="LA")


def turned(labels):
  """Stored so that EXIF's orientation 8 turns it upright."""
  return gray(np.rot90(labels, -1), exif=exif(8))


by_number = {
  **{f"png {bits} bits": (lambda x, b=bits: gray_png(x, b), bits) for bits in (1, 2, 4, 8, 16)},
  **{
    f"tiff {bits} bits, 0 is {'black' if photometric else 'white'}, by {writer or 'any'}": (
      lambda x, b=bits, p=photometric, w=writer: tiff(x, b, p, w),
      bits,
    )
    for bits in (1, 2, 4, 8, 16)
    for photometric, writer in ((1, ""), (1, "tifffile.py"), (0, "tifffile.py"), (0, "ImageJ=1"))
  },
  "tiff 32 bits": (lambda x: tiff(x, 32, 1), 8),
  "tiff of floats": (lambda x: tiff(x, 32, 1, kind=3), 8),
  "tiff of floats beside whole numbers": (lambda x: tiff(x + 1e-6, 32, 1, kind=3), 4),
  "tiff, 0 is white, as Pillow inverts it": (lambda x: gray(x, "TIFF", tiffinfo={262: 0}), 7),
  "tiff with lzw": (lambda x: gray(x, "TIFF", compression="tiff_lzw"), 8),
  **{f"pgm up to {m}": (lambda x, m=m: pnm(x, m), b) for m, b in ((3, 2), (20, 4), (255, 8))},
  "pgm of 16 bits": (lambda x: pnm(x, 65535), 8),
  "pgm up to 1000": (lambda x: pnm(x, 1000), 8),
  "plain pgm": (lambda x: pnm(x, 31, plain=True), 4),
  "pbm as Pillow writes it": (lambda x: encode(x.astype(bool), "PPM"), 1),
  **{kind: (lambda x, k=kind: gray(x, k), 8) for kind in ("BMP", "TGA", "PCX", "SGI", "GIF")},
  "jpeg 2000 without loss": (lambda x: gray(x, "JPEG2000"), 8),
  "bmp of one bit": (lambda x: encode(x.astype(bool), "BMP"), 1),
  "tiff of one bit": (lambda x: encode(x.astype(bool), "TIFF", compression="group4"), 1),
  **{f"indexed png of {bits} bits": (lambda x, b=bits: voc(x, bits=b), bits) for bits in (1, 2, 4)},
  **{f"indexed {kind}": (lambda x, k=kind: voc(x, k), 8) for kind in ("PNG", "BMP", "TIFF", "TGA")},
  "gray with alpha": (alpha, 8),
  "turned by EXIF": (turned, 8),
}
by_color = {
  **{f"colors as {k}": (lambda x, k=k: encode(voc_colormap()[x], k), 8) for k in ("PNG", "BMP")},
  "colors as webp without loss": (lambda x: encode(voc_colormap()[x], "WEBP", lossless=True), 8),
  "colors as gif": (lambda x: voc(x, "GIF"), 8),
  "colors as qoi": (lambda x: encode(voc_colormap()[x], "QOI"), 8),
  "colors with alpha": (lambda x: shuffled(x, "RGBA"), 8),
  "colors as ppm": (lambda x: encode(voc_colormap()[x], "PPM"), 8),
  **{
    f"indices in another order as {k}": (lambda x, k=k: shuffled(x, kind=k), 8)
    for k in ("PNG", "TIFF")
  },
}


@pytest.mark.parametrize("way", [*by_number, *by_color])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_label_map_comes_back_identical(way, data):
  write_labels, bits = (by_number | by_color)[way]
  shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
  k = min(2**bits, 254)
  labels = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, k - 1)))
  names = tuple(map(str, range(k)))
  classes = ClassInfo(names, voc_colormap(k), by_color=way in by_color)
  np.testing.assert_array_equal(label_of(write_labels(labels), classes), labels)


def test_sixteen_bit_ids_come_back_identical():
  classes = ClassInfo(("none", "cell"), instance=True, ignore_label=None)
  ids = np.array([[0, 300, 65535], [2, 0, 257]])
  for data in (gray_png(ids, 16), tiff(ids, 16, 1), tiff(ids, 16, 0), pnm(ids, 65535)):
    label = make_label(read_mask(data, "m"), classes, classes.table(), "m")
    np.testing.assert_array_equal(label.values, ids)


# Cases that people had, and their siblings.


def test_small_depths_are_not_stretched():
  """2 bits and 4 classes: class 3 is no void; 4 bits and 21 classes: class 1 is not 17."""
  labels = np.array([[0, 1, 2, 3]])
  four = ClassInfo(("a", "b", "c", "d"))
  assert label_of(gray_png(labels, 2), four).tolist() == [[0, 1, 2, 3]]
  assert label_of(gray_png(labels, 4), ClassInfo(tuple(map(str, range(21))))).tolist() == [
    [0, 1, 2, 3]
  ]
  assert label_of(tiff(labels, 2, 1), four).tolist() == [[0, 1, 2, 3]]
  assert label_of(pnm(labels, 3), four).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
  "data",
  [
    gray_png(np.array([[0, 1]]), 1),
    gray_png(np.array([[0, 255]]), 8),
    tiff(np.array([[0, 1]]), 1, 1),
    pnm(np.array([[0, 1]]), 1),
    encode(np.array([[False, True]]), "BMP"),
    indexed(np.array([[0, 1]]), [[0] * 3, [255] * 3], bits=1),
    indexed(np.array([[1, 0]]), [[255] * 3, [0] * 3], bits=1),
  ],
  ids=["png", "8 bits", "tiff", "pgm", "bmp", "indexed", "indexed, white first"],
)
def test_a_set_pixel_is_the_second_of_0_and_255(data):
  assert label_of(data, TWO).tolist() == [[0, 1]]


def test_white_is_255_whichever_class_that_is():
  classes = ClassInfo(("paper", "ink"), mask_values=(255, 0), ignore_label=None)
  assert label_of(gray_png(np.array([[0, 1]]), 1), classes).tolist() == [[1, 0]]


COLORS = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]


def test_indices_are_looked_up_by_color_where_classes_json_has_a_palette(tmp_path):
  write(tmp_path / "classes.json", b'{"classes": ["a", "b", "c"], "palette": %a}' % COLORS)
  classes = ClassInfo.load(tmp_path / "classes.json")
  labels = np.array([[0, 1, 2, 2]])
  order = [2, 0, 1]  # index i shows the color of class order[i]
  data = indexed(np.argsort(order)[labels], np.array(COLORS)[order])
  assert label_of(data, classes).tolist() == labels.tolist()
  assert traits_of(data, classes) == {"reordered"}
  assert traits_of(indexed(labels, COLORS), classes) == frozenset()
  rgb = encode(np.array(COLORS, np.uint8)[labels])
  assert label_of(rgb, classes).tolist() == labels.tolist()
  with pytest.raises(FileError, match=r"color \(9, 9, 9\) \(index 1\) that the palette lacks"):
    label_of(indexed(labels, [[0, 0, 0], [9, 9, 9], [0, 255, 0]]), classes)
  # Void may have any color, if its index says what it is.
  with_void = np.array(COLORS + [[7, 7, 7]] * 253)
  assert label_of(indexed(np.array([[1, 255]]), with_void), classes).tolist() == [[1, IGNORE]]


def test_indices_are_numbers_without_a_palette_in_classes_json():
  label = make_label(read_mask(indexed(np.array([[0, 2]]), COLORS), "m"), ABC, ABC.table(), "m")
  assert label.ids.tolist() == [[0, 2]]
  assert label.colors == {0: (0, 0, 0), 2: (0, 255, 0)}


def test_grays_of_a_gif_are_colors_where_there_is_a_palette():
  classes = ClassInfo(tuple("abcdefgh"), voc_colormap(8), by_color=True)
  assert voc_colormap(8)[7].tolist() == [128, 128, 128]
  assert label_of(voc(np.array([[0, 7]]), "GIF"), classes).tolist() == [[0, 7]]
  assert label_of(gray(np.array([[1, 2]]), "GIF")).tolist() == [[1, 2]]


def test_where_0_is_white_the_reading_with_known_classes_counts():
  stored = tiff(np.array([[0, 1, 2]]), 8, 0)
  shown = tiff(np.array([[255, 254, 253]]), 8, 0)
  assert label_of(stored).tolist() == label_of(shown).tolist() == [[0, 1, 2]]
  assert traits_of(stored) == {"white_is_zero"}
  # Either may be meant: what is shown as white is the second class, and it is told.
  either = tiff(np.array([[0, 255]]), 8, 0)
  assert label_of(either, TWO).tolist() == [[1, 0]]
  assert traits_of(either, TWO) == {"white_is_zero"}
  # Programs that store numbers mean them.
  assert label_of(tiff(np.array([[0, 255]]), 8, 0, "tifffile.py"), TWO).tolist() == [[0, 1]]


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (encode(np.zeros((9, 9), np.uint8), "JPEG"), "a JPEG cannot be a mask"),
    (encode(np.zeros((9, 9, 3), np.uint8), "WEBP"), "a WEBP cannot be a mask"),
    (encode(np.zeros((9, 9, 3), np.uint8), "AVIF"), "a AVIF cannot be a mask"),
    (
      encode(np.zeros((9, 9), np.uint8), "JPEG2000", irreversible=True),
      "a JPEG2000 cannot be a mask",
    ),
    (encode(np.zeros((9, 9), np.uint8), "TIFF", compression="jpeg"), "a TIFF cannot be a mask"),
    (tiff(np.full((2, 2), 0.5), 32, 1, kind=3), r"value 0\.5 is no whole number \(4 pixels"),
    (tiff(np.full((2, 2), 1.01), 32, 1, kind=3), r"value 1\.01 is no whole number"),
    (tiff(np.full((2, 2), np.nan), 32, 1, kind=3), r"value nan is no whole number"),
    (tiff(np.full((2, 2), 3e9), 32, 1, kind=3), r"of no class"),
    (cv2.imencode(".png", np.full((2, 2, 3), 9, np.uint16))[1].tobytes(), "16 bits per channel"),
    (encode(Image.new("CMYK", (2, 2)), "TIFF"), "mode CMYK cannot hold class values"),
  ],
)
def test_what_cannot_be_a_mask(data, message):
  with pytest.raises(FileError, match=message):
    label_of(data)


def test_transparent_pixels_of_a_mask_are_told():
  half = np.dstack([np.zeros((2, 2), np.uint8), np.array([[0, 255]] * 2, np.uint8)])
  assert traits_of(encode(half, mode="LA")) == {"transparent"}
  assert traits_of(alpha(np.zeros((2, 2), np.uint8))) == frozenset()


# Images.


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "ppm", "tga", "jp2", "pgm", "JPG", "bmp", "qoi"])
def test_whatever_the_library_reads_is_an_image(suffix, tmp_path):
  path = tmp_path / f"a.{suffix}"
  Image.fromarray(np.full((4, 5, 3), 90, np.uint8)).convert("L" if suffix == "pgm" else "RGB").save(
    path
  )
  assert read_image(path).shape == (4, 5, 1 if suffix == "pgm" else 3)


def frames(kind, **options):
  first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
  return encode(first, kind, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_frames_or_pages_are_refused(kind):
  with pytest.raises(FileError, match=r"holds 2 (frames|pages)\. Save each"):
    canonical_image(frames(kind), "x")


def test_previews_beside_a_picture_are_no_frames():
  assert canonical_image(frames("MPO"), "phone.jpg").size == (8, 8)
  page = Image.new("RGB", (8, 8))
  small = Image.new("RGB", (4, 4))
  small.encoderinfo = {"tiffinfo": {254: 1}}
  assert canonical_image(encode(page, "TIFF", save_all=True, append_images=[small]), "x").size == (
    8,
    8,
  )


def test_bands_that_would_be_dropped_are_refused():
  infrared = Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBX")
  with pytest.raises(FileError, match=r"has 4 bands, of which 3 would be used\. Save the bands"):
    canonical_image(encode(infrared, "TIFF"), "x.tif")
  assert canonical_image(encode(np.zeros((4, 4, 4), np.uint8), "TIFF"), "x.tif").size == (4, 4)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"P6 2 2 65535\n" + bytes(24), "16 bits per channel"),
    (b"version https://git-lfs.github.com/spec/v1\n", r"is a Git LFS pointer.*git lfs pull"),
    (b"\0\0\0\x18ftypheic" + bytes(40), r"is a HEIC photo\. Convert it"),
    (bytes(128) + b"DICM", r"is a DICOM file"),
    (b"<!DOCTYPE html>", r"is text such as HTML"),
    (b"GIMP, says it", r"damaged or no image \(it begins with b'GIMP, sa'\)"),
    (tiff(np.zeros((2, 2)), 64, 1), r"TIFF of a kind that isn't read: 1 band\(s\) of 64 bits"),
  ],
)
def test_what_is_no_image_of_8_bits_says_what_it_is(data, message):
  with pytest.raises(FileError, match=message):
    canonical_image(data, "x")


def test_the_limit_of_pixels_is_a_setting():
  content = encode(np.zeros((10, 12, 3), np.uint8))
  refusal = r"12 wide x 10 high are 120 pixels.*limit is 119.*raise data.max_pixels"
  with pixel_limit(119), pytest.raises(FileError, match=refusal):
    canonical_image(content, "x")
  with pixel_limit(120):
    assert canonical_image(content, "x").size == (10, 12)
  with pixel_limit(1), contextlib.suppress(FileError):
    canonical_image(content, "x")
  assert canonical_image(content, "x").size == (10, 12)
  for number in (0, -5, 2**31, 1.5):
    with pytest.raises(InputError, match=rf"max_pixels: {number} must"), pixel_limit(number):
      pass


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_image_beyond_the_librarys_own_limit_is_read(kind):
  limit = Image.MAX_IMAGE_PIXELS
  assert 2 * limit < 14000 * 13000
  data = io.BytesIO()
  Image.new("1", (14000, 13000)).save(data, kind)
  with pixel_limit(14000 * 13000):
    assert open_checked(data.getvalue(), "scan").size == (13000, 14000)
  assert limit == Image.MAX_IMAGE_PIXELS  # which is the whole process's
