"""Vocabulary of the library: batches, model outputs, the ignore label, the error type.

Glossary of dimensions, used in every docstring (arrays are channels-last):

  b  batch     h  height    w  width      d  depth
  c  channels  k  classes   n  boxes or instances
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

IGNORE = 255
"""Label of pixels that are neither trained on nor counted: void, padding, outside of the image."""

Array = jax.Array
Batch = dict[str, Any]
"""Arrays of one step: `image` [b h w c], `label` [b h w], and what a task adds to them."""

Params = Any
"""Parameters of a network: nested dicts of arrays, or a tree of the same structure."""

Variables = Mapping[str, Any]
"""Flax collections by name: `params` and, of networks with batch norm, `batch_stats`."""

Tree = Any
"""A pytree: an array, or containers of trees, of a structure that differs from case to case."""

Metrics = dict[str, Tree]
"""What a training step returns for the log, by name: arrays, and trees of them."""

Arguments = Mapping[str, Any]
"""Keyword arguments by name, as a preset, a configuration or a command gives them."""

Json = dict[str, object]
"""A JSON object: plain values by name, as read from a file (not yet checked) or to be written."""


_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_COMMANDS = {
  **{i: f"\\x{i:02x}" for i in (*range(32), *range(127, 160)) if chr(i) not in "\t\n"},
  **{i: f"\\u{i:04x}" for i in (*_DIRECTIONS, 0x2028, 0x2029)},
}


def harmless(text: str) -> str:
  """Returns text without what commands a terminal: names of files and classes are anything.

  Args:
    text: any text.

  Returns:
    The text, with control characters, odd ends of lines, and what changes the direction of writing
    spelled out by their numbers.
  """
  return text.translate(_COMMANDS)


class InputError(ValueError):
  """Something the user gave is wrong. The message names the value, the rule and the remedy.

  The command line prints it without a traceback and exits with status 1.
  """

  def __str__(self) -> str:
    """The message; nothing in it commands the terminal, wherever it is printed."""
    return harmless(super().__str__())


@flax.struct.dataclass
class Outputs:
  """What every model returns.

  Attributes:
    logits: float32 [b h w k] (volumes: [b d h w k]) at the resolution of the input.
    aux: extra logits by name, for training only; empty for most networks.
  """

  logits: Array
  aux: dict[str, Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Targets:
  """The objects of a batch of images, padded to n slots. Boxes are (y0 x0 y1 x1) in pixels.

  Coordinates are those of pixels' edges. Empty slots are zero.

  Attributes:
    boxes: float32 [b n 4], the visible part of each object, clipped to the image.
    frames: float32 [b n 4], the box that `masks` covers; after a crop it may lie outside in part.
    masks: uint8 [b n m m], how much of each cell of its frame the object covers, 0 to 255.
    classes: int32 [b n], 1 to k - 1; 0 where not valid.
    valid: bool [b n].
    crowd: bool [b n], whether it is a region of many objects, which is neither found nor missed.
  """

  boxes: Array
  frames: Array
  masks: Array
  classes: Array
  valid: Array
  crowd: Array


@flax.struct.dataclass
class Detections:
  """The objects found in a batch of images, the best first, padded to n slots.

  Attributes:
    boxes: float32 [b n 4], (y0 x0 y1 x1) in pixels, clipped to the image.
    scores: float32 [b n], probability of the class.
    classes: int32 [b n], 1 to k - 1; 0 where not valid.
    masks: float32 [b n m m], probability that a cell of the box belongs to the object; None of a
      network without a mask head.
    valid: bool [b n].
    keypoints: float32 [b n s s q], logits of where in the box each keypoint is, for
      `jseg.data.find_keypoints`; None of a network without a keypoint head.
  """

  boxes: Array
  scores: Array
  classes: Array
  masks: Array | None
  valid: Array
  keypoints: Array | None = None


@flax.struct.dataclass
class InstanceOutputs:
  """What an instance network returns in training: predictions beside what they should be.

  a anchors and r sampled regions an image; the first p regions are those that may be objects. Box
  differences are (dy dx dh dw), weighted (`jseg.nn.detection.encode_boxes`).

  Attributes:
    rpn_logits: float32 [b a], whether an anchor holds an object.
    rpn_deltas: float32 [b a 4], from anchors to objects.
    rpn_labels: bool [b a], the truth of `rpn_logits`.
    rpn_targets: float32 [b a 4], the truth of `rpn_deltas` where `rpn_labels`, else 0.
    rpn_sampled: bool [b a], the anchors that count.
    class_logits: float32 [b r k].
    deltas: float32 [b r 4], from regions to objects, as predicted for the true class.
    classes: int32 [b r], the true class; 0 is background.
    targets: float32 [b r 4], the truth of `deltas` where `classes` is above 0, else 0.
    sampled: bool [b r], the regions that count.
    mask_logits: float32 [b p m m], as predicted for the true class.
    masks: float32 [b p m m], the truth of `mask_logits`, 0 to 1.
    mask_valid: bool [b p], the regions that are objects.
  """

  rpn_logits: Array
  rpn_deltas: Array
  rpn_labels: Array
  rpn_targets: Array
  rpn_sampled: Array
  class_logits: Array
  deltas: Array
  classes: Array
  targets: Array
  sampled: Array
  mask_logits: Array
  masks: Array
  mask_valid: Array
