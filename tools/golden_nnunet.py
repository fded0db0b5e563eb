"""Writes tests/golden/nnunet.npz: volumes resampled by nnU-Net.

pip install nnunetv2
python tools/golden_nnunet.py
"""

import pathlib

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
  compute_new_shape,
  resample_data_or_seg_to_shape,
)
from scipy import ndimage

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden"
# Shape, spacing before, and after: like spacings; thick slices before; after; thick ones that stay;
# along another axis; and two axes alike, which isn't a matter of slices.
CASES = (
  ((9, 10, 11), (1.0, 1.0, 1.0), (0.8, 1.3, 0.6)),
  ((6, 12, 10), (5.0, 0.7, 0.7), (2.0, 1.0, 0.5)),
  ((14, 9, 8), (1.0, 0.9, 0.9), (4.0, 0.6, 0.6)),
  ((6, 12, 10), (5.0, 0.7, 0.7), (5.0, 1.0, 1.0)),
  ((9, 6, 10), (0.7, 4.0, 0.7), (1.0, 3.0, 0.5)),
  ((8, 9, 6), (0.5, 2.0, 2.0), (1.0, 1.5, 1.5)),
)


def main() -> None:
  """Resamples and writes."""
  arrays = {}
  for i, (shape, before, after) in enumerate(CASES):
    random = np.random.default_rng(i)
    volume = ndimage.gaussian_filter(random.normal(size=shape), 0.7) * 100
    volume = np.where(volume > 20, 20, volume).astype(np.float32)  # an edge that cubes overshoot
    size = compute_new_shape(shape, before, after)
    found = resample_data_or_seg_to_shape(
      volume[None], size, before, after, is_seg=False, order=3, order_z=0, force_separate_z=None
    )
    arrays |= {
      f"volume{i}": volume,
      f"spacings{i}": np.array([before, after]),
      f"found{i}": found[0],
    }
  np.savez_compressed(GOLDEN / "nnunet.npz", **arrays)


if __name__ == "__main__":
  main()
