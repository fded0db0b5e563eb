"""How the scores of a network become what it predicts: here the best class of every pixel."""

import dataclasses
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import strips
from jseg.types import Array

Decided = tuple[Array, Array | None]
"""What is predicted of every pixel, and how sure that is; None where nobody asked."""
Scores = TypeVar("Scores", np.ndarray, Array)

_LEAST = 1e-30  # a probability whose logarithm is finite


class Decision(Protocol):
  """A way to decide; hashable, since programs are compiled for it."""

  def probabilities(self, logits: Array) -> Array:
    """Returns float32 [... k]."""

  def logits(self, probabilities: Scores) -> Scores:
    """Returns logits of these probabilities, all finite."""

  def decide(self, logits: Array, confident: bool) -> Decided:
    """Decides every pixel of logits [... k]; how sure that is only if `confident`."""

  def decide_on_host(
    self, scores: np.ndarray, are_logits: bool, confident: bool
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Decides every pixel of logits or probabilities [... k], in little memory."""

  def empty(self, shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array for what is predicted of an image of this shape."""


@dataclasses.dataclass(frozen=True)
class BestClass:
  """Every pixel is of its best class: uint8 [...]."""

  def probabilities(self, logits: Array) -> Array:
    """Returns probabilities that sum to 1."""
    return jax.nn.softmax(logits)

  def logits(self, probabilities: Scores) -> Scores:
    """Returns what these are the softmax of."""
    log = jnp.log if isinstance(probabilities, jax.Array) else np.log
    return log(probabilities.clip(_LEAST))

  def decide(self, logits: Array, confident: bool) -> Decided:
    """Returns the best class of every pixel, uint8 [...], and its probability or None."""
    label = jnp.argmax(logits, -1).astype(jnp.uint8)
    return label, _sureness(logits) if confident else None

  def decide_on_host(
    self, scores: np.ndarray, are_logits: bool, confident: bool
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the class of every pixel, uint8 [...], and its probability or None."""
    mask = self.empty(scores.shape[:-1])
    confidence = np.empty(mask.shape, np.float32) if confident else None
    for part in strips(mask.shape):
      mask[part] = scores[part].argmax(-1)
      if confidence is not None:
        best = scores[part].max(-1)
        if are_logits:
          best = 1 / np.exp(scores[part] - best[..., None]).sum(-1)
        confidence[part] = best
    return mask, confidence

  def empty(self, shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array of classes."""
    return np.empty(shape, np.uint8)


def _sureness(logits: Array) -> Array:
  """Probability of the best class, float32 [...], from logits [... k]."""
  best = logits.max(-1, keepdims=True)
  return 1 / jnp.exp(logits.astype(jnp.float32) - best).sum(-1)
