"""The base class of the networks."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jseg.nn.layer import Layer
from jseg.types import Array


class Network(Layer):
  """A segmentation network; subclasses implement `__call__(image, *, train=False)`.

  Class attributes tell the rest of the library what the network is for. A subclass overrides those
  that differ.

  Attributes:
    TINY: arguments that make the network small enough for tests.
    AUX_WEIGHTS: default loss weight of each auxiliary output, by name.
    ndim: 2 for images, 3 for volumes.
    task: name of the task that trains and evaluates the network (`jseg.tasks`).
    num_classes: number of classes k, background included.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {}
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {}
  ndim: ClassVar[int] = 2
  task: ClassVar[str] = "semantic"

  num_classes: int

  def training_labels(self, label: Array) -> Array:
    """Returns the part of [b h w] labels or weights that the training logits are compared with.

    Networks without padding crop it; by default it is the whole.
    """
    return label
