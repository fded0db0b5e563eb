"""Classes of every pixel of one image or volume of any size."""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from jseg import crf as dense
from jseg.allocator import total_memory
from jseg.arithmetic import cdiv, strips
from jseg.console import part_progress
from jseg.data import (
  ClassInfo,
  VolumePreparation,
  as_channels,
  flatten_volume,
  resize,
  resize_and_pad,
  write_mask,
)
from jseg.data.files.preparation import NORMALIZED
from jseg.data.files.rows import StoredImage
from jseg.data.resizing import resize_strips, resized
from jseg.images import Statistics, make_picture, prepare
from jseg.models import Network
from jseg.nn import resize_to
from jseg.report import ALPHA, PNG, legend, overlay, save_png
from jseg.step import LocalDevices
from jseg.tasks.inference import GRIDS, Inference
from jseg.tasks.semantic.decision import BestClass, Decided, Decision, Scores
from jseg.tasks.semantic.forward import decide_at_full_size
from jseg.tasks.windows import (
  Window,
  blend,
  gaussian_weights,
  mean_of_strips,
  overlapping,
  tiles,
)
from jseg.types import Array, InputError, Outputs, Variables

# Photos come in any size; results are computed on a canvas rounded up to this many pixels, so that
# a folder of photos compiles a few programs and not one for each size.
_BUCKET = 128
_NO_VOLUMES = "crf: this refines images; for volumes call jseg.crf.dense_crf with ndim=3"
_NO_NUMBERS = "crf: a CRF compares colors, and scientific images have none; leave it out"


def _canvas(shape: Sequence[int]) -> tuple[int, ...]:
  return tuple(cdiv(n, _BUCKET) * _BUCKET for n in shape)


_resize_to = jax.jit(resize_to, static_argnums=3)
_decide = jax.jit(
  lambda logits, confident, decision: decision.decide(logits, confident),
  static_argnums=1,
  static_argnames="decision",
)
_decide_at_full_size = jax.jit(
  decide_at_full_size, static_argnums=(3, 4), static_argnames="decision"
)


