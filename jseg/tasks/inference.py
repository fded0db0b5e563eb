"""How a network looks at an image of any size: one protocol for all that predict."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jseg.config_values import build
from jseg.crf import CrfParams, params_from_dict
from jseg.types import InputError

MODES = ("shrink", "window", "tile")
BLENDS = ("gaussian", "uniform")
AVERAGES = ("probabilities", "logits")
FLIPS = ("none", "horizontal", "all")
OUTPUT_SIZES = ("image", "canvas")
GRIDS = {2: 32, 3: 8}
"""What windows move by a multiple of, by the number of axes: so pooling has one grid in all."""
_MOST_PIXELS = 2**30  # of a mask of a fixed size


@dataclasses.dataclass(frozen=True)
class Inference:
  """A protocol: what a network is shown of an image, and how its answers become one.

  Attributes:
    mode: "shrink": the whole image, made to fit the canvas (data.size) where it is larger, for
      images only; "window": windows of the canvas's size at the image's own size, blended where
      they overlap; "tile": the same, but each pixel from one window alone, which sees a margin
      about it, beyond the image its mirror image (Ronneberger et al. 2015, figure 2).
    overlap: share of a window that the next one shows too, in "window" mode.
    margin: pixels on every side of a tile that are context alone; -1: a quarter of the canvas.
    blend: how windows are weighed where they overlap: "gaussian" (a deviation of an eighth of the
      window, as in nnU-Net) or "uniform".
    average: what is averaged over windows, flips and scales: "probabilities" or "logits"; of masks
      of objects the former.
    flip: mirror images that are predicted too: "none", "horizontal" or "all" (of each axis, and
      of their combinations).
    scales: sizes at which the image is shown, 1 being its own; for classes of images only.
    output_size: size of the masks that are predicted: "image", the image's own; "canvas", that in
      which the network is shown it, so in windows its own; or "HEIGHTxWIDTH" in pixels, such as
      "512x768". For classes of images only; metrics are always of the images' own size.
    crf: whether a dense CRF on the image's own colors refines what the network says; for classes of
      images only.
    crf_params: parameters of this CRF, fields of `jseg.crf.CrfParams` by name; those that aren't
      given are as `jseg tune-crf` has found them for the run, else the defaults.

  Raises:
    InputError: a value is impossible.
  """

  mode: str = "shrink"
  overlap: float = 0.5
  margin: int = -1
  blend: str = "gaussian"
  average: str = "probabilities"
  flip: str = "none"
  scales: Sequence[float] = (1.0,)
  output_size: str = "image"
  crf: bool = False
  crf_params: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    choices = {"mode": MODES, "blend": BLENDS, "average": AVERAGES, "flip": FLIPS}
    for name, known in choices.items():
      if (value := getattr(self, name)) not in known:
        raise InputError(f"{name}: {value!r} is unknown; choose from {', '.join(known)}")
    if not 0 <= self.overlap < 1:
      raise InputError(
        f"overlap: {self.overlap} must be at least 0 and below 1, a share of a window"
      )
    if self.margin < -1:
      raise InputError(f"margin: {self.margin} must be at least 0, pixels, or -1 for a quarter")
    good = all(type(s) in (int, float) and 0 < s <= 8 for s in self.scales)
    if not self.scales or not good:
      raise InputError(f"scales: {tuple(self.scales)} must be numbers above 0, at most 8")
    if len(self.scales) > 1 and self.mode == "tile":
      raise InputError("scales: tiles are shown at the image's own size; leave scales at (1.0,)")
    if self.output_size not in OUTPUT_SIZES and self.fixed_size is None:
      raise InputError(
        f"output_size: {self.output_size!r} must be {', '.join(OUTPUT_SIZES)}, or HEIGHTxWIDTH in "
        "pixels, such as 512x768, of at most 2^30 in all"
      )
    build("crf_params", params_from_dict, self.crf_params)

  def check(self, size: Sequence[int]) -> None:
    """Refuses what can't be done on a canvas.

    Args:
      size: (height, width), or (depth, height, width) of a network of volumes.

    Raises:
      InputError: volumes are to be shrunk or scaled, or their masks to be, or a CRF to refine them,
        or the margins leave nothing of a tile.
    """
    if len(size) == 3 and self.mode == "shrink":
      raise InputError("mode: volumes keep their voxels; choose window or tile")
    if len(size) == 3 and tuple(self.scales) != (1.0,):
      raise InputError(
        f"scales: {tuple(self.scales)} is for images; leave it at (1.0,) for volumes"
      )
    if len(size) == 3 and self.output_size != "image":
      raise InputError(
        f"output_size: {self.output_size!r} is for images, and masks of volumes lie on the voxels "
        "of their scan; leave it at 'image'"
      )
    if len(size) == 3 and self.crf:
      raise InputError(
        "crf: the CRF after a network is for images; leave it out for volumes, or call "
        "jseg.crf.dense_crf with ndim=3 on the probabilities"
      )
    if min(n - 2 * m for n, m in zip(size, self.margins(size), strict=True)) < 1:
      most = (min(size) - GRIDS[len(size)]) // 2
      raise InputError(
        f"margin: {self.margin} pixels on both sides leave nothing of tiles of {tuple(size)}; take "
        f"at most {most}"
      )

  def margins(self, size: Sequence[int]) -> list[int]:
    """Returns the context on both sides of each axis of a tile, on the grid of windows."""
    grid = GRIDS[len(size)]
    return [(n // 4 if self.margin < 0 else self.margin) // grid * grid for n in size]

  def check_objects(self, short_side: int = 0) -> None:
    """Refuses what can't be done where objects are found one by one.

    Args:
      short_side: pixels that images' shorter sides are brought to; 0 leaves them as they are.

    Raises:
      InputError: what decides single pixels (tiles, averaged logits, a CRF), scales, another output
        size, windows without an overlap, or windows of images that were to be resized.
    """
    if self.mode == "tile":
      raise InputError(
        "mode: tiles decide single pixels, and objects lie in several; choose shrink or window"
      )
    if self.average != "probabilities":
      raise InputError(
        f"average: {self.average!r} is for classes of pixels; of objects' masks probabilities are "
        "averaged, so leave it at 'probabilities'"
      )
    if tuple(self.scales) != (1.0,):
      raise InputError(
        f"scales: {tuple(self.scales)} is for classes of pixels; objects are looked for at one "
        "size, so leave it at (1.0,)"
      )
    if self.output_size != "image":
      raise InputError(
        f"output_size: {self.output_size!r} is for classes of pixels; objects lie on the image as "
        "it is, so leave it at 'image'"
      )
    if self.crf:
      raise InputError("crf: a CRF is for classes of pixels, not for objects; leave it out")
    if self.mode == "window" and not self.overlap:
      raise InputError(
        "overlap: 0 leaves nothing by which the parts of an object are known; 0.25 is a good value"
      )
    if self.mode == "window" and short_side:
      raise InputError(
        f"mode: windows show an image at its own size, and data.short_side {short_side} asks for "
        "another; set data.short_side to 0, or choose shrink"
      )

  def check_measured(self) -> None:
    """Refuses what metrics, and pictures beside a truth, can't be of.

    Raises:
      InputError: masks don't have the image's own size.
    """
    if self.output_size != "image":
      raise InputError(
        f"output_size: {self.output_size!r} is for predictions, and metrics are of the images' own "
        "size; leave it at 'image' here, and give it to predict"
      )

  def output_shape(self, own: Sequence[int], shown: Sequence[int]) -> tuple[int, ...]:
    """Returns the spatial sizes of an image's mask.

    Args:
      own: those of the image.
      shown: those in which the network is shown it.
    """
    return self.fixed_size or tuple(own if self.output_size == "image" else shown)

  @property
  def fixed_size(self) -> tuple[int, ...] | None:
    """(height, width) of the masks of all images; None where it depends on the image."""
    found = re.fullmatch(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", str(self.output_size))
    size = tuple(map(int, found.groups())) if found else ()
    return size if size and math.prod(size) <= _MOST_PIXELS else None

  @property
  def refinement(self) -> CrfParams | None:
    """Parameters of the CRF after the network; None where there is none."""
    return params_from_dict(self.crf_params) if self.crf else None

  @property
  def one_pass(self) -> bool:
    """Whether the network sees the whole image once, as it is or shrunk."""
    return self.mode == "shrink" and self.flip == "none" and tuple(self.scales) == (1.0,)

  @property
  def by_rows(self) -> bool:
    """Whether a part of the rows of an image is all that is needed of it at a time."""
    return self.mode != "shrink" and self.fixed_size is None and not self.crf

  def flipped_axes(self, ndim: int) -> list[tuple[int, ...]]:
    """Returns the spatial axes, counted from 0, that are flipped in each pass of the network."""
    axes = {"none": (), "horizontal": (ndim - 1,), "all": tuple(range(ndim))}[self.flip]
    return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]


_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PROTOCOLS = {
  "shrink": Inference(),
  "tile": Inference("tile"),
  "window": Inference("window"),
  # Chen et al. 2015, arXiv:1412.7062, section 4, and 2016, arXiv:1606.00915, section 4.1: the whole
  # image, then a CRF, whose parameters both search (`jseg tune-crf`).
  "deeplab_crf": Inference(crf=True),
  # Chen et al. 2017, arXiv:1706.05587, section 4.2: scales and mirror images of the whole image.
  "deeplab": Inference(flip="horizontal", scales=_SCALES),
  # Zhao et al. 2017, section 5.1, as in hszhao/semseg's test: windows of the crop's size that
  # move by two thirds of it. There, scales are of an image brought to a given size before.
  "pspnet": Inference("window", overlap=1 / 3, blend="uniform", flip="horizontal", scales=_SCALES),
  # Isensee et al. 2021, and nnunetv2's predictor: logits are averaged.
  "nnunet": Inference("window", average="logits", flip="all"),
}
"""Protocols by name: the plain ones, and those that papers measure with."""


def protocol_changes(config: ConfigDict, name: str) -> dict[str, object]:
  """Returns the configuration values, by dotted key, of a protocol's name.

  Args:
    config: configuration of the run.
    name: a key of `PROTOCOLS`.

  Raises:
    InputError: there is no such protocol, or the run's task has none.
  """
  if "inference" not in config:
    raise InputError(
      f"protocol: the task of {config.model.name} has no other protocol; leave it out"
    )
  if name not in PROTOCOLS:
    raise InputError(f"protocol: {name!r} is unknown; choose from {', '.join(PROTOCOLS)}")
  values = dataclasses.asdict(PROTOCOLS[name])
  return {f"inference.{key}": value for key, value in values.items()}
