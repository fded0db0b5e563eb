"""Image in, mask out."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jseg import crf as dense
from jseg import data, models
from jseg.checkpoint import load_model, load_run
from jseg.data import ClassInfo
from jseg.nn import resize_to
from jseg.report import draw_objects, legend, overlay, save_instance_map
from jseg.step import label_at_full_size
from jseg.types import Array, InputError, Outputs

_BUCKET = 128
# Photos come in any size; results are computed on a canvas rounded up to this many pixels, so that
# a folder of photos compiles a few programs and not one for each size.
_NO_VOLUMES = (
  "CRF: the CRF after a network is for images; leave it out for volumes, or call "
  "jseg.crf.dense_crf with ndim=3 on the probabilities"
)


def _canvas(shape: Sequence[int]) -> tuple[int, ...]:
  return tuple(-(-n // _BUCKET) * _BUCKET for n in shape)


_resize_to = jax.jit(resize_to, static_argnums=3)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The segmentation of one image or volume, at its own size.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given; a volume float32 [d h w c].
    mask: uint8 [h w] or [d h w], the class of every pixel.
    classes: names and colours.
  """

  image: np.ndarray
  mask: np.ndarray
  classes: ClassInfo
  _logits: Array | np.ndarray
  _size: tuple[int, ...]

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """float32 [... k] on the mask, summing to 1; computed when first asked for, as it is large."""
    return np.asarray(jax.nn.softmax(self._logits_at_full_size(), -1))

  def _logits_at_full_size(self) -> Array:
    shape = self.mask.shape
    logits = jnp.asarray(self._logits)
    if self._size != shape:
      canvas = _canvas(shape)
      logits = _resize_to(logits, np.array(self._size), np.array(shape), canvas)
    return logits[tuple(map(slice, shape))]

  def refine(self, params: dense.CrfParams | None = None) -> "Prediction":
    """The same image after mean field in a dense CRF, at the image's own size on its own colours.

    Raises:
      InputError: it is a volume, or the parameters don't fit the image.
    """
    if self.mask.ndim == 3:
      raise InputError(_NO_VOLUMES)
    log_q = np.asarray(dense.log_marginals(self._logits_at_full_size(), self.image, params))
    mask = log_q.argmax(-1).astype(np.uint8)
    return dataclasses.replace(self, mask=mask, _logits=log_q, _size=mask.shape)

  def overlay(self, alpha: float = 0.55) -> np.ndarray:
    """uint8 [h w 3], the image under the classes' colours; of a volume, its middle slice."""
    image, mask = data.flatten_volume(self.image, self.mask)
    return overlay(image, mask, self.classes.palette, alpha)

  def shares(self) -> dict[str, float]:
    """Share of the pixels, by class name."""
    counts = np.bincount(self.mask.ravel(), minlength=len(self.classes.names))
    return dict(zip(self.classes.names, (counts / self.mask.size).tolist(), strict=True))

  def save(
    self, out: str | pathlib.Path, stem: str, like: str | pathlib.Path | None = None
  ) -> list[pathlib.Path]:
    """Writes the mask, STEM_overlay.png and STEM_legend.png.

    Args:
      out: folder; made if it isn't there.
      stem: of the files' names.
      like: of a volume, the NIfTI file that it was read from.

    Returns:
      Their paths. The mask is STEM.png, class indices with a palette; of a volume STEM.nii.gz with
      the mask values of the data set, in the orientation of `like`.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{stem}.png", out / f"{stem}_overlay.png", out / f"{stem}_legend.png"]
    if self.mask.ndim == 3:
      if like is None:
        raise InputError("a volume's mask is written like the file it came from; give its path")
      paths[0] = out / f"{stem}.nii.gz"
      data.write_mask(paths[0], np.array(self.classes.values)[self.mask].astype(np.uint16), like)
    else:
      mask = Image.fromarray(self.mask, mode="P")
      mask.putpalette(np.asarray(self.classes.palette, np.uint8).ravel().tolist())
      mask.save(paths[0])
    Image.fromarray(self.overlay()).save(paths[1])
    legend(self.shares(), self.classes.palette).save(paths[2])
    return paths


@dataclasses.dataclass(frozen=True)
class InstancePrediction:
  """The objects found in one image, the best first, at its own size.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given.
    objects: what was found.
    info: names and colours of the classes.
  """

  image: np.ndarray
  objects: data.Objects
  info: ClassInfo

  @property
  def boxes(self) -> np.ndarray:
    """float32 [n 4], (y0 x0 y1 x1) in pixels."""
    return self.objects.boxes

  @property
  def scores(self) -> np.ndarray:
    """float32 [n], probability of the class."""
    assert self.objects.scores is not None, "found objects have scores"
    return self.objects.scores

  @property
  def classes(self) -> np.ndarray:
    """int32 [n], 1 to k - 1."""
    return self.objects.classes

  @property
  def names(self) -> list[str]:
    """Names of the classes, n of them."""
    return [self.info.names[i] for i in self.classes]

  @functools.cached_property
  def masks(self) -> np.ndarray:
    """Bool [n h w]; made when first asked for, as it is large."""
    masks = [self.objects.mask(i) for i in range(len(self.objects))]
    return np.stack(masks) if masks else np.zeros((0, *self.image.shape[:2]), bool)

  def overlay(self, least_score: float = 0.5) -> np.ndarray:
    """uint8 [H W 3], the image with masks, boxes, names and scores; small images are enlarged."""
    return draw_objects(self.image, self.objects, self.info.names, least_score=least_score)

  def save(self, out: str | pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Writes STEM.png, the instance map, and STEM_overlay.png.

    Args:
      out: folder; made if it isn't there.
      stem: of the files' names.

    Returns:
      Their paths. Pixels of the map (16 bits) hold the number of their object, best first, from 1.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{stem}.png", out / f"{stem}_overlay.png"]
    save_instance_map(self.objects, paths[0])
    Image.fromarray(self.overlay()).save(paths[1])
    return paths


class InstanceSegmenter:
  """Finds the objects in images of any size with a trained network.

  Images larger than the network's canvas are shrunk to fit it, smaller ones padded, as in training;
  boxes and masks are brought back to the image's own size. One program serves all sizes.

  Args:
    model: the network.
    variables: its parameters and statistics.
    classes: names and colours.
    size: canvas (height, width) of the network.
    channels: 3 (RGB) or 1 (grey).
    short_side: pixels that the shorter side of images is brought to; see `jseg.data.fit`.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: dict[str, Any],
    classes: ClassInfo,
    size: Sequence[int],
    channels: int = 3,
    *,
    short_side: int = 0,
  ):
    self.variables = variables
    self.classes = classes
    self._size = tuple(int(n) for n in size)
    self._channels = channels
    self._short_side = short_side

    @jax.jit
    def forward(variables, image, size):
      prepared = data.prepare(image[None], size[None])
      found = model.apply(variables, prepared, size=size[None], train=False)
      return jax.tree.map(lambda a: a[0], found)

    self._forward = forward

  def __call__(self, image: np.ndarray) -> InstancePrediction:
    """Finds the objects of one image.

    Args:
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (grey).

    Raises:
      InputError: it is of another type or shape.
    """
    image = data.as_channels(image, self._channels)
    if image.ndim != 3:
      raise InputError(f"this network takes images, not an array of shape {image.shape}")
    canvas, covered = data.fit(image, self._size, self._short_side)
    found = self._forward(self.variables, canvas, np.array(covered, np.int32))
    objects = data.found_objects(jax.device_get(found), covered, image.shape[:2])
    return InstancePrediction(image, objects, self.classes)


