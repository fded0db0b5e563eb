"""The arithmetic of unpadded networks, against sizes followed step by step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import center_crop, fit_unet, unpadded_labels
from jseg.nn.unet_sizes import check_unpadded_size, unpadded_output
from jseg.types import InputError


# Figure 1 of U-Net, figure 2 of 3D U-Net, and by hand: 20 -> 16, 8 -> 4 -> 8 -> 4.
@pytest.mark.parametrize(
  ("n", "depth", "expected"),
  [
    *[(572, 4, 388), (132, 3, 44), (116, 3, 28), (20, 1, 4), (12, 0, 8)],
    *[(571, 4, 0), (574, 4, 0), (580, 4, 0), (16, 1, 0), (4, 0, 0), (0, 2, 0)],
  ],
)
def test_output_of_n_pixels(n, depth, expected):
  assert unpadded_output(n, depth) == expected


def test_center_crop():
  x = jnp.arange(2 * 5 * 6).reshape(2, 5, 6)
  np.testing.assert_array_equal(center_crop(x, (1, 2)), [[[14, 15]], [[44, 45]]])
  # What is left over by an odd difference lies after the middle.
  np.testing.assert_array_equal(center_crop(x[:1, :2], (1, 3)), [[[1, 2, 3]]])
  # Channels and what else comes behind stay.
  np.testing.assert_array_equal(center_crop(x[..., None], (5, 2)), x[:, :, 2:4, None])


def test_labels_are_those_of_the_middle():
  label = jnp.arange(20 * 24).reshape(1, 20, 24)
  np.testing.assert_array_equal(unpadded_labels(label, 1), label[:, 8:12, 8:16])
  volume = jnp.arange(20**3).reshape(1, 20, 20, 20)
  np.testing.assert_array_equal(unpadded_labels(volume, 1), volume[:, 8:12, 8:12, 8:12])


@pytest.mark.parametrize(("n", "depth"), [(1, 1), (5, 1), (4, 1), (37, 2), (388, 4), (389, 4)])
def test_the_output_for_a_mirrored_image_covers_it(n, depth):
  x = np.arange(n)[None, :, None, None] + np.zeros((1, n, 2, 1))
  y = np.asarray(fit_unet(jnp.array(x), depth, "VALID", train=False))[0, :, 0, 0]
  length = unpadded_output(len(y), depth)
  assert length >= n
  assert not any(unpadded_output(m, depth) >= n for m in range(n, len(y)))  # no less would do
  # Mirrored at the outermost pixels, which are not repeated, as often as it takes.
  path = np.concatenate([np.arange(n), np.arange(n - 2, 0, -1)])
  before = (len(y) - length) // 2
  np.testing.assert_array_equal(y, path[(np.arange(len(y)) - before) % len(path)])


@pytest.mark.parametrize(
  ("size", "depth", "message"),
  [
    ((572, 573), 4, r"width 573 does not fit padding VALID, .* 4 levels; .* crops of 572 or 588"),
    ((100, 572), 4, r"height 100 .* crops of 188 \(augment.crop\)"),
    ((133, 132, 116), 3, r"depth 133 .* crops of 132 or 140"),
  ],
)
def test_sizes_that_do_not_halve_evenly(size, depth, message):
  with pytest.raises(InputError, match=message):
    check_unpadded_size(size, depth)


def test_sizes_that_fit():
  check_unpadded_size((572, 188), 4)
  check_unpadded_size((132, 132, 116), 3)