@dataclasses.dataclass(frozen=True)
class SemanticPrediction:
  """The segmentation of one image or volume, at its own size unless the protocol has another.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given; a volume float32 [d h w c]; a scientific image
      float32 [h w c] in 0..255. Where rows were read from a file, it still is.
    mask: uint8 [h w] or [d h w], the class of every pixel.
    classes: names and colors of the classes.
    bands: of a scientific image, the channels that pictures show (`jseg.images.picture`).
    preparation: of a volume, how it was read.
  """

  image: np.ndarray | StoredImage
  mask: np.ndarray
  classes: ClassInfo
  _logits: Callable[[], Array | np.ndarray]
  _size: tuple[int, ...]
  bands: tuple[int, ...] = ()
  preparation: VolumePreparation = NORMALIZED
  _confidence: np.ndarray | None = None

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """float32 [... k] on the mask, summing to 1; computed when first asked for, as it is large.

    Of an image in windows, the network is run once more, unless the predictor keeps scores.
    """
    return np.asarray(jax.nn.softmax(self._logits_at(self._shape), -1))

  @property
  def confidence(self) -> np.ndarray:
    """Probability of the class that was predicted, float32 [...], on the mask.

    Of a predictor that isn't `confident` it takes what `probabilities` takes.
    """
    return self.probabilities.max(-1) if self._confidence is None else self._confidence

  @property
  def _shape(self) -> tuple[int, ...]:
    """Spatial sizes of the mask."""
    return self.mask.shape[: self.image.ndim - 1]

  @property
  def _image_of_mask(self) -> np.ndarray | StoredImage:
    """The image at the mask's size."""
    if self.image.shape[:-1] == self._shape:
      return self.image
    return resize(np.asarray(self.image), self._shape)

  def _logits_at(self, shape: tuple[int, ...]) -> Array:
    logits = jnp.asarray(self._logits())
    if self._size != shape:
      canvas = _canvas(shape)
      logits = _resize_to(logits, np.array(self._size), np.array(shape), canvas)
    return logits[tuple(map(slice, shape))]

  def refine(self, params: dense.CrfParams | None = None) -> "SemanticPrediction":
    """Returns the prediction after mean field in a dense CRF on the image at its own size.

    Args:
      params: parameters of the CRF; its defaults if None.

    Raises:
      InputError: it is a volume, or the parameters don't fit the image.
    """
    if self.mask.ndim == 3:
      raise InputError(_NO_VOLUMES)
    if self.image.dtype != np.uint8:
      raise InputError(_NO_NUMBERS)
    image = np.asarray(self.image)
    size = image.shape[:-1]
    log_q = np.asarray(dense.log_marginals(self._logits_at(size), image, params))
    refined = dataclasses.replace(self, _logits=lambda: log_q, _size=size)
    scores = log_q if self._shape == size else np.asarray(refined._logits_at(self._shape))
    mask, confidence = BestClass().decide_on_host(scores, True, self._confidence is not None)
    return dataclasses.replace(refined, mask=mask, _confidence=confidence)

  def overlay(self, alpha: float = ALPHA) -> np.ndarray:
    """Returns the image under its classes' colors, uint8 [h w 3]; of a volume, the middle slice.

    It has the mask's size.

    Args:
      alpha: opacity of the colors, in [0, 1].
    """
    result = np.empty((*self.mask.shape[-2:], 3), np.uint8)
    for rows, strip in self._overlay_strips(alpha):
      result[rows] = strip
    return result

  def _overlay_strips(self, alpha: float) -> Iterator[tuple[slice, np.ndarray]]:
    image, mask = self._image_of_mask, self.mask
    if isinstance(image, np.ndarray):
      image, mask = flatten_volume(image, mask)
    draw = make_picture(image, self.bands)
    for rows in strips(mask.shape):
      yield rows, overlay(draw(image[rows]), mask[rows], self.classes.palette, alpha)

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
    self,
    out: str | pathlib.Path,
    stem: str,
    like: str | pathlib.Path | None = None,
    *,
    write: Sequence[str] = (),
    source_ids: bool = False,
  ) -> list[pathlib.Path]:
    """Writes the mask, STEM_overlay.png and STEM_legend.png.

    Args:
      out: folder to write to; made if it isn't there.
      stem: beginning of the files' names.
      like: NIfTI file that a volume was read from; images don't need it.
      write: what is written, names in `KINDS`; empty: these three. "confidence" is
        STEM_confidence.png, 0 to 255 for 0 to 1; of a volume it is NIfTI too.
      source_ids: whether an image's mask holds the mask values of the data set.

    Returns:
      Their paths. The mask is STEM.png, class indices with a palette; of a volume STEM.nii.gz with
      the mask values of the data set, on the grid of `like`.

    Raises:
      InputError: it is a volume, and `like` is missing.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write = write or DEFAULT_KINDS
    paths = [out / name for name in output_names(stem, self.mask.ndim, write)]
    for kind, path in zip(write, paths, strict=True):
      if path.suffix == ".gz":
        self._write_volume(kind, path, like)
      else:
        self._write_picture(kind, path, source_ids)
    return paths

  def _write_volume(self, kind: str, path: pathlib.Path, like: str | pathlib.Path | None) -> None:
    if like is None:
      raise InputError("like: a volume's mask is written like the file it came from; give it")
    if kind == "mask":
      values = np.array(self.classes.values)[self.mask]
    else:
      values = np.rint(255 * self.confidence)
    write_mask(path, values.astype(np.uint16), like, self.preparation)

  def _write_picture(self, kind: str, path: pathlib.Path, source_ids: bool) -> None:
    """Writes what an image has under a name in `KINDS`, in strips."""
    height, width = self.mask.shape[-2:]
    if kind == "legend":
      legend(self.shares(), self.classes.palette).save(path, **PNG)
      return
    if kind == "overlay":
      save_png(path, (strip for _, strip in self._overlay_strips(ALPHA)), (height, width))
      return
    parts, palette = strips(self.mask.shape), None
    if kind == "confidence":
      confidence = self.confidence
      shown = (np.rint(255 * confidence[rows]).astype(np.uint8) for rows in parts)
    else:
      values = np.array(self.classes.values) if source_ids else np.arange(len(self.classes.names))
      kept = values.astype(np.uint8 if values.max() <= 255 else np.uint16)
      if kept.dtype == np.uint8:
        palette = np.zeros((values.max() + 1, 3), np.uint8)
        palette[values] = self.classes.palette
      shown = (kept[self.mask[rows]] for rows in parts)
    save_png(path, shown, (height, width), palette)


KINDS = {"mask": "", "overlay": "_overlay", "legend": "_legend", "confidence": "_confidence"}
"""What can be written of a prediction, and what its file's name has beside the image's."""

DEFAULT_KINDS = ("mask", "overlay", "legend")


def output_names(stem: str, ndim: int, write: Sequence[str] = ()) -> list[str]:
  """Returns the names of the files that a prediction of this stem is saved to.

  Args:
    stem: name of the image.
    ndim: 2 for images, 3 for volumes.
    write: names in `KINDS`; empty: `DEFAULT_KINDS`.
  """
  names = []
  for kind in write or DEFAULT_KINDS:
    volume = ndim == 3 and kind in ("mask", "confidence")
    names.append(f"{stem}{KINDS[kind]}{'.nii.gz' if volume else '.png'}")
  return names


class SemanticPredictor:
  """Predicts single images of any size, or volumes: `predictor(variables, image)`.

  Where the protocol shrinks, images larger than the network's canvas are shrunk to fit it, smaller
  ones padded, as in training; the result is brought to the image's own size, or to the protocol's,
  before the classes are decided. Otherwise images and volumes keep their size and are worked
  through in windows.

  Args:
    model: network of classes.
    classes: names and colors of the classes.
    size: canvas (height, width) of the network, or (depth, height, width).
    channels: 3 (RGB) or 1 (gray); of volumes, as many as they have.
    inference: how the network looks at an image.
    preparation: how volumes are read that it is shown.
    batch_size: windows that it sees at a time, over all local devices.
    statistics: of scientific images, mean and deviation of each channel; None: images are colors.
    bands: of scientific images, the channels that pictures show.
    confident: whether the confidence of each pixel is computed with its class.
    keep_scores: whether scores of images in windows stay with their masks, 4 bytes per pixel and
      class, for whoever refines them or asks for probabilities.
    decision: how pixels are decided.
    make: makes a prediction, `SemanticPrediction` or another of the same arguments.

  Attributes:
    crf: parameters of the protocol's CRF, which refines each prediction; None: none does.

  Raises:
    InputError: the protocol is impossible on this canvas (`Inference.check`), or a CRF is to refine
      scientific images.
  """

  def __init__(
    self,
    model: Network,
    classes: ClassInfo,
    size: Sequence[int],
    channels: int = 3,
    *,
    inference: Inference | None = None,
    preparation: VolumePreparation = NORMALIZED,
    batch_size: int = 1,
    statistics: Statistics | None = None,
    bands: Sequence[int] = (),
    confident: bool = False,
    keep_scores: bool = False,
    decision: Decision = BestClass(),
    make: Callable[..., SemanticPrediction] = SemanticPrediction,
  ):
    self._decision = decision
    self._make = functools.partial(make, bands=tuple(bands), preparation=preparation)
    self._size = tuple(int(n) for n in size)
    ndim = len(self._size)
    self._scaled = statistics is not None
    self._inference = inference or Inference("shrink" if ndim == 2 else "window")
    self._inference.check(self._size)
    self.crf = self._inference.refinement
    if self.crf is not None and self._scaled:
      raise InputError(_NO_NUMBERS)
    self.preparation = preparation
    self._classes, self._channels = classes, channels
    self._confident = confident
    self._keep_scores = keep_scores or self._inference.crf or bool(self._inference.fixed_size)
    gaussian = self._inference.mode == "window" and self._inference.blend == "gaussian"
    self._weights = gaussian_weights(self._size) if gaussian else np.ones(self._size, np.float32)
    self._devices = LocalDevices(batch_size)
    self._scores = _make_scores(model, statistics, self._inference.flipped_axes(ndim), decision)

  def __call__(self, variables: Variables, image: np.ndarray | StoredImage) -> SemanticPrediction:
    """Segments one image.

    Args:
      variables: parameters and statistics of the network.
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (gray); a volume float32 [d h w c] as
        `jseg.data.read_volume` gives it; a scientific image float32 [h w c] in 0..255, as
        `jseg.data.scale` gives it; or such an image of which rows are read when needed.

    Raises:
      InputError: it is of another type or shape.
    """
    prediction = self.before_crf(variables, image)
    return prediction if self.crf is None else prediction.refine(self.crf)

  def before_crf(self, variables: Variables, image: np.ndarray | StoredImage) -> SemanticPrediction:
    """Segments one image up to the protocol's CRF: `refine(self.crf)` then gives the rest.

    Args:
      variables: parameters and statistics of the network.
      image: as for the call.
    """
    return self._segment(variables, [self._as_shown(image)])[0]()

  def rows(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage]
  ) -> Iterator[Iterator[tuple[slice, np.ndarray, np.ndarray | None]]]:
    """Segments images as the call does, and gives rows away as soon as they are decided.

    So of an image in windows the memory is that of a row of windows. Windows of all the images
    share batches.

    Args:
      variables: parameters and statistics of the network.
      images: each as for the call.

    Yields:
      For each image, to be read before the next is asked for, (rows of it, what is predicted of
      them, how sure that is), in order; the last only of a predictor that is `confident`.
    """
    if not self._inference.by_rows:
      for image in images:
        prediction = self(variables, image)
        rows = slice(0, len(prediction.mask))
        yield iter([(rows, prediction.mask, prediction._confidence)])
      return
    for _, average, scored in self._strips(variables, [*map(self._as_shown, images)]):
      yield ((part, *self._decide(scores, average)) for part, scores in scored)

  def _as_shown(self, image: np.ndarray | StoredImage) -> np.ndarray | StoredImage:
    """The image in the channels of the network. Raises InputError if it is of another kind."""
    convert = functools.partial(as_channels, channels=self._channels, scaled=self._scaled)
    image = image.map(convert) if isinstance(image, StoredImage) else convert(image)
    if image.ndim - 1 != len(self._size):
      kinds = {2: "images", 3: "volumes"}
      raise InputError(
        f"this network takes {kinds[len(self._size)]}, not an array of shape {image.shape}"
      )
    return image

  @property
  def together(self) -> int:
    """Images that `batch` is given at the most: one where each is refined, or its scores kept.

    Volumes in windows are alone, too: several would take much memory, and one has windows enough.
    """
    whole = self._inference.mode == "shrink"
    alone = self._inference.crf if whole else self._keep_scores or len(self._size) == 3
    return 1 if alone else self._devices.batch_size

  def batch(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage], filled: int = 1
  ) -> list[Callable[[], SemanticPrediction]]:
    """Shows several images to the network at once (`jseg.tasks.base.Predictor.batch`)."""
    return self._segment(variables, [*map(self._as_shown, images)], filled)

  def _segment(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage], filled: int = 1
  ) -> list[Callable[[], SemanticPrediction]]:
    if self._inference.mode == "shrink":
      return self._segment_whole(variables, [*map(np.asarray, images)], filled)
    return [
      functools.partial(_itself, prediction)
      for prediction in self._segment_by_windows(variables, images)
    ]

  def _segment_whole(
    self, variables: Variables, images: Sequence[np.ndarray], filled: int = 1
  ) -> list[Callable[[], SemanticPrediction]]:
    """Images shrunk to the canvas; flips and scales are averaged at the size that they have on it.

    Whoever calls the results makes the predictions, and needs only this for it: the network is
    through with all of them.
    """
    protocol, fitted = self._inference, [resize_and_pad(image, self._size) for image in images]
    average = "logits" if protocol.one_pass else protocol.average
    views = []
    for scale in protocol.scales:
      shown = fitted
      if scale != 1:
        canvas = _scaled(self._size, scale)
        shown = [
          resize_and_pad(resize(image, _scaled(size, scale)), canvas)
          for image, (_, size) in zip(images, fitted, strict=True)
        ]
      views.append(self._scores_of_whole(average, variables, shown, filled))

    def segment(index: int) -> SemanticPrediction:
      size = tuple(fitted[index][1])
      own = [view[index] for view in views]
      return self._decided(images[index], self._mean_on_canvas(own, size, average), size)

    return [functools.partial(segment, index) for index in range(len(images))]

  def _scores_of_whole(
    self,
    average: str,
    variables: Variables,
    shown: Sequence[tuple[np.ndarray, Sequence[int]]],
    filled: int,
  ) -> list[tuple[tuple[int, ...], Callable[[], Array]]]:
    """What images cover of their canvases, and what gives the scores of these [H W k]."""
    sizes = [tuple(size) for _, size in shown]
    count = max(filled, len(shown))
    if count == 1:  # which further devices can't help with
      canvas, size = shown[0]
      scores = self._scores(average, variables, canvas[None], np.array(size, np.int32)[None])[0]
      return [(sizes[0], lambda: scores)]
    missing = self._devices.round_up(count) - len(shown)
    canvases = [canvas for canvas, _ in shown]
    split = self._devices.shard(
      np.stack([*canvases, *[np.zeros_like(canvases[0])] * missing]),
      np.array([*sizes, *[(1, 1)] * missing], np.int32),
    )
    # Only one batch is in memory at a time.
    found = self._scores(average, self._devices.replicate(variables), *split).block_until_ready()
    return list(zip(sizes, self._devices.items(found), strict=False))

  def _mean_on_canvas(
    self,
    views: Sequence[tuple[tuple[int, ...], Callable[[], Array]]],
    size: tuple[int, ...],
    average: str,
  ) -> Array:
    """Logits [H W k] from an image's scores at each scale, of which the top left `size` count."""
    if self._inference.one_pass:
      return views[0][1]()
    total = jnp.float32(0)
    for covered, scores in views:
      total += _resize_to(scores(), np.array(covered), np.array(size), self._size)
    return self._logits(total / len(views), average)

  def _decided(
    self, image: np.ndarray | StoredImage, low: Array | np.ndarray, size: tuple[int, ...]
  ) -> SemanticPrediction:
    """Decides logits, of which the top left `size` are the image's, at the size of its mask."""
    shape = self._inference.output_shape(image.shape[:-1], size)
    if shape == size:  # as most photos are, and then one program serves all
      decided: Decided = _decide(low, self._confident, decision=self._decision)
    else:
      decided = _decide_at_full_size(
        *(low, np.array(size), np.array(shape), _canvas(shape), self._confident),
        decision=self._decision,
      )
    own = tuple(map(slice, shape))
    mask, confidence = jax.tree.map(lambda x: np.asarray(x)[own], decided)
    return self._make(image, mask, self._classes, lambda: low, size, _confidence=confidence)

  def _segment_by_windows(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage]
  ) -> Iterator[SemanticPrediction]:
    for image in images:
      self._check_memory(image.shape[:-1])
    for image, average, scored in self._strips(variables, images):
      yield self._merged(variables, image, average, scored)

  def _merged(
    self,
    variables: Variables,
    image: np.ndarray | StoredImage,
    average: str,
    scored: Iterable[tuple[slice, np.ndarray]],
  ) -> SemanticPrediction:
    """Decides an image from its rows' scores."""
    shape, k = image.shape[:-1], len(self._classes.names)

    def logits() -> np.ndarray:
      result = np.empty((*shape, k), np.float32)
      for _, _, again in self._strips(variables, [image]):
        for rows, scores in again:
          result[rows] = self._logits(scores, average)
      return result

    mask = self._decision.empty(shape)
    confidence = np.empty(shape, np.float32) if self._confident else None
    kept = np.empty((*shape, k), np.float32) if self._keep_scores else None
    for rows, scores in scored:
      mask[rows], sure = self._decide(scores, average)
      if confidence is not None:
        confidence[rows] = sure
      if kept is not None:
        kept[rows] = self._logits(scores, average)
    if self._inference.fixed_size:
      return self._decided(image, cast(np.ndarray, kept), shape)
    again = logits if kept is None else lambda: cast(np.ndarray, kept)
    return self._make(image, mask, self._classes, again, shape, _confidence=confidence)

  def _check_memory(self, shape: Sequence[int]) -> None:
    """Raises InputError where scores must be whole, and can't be."""
    # At the least they are there twice: before and after.
    needed, there = 2 * 4 * math.prod(shape) * len(self._classes.names), total_memory()
    if self._keep_scores and there is not None and needed > there:
      size = " x ".join(f"{n:,}" for n in shape)
      what = "output_size" if self._inference.fixed_size else "crf"
      raise InputError(
        f"{what}: the scores of {size} pixels and {len(self._classes.names)} classes are needed "
        f"whole, which takes {needed / 2**30:,.0f} GiB at the least, and this machine has "
        f"{there / 2**30:,.0f}; leave {what} out, or cut the image"
      )

  def _decide(self, scores: np.ndarray, average: str) -> tuple[np.ndarray, np.ndarray | None]:
    """What is predicted of averaged scores [... k], and how sure that is, if asked for."""
    return self._decision.decide_on_host(scores, average == "logits", self._confident)

  def _logits(self, scores: Scores, average: str) -> Scores:
    """The logits of averaged scores."""
    return scores if average == "logits" else self._decision.logits(scores)

  def _average(self, shape: Sequence[int]) -> str:
    """What is averaged; logits, as they are, where there is nothing to average."""
    protocol = self._inference
    alone = protocol.mode == "tile" or not _is_larger(shape, self._size)
    if alone and protocol.flip == "none" and tuple(protocol.scales) == (1.0,):
      return "logits"
    return protocol.average

  def _strips(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage]
  ) -> Iterator[tuple[np.ndarray | StoredImage, str, Iterator[tuple[slice, np.ndarray]]]]:
    """Images in order, what is averaged of each, and its rows' scores float32 [rows ... k].

    The scores are the caller's, who reads those of an image before the next is asked for. Memory is
    that of a row of windows of each scale, whatever the height of the images.
    """
    averages = itertools.groupby(images, lambda image: self._average(image.shape[:-1]))
    for average, group in averages:
      those = list(group)
      blended = self._blended(variables, those, average)
      yield from zip(those, itertools.repeat(average), blended, strict=False)

  def _blended(
    self, variables: Variables, images: Sequence[np.ndarray | StoredImage], average: str
  ) -> Iterator[Iterator[tuple[slice, np.ndarray]]]:
    """The rows' scores of each image, of which the windows of one scale share batches."""
    shown = [
      [
        image if scale == 1 else resized(image, _scaled(image.shape[:-1], scale))
        for image in images
      ]
      for scale in self._inference.scales
    ]
    windows = [[self._windows(each.shape[:-1]) for each in of_scale] for of_scale in shown]
    count = sum(len(those) for of_scale in windows for those in of_scale)
    # One bar for all scales and images.
    with contextlib.closing(part_progress(range(count), "windows", count)) as ticks:
      scored = [
        zip(self._scored(variables, of_scale, those, average), ticks, strict=True)
        for of_scale, those in zip(shown, windows, strict=True)
      ]
      for i, image in enumerate(images):
        streams = []
        for of_scale, those, stream in zip(shown, windows, scored, strict=True):
          own, shape = itertools.islice(stream, len(those[i])), of_scale[i].shape[:-1]
          blended = blend((item for item, _ in own), shape, self._weights)
          streams.append(resize_strips(blended, shape, image.shape[:-1]))
        yield mean_of_strips(streams)

  def _windows(self, shape: Sequence[int]) -> Sequence[Window]:
    """The windows that show an image of this shape."""
    # What fits is padded, as in training.
    if self._inference.mode == "tile" and _is_larger(shape, self._size):
      return tiles(shape, self._size, self._inference.margins(self._size), GRIDS[len(shape)])
    return overlapping(shape, self._size, self._inference.overlap, GRIDS[len(shape)])

  def _scored(
    self,
    variables: Variables,
    images: Sequence[np.ndarray | StoredImage],
    windows: Sequence[Sequence[Window]],
    average: str,
  ) -> Iterator[tuple[Window, np.ndarray]]:
    """Each image's windows and their scores float32 [... k]; the host lags a batch behind."""
    variables = self._devices.replicate(variables)
    items = [(image, window) for image, own in zip(images, windows, strict=True) for window in own]
    pending: tuple[Sequence[Window], Array | tuple[()]] = ((), ())
    for part in self._devices.batches(items):
      shown = np.zeros(
        (self._devices.round_up(len(part)), *self._size, self._channels), images[0].dtype
      )
      sizes = np.ones((len(shown), len(self._size)), np.int32)
      for i, (image, window) in enumerate(part):
        sizes[i] = [len(index) for index in window.index]
        shown[i][tuple(map(slice, sizes[i]))] = image[np.ix_(*window.index)]
      scores = self._scores(average, variables, *self._devices.shard(shown, sizes))
      yield from zip(pending[0], np.asarray(pending[1]), strict=False)
      pending = [window for _, window in part], scores
    yield from zip(pending[0], np.asarray(pending[1]), strict=False)


def _itself(prediction: SemanticPrediction) -> SemanticPrediction:
  return prediction


def _make_scores(
  model: Network,
  statistics: Statistics | None,
  flips: Sequence[Sequence[int]],
  decision: Decision,
) -> Callable[..., Array]:
  """Makes `scores(average, variables, image [b ...], size) -> [b ... k]`, the means over flips."""

  def scores(average: str, variables: Variables, image: Array, size: Array) -> Array:
    prepared = prepare(image, size, statistics)
    total = jnp.float32(0)
    for axes in flips:
      axes = tuple(axis + 1 for axis in axes)
      outputs = model.apply(variables, jnp.flip(prepared, axes), train=False)
      logits = jnp.flip(cast(Outputs, outputs).logits, axes).astype(jnp.float32)
      total += decision.probabilities(logits) if average == "probabilities" else logits
    return total / len(flips)

  return jax.jit(scores, static_argnums=0)


def _is_larger(shape: Sequence[int], size: Sequence[int]) -> bool:
  return any(n > m for n, m in zip(shape, size, strict=True))


def _scaled(size: Sequence[int], scale: float) -> tuple[int, ...]:
  return tuple(max(1, round(int(n) * scale)) for n in size)
