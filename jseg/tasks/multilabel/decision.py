"""Which classes a pixel is of: all those whose probability reaches a threshold."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import strips
from jseg.tasks.semantic.decision import Decided, Scores
from jseg.types import Array

_LEAST = 1e-7  # a probability that float32 tells from 0, and its complement from 1


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """A pixel is of every class whose probability is at least its threshold: bool [... k].

  Attributes:
    values: threshold of each class, above 0 and below 1.
  """

  values: tuple[float, ...]

  @property
  def _edges(self) -> tuple[float, ...]:
    """Logits of the thresholds."""
    return tuple(math.log(value / (1 - value)) for value in self.values)

  def probabilities(self, logits: Array) -> Array:
    """Returns the probability of each class by itself, float32 [... k]."""
    return jax.nn.sigmoid(logits)

  def logits(self, probabilities: Scores) -> Scores:
    """Returns what these are the sigmoid of."""
    log = jnp.log if isinstance(probabilities, jax.Array) else np.log
    p = probabilities.clip(_LEAST, 1 - _LEAST)
    return log(p) - log(1 - p)

  def decide(self, logits: Array, confident: bool) -> Decided:
    """Returns the classes of every pixel, bool [... k]; None besides, as none is the best."""
    del confident
    edges = jnp.array(self._edges, jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))
    return logits >= edges, None

  def decide_on_host(
    self, scores: np.ndarray, are_logits: bool, confident: bool
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the classes of every pixel, bool [... k], and None."""
    del confident
    mask = self.empty(scores.shape[:-1])
    edges = np.array(self._edges if are_logits else self.values, np.float32)
    for part in strips(mask.shape[:-1]):
      mask[part] = scores[part] >= edges
    return mask, None

  def empty(self, shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array of the classes of an image's pixels."""
    return np.empty((*shape, len(self.values)), bool)
