"""Resizing by rows: what resizing the whole image gives."""

import itertools
import tracemalloc

import numpy as np
import pytest

from jseg.data import resize
from jseg.data.files.rows import StoredImage
from jseg.data.resizing import resize_strips, resized

rng = np.random.default_rng(0)
# Down by an even and an odd share, by more than two, up, to one row, and of one row and column.
SIZES = [
  ((71, 45), (36, 23)),
  ((71, 45), (64, 41)),
  ((71, 45), (20, 13)),
  ((71, 45), (89, 56)),
  ((71, 45), (142, 90)),
  ((7, 5), (1, 1)),
  ((1, 9), (4, 36)),
  ((9, 1), (7, 1)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_rows_are_those_of_the_whole_image_resized(shape, size, dtype):
  image = rng.integers(0, 256, (*shape, 3)).astype(dtype)
  expected, found = resize(image, size), resized(image, size)
  assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
  # OpenCV interpolates bytes by weights of 11 bits, and rounds in its own ways.
  most = 1 if dtype == np.uint8 else 1e-4
  np.testing.assert_allclose(np.asarray(found, float), expected.astype(float), atol=most)
  assert np.abs(np.asarray(found, float) - expected).mean() < 0.2 * most
  whole = np.asarray(found)
  for first, stop in itertools.pairwise(sorted({0, *rng.integers(0, size[0] + 1, 6), size[0]})):
    np.testing.assert_array_equal(found[first:stop], whole[first:stop])


def test_an_image_of_that_size_is_what_it_is():
  image = rng.integers(0, 256, (5, 6, 3), np.uint8)
  assert resized(image, (5, 6)) is image


@pytest.mark.parametrize(("shape", "size"), [*SIZES, ((71, 45), (71, 45))])
def test_strips_are_resized_as_the_whole(shape, size):
  scores = rng.normal(size=(*shape, 5)).astype(np.float32)
  cuts = sorted({0, *rng.integers(0, shape[0] + 1, 6).tolist(), shape[0]})
  parts = [(slice(a, b), scores[a:b]) for a, b in itertools.pairwise(cuts)]
  found = list(resize_strips(parts, shape, size))
  assert [rows.start for rows, _ in found[1:]] == [rows.stop for rows, _ in found[:-1]]
  assert (found[0][0].start, found[-1][0].stop) == (0, size[0])
  result = np.concatenate([values for _, values in found])
  np.testing.assert_allclose(result, resize(scores, size, linear=True), atol=1e-4)


def test_strips_come_as_soon_as_they_can():
  taken = []

  def parts():
    for row in range(8):
      taken.append(row)
      yield slice(row, row + 1), np.full((1, 4, 1), row, np.float32)

  first = next(resize_strips(parts(), (8, 4), (16, 8)))
  assert (taken, first[0]) == ([0], slice(0, 1))  # the next row lies between two


def test_little_is_in_memory():
  height, width = 20_000, 100
  stored = StoredImage(
    (height, width, 3), np.dtype(np.uint8), lambda a, b: np.zeros((b - a, width, 3), np.uint8)
  )
  tracemalloc.start()
  image = resized(stored, (height // 2, width // 2))
  for first in range(0, height // 2 - 64, 64):
    image[first : first + 64]
  scores = ((slice(y, y + 20), np.zeros((20, 50, 2), np.float32)) for y in range(0, 10_000, 20))
  count = sum(len(part) for _, part in resize_strips(scores, (10_000, 50), (height, width)))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert count == height
  assert peak < height * width * 3 / 2
