"""Classes of every pixel of one image or volume of any size."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jseg import crf as dense
from jseg.arithmetic import cdiv, strips
from jseg.data import ClassInfo, as_channels, flatten_volume, resize_and_pad, write_mask
from jseg.images import prepare
from jseg.models import Network
from jseg.nn import resize_to
from jseg.report import legend, overlay
from jseg.tasks.semantic.forward import label_at_full_size
from jseg.types import Array, InputError, Outputs, Variables

# Photos come in any size; results are computed on a canvas rounded up to this many pixels, so that
# a folder of photos compiles a few programs and not one for each size.
_BUCKET = 128
_NO_VOLUMES = (
  "crf: the CRF after a network is for images; leave it out for volumes, or call "
  "jseg.crf.dense_crf with ndim=3 on the probabilities"
)


def _canvas(shape: Sequence[int]) -> tuple[int, ...]:
  return tuple(cdiv(n, _BUCKET) * _BUCKET for n in shape)


_resize_to = jax.jit(resize_to, static_argnums=3)


@dataclasses.dataclass(frozen=True)
class SemanticPrediction:
  """The segmentation of one image or volume, at its own size.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given; a volume float32 [d h w c].
    mask: uint8 [h w] or [d h w], the class of every pixel.
    classes: names and colors of the classes.
  """

  image: np.ndarray
  mask: np.ndarray
  classes: ClassInfo
  _logits: Callable[[], Array | np.ndarray]
  _size: tuple[int, ...]

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """float32 [... k] on the mask, summing to 1; computed when first asked for, as it is large.

    Of an image in tiles, the network is run once more.
    """
    return np.asarray(jax.nn.softmax(self._logits_at_full_size(), -1))

  def _logits_at_full_size(self) -> Array:
    shape = self.mask.shape
    logits = jnp.asarray(self._logits())
    if self._size != shape:
      canvas = _canvas(shape)
      logits = _resize_to(logits, np.array(self._size), np.array(shape), canvas)
    return logits[tuple(map(slice, shape))]

  def refine(self, params: dense.CrfParams | None = None) -> "SemanticPrediction":
    """Returns the prediction after mean field in a dense CRF, at the image's own size.

    Args:
      params: parameters of the CRF; its defaults if None.

    Raises:
      InputError: it is a volume, or the parameters don't fit the image.
    """
    if self.mask.ndim == 3:
      raise InputError(_NO_VOLUMES)
    log_q = np.asarray(dense.log_marginals(self._logits_at_full_size(), self.image, params))
    mask = _best(log_q)
    return dataclasses.replace(self, mask=mask, _logits=lambda: log_q, _size=mask.shape)

  def overlay(self, alpha: float = 0.55) -> np.ndarray:
    """Returns the image under its classes' colors, uint8 [h w 3]; of a volume, the middle slice.

    Args:
      alpha: opacity of the colors, in [0, 1].
    """
    image, mask = flatten_volume(self.image, self.mask)
    return overlay(image, mask, self.classes.palette, alpha)

  def shares(self) -> dict[str, float]:
    """Returns each class's share of the pixels, by name."""
    return dict(zip(self.classes.names, (self._counts / self.mask.size).tolist(), strict=True))

  @functools.cached_property
  def _counts(self) -> np.ndarray:
    """Pixels of each class, int64 [k]."""
    counts = np.zeros(len(self.classes.names), np.int64)
    for part in strips(self.mask.shape):
      counts += np.bincount(self.mask[part].ravel(), minlength=len(counts))
    return counts

  def save(
    self, out: str | pathlib.Path, stem: str, like: str | pathlib.Path | None = None
  ) -> list[pathlib.Path]:
    """Writes the mask, STEM_overlay.png and STEM_legend.png.

    Args:
      out: folder to write to; made if it isn't there.
      stem: beginning of the files' names.
      like: NIfTI file that a volume was read from; images don't need it.

    Returns:
      Their paths. The mask is STEM.png, class indices with a palette; of a volume STEM.nii.gz with
      the mask values of the data set, in the orientation of `like`.

    Raises:
      InputError: it is a volume, and `like` is missing.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in output_names(stem, self.mask.ndim)]
    if self.mask.ndim == 3:
      if like is None:
        raise InputError("like: a volume's mask is written like the file it came from; give it")
      write_mask(paths[0], np.array(self.classes.values)[self.mask].astype(np.uint16), like)
    else:
      mask = Image.fromarray(self.mask, mode="P")
      mask.putpalette(np.asarray(self.classes.palette, np.uint8).ravel().tolist())
      mask.save(paths[0])
    Image.fromarray(self.overlay()).save(paths[1])
    legend(self.shares(), self.classes.palette).save(paths[2])
    return paths


def output_names(stem: str, ndim: int) -> list[str]:
  """Returns the names of the files that a prediction of this stem is saved to, the mask's first."""
  return [stem + (".nii.gz" if ndim == 3 else ".png"), f"{stem}_overlay.png", f"{stem}_legend.png"]


