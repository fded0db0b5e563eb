"""Image in, mask out."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jseg import data
from jseg.checkpoint import load_model, load_run
from jseg.data import ClassInfo
from jseg.nn import resize_to
from jseg.report import legend, overlay
from jseg.step import label_at_full_size
from jseg.types import Array, Outputs

_BUCKET = 128
# Photos come in any size; results are computed on a canvas rounded up to this many pixels, so that
# a folder of photos compiles a few programs and not one for each size.


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The segmentation of one image, at the image's own size.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given.
    mask: uint8 [h w], the class of every pixel.
    classes: names and colours.
  """

  image: np.ndarray
  mask: np.ndarray
  classes: ClassInfo
  _logits: Array
  _size: np.ndarray

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """float32 [h w k], summing to 1; computed when first asked for, as it is large."""
    shape = self.mask.shape
    logits = resize_to(self._logits, jnp.array(self._size), jnp.array(shape), shape)
    return np.asarray(jax.nn.softmax(logits, -1))

  def overlay(self, alpha: float = 0.55) -> np.ndarray:
    """uint8 [h w 3], the image under the classes' colours."""
    return overlay(self.image, self.mask, self.classes.palette, alpha)

  def shares(self) -> dict[str, float]:
    """Share of the image's pixels, by class name."""
    counts = np.bincount(self.mask.ravel(), minlength=len(self.classes.names))
    return dict(zip(self.classes.names, (counts / self.mask.size).tolist(), strict=True))

  def save(self, out: str | pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Writes STEM.png (class indices with a palette), STEM_overlay.png and STEM_legend.png."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{stem}.png", out / f"{stem}_overlay.png", out / f"{stem}_legend.png"]
    mask = Image.fromarray(self.mask, mode="P")
    mask.putpalette(np.asarray(self.classes.palette, np.uint8).ravel().tolist())
    mask.save(paths[0])
    Image.fromarray(self.overlay()).save(paths[1])
    legend(self.shares(), self.classes.palette).save(paths[2])
    return paths


class Segmenter:
  """Segments images of any size with a trained network.

  Images larger than the network's canvas are shrunk to fit it, smaller ones padded, as in training;
  the result is brought back to the image's own size before the classes are decided.

  Args:
    model: the network.
    variables: its parameters and statistics.
    classes: names and colours.
    size: canvas (height, width) of the network.
    channels: 3 (RGB) or 1 (grey).
  """

  def __init__(
    self,
    model: nn.Module,
    variables: dict[str, Any],
    classes: ClassInfo,
    size: Sequence[int],
    channels: int = 3,
  ):
    self.variables = variables
    self.classes = classes
    self._size = (int(size[0]), int(size[1]))
    self._channels = channels

    @functools.partial(jax.jit, static_argnames="canvas")
    def forward(variables, image, size, full_size, canvas):
      image = data.prepare(image[None], size[None])
      logits = cast(Outputs, model.apply(variables, image, train=False)).logits[0]
      return logits, label_at_full_size(logits, size, full_size, canvas).astype(jnp.uint8)

    self._forward = forward

  @classmethod
  def from_run(cls, run: str | pathlib.Path, checkpoint: str | int = "best") -> "Segmenter":
    """The network of a run directory.

    Args:
      run: the run directory.
      checkpoint: "best", "latest" or a step.

    Raises:
      InputError: nothing was trained there, or the checkpoint is of another network.
    """
    config, classes = load_run(run)
    model, variables = load_model(run, checkpoint)
    return cls(model, variables, classes, config.data.size, config.data.channels)

  def __call__(self, image: np.ndarray) -> Prediction:
    """Segments one image.

    Args:
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (grey).

    Raises:
      InputError: it is of another type or shape.
    """
    image = data.as_channels(image, self._channels)
    height, width = image.shape[:2]
    canvas_image, size = data.fit(image, self._size)
    canvas = (-(-height // _BUCKET) * _BUCKET, -(-width // _BUCKET) * _BUCKET)
    logits, mask = self._forward(
      self.variables, canvas_image, np.array(size, np.int32), np.array([height, width]), canvas
    )
    return Prediction(
      image, np.asarray(mask)[:height, :width], self.classes, logits, np.array(size, np.int32)
    )
