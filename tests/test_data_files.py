"""Image and mask files: every kind people have comes out canonical, or names what is wrong."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from jseg.data import ClassInfo, FileError, read_image
from jseg.data.files import fingerprint
from jseg.data.files.images import canonical_image, decode_image, encode_png
from jseg.data.files.masks import check_binary, make_label, read_mask
from jseg.data.sources.pairs import ImagePair
from jseg.types import IGNORE

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GRAY = RGB[..., 0]
MASK = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
ABC = ClassInfo(("a", "b", "c"))


def encoded(array, kind="PNG", mode=None, **options):
  image = array if isinstance(array, Image.Image) else Image.fromarray(array)
  stream = io.BytesIO()
  (image.convert(mode) if mode else image).save(stream, kind, **options)
  return stream.getvalue()


def label_of(data, classes=ABC):
  return make_label(read_mask(data, "m.png"), classes, classes.table(), "m.png").ids


@pytest.mark.parametrize(
  "data",
  [encoded(RGB), encoded(GRAY), encoded(RGB, "JPEG"), encoded(GRAY, "JPEG")],
  ids=["rgb png", "gray png", "rgb jpeg", "gray jpeg"],
)
def test_canonical_images_are_kept_byte_for_byte(data):
  image = canonical_image(data, "x")
  assert image.data == data
  assert (image.size, image.rotated) == ((4, 6), False)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_become_png_without_loss(kind):
  data = encoded(RGB, kind, **({"lossless": True} if kind == "WEBP" else {}))
  image = canonical_image(data, "x")
  assert image.data.startswith(b"\x89PNG")
  np.testing.assert_array_equal(decode_image(image.data), RGB)


def test_alpha_is_dropped_and_not_blended():
  rgba = np.dstack([RGB, np.zeros_like(GRAY)])
  np.testing.assert_array_equal(decode_image(canonical_image(encoded(rgba), "x").data), RGB)
  gray_alpha = Image.fromarray(np.dstack([GRAY, GRAY // 2]), "LA")
  decoded = decode_image(canonical_image(encoded(gray_alpha), "x").data)
  np.testing.assert_array_equal(decoded, GRAY[..., None])


def test_palette_images_become_colors():
  image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
  image.putpalette([10, 20, 30, 40, 50, 60])
  for options in ({}, {"transparency": b"\x00\xff"}):
    decoded = decode_image(canonical_image(encoded(image, **options), "x").data)
    assert decoded.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_one_bit_images_become_gray():
  decoded = decode_image(canonical_image(encoded(np.array([[True, False]])), "x").data)
  assert decoded.tolist() == [[[255], [0]]]


def test_exif_orientation_is_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  path = tmp_path / "turned.png"
  path.write_bytes(encoded(RGB, exif=exif))
  np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))
  image = canonical_image(path.read_bytes(), path)
  assert (image.size, image.rotated) == ((6, 4), True)


def test_sixteen_bits_are_refused_with_a_remedy():
  gray = encoded(np.full((4, 6), 3000, np.uint16))
  done, color = cv2.imencode(".png", np.full((4, 6, 3), 3000, np.uint16))
  assert done
  for data in (gray, color.tobytes()):
    with pytest.raises(FileError, match=r"scan\.png: 16 bits per channel.*image\.clip\(low"):
      canonical_image(data, "scan.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_images_name_the_file(kind):
  data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), kind)
  for bad in (data[: len(data) // 2], b"not an image"):
    with pytest.raises(FileError, match=r"cat\.png: damaged or no image.*Restore it"):
      canonical_image(bad, "cat.png")
  with pytest.raises(FileError, match=r"cat\.png: the file is empty"):
    canonical_image(b"", "cat.png")


def test_stacks_of_pages_are_refused():
  pages = Image.fromarray(GRAY)
  data = encoded(pages, "TIFF", save_all=True, append_images=[pages, pages])
  with pytest.raises(FileError, match=r"holds 3 pages.*each page as a file"):
    canonical_image(data, "stack.tif")


def test_masks_of_every_kind_mean_the_same():
  palette = Image.fromarray(MASK, "P")
  palette.putpalette(list(range(256)) * 3)
  for data in (encoded(MASK), encoded(palette), encoded(MASK.astype(np.uint16))):
    np.testing.assert_array_equal(label_of(data), MASK)


def test_color_masks_are_looked_up_exactly():
  classes = ClassInfo(
    ("a", "b"), palette=np.array([(9, 8, 7), (1, 2, 3)]), ignore_color=(200, 0, 0)
  )
  colors = np.array([[[1, 2, 3], [9, 8, 7], [200, 0, 0]]], np.uint8)
  assert label_of(encoded(colors), classes).tolist() == [[1, 0, IGNORE]]
  opaque = np.dstack([colors, np.full((1, 3), 255, np.uint8)])
  assert label_of(encoded(opaque), classes).tolist() == [[1, 0, IGNORE]]
  colors[0, 0] = (1, 2, 4)
  with pytest.raises(FileError, match=r"color \(1, 2, 4\) \(1 pixels\) that the palette lacks"):
    label_of(encoded(colors), classes)


def test_a_gray_mask_saved_in_three_channels_is_recognized():
  with pytest.raises(FileError, match=r"three channels are equal: save one of them"):
    label_of(encoded(np.repeat(MASK[..., None], 3, -1)))


def test_one_bit_masks_are_classes_0_and_1():
  classes = ClassInfo(("a", "b"))
  assert label_of(encoded(np.array([[True, False]])), classes).tolist() == [[1, 0]]


def test_values_of_no_class_are_counted():
  mask = np.array([[37, 37, 4, 0]], np.uint8)
  message = (
    r"m\.png: value 37 \(2 pixels\), 4 \(1 pixels\) of no class; "
    r"3 classes have the values 0 to 2 and 255 for void\. Add the missing class"
  )
  with pytest.raises(FileError, match=message):
    label_of(encoded(mask))


def test_sixteen_bit_values_of_no_class():
  with pytest.raises(FileError, match=r"value 40000 \(1 pixels\)"):
    label_of(encoded(np.array([[40000, 1]], np.uint16)))


def test_jpeg_masks_are_refused():
  with pytest.raises(FileError, match=r"m\.png: a JPEG cannot be a mask.*as PNG"):
    label_of(encoded(MASK, "JPEG"))


def test_binary_masks_with_255_for_the_second_class():
  mask = np.array([[0, 255]], np.uint8)
  named = ClassInfo(("a", "b"), mask_values=(0, 255), ignore_label=None)
  assert label_of(encoded(mask), named).tolist() == [[0, 1]]
  strict = ClassInfo(("a", "b"), ignore_label=None)
  with pytest.raises(FileError, match=r'"mask_values": \[0, 255\]'):
    label_of(encoded(mask), strict)


def test_check_binary_looks_at_the_whole_split():
  counts = np.zeros(256, np.int64)
  counts[[0, IGNORE]] = 10, 5
  two = ClassInfo(("a", "b"))
  with pytest.raises(FileError, match=r"'b' never occurs and 5 pixels.*\[0, 255\]"):
    check_binary(counts, two, "split train")
  check_binary(counts, ABC, "split train")  # three classes: 255 may well be void
  counts[1] = 1
  check_binary(counts, two, "split train")


def pair(tmp_path, image, mask, classes=ABC):
  (tmp_path / "i.png").write_bytes(image)
  (tmp_path / "m.png").write_bytes(mask)
  return ImagePair("i", tmp_path / "i.png", tmp_path / "m.png", classes, classes.table())


def test_a_pair_counts_its_pixels(tmp_path):
  example = pair(tmp_path, encoded(RGB[:2, :3]), encoded(MASK)).load()
  assert example.size == (2, 3)
  assert example.counts[[0, 1, 2, IGNORE]].tolist() == [2, 1, 2, 1]
  assert example.counts.sum() == 6
  assert example.objects is None


def test_instances_are_kept_beside_the_label(tmp_path):
  classes = ClassInfo(("background", "cell"), instance=True)
  mask = np.array([[0, 300, 2], [255, 0, 300]], np.uint16)
  example = pair(tmp_path, encoded(RGB[:2, :3]), encoded(mask), classes).load()
  objects = example.objects
  assert read_mask(example.label, "x").values.tolist() == [[0, 1, 1], [255, 0, 1]]
  masks = [objects.mask(i).astype(int).tolist() for i in range(len(objects))]
  assert masks == [[[0, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 0, 0]]]
  assert objects.boxes.tolist() == [[0, 2, 1, 3], [0, 1, 2, 3], [1, 0, 2, 1]]
  assert objects.classes.tolist() == [1, 1, 1]
  assert objects.crowd.tolist() == [False, False, True]  # void hides what it hides
  assert objects.areas.tolist() == [1, 2, 1]


def test_sizes_that_differ_name_both_files(tmp_path):
  message = r"m\.png: 3 wide x 2 high, but its image .*i\.png is 6 wide x 4 high.*nearest"
  with pytest.raises(FileError, match=message):
    pair(tmp_path, encoded(RGB), encoded(MASK)).load()


def test_sizes_are_compared_after_rotation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 8
  turned = encoded(RGB, exif=exif)
  assert pair(tmp_path, turned, encoded(np.zeros((6, 4), np.uint8))).load().size == (6, 4)
  with pytest.raises(FileError, match=r"EXIF rotation was applied; rotate the mask"):
    pair(tmp_path, turned, encoded(np.zeros((4, 6), np.uint8))).load()


def test_png_round_trip():
  np.testing.assert_array_equal(decode_image(encode_png(RGB)), RGB)
  np.testing.assert_array_equal(decode_image(encode_png(GRAY)), GRAY[..., None])


def test_fingerprint_sees_names_and_contents_and_nothing_else(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  one.write_bytes(b"aa")
  two.write_bytes(b"bb")
  files = [("one", one), ("two", two)]
  before = fingerprint(files, "x")
  os.utime(one, (0, 0))
  assert fingerprint(files[::-1], "x") == before
  assert fingerprint(files, "y") != before
  assert fingerprint([("uno", one), ("two", two)], "x") != before
  one.write_bytes(b"ac")
  os.utime(one, (0, 0))  # same size, same time
  assert fingerprint(files, "x") != before