class SemanticPredictor:
  """Predicts single images of any size, or volumes: `predictor(variables, image)`.

  Images larger than the network's canvas are shrunk to fit it, smaller ones padded, as in training;
  the result is brought back to the image's own size before the classes are decided. Volumes, and
  images too with `tile`, keep their pixels: what doesn't fit is worked through in overlapping tiles
  surrounded by the image's mirror image (Ronneberger et al. 2015, figure 2).

  Args:
    model: network of classes.
    classes: names and colors of the classes.
    size: canvas (height, width) of the network, or (depth, height, width).
    channels: 3 (RGB) or 1 (gray); of volumes, as many as they have.
    tile: whether large images are tiled and not shrunk.
    margin: pixels on every side of a tile that are not used, but give the others their context;
      None: a quarter of the canvas. Rounded down to a multiple of 32, or 8 in volumes.
    crf: parameters of a dense CRF that refines each prediction; None: none does.

  Raises:
    InputError: the margins leave nothing of a tile, or a CRF is asked for volumes.
  """

  def __init__(
    self,
    model: Network,
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
    self._crf = crf
    self._classes = classes
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

    def logits(variables: Variables, image: Array, size: Array) -> Array:
      prepared = prepare(image[None], size[None])
      return cast(Outputs, model.apply(variables, prepared, train=False)).logits[0]

    @functools.partial(jax.jit, static_argnames="canvas")
    def forward(
      variables: Variables,
      image: Array,
      size: Array,
      full_size: Array,
      canvas: tuple[int, int],
    ) -> tuple[Array, Array]:
      low = logits(variables, image, size)
      return low, label_at_full_size(low, size, full_size, canvas)

    self._forward = forward
    self._forward_tile = jax.jit(logits)

  def __call__(self, variables: Variables, image: np.ndarray) -> SemanticPrediction:
    """Segments one image.

    Args:
      variables: parameters and statistics of the network.
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (gray); a volume float32 [d h w c] as
        `jseg.data.read_volume` gives it.

    Raises:
      InputError: it is of another type or shape.
    """
    prediction = self._segment(variables, as_channels(image, self._channels))
    return prediction if self._crf is None else prediction.refine(self._crf)

  def _segment(self, variables: Variables, image: np.ndarray) -> SemanticPrediction:
    shape = image.shape[:-1]
    if len(shape) != len(self._size):
      kinds = {2: "images", 3: "volumes"}
      raise InputError(
        f"this network takes {kinds[len(self._size)]}, not an array of shape {image.shape}"
      )
    larger = any(n > m for n, m in zip(shape, self._size, strict=True))
    if larger and (len(shape) == 3 or self._tile):
      return self._segment_by_tiles(variables, image)
    if len(shape) == 3:
      logits = self._padded(variables, image)
      return SemanticPrediction(image, _best(logits), self._classes, lambda: logits, shape)
    canvas_image, size = resize_and_pad(image, self._size)
    low, mask = self._forward(
      variables, canvas_image, np.array(size, np.int32), np.array(shape), _canvas(shape)
    )
    mask = np.asarray(mask)[: shape[0], : shape[1]]
    return SemanticPrediction(image, mask, self._classes, lambda: low, tuple(size))

  def _padded(self, variables: Variables, image: np.ndarray) -> np.ndarray:
    canvas, size = resize_and_pad(image, self._size)
    logits = self._forward_tile(variables, canvas, np.array(size, np.int32))
    return np.asarray(logits)[tuple(map(slice, size))]

  def _segment_by_tiles(self, variables: Variables, image: np.ndarray) -> SemanticPrediction:
    shape = image.shape[:-1]

    def logits() -> np.ndarray:
      result = np.empty((*shape, len(self._classes.names)), np.float32)
      for place, part in self._tiles(variables, image):
        result[place] = part
      return result

    if self._crf is not None:  # which asks for them anyway
      whole = logits()
      return SemanticPrediction(image, _best(whole), self._classes, lambda: whole, shape)
    mask = np.empty(shape, np.uint8)
    for place, part in self._tiles(variables, image):
      mask[place] = part.argmax(-1)
    return SemanticPrediction(image, mask, self._classes, logits, shape)

  def _tiles(
    self, variables: Variables, image: np.ndarray
  ) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Parts of an image of any size, and their logits float32 [... k]."""
    shape, size = image.shape[:-1], np.array(self._size, np.int32)
    starts = [range(0, n, step) for n, step in zip(shape, self._steps, strict=True)]
    for first in itertools.product(*starts):
      window = [
        _mirrored(f - m, n, length)
        for f, m, n, length in zip(first, self._margins, self._size, shape, strict=True)
      ]
      logits = np.asarray(self._forward_tile(variables, image[np.ix_(*window)], size))
      place = tuple(
        slice(f, min(f + step, n)) for f, step, n in zip(first, self._steps, shape, strict=True)
      )
      inner = (slice(m, m + p.stop - p.start) for m, p in zip(self._margins, place, strict=True))
      yield place, logits[tuple(inner)]


def _best(logits: np.ndarray) -> np.ndarray:
  """The class of every pixel, uint8 [...], from scores [... k]."""
  mask = np.empty(logits.shape[:-1], np.uint8)
  for part in strips(mask.shape):
    mask[part] = logits[part].argmax(-1)
  return mask


def _mirrored(first: int, count: int, length: int) -> np.ndarray:
  """Indices of an axis from `first`, which beyond its ends run back as in a mirror."""
  period = max(1, 2 * (length - 1))
  index = np.arange(first, first + count) % period
  return np.minimum(index, period - index) if length > 1 else index
