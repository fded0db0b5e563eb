"""Objects that several views of one image have found, brought together: each comes back once.

A view is a window of the image, or the mirror image of one. Two views show the same object where
their masks agree in the part of the image that both show. So the pieces of an object that is larger
than a window belong together however little of them lies in the overlap; suppression by the IoU of
boxes would keep both, and so would merging by the share of the smaller mask (SAHI, Akyon et al.
2022, arXiv:2202.06934). Masks are averaged over the views, as probabilities of classes are, with
the weights of their windows: mirror images count alike (Detectron2's `GeneralizedRCNNWithTTA`), and
a window's middle counts for more than its edge. StarDist's blocks (`predict_instances_big`)
take each object from one block, which asks for overlaps larger than every object.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jseg.data import Objects, objects_from_detections
from jseg.data.detections import paste_probabilities
from jseg.data.files.instances import pack
from jseg.types import Detections

Frame = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in whole pixels of the image."""

_CELL = 4  # pixels: no level of the pyramid is finer, and a box ends no nearer to a window's edge
_SAME = 0.5  # share of two masks from which they are of one object, as in detectors' suppression


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A part of an image as the network was shown it.

  Attributes:
    frame: the part of the image.
    weights: float32 [h w], weight of each of its pixels among those of other views.
    flipped: axes along which the network saw its mirror image.
  """

  frame: Frame
  weights: np.ndarray
  flipped: tuple[int, ...] = ()

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of the part."""
    y0, x0, y1, x1 = self.frame
    return y1 - y0, x1 - x0


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """An object as one view has found it.

  Attributes:
    view: the view.
    box: float32 [4], within the view.
    probabilities: float32 [m m], as `jseg.types.Detections` has them.
    mask: bool [h w].
    frame: where the mask lies in the image.
    category: class, 1 to k - 1.
    score: probability of the class.
    cut: whether the object may go on beyond the view, within the image.
  """

  view: View
  box: np.ndarray
  probabilities: np.ndarray
  mask: np.ndarray
  frame: Frame
  category: int
  score: float
  cut: bool

  @property
  def image_box(self) -> np.ndarray:
    """float32 [4], the box within the image."""
    return self.box + np.array(2 * self.view.frame[:2], np.float32)

  def part(self, frame: Frame) -> np.ndarray:
    """The mask in a part of the image that lies within its own frame."""
    y0, x0 = self.frame[:2]
    return self.mask[frame[0] - y0 : frame[2] - y0, frame[1] - x0 : frame[3] - x0]


def find(
  view: View, detections: Detections, covered: Sequence[int], size: Sequence[int]
) -> list[Found]:
  """The objects of one view, the best first.

  Args:
    view: the view.
    detections: what the network has found in it: without the axis b, as NumPy arrays.
    covered: height and width of the view as the network saw it.
    size: height and width of the image.
  """
  unflipped = _unflipped(detections, covered, view.flipped)
  objects = objects_from_detections(unflipped, tuple(covered), view.size)
  scores = objects.scores
  assert scores is not None, "detected objects have scores"
  assert unflipped.masks is not None, "or objects_from_detections had refused it"
  probabilities = np.asarray(unflipped.masks)[np.asarray(unflipped.valid)]
  y, x = view.frame[:2]
  # Edges of the view beyond which the image goes on.
  inner = np.array(view.frame) != [0, 0, *size]
  away = np.abs(objects.boxes - [0, 0, *view.size])
  cut = ((away < _CELL) & inner).any(1)
  return [
    Found(
      view,
      objects.boxes[i],
      probabilities[i],
      objects.crop(i),
      tuple((objects.frames[i] + [y, x, y, x]).tolist()),
      int(objects.classes[i]),
      float(scores[i]),
      bool(cut[i]),
    )
    for i in range(len(objects))
  ]


def _unflipped(detections: Detections, covered: Sequence[int], axes: Sequence[int]) -> Detections:
  """The detections in the image of which the network saw the mirror image."""
  boxes: Any = np.array(detections.boxes)
  masks: Any = detections.masks
  for axis in axes:
    boxes[:, [axis, axis + 2]] = covered[axis] - boxes[:, [axis + 2, axis]]
    masks = None if masks is None else np.flip(masks, axis + 1)
  return dataclasses.replace(detections, boxes=boxes, masks=masks)


def merge(found: Iterable[tuple[View, Sequence[Found]]], size: Sequence[int]) -> Objects:
  """Brings what several views have found together, as the objects of the image, the best first.

  Memory is that of the objects, and of what a row of windows has found.

  Args:
    found: views by the upper edges of their frames, and their objects.
    size: height and width of the image.
  """
  merged = sorted((_average(group) for group in _groups(found)), key=lambda row: -row[-1])
  boxes, frames, masks, areas, classes, scores = zip(*merged, strict=True) if merged else [()] * 6
  return Objects(
    size=tuple(size),
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    frames=np.array(frames, np.int32).reshape(-1, 4),
    masks=list(masks),
    classes=np.array(classes, np.int32),
    crowd=np.zeros(len(masks), bool),
    areas=np.array(areas, np.float32),
    scores=np.array(scores, np.float32),
  )


