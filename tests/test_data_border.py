"""U-Net's weight map against equation 2 of the paper, pixel by pixel."""

import numpy as np
import pytest

from jseg.data.border import border_weights
from jseg.types import IGNORE

LABEL = np.zeros((40, 40), np.uint8)
LABEL[4:14, 3:12] = 1
LABEL[5:20, 15:24] = 1  # of the same class, but not connected
LABEL[18:30, 4:13] = 2
LABEL[16:18, 28:38] = IGNORE


def distances(mask):
  """Euclidean, from every pixel to the nearest of the mask."""
  rows, columns = np.nonzero(mask)
  y, x = np.indices(mask.shape)
  return np.hypot(y[..., None] - rows, x[..., None] - columns).min(-1)


def equation_2(label, objects, weight, sigma):
  nearest, second = np.sort([distances(mask) for mask in objects], axis=0)[:2]
  weights = weight * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
  return np.where(label == 0, weights, 0)


def objects():
  first, second = np.zeros((2, 40, 40), bool)
  first[4:14, 3:12] = second[5:20, 15:24] = True
  return [first, second, LABEL == 2]


@pytest.mark.parametrize(("weight", "sigma"), [(10.0, 5.0), (3.0, 2.0)])
def test_equals_the_equation(weight, sigma):
  expected = equation_2(LABEL, objects(), weight, sigma)
  got = border_weights(LABEL, weight, sigma)
  assert (got.dtype, got.shape) == (np.float32, (40, 40))
  # Where the second object is farther than four sigma the map is 0, not a thousandth of w0.
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=weight * np.exp(-8))
  near = np.sort([distances(mask) for mask in objects()], axis=0)[1] < 3.9 * sigma
  np.testing.assert_allclose(got[near], expected[near], rtol=1e-4, atol=1e-6)
  assert (got[LABEL != 0] == 0).all()


def test_by_hand():
  # A gap of 3 pixels: each sums to distances of 4.
  label = np.zeros((1, 9), np.uint8)
  label[0, [2, 6]] = 1
  expected = 10 * np.exp(-np.square([8, 6, np.inf, 4, 4, 4, np.inf, 6, 8]) / 50)
  np.testing.assert_allclose(border_weights(label)[0], expected, rtol=1e-5)


def test_touching_classes_are_two_objects_and_diagonal_pixels_as_well():
  label = np.zeros((9, 9), np.uint8)
  label[2, 3], label[2, 4] = 1, 2
  assert border_weights(label)[1, 3] == pytest.approx(10 * np.exp(-((1 + 2**0.5) ** 2) / 50))
  label[2, 3], label[2, 4], label[3, 4] = 1, 0, 1
  assert border_weights(label)[2, 4] == pytest.approx(10 * np.exp(-4 / 50))


@pytest.mark.parametrize("label", [LABEL * 0, np.where(LABEL == 2, LABEL, 0), LABEL * 0 + IGNORE])
def test_fewer_than_two_objects_weigh_nothing(label):
  assert not border_weights(label.astype(np.uint8)).any()