class Segmenter:
  """Segments images of any size, or volumes, with a trained network.

  Images larger than the network's canvas are shrunk to fit it, smaller ones padded, as in training;
  the result is brought back to the image's own size before the classes are decided. Volumes, and
  images too with `tile`, keep their pixels: what doesn't fit is worked through in overlapping tiles
  surrounded by the image's mirror image (Ronneberger et al. 2015, figure 2).

  Args:
    model: the network.
    variables: its parameters and statistics.
    classes: names and colours.
    size: canvas (height, width) of the network, or (depth, height, width).
    channels: 3 (RGB) or 1 (grey); of volumes, as many as they have.
    tile: whether large images are tiled and not shrunk.
    margin: pixels on every side of a tile that are not used, but give the others their context;
      None: a quarter of the canvas. Rounded down to a multiple of 32, or 8 in volumes.
    crf: parameters of a dense CRF that refines each prediction; None: none does.

  Raises:
    InputError: the margins leave nothing of a tile, or a CRF is asked of volumes.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: dict[str, Any],
    classes: ClassInfo,
    size: Sequence[int],
    channels: int = 3,
    *,
    tile: bool = False,
    margin: int | None = None,
    crf: dense.CrfParams | None = None,
  ):
    if crf is not None and len(size) == 3:
      raise InputError(_NO_VOLUMES)
    self.variables = variables
    self._crf = crf
    self.classes = classes
    self._size = tuple(int(n) for n in size)
    self._channels = channels
    self._tile = tile
    # Pooling must fall on the same grid in every tile.
    grid = 32 if len(self._size) == 2 else 8
    if margin is not None and margin < 0:
      raise InputError(f"margin: {margin} must be at least 0, pixels that tiles overlap")
    self._margins = [(n // 4 if margin is None else margin) // grid * grid for n in self._size]
    self._steps = [
      (n - 2 * m) // grid * grid or n - 2 * m
      for n, m in zip(self._size, self._margins, strict=True)
    ]
    if margin is not None and min(self._steps) < 1:
      raise InputError(
        f"margin: {margin} pixels on both sides leave nothing of tiles of {self._size}; "
        f"take at most {(min(self._size) - grid) // 2}"
      )

    @functools.partial(jax.jit, static_argnames="canvas")
    def forward(variables, image, size, full_size, canvas):
      logits = self._logits(model, variables, image, size)
      return logits, label_at_full_size(logits, size, full_size, canvas).astype(jnp.uint8)

    self._forward = forward
    self._forward_tile = jax.jit(functools.partial(self._logits, model))

  @staticmethod
  def _logits(model: nn.Module, variables: Any, image: Array, size: Array) -> Array:
    image = data.prepare(image[None], size[None])
    return cast(Outputs, model.apply(variables, image, train=False)).logits[0]

  @classmethod
  def from_run(
    cls,
    run: str | pathlib.Path,
    checkpoint: str | int = "best",
    changes: Mapping[str, Any] | None = None,
    **options: Any,
  ) -> "Segmenter | InstanceSegmenter":
    """The network of a run directory.

    Args:
      run: the run directory.
      checkpoint: "best", "latest" or a step.
      changes: of the run's configuration by dotted key, such as {"model.output_stride": 8}.
      **options: `tile`, `margin` and `crf`, of networks of pixels.

    Raises:
      InputError: nothing was trained there, the checkpoint is of another network, or the network
        has no such option.
    """
    config, classes = load_run(run, changes)
    model, variables = load_model(run, checkpoint, changes)
    if models.task(config.model.name) == "instance":
      given = [name for name, value in options.items() if value]
      if given:
        raise InputError(
          f"{given[0]}: {config.model.name} finds objects in whole images; leave it out, larger "
          "images are shrunk to data.size"
        )
      return InstanceSegmenter(
        *(model, variables, classes, config.data.size, config.data.channels),
        short_side=config.data.short_side,
      )
    return cls(model, variables, classes, config.data.size, config.data.channels, **options)

  def __call__(self, image: np.ndarray) -> Prediction:
    """Segments one image.

    Args:
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (grey); a volume float32 [d h w c] as
        `jseg.data.read_volume` gives it.

    Raises:
      InputError: it is of another type or shape.
    """
    prediction = self._segment(data.as_channels(image, self._channels))
    return prediction if self._crf is None else prediction.refine(self._crf)

  def _segment(self, image: np.ndarray) -> Prediction:
    shape = image.shape[:-1]
    if len(shape) != len(self._size):
      kinds = {2: "images", 3: "volumes"}
      raise InputError(
        f"this network takes {kinds[len(self._size)]}, not an array of shape {image.shape}"
      )
    larger = any(n > m for n, m in zip(shape, self._size, strict=True))
    if len(shape) == 3 or (self._tile and larger):
      logits = self._by_tiles(image) if larger else self._padded(image)
      mask = logits.argmax(-1).astype(np.uint8)
      return Prediction(image, mask, self.classes, logits, shape)
    canvas_image, size = data.fit(image, self._size)
    logits, mask = self._forward(
      self.variables, canvas_image, np.array(size, np.int32), np.array(shape), _canvas(shape)
    )
    mask = np.asarray(mask)[: shape[0], : shape[1]]
    return Prediction(image, mask, self.classes, logits, tuple(size))

  def _padded(self, image: np.ndarray) -> np.ndarray:
    canvas, size = data.fit(image, self._size)
    logits = self._forward_tile(self.variables, canvas, np.array(size, np.int32))
    return np.asarray(logits)[tuple(map(slice, size))]

  def _by_tiles(self, image: np.ndarray) -> np.ndarray:
    """Logits float32 [... k] of an image of any size."""
    shape, steps, margins = image.shape[:-1], self._steps, self._margins
    counts = [-(-n // step) for n, step in zip(shape, steps, strict=True)]
    edges = [
      (margin, (count - 1) * step + size - margin - n)
      for n, count, step, size, margin in zip(
        shape, counts, steps, self._size, margins, strict=True
      )
    ]
    padded = np.pad(image, [*edges, (0, 0)], mode="reflect")
    size = np.array(self._size, np.int32)
    result = np.empty((*shape, len(self.classes.names)), np.float32)
    for index in itertools.product(*map(range, counts)):
      first = [i * step for i, step in zip(index, steps, strict=True)]
      window = tuple(slice(f, f + n) for f, n in zip(first, self._size, strict=True))
      logits = np.asarray(self._forward_tile(self.variables, padded[window], size))
      target = result[tuple(slice(f, f + step) for f, step in zip(first, steps, strict=True))]
      target[...] = logits[
        tuple(slice(m, m + n) for m, n in zip(margins, target.shape[:-1], strict=True))
      ]
    return result
