"""Images of several files, one a channel: NAME_0000, NAME_0001, ..., as nnU-Net calls them."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from jseg.data.files import FileError
from jseg.data.files.listing import NIFTI_SUFFIXES, Listing, split_suffix
from jseg.data.files.nifti import Volume, read_image_file, size_text

FIRST = "_0000"
FIRST_SUFFIXES = tuple(FIRST + suffix for suffix in NIFTI_SUFFIXES)
"""Name endings of the first channel of images of several files."""

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_FIX = f"Number the channels of an image from {FIRST} on, without a gap"


def join_channels(
  images: Listing, masks: Collection[str]
) -> tuple[Listing, dict[str, tuple[Path, ...]]]:
  """Joins the files NAME_0000, NAME_0001, ... to the image of the mask NAME.

  A file that has a mask of its own name is no channel.

  Args:
    images: files of images.
    masks: names of the masks.

  Returns:
    (images, of which the channels have become one with the first file; their other files in order,
    by name). Gaps are problems.
  """
  found: dict[str, dict[int, str]] = {}
  for name in images.files:
    match = _CHANNEL.fullmatch(name)
    if match and match[1] in masks and name not in masks and match[1] not in images.files:
      found.setdefault(match[1], {})[int(match[2])] = name
  files, problems, others = dict(images.files), [*images.problems], {}
  for name, channels in found.items():
    paths = [files.pop(channels[i]) for i in sorted(channels)]
    if sorted(channels) != list(range(len(channels))):
      numbers = ", ".join(map(str, sorted(channels)))
      problem = f"its image has channels {numbers}, and others are missing"
      problems.append(FileError("partner", paths[0], problem, _FIX))
    files[name], others[name] = paths[0], tuple(paths[1:])
  return Listing(dict(sorted(files.items())), problems, images.notes), others


def further_channels(files: Mapping[str, Path]) -> set[str]:
  """Names of files that are further channels of another one, whose name is without its _0000."""
  matches = {name: _CHANNEL.fullmatch(name) for name in files}
  return {name for name, match in matches.items() if match and _is_first(files.get(match[1]))}


def channel_files(path: Path) -> tuple[Path, ...]:
  """The files of an image, given that of its first channel; of any other file, itself.

  Raises:
    FileError: a channel between others is missing.
  """
  numbers = numbered_files(path)
  if sorted(numbers) != list(range(len(numbers))):
    listed = ", ".join(map(str, sorted(numbers)))
    raise FileError("partner", path, f"has channels {listed}, and others are missing", _FIX)
  return tuple(numbers[i] for i in range(len(numbers)))


def numbered_files(path: Path) -> dict[int, Path]:
  """Of NAME_0000, the files NAME_0000, NAME_0001, ... by their numbers; of any other file, itself.

  Raises:
    OSError: their folder can't be read.
  """
  stem, suffix = split_suffix(path.name, FIRST_SUFFIXES)
  if not suffix:
    return {0: path}
  found = {}
  for other in sorted(path.parent.iterdir()):
    match = _CHANNEL.fullmatch(split_suffix(other.name, NIFTI_SUFFIXES)[0])
    if match and match[1] == stem and other.name.lower().endswith(NIFTI_SUFFIXES):
      found[int(match[2])] = other
  return {**found, 0: path}


def read_channels(paths: Collection[Path]) -> Volume:
  """Reads an image of one file or of one file a channel: an array [d h w c].

  Raises:
    FileError: a file is unreadable, or of another grid than the first.
  """
  first, *others = (read_image_file(path) for path in paths)
  for path, other in zip([*paths][1:], others, strict=True):
    if other.size != first.size:
      problem = f"{size_text(other.size)}, but the first channel is {size_text(first.size)}"
      raise FileError("size", path, problem, "Resample the channels onto one grid")
    if (off := distance(first, other)) > 0.5:
      problem = f"its affine places it {off:.3g} voxels away from the first channel"
      raise FileError("size", path, problem, "Resample the channels onto one grid")
  array = np.concatenate([first.array, *(o.array for o in others)], -1) if others else first.array
  return dataclasses.replace(first, array=array)


def distance(one: Volume, other: Volume) -> float:
  """The largest distance in voxels between the corners of two volumes of the same size."""
  last = np.array(one.size[::-1]) - 1
  corners = np.indices((2, 2, 2)).reshape(3, 8) * last[:, None]
  moved = np.linalg.solve(one.affine, other.affine) @ np.vstack([corners, np.ones(8)])
  return float(np.abs(moved[:3] - corners).max())


def _is_first(path: Path | None) -> bool:
  return path is not None and bool(split_suffix(path.name, FIRST_SUFFIXES)[1])
