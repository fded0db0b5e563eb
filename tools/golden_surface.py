"""Writes tests/golden/surface.npz: HD95 and surface Dice of small volumes by MONAI.

pip install torch monai
python tools/golden_surface.py
"""

import json
import pathlib

import monai
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden"
CLASSES = 3
SPACINGS = ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 1.2, 0.9))  # d h w, millimeters
TOLERANCES = (1.0, 2.0, 4.0)
SHAPE = (12, 20, 16)


def blobs(seed: int, shift: float) -> np.ndarray:
  """Two touching classes of smooth outline on background, some of it at the border."""
  random = np.random.default_rng(seed)
  smooth = [ndimage.gaussian_filter(random.normal(size=SHAPE), 2.5) for _ in range(2)]
  other = [ndimage.gaussian_filter(random.normal(size=SHAPE), 2.5) for _ in range(2)]
  one, two = (a + shift * b > 0.03 for a, b in zip(smooth, other, strict=True))
  return np.where(one, 1, np.where(two, 2, 0)).astype(np.uint8)


def one_hot(classes: np.ndarray) -> torch.Tensor:
  """Float32 [1 k d h w]."""
  return torch.from_numpy((classes == np.arange(CLASSES)[:, None, None, None])[None]).float()


def main() -> None:
  """Measures and writes."""
  labels = np.stack([blobs(i, 0.0) for i in range(len(SPACINGS))])
  predictions = np.stack([blobs(i, 0.4) for i in range(len(SPACINGS))])
  hd95, dice = [], []
  for prediction, label, spacing in zip(predictions, labels, SPACINGS, strict=True):
    pair = one_hot(prediction), one_hot(label)
    hd95.append(compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)[0].numpy())
    dice.append(
      [
        compute_surface_dice(*pair, class_thresholds=[t] * (CLASSES - 1), spacing=spacing)[0]
        for t in TOLERANCES
      ]
    )
  meta = {"monai": monai.__version__, "torch": torch.__version__}
  np.savez_compressed(
    GOLDEN / "surface.npz",
    meta=json.dumps(meta),
    prediction=predictions,
    label=labels,
    spacing=np.array(SPACINGS),
    tolerance=np.array(TOLERANCES),
    hd95=np.array(hd95, np.float64),
    surface_dice=np.array(dice, np.float64),  # by volume, tolerance, class
  )
  print(np.array(hd95), np.array(dice))


if __name__ == "__main__":
  main()
