"""Vocabulary of the library: batches, model outputs, the ignore label, the error type.

Glossary of dimensions, used in every docstring (arrays are channels-last):

  b  batch     h  height    w  width      d  depth
  c  channels  k  classes   n  boxes or instances
"""

from typing import Any

import flax.struct
import jax

IGNORE = 255
"""Label of pixels that are neither trained on nor counted: void, padding, outside of the image."""

Array = jax.Array
Batch = dict[str, Any]
"""Arrays of one step: `image` [b h w c], `label` [b h w], and what a task adds to them."""


class InputError(Exception):
  """Something the user gave is wrong. The message names the value, the rule and the remedy.

  The command line prints it without a traceback and exits with status 1.
  """


@flax.struct.dataclass
class Outputs:
  """What every model returns.

  Attributes:
    logits: float32 [b h w k] (volumes: [b d h w k]) at the resolution of the input.
    aux: extra logits by name, for training only; empty for most networks.
  """

  logits: Array
  aux: dict[str, Array] = flax.struct.field(default_factory=dict)
