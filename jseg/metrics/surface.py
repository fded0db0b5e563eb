"""Distances between surfaces of volumes in millimeters: HD95 and normalized surface Dice."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, spatial

from jseg.metrics.numbers import mean_of_present, none_if_nan
from jseg.types import IGNORE, InputError, Json

_PERCENTILE = 95


@dataclasses.dataclass(frozen=True)
class SurfaceState:
  """Running sums over volumes: `empty`, `update`, `merge`, `compute`. Never changed in place.

  The surface of a class's region are its voxels with a face in common with another class or with
  the volume's border; distances are between centers of voxels, in millimeters. As in MONAI and
  Metrics Reloaded (Maier-Hein et al. 2024, arXiv:2206.01653):

  - HD95 is the 95th percentile of the distances from each surface to the other one, the larger of
    the two directions (Huttenlocher et al. 1993 take the largest distance);
  - normalized surface Dice is the share of both surfaces' voxels that are within a tolerance of the
    other surface (Nikolov et al. 2021, arXiv:1809.04430, who weigh voxels by the area they stand
    for).

  Both are means over volumes, of every class but the first, which is taken for the background. A
  class that is neither true nor predicted in a volume has no part there. One that is either alone
  has a surface Dice of 0 and no distance, which is counted (`one_sided`).

  Void belongs to no region of either side.

  Attributes:
    distance: float64 [k], sum of HD95 in millimeters.
    dice: float64 [k], sum of surface Dice.
    volumes: int64 [k], volumes with the class on either side.
    one_sided: int64 [k], those of them with the class on one side alone.
    tolerance: in millimeters.
  """

  distance: np.ndarray
  dice: np.ndarray
  volumes: np.ndarray
  one_sided: np.ndarray
  tolerance: float

  @classmethod
  def empty(cls, num_classes: int, tolerance: float = 1.0) -> "SurfaceState":
    """Nothing measured yet."""
    sums, counts = np.zeros((2, num_classes)), np.zeros((2, num_classes), np.int64)
    return cls(sums[0], sums[1], counts[0], counts[1], tolerance)

  @classmethod
  def create(cls, names: Sequence[str], argument: str) -> "SurfaceState":
    """Returns a state that has seen nothing.

    Args:
      names: names of the classes.
      argument: tolerance of surface Dice in millimeters; "" is 1.

    Raises:
      InputError: the tolerance is no number above 0.
    """
    try:
      tolerance = float(argument or 1)
    except ValueError:
      tolerance = math.nan
    if not 0 < tolerance < math.inf:
      raise InputError(
        f"surface: the tolerance {argument!r} must be a number above 0, in millimeters, as in "
        "surface=1.5"
      )
    return cls.empty(len(names), tolerance)

  def update(
    self, prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]
  ) -> "SurfaceState":
    """Adds one volume.

    Args:
      prediction: int [d h w], each in [0, k).
      label: int [d h w], each in [0, k) or IGNORE.
      spacing: millimeters between voxels along d, h and w.
    """
    sums = [a.copy() for a in (self.distance, self.dice, self.volumes, self.one_sided)]
    distance, dice, volumes, one_sided = sums
    predicted = np.where(label == IGNORE, IGNORE, prediction)
    for c in range(1, len(volumes)):
      true, found = (_surface(side == c, spacing) for side in (label, predicted))
      volumes[c] += bool(len(true) or len(found))
      if len(true) and len(found):
        distances = nearest(true, found), nearest(found, true)
        distance[c] += max(np.percentile(each, _PERCENTILE) for each in distances)
        dice[c] += np.mean(np.concatenate(distances) <= self.tolerance)
      else:
        one_sided[c] += bool(len(true) or len(found))
    return SurfaceState(distance, dice, volumes, one_sided, self.tolerance)

  def merge(self, other: "SurfaceState") -> "SurfaceState":
    """Adds what another state of the same tolerance has measured."""
    return SurfaceState(
      self.distance + other.distance,
      self.dice + other.dice,
      self.volumes + other.volumes,
      self.one_sided + other.one_sided,
      self.tolerance,
    )

  def compute(self, names: Sequence[str]) -> Json:
    """Returns the means over the classes, and those of each class.

    Args:
      names: names of the classes.

    Returns:
      `hd95_mm`, `surface_dice`, and `surface`: the `tolerance_mm`, and by class `hd95_mm`,
      `surface_dice`, `volumes` and `one_sided`. None where there was nothing to measure.
    """
    with np.errstate(invalid="ignore"):
      hd95 = self.distance / (self.volumes - self.one_sided)
      dice = self.dice / self.volumes
    by_class = {
      name: {
        "hd95_mm": none_if_nan(hd95[c]),
        "surface_dice": none_if_nan(dice[c]),
        "volumes": int(self.volumes[c]),
        "one_sided": int(self.one_sided[c]),
      }
      for c, name in enumerate(names)
      if c > 0
    }
    return {
      "hd95_mm": none_if_nan(mean_of_present(hd95[1:])),
      "surface_dice": none_if_nan(mean_of_present(dice[1:])),
      "surface": {"tolerance_mm": self.tolerance, "per_class": by_class},
    }


def _surface(region: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
  """Places of a region's surface voxels in millimeters, float64 [n 3]."""
  boxes = ndimage.find_objects(region.view(np.int8))
  if not boxes:
    return np.zeros((0, region.ndim))
  inside = region[boxes[0]]
  corner = np.array([part.start for part in boxes[0]])
  return (np.argwhere(inside & ~ndimage.binary_erosion(inside)) + corner) * np.asarray(spacing)


def nearest(places: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Distance of each place [n 3] to the nearest of the others [m 3]: float64 [n]."""
  # A tree of the surface's voxels, as a map of distances would fill the volume with floats.
  return np.asarray(spatial.cKDTree(others).query(places)[0])