def _groups(found: Iterable[tuple[View, Sequence[Found]]]) -> Iterator[list[Found]]:
  """What is one object, as soon as no further view can add to it."""
  groups: list[list[Found]] = []
  for view, objects in found:
    beginning, rest = view.frame[0], []
    for group in groups:
      if max(member.view.frame[2] for member in group) <= beginning:
        yield group
      else:
        rest.append(group)
    groups = _joined(rest, objects)
  yield from groups


def _joined(groups: list[list[Found]], objects: Sequence[Found]) -> list[list[Found]]:
  """Adds the objects of one more view to those they are the same as; the surest ones first."""
  members = [member for group in groups for member in group]
  frames = np.array([member.frame for member in members]).reshape(-1, 4)
  categories = np.array([member.category for member in members], int)
  pairs = []
  for i, one in enumerate(objects):
    near = (frames[:, :2] < one.frame[2:]) & (frames[:, 2:] > one.frame[:2])
    for j in np.flatnonzero(near.all(1) & (categories == one.category)).tolist():
      if (share := agreement(one, members[j])) > _SAME:
        pairs.append((-share, i, j))
  home = {id(member): group for group in groups for member in group}
  home |= {id(one): [one] for one in objects}
  for _, i, j in sorted(pairs):
    added, group = home[id(objects[i])], home[id(members[j])]
    if added is not group and not _apart(added, group):
      group += added
      home |= {id(member): group for member in added}
  return list({id(group): group for group in home.values()}.values())


def agreement(one: Found, other: Found) -> float:
  """How much the masks of two views agree in the part of the image that both show, 0 to 1.

  Where both views show the whole object, it is the IoU. Where an object is cut, it is the share of
  its mask that the other covers: of a part that is small or hardly known.
  """
  seen = _common(one.view.frame, other.view.frame)
  both = _common(seen, one.frame, other.frame)
  overlap = np.count_nonzero(one.part(both) & other.part(both))
  if not overlap:
    return 0.0
  areas = {each: np.count_nonzero(each.part(_common(seen, each.frame))) for each in (one, other)}
  cut = [area for each, area in areas.items() if each.cut]
  return overlap / (min(cut) if cut else sum(areas.values()) - overlap)


def _apart(one: Sequence[Found], other: Sequence[Found]) -> bool:
  """Whether a view has told objects of two groups apart, neither of which it saw in part."""
  return any(a.view is b.view and not (a.cut and b.cut) for a in one for b in other)


def _average(
  group: Sequence[Found],
) -> tuple[np.ndarray, Frame, bytes, int, int, float]:
  """(box, frame, packed mask, area, class, score) of what several views have found of an object."""
  whole = [each for each in group if not each.cut]
  boxes = np.stack([each.image_box for each in whole or group])
  if whole:
    box = np.average(boxes, axis=0, weights=[_weight(each) for each in whole])
  else:
    box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
  frame, mask = _average_mask(group)
  score = max(each.score for each in group)
  return box, frame, pack(mask), int(mask.sum()), group[0].category, score


def _weight(found: Found) -> float:
  """The weight of its view's pixel in the middle of its box."""
  middle = np.clip(found.box[:2] / 2 + found.box[2:] / 2, 0, np.array(found.view.size) - 1)
  return float(found.view.weights[tuple(middle.astype(int).tolist())])


def _average_mask(group: Sequence[Found]) -> tuple[Frame, np.ndarray]:
  """Where the mean over the views, of those that show a pixel, is above a half."""
  if len(group) == 1:
    return group[0].frame, group[0].mask
  frames = np.array([each.frame for each in group])
  frame: Frame = (*frames[:, :2].min(0).tolist(), *frames[:, 2:].max(0).tolist())
  total = np.zeros((frame[2] - frame[0], frame[3] - frame[1]), np.float32)
  weights = np.zeros_like(total)
  for view, probabilities in _probabilities(group, frame):
    part = _common(frame, view.frame)
    weight = view.weights[_within(part, view.frame)]
    total[_within(part, frame)] += weight * probabilities
    weights[_within(part, frame)] += weight
  return frame, total > 0.5 * weights


def _probabilities(group: Sequence[Found], frame: Frame) -> Iterator[tuple[View, np.ndarray]]:
  """Each view, and its probabilities float32 in what it shows of a frame: the parts it found."""
  views = {id(each.view): each.view for each in group}
  for view in views.values():
    shown = _common(frame, view.frame)
    probabilities = np.zeros((shown[2] - shown[0], shown[3] - shown[1]), np.float32)
    for each in group:
      if each.view is view:
        enlarged, _ = paste_probabilities(each.probabilities, each.box, view.size)
        place = probabilities[_within(each.frame, shown)]
        np.maximum(place, enlarged, out=place)
    yield view, probabilities


def _common(first: Frame, *others: Frame) -> Frame:
  """The part of an image that all frames hold; of no pixels where there is none."""
  y0, x0, y1, x1 = zip(first, *others, strict=True)
  top, left = max(y0), max(x0)
  return top, left, max(top, min(y1)), max(left, min(x1))


def _within(part: Frame, frame: Frame) -> tuple[slice, slice]:
  """The slices of a frame's pixels that are a part of it."""
  y0, x0 = frame[:2]
  return slice(part[0] - y0, part[2] - y0), slice(part[1] - x0, part[3] - x0)
