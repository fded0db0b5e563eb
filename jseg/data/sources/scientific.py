"""`scientific`: images of numbers (TIFF, .npy, PNG of 8 to 32 bits) in the layout of `folder`.

ROOT/classes.json                        ROOT/classes.json
ROOT/{train,val,test}/images/NAME.tif    ROOT/images/NAME.tif
ROOT/{train,val,test}/masks/NAME.png     ROOT/masks/NAME.png    (split at random)

Images have any number of channels, the same in all files. Prepared sets hold the numbers as they
are; `data.scaling` says how they are brought to 0..255.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from jseg.arithmetic import cdiv
from jseg.data.files import FileError, read_bytes
from jseg.data.files.images import CanonicalImage
from jseg.data.files.listing import IMAGE_SUFFIXES, list_if_there
from jseg.data.files.masks import Label, RawMask, read_mask
from jseg.data.files.opening import beyond_colors
from jseg.data.files.scientific import (
  SCIENTIFIC_SUFFIXES,
  canonical_scientific,
  decode_array,
  decode_numbers_mask,
  is_array,
)
from jseg.data.files.stored import canonical_large
from jseg.data.sources.base import Example, ListedSource, Values
from jseg.data.sources.folder import Layout, read_folder
from jseg.data.sources.pairs import SPLITS, ImagePair

_LOOKED_AT = 5  # images of a folder of unknown kind


def scientific_source(
  root: str | Path,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
  channels_first: bool = False,
) -> ListedSource:
  """Reads a folder of scientific images and masks.

  Args:
    root: the folder.
    fractions: shares of the splits; see `folder_source`.
    seed: seed of the random split.
    channels_first: the first of three axes is the channels: the pages of a TIFF, or the first axis
      of an .npy, whose channels otherwise come last.

  Raises:
    InputError: the folder, its classes or its layout are missing.
  """
  make_pair = functools.partial(ScientificPair, channels_first=channels_first)
  masks = (*IMAGE_SUFFIXES, ".npy")
  layout = Layout(SCIENTIFIC_SUFFIXES, make_pair, ("semantic", "instance"), masks)
  source = read_folder(root, layout, None, fractions, seed)
  digest, tail = source.make_fingerprint, " channels first" if channels_first else ""
  return dataclasses.replace(source, scientific=True, make_fingerprint=lambda: f"{digest()}{tail}")


def matches(root: Path) -> bool:
  """Whether most images of a folder in this layout are such as `folder` can't take.

  A few of them, spread over the first split that has any, stand for all; only their headers are
  read.
  """
  if not (root / "classes.json").is_file():
    return False
  for split in ("", *SPLITS):
    with contextlib.suppress(FileError):
      suffixes = {*IMAGE_SUFFIXES, *SCIENTIFIC_SUFFIXES}
      if files := list_if_there(root / split / "images", suffixes).files:
        some = list(files.values())[:: cdiv(len(files), _LOOKED_AT)]
        return 2 * sum(map(_is_scientific, some)) > len(some)
  return False


def _is_scientific(path: Path) -> bool:
  """Whether an image has more bits or other bands than colors have."""
  if (suffix := path.suffix.lower()) == ".npy" or suffix not in SCIENTIFIC_SUFFIXES:
    return suffix == ".npy"
  with contextlib.suppress(OSError):  # as where it is read
    return beyond_colors(path)
  return False


@dataclasses.dataclass(frozen=True)
class ScientificPair(ImagePair):
  """A scientific image and its mask file; see `FilePair`.

  Attributes:
    channels_first: as for `scientific_source`.
  """

  channels_first: bool = False

  def read_image(self) -> CanonicalImage:
    """Reads the image. Raises FileError."""
    large = None
    if not self.classes.instance:
      large = canonical_large(self.image, channels_first=self.channels_first)
    return large or canonical_scientific(
      read_bytes(self.image), self.image, channels_first=self.channels_first
    )

  def read_mask(self) -> RawMask:
    """Reads the mask's raw values, of an .npy too. Raises FileError."""
    data = read_bytes(self.mask)
    return decode_numbers_mask(data, self.mask) if is_array(data) else read_mask(data, self.mask)

  def make_example(self, image: CanonicalImage, raw: RawMask, label: Label) -> Example:
    """Joins an image and its mask, which have the same size."""
    example = super().make_example(image, raw, label)
    numbers = decode_array(image.data) if isinstance(image.data, bytes) else image.data
    return dataclasses.replace(example, values=Values.of(numbers))
