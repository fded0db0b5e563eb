"""Patches of volumes for training, cut on the host: only what the network sees travels further."""

import math
from collections.abc import Sequence

import numpy as np

from jseg.data.records import Decoded
from jseg.types import IGNORE


def cut_patch(
  place: int,
  example: Decoded,
  *,
  size: Sequence[int],
  foreground: float,
  seed: int,
) -> Decoded:
  """Cuts a random patch out of a volume, the same for the same seed and place.

  Isensee et al. 2021 (nnU-Net, doi:10.1038/s41592-020-01008-z, supplementary note 2): a third of
  the patches lie about a voxel of a foreground class, drawn at random from those of a class that is
  drawn among the volume's; the others lie anywhere. There, the last patches of a batch are those;
  here, every third of the stream, so that batches of any size and all devices have their share.

  Args:
    place: place of the example in the endless stream of all processes, from 0.
    example: `image` float [D H W c] and `label` uint8 [D H W].
    size: depth, height and width of the patch in voxels. A volume that is smaller along an axis is
      shown whole along it, and padded later.
    foreground: share of the patches about a voxel of any class but the first, in [0, 1]; where a
      volume has none, they lie anywhere too.
    seed: seed of the stream.

  Returns:
    The example with `image` float32 [d h w c] and `label` [d h w], at most `size`.
  """
  image, label = example["image"], example["label"]
  random = np.random.default_rng((seed, place))
  ends = [max(n - m, 0) for n, m in zip(label.shape, size, strict=True)]
  corner = [int(random.integers(end + 1)) for end in ends]
  if is_about_foreground(place, foreground):
    voxel = _draw_voxel(label, random)
    if voxel is not None:  # in the middle, or as near to it as the volume's border allows
      corner = [min(max(v - m // 2, 0), end) for v, m, end in zip(voxel, size, ends, strict=True)]
  part = tuple(slice(first, first + m) for first, m in zip(corner, size, strict=True))
  # Copies: a view would keep the whole volume in memory.
  return {**example, "image": image[part].astype(np.float32), "label": label[part].copy()}


def is_about_foreground(place: int, share: float) -> bool:
  """Whether the patch at a place of the stream is one about foreground: evenly spread."""
  return math.floor((place + 1) * share) > math.floor(place * share)


def _draw_voxel(label: np.ndarray, random: np.random.Generator) -> tuple[int, ...] | None:
  """A random voxel of a random class but the first; None where there is none."""
  # Slice by slice, as counting makes numbers of 64 bits of what it counts.
  counts = np.stack([np.bincount(part.ravel(), minlength=IGNORE + 1) for part in label])
  counts[:, [0, IGNORE]] = 0
  present = np.flatnonzero(counts.any(0))
  if not present.size:
    return None
  drawn = random.choice(present)
  before = np.cumsum(counts[:, drawn])
  rank = random.integers(before[-1])
  depth = int(np.searchsorted(before, rank, side="right"))
  inside = rank - before[depth] + counts[depth, drawn]
  flat = np.flatnonzero(label[depth] == drawn)[inside]
  return depth, *map(int, np.unravel_index(flat, label.shape[1:]))
