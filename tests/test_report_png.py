"""PNG files written in strips: what other libraries read of them."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jseg.report import save_png


@settings(max_examples=40, deadline=None)
@given(
  shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
  kind=st.sampled_from(["gray", "gray of 16 bits", "indices", "colors"]),
  step=st.integers(1, 41),
  smooth=st.booleans(),
)
def test_pillow_and_opencv_read_what_was_written(tmp_path_factory, shape, kind, step, smooth):
  path = tmp_path_factory.mktemp("png") / "a.png"
  rng = np.random.default_rng(0)
  dtype = np.uint16 if kind == "gray of 16 bits" else np.uint8
  array = rng.integers(0, 2**16, (*shape, 3) if kind == "colors" else shape).astype(dtype)
  if smooth:
    array = array[:1, :1] + np.arange(shape[1], dtype=dtype).reshape(1, -1, *[1] * (array.ndim - 2))
    array = np.repeat(array, shape[0], 0)
  palette = rng.integers(0, 256, (256, 3), np.uint8) if kind == "indices" else None
  save_png(path, (array[i : i + step] for i in range(0, len(array), step)), shape, palette)
  with Image.open(path) as image:
    image.load()
    np.testing.assert_array_equal(np.asarray(image), array)
    if palette is not None:
      np.testing.assert_array_equal(np.reshape(image.getpalette(), (-1, 3)), palette)
  shown = array if palette is None else palette[array]
  flags = cv2.IMREAD_UNCHANGED if palette is None else cv2.IMREAD_COLOR
  read = cv2.imread(str(path), flags)
  np.testing.assert_array_equal(read[..., ::-1] if read.ndim == 3 else read, shown)


def test_strips_that_are_not_the_picture(tmp_path):
  strip = np.zeros((3, 4), np.uint8)
  for strips, size in (
    ([strip], (4, 4)),
    ([strip, strip], (4, 4)),
    ([strip, strip[:, :3]], (6, 4)),
  ):
    with pytest.raises(ValueError, match="in a picture of"):
      save_png(tmp_path / "a.png", strips, size)


def test_masks_are_small(tmp_path):
  mask = np.zeros((1000, 1000), np.uint8)
  mask[300:700, 200:900] = 1
  save_png(tmp_path / "a.png", [mask], mask.shape, np.zeros((2, 3)))
  assert (tmp_path / "a.png").stat().st_size < 10_000
