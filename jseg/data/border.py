"""U-Net's weight map: what lies between two objects that nearly touch counts more."""

import cv2
import numpy as np

from jseg.types import IGNORE


def border_weights(label: np.ndarray, weight: float = 10.0, sigma: float = 5.0) -> np.ndarray:
  """The second term of equation 2 of Ronneberger et al. 2015 (arXiv:1505.04597).

  w0 exp(-(d1 + d2)^2 / (2 sigma^2)) outside of objects, d1 and d2 being the distances to the
  nearest and the second nearest. Objects are the connected parts (of 4 neighbors) of every class
  but 0.

  Args:
    label: uint8 [h w].
    weight: w0, the weight between objects that touch.
    sigma: width of the border in pixels.

  Returns:
    float32 [h w]; 0 inside of objects, where the label is IGNORE, and with fewer than two objects.
  """
  far = np.float32(4 * sigma)  # where the weight is less than a thousandth of w0
  nearest = np.full(label.shape, 2 * far, np.float32)
  second = nearest.copy()
  margin = int(np.ceil(far)) + 1
  for value in np.unique(label[(label != 0) & (label != IGNORE)]):
    mask = (label == value).astype(np.uint8)
    _, parts, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    for number, (left, top, width, height, _) in enumerate(boxes[1:], 1):
      # Only around the object: elsewhere it is too far to matter.
      window = (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
      )
      other = (parts[window] != number).astype(np.uint8)
      distance = cv2.distanceTransform(other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
      first, next_one = nearest[window], second[window]
      second[window] = np.minimum(next_one, np.maximum(first, distance))
      nearest[window] = np.minimum(first, distance)
  weights = weight * np.exp(-np.square(nearest + second) / (2 * sigma**2))
  weights[(label != 0) | (second >= far)] = 0
  return weights.astype(np.float32)
