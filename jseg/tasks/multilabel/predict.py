"""The classes of every pixel of one image or volume, any number at a time."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from jseg.crf import CrfParams
from jseg.data import flatten_volume, write_mask
from jseg.data.overlaps import distinct, mix_colors
from jseg.images import picture
from jseg.report import ALPHA, PNG, legend, overlay
from jseg.tasks.semantic.predict import SemanticPrediction
from jseg.types import IGNORE, InputError

KINDS = ("masks", "overlay", "legend", "stack")
"""What can be written of a prediction."""

DEFAULT_KINDS = ("masks", "overlay", "legend")

NO_CRF = "crf: a CRF gives each pixel one class, and these may overlap; leave it out"


@dataclasses.dataclass(frozen=True)
class MultilabelPrediction(SemanticPrediction):
  """Which classes each pixel of an image or volume is of, at its own size or the protocol's.

  Attributes:
    mask: bool [h w k] or [d h w k].
  """

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """float32 [... k], each class by itself; computed when first asked for, as it is large.

    Of an image in windows, the network is run once more, unless the predictor keeps scores.
    """
    return np.asarray(jax.nn.sigmoid(self._logits_at(self._shape)))

  @property
  def confidence(self) -> np.ndarray:
    """There is none: a pixel has no single class. Raises InputError."""
    raise InputError("confidence: where classes overlap each has its own; take `probabilities`")

  def refine(self, params: CrfParams | None = None) -> "SemanticPrediction":
    """A CRF gives each pixel one class, so there is none. Raises InputError."""
    raise InputError(NO_CRF)

  def overlay(self, alpha: float = ALPHA) -> np.ndarray:
    """Returns the image under its classes' colors, uint8 [h w 3]; of a volume, the middle slice.

    Where classes overlap it is the mean of their colors; where there is none, the image.

    Args:
      alpha: opacity of the colors, in [0, 1].
    """
    image, mask = flatten_volume(np.asarray(self._image_of_mask), self.mask)
    return draw(picture(image, self.bands), mask, self.classes.palette, alpha)

  @functools.cached_property
  def _counts(self) -> np.ndarray:
    """Pixels of each class, int64 [k]."""
    return np.asarray(self.mask.reshape(-1, self.mask.shape[-1]).sum(0, dtype=np.int64))

  def shares(self) -> dict[str, float]:
    """Returns each class's share of the pixels, by name; they don't sum to 1."""
    pixels = self.mask[..., 0].size
    return dict(zip(self.classes.names, (self._counts / pixels).tolist(), strict=True))

  def save(
    self,
    out: str | pathlib.Path,
    stem: str,
    like: str | pathlib.Path | None = None,
    *,
    write: Sequence[str] = (),
    source_ids: bool = False,
  ) -> list[pathlib.Path]:
    """Writes a mask of each class, STEM_overlay.png and STEM_legend.png.

    Args:
      out: folder to write to; made if it isn't there.
      stem: beginning of the files' names.
      like: NIfTI file that a volume was read from; images don't need it.
      write: what is written, names in `KINDS`; empty: these three. "stack" is all masks in one
        array, uint8 [h w k] or [d h w k] of 0 and 1, which `data.name=multilabel` reads.
      source_ids: must be False: a pixel of several classes has no single id.

    Returns:
      Their paths. A mask is STEM_CLASS.png of 0 and 255; of a volume STEM_CLASS.nii.gz of 0 and 1,
      on the grid of `like`.

    Raises:
      InputError: it is a volume, and `like` is missing, or ids are asked for.
    """
    if source_ids:
      raise InputError("source_ids: classes overlap here, so that a pixel has no single id")
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    ndim = self.mask.ndim - 1
    paths = []
    for kind in write or DEFAULT_KINDS:
      names = output_names(stem, self.classes.names, ndim, (kind,))
      paths += (some := [out / name for name in names])
      if kind == "masks":
        for i, path in enumerate(some):
          self._write_mask(self.mask[..., i], path, like)
      elif kind == "stack":
        np.save(some[0], self.mask.astype(np.uint8))
      elif kind == "overlay":
        Image.fromarray(self.overlay()).save(some[0], **PNG)
      else:
        legend(self.shares(), self.classes.palette).save(some[0], **PNG)
    return paths

  def _write_mask(
    self, mask: np.ndarray, path: pathlib.Path, like: str | pathlib.Path | None
  ) -> None:
    if mask.ndim == 2:
      Image.fromarray(mask.astype(np.uint8) * 255).save(path, **PNG)
    elif like is None:
      raise InputError("like: a volume's mask is written like the file it came from; give it")
    else:
      write_mask(path, mask.astype(np.uint16), like, self.preparation)


def draw(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, alpha: float) -> np.ndarray:
  """An image under the mean color of each pixel's classes, uint8 [h w 3].

  Args:
    image: uint8 [h w 3] or [h w 1].
    mask: bool [h w k], or uint8 of 0, 1 and IGNORE, as the truth is.
    palette: uint8 [k 3].
    alpha: opacity of the colors, in [0, 1].
  """
  rows, index = distinct(np.moveaxis(mask, -1, 0))
  colored = np.flatnonzero((rows == 1).any(1))[: IGNORE - 1]
  places = np.full(len(rows), IGNORE, np.uint8)
  places[colored] = np.arange(len(colored))
  return overlay(image, places[index], mix_colors(rows[colored], palette), alpha)


def output_names(stem: str, names: Sequence[str], ndim: int, write: Sequence[str]) -> list[str]:
  """Returns the names of the files that a prediction of this stem is saved to.

  Args:
    stem: name of the image.
    names: names of the classes.
    ndim: 2 for images, 3 for volumes.
    write: names in `KINDS`; empty: `DEFAULT_KINDS`.
  """
  found = []
  for kind in write or DEFAULT_KINDS:
    if kind == "masks":
      ending = ".nii.gz" if ndim == 3 else ".png"
      found += [f"{stem}_{name}{ending}" for name in _file_names(names)]
    else:
      found.append(f"{stem}_{kind}.{'npy' if kind == 'stack' else 'png'}")
  return found


def _file_names(names: Sequence[str]) -> list[str]:
  """What files of the classes are called: nothing that a file's name can't hold, all different."""
  plain = [re.sub(r"[^\w\-.]+", "_", name) for name in names]
  taken = [name.casefold() for name in (*plain, "overlay", "legend", "stack")]
  return [
    name if taken.count(name.casefold()) == 1 else f"{name}_{i}" for i, name in enumerate(plain)
  ]
