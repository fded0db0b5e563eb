"""COCO's average precision and recall of objects, of boxes and of masks, by pycocotools.

Truth and detections are kept per image until the end, because a precision at a recall needs the
scores of the whole split in one order.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from jseg import hosts
from jseg.data.files.instances import Objects, coco_masks, encode_rle
from jseg.metrics.images import ImageScores
from jseg.metrics.numbers import mean_of_present, percent, plain
from jseg.types import Json

_LEAST_SCORE = 0.5  # of detections that count in an image, as of those that are drawn
_SIZES = ("all", "small", "medium", "large")  # under 32^2 pixels, under 96^2, above

Row = dict[str, Any]
"""An annotation, a result or a match, as pycocotools has them."""


@dataclasses.dataclass(frozen=True)
class Precisions:
  """Average precision and recall of one kind of region; fractions, NaN where there is no truth.

  AP averages precision over 101 recall levels, the IoU thresholds .50, .55, ... .95, and the
  classes. AR averages the share of the objects that are found over thresholds and classes.

  Attributes:
    ap: AP.
    ap50: AP at the IoU threshold .50 alone.
    ap75: AP at the IoU threshold .75 alone.
    ap_by_size: AP of small (under 32^2 pixels), medium (under 96^2) and large objects.
    ar: AR with as many detections per image as were allowed.
    ar_by_size: AR of small, medium and large objects.
    ap_by_class: AP of each class, float64 [k]; NaN for background and absent classes.
    ap50_by_class: AP50 of each class, float64 [k].
    ar_by_class: AR of each class, float64 [k].
  """

  ap: float
  ap50: float
  ap75: float
  ap_by_size: dict[str, float]
  ar: float
  ar_by_size: dict[str, float]
  ap_by_class: np.ndarray
  ap50_by_class: np.ndarray
  ar_by_class: np.ndarray


@dataclasses.dataclass(frozen=True)
class InstanceScores:
  """Metrics of a split.

  Attributes:
    masks: AP and AR of the masks.
    boxes: AP and AR of the boxes.
    counts: true objects of each class, int64 [k]; crowds are not counted.
    images: objects of each image that were found (`matched`), not found (`missed`), and found
      where there is none (`false`); masks match from IoU .5, detections count from score .5.
      `f1` is 2 matched / (2 matched + missed + false). None: not known.
  """

  masks: Precisions
  boxes: Precisions
  counts: np.ndarray
  images: ImageScores | None = None

  @property
  def primary(self) -> float:
    """AP of the masks, which selects the best checkpoint."""
    return self.masks.ap

  def summary(self) -> dict[str, float]:
    """Returns AP and AP50 of masks (`map`, `map50`) and boxes (`box_map`, `box_map50`)."""
    return {
      "map": self.masks.ap,
      "map50": self.masks.ap50,
      "box_map": self.boxes.ap,
      "box_map50": self.boxes.ap50,
    }

  def to_dict(self, names: Sequence[str]) -> Json:
    """Plain numbers for JSON: `map`, `map50`, ... of masks, `box_map`, ... and `per_class`."""
    result: Json = {}
    for prefix, kind in (("", self.masks), ("box_", self.boxes)):
      values = {"map": kind.ap, "map50": kind.ap50, "map75": kind.ap75}
      values |= {f"map_{size}": value for size, value in kind.ap_by_size.items()}
      values |= {"mar": kind.ar} | {f"mar_{s}": value for s, value in kind.ar_by_size.items()}
      result |= plain({prefix + key: value for key, value in values.items()})
    columns = {
      "ap": self.masks.ap_by_class,
      "ap50": self.masks.ap50_by_class,
      "ar": self.masks.ar_by_class,
      "box_ap": self.boxes.ap_by_class,
    }
    result["per_class"] = {
      names[i]: plain({key: values[i] for key, values in columns.items()})
      | {"objects": int(self.counts[i])}
      for i in range(1, len(names))
    }
    return result

  def table(self, names: Sequence[str], title: str) -> Table:
    """Returns AP and AR per class, with the means below and AP by size in the caption.

    Args:
      names: names of the classes.
      title: heading.
    """
    table = Table(title=title, title_justify="left", show_footer=True)
    masks, boxes = self.masks, self.boxes
    table.add_column("class", "mean")
    table.add_column("mask AP", percent(masks.ap), justify="right")
    table.add_column("AP50", percent(masks.ap50), justify="right")
    table.add_column("AR", percent(masks.ar), justify="right")
    table.add_column("box AP", percent(boxes.ap), justify="right")
    table.add_column("objects", f"{self.counts.sum():,}", justify="right")
    for i, name in list(enumerate(names))[1:]:  # the background is no object
      table.add_row(
        name,
        percent(masks.ap_by_class[i]),
        percent(masks.ap50_by_class[i]),
        percent(masks.ar_by_class[i]),
        percent(boxes.ap_by_class[i]),
        f"{self.counts[i]:,}",
      )
    sizes = ", ".join(f"{size} {percent(value)}" for size, value in masks.ap_by_size.items())
    table.caption = f"mask AP75 {percent(masks.ap75)}; of objects by size: {sizes}"
    return table


@dataclasses.dataclass(frozen=True)
class AveragePrecisionState:
  """Truth and detections so far: `empty`, `update`, `merge`, `compute`. Never changed in place.

  What it computes depends neither on the order of the images nor on how they came in batches.

  Attributes:
    num_classes: k, with the background.
    images: by the image's position in the split, (height, width), annotations and results in
      COCO's form.
  """

  num_classes: int
  images: Mapping[int, tuple[tuple[int, ...], list[Row], list[Row]]]

  @classmethod
  def empty(cls, num_classes: int) -> "AveragePrecisionState":
    """Nothing seen yet. Raises InputError if pycocotools is missing."""
    coco_masks()
    return cls(num_classes, {})

  def update(self, index: int, truth: Objects, found: Objects) -> "AveragePrecisionState":
    """Adds one image.

    Args:
      index: position of the image in the split; a known one is replaced, one below 0 ignored.
      truth: true objects of the image.
      found: detected objects, with scores, at the image's own size.
    """
    if index < 0:
      return self
    image = (truth.size, coco_annotations(truth), coco_annotations(found))
    return AveragePrecisionState(self.num_classes, {**self.images, index: image})

  def merge(self, other: "AveragePrecisionState") -> "AveragePrecisionState":
    """Returns the union of two states."""
    return AveragePrecisionState(self.num_classes, {**self.images, **other.images})

  def gather(self) -> "AveragePrecisionState":
    """Returns the union over all processes, each of which must ask."""
    parts = hosts.gather(json.dumps(list(self.images.items()), default=bytes.decode).encode())
    images = {index: tuple(image) for part in parts for index, image in json.loads(part)}
    return self if len(parts) == 1 else AveragePrecisionState(self.num_classes, images)

  def compute(self, max_detections: int | None = 100) -> InstanceScores:
    """Returns the metrics.

    Args:
      max_detections: number of detections per image that count, the best ones; COCO's is 100. None:
        all do.
    """
    if max_detections is None:
      max_detections = max((len(found) for _, _, found in self.images.values()), default=1)
    annotations, results, sizes = [], [], []
    for index, (size, truth, found) in sorted(self.images.items()):
      sizes.append({"id": index, "height": size[0], "width": size[1]})
      annotations += [{**each, "image_id": index} for each in truth]
      results += [{**each, "image_id": index} for each in found]
    categories = [{"id": i} for i in range(1, self.num_classes)]
    (boxes, _), (masks, matches) = (
      _evaluate(sizes, categories, annotations, results, kind, max_detections)
      for kind in ("bbox", "segm")
    )
    present = [each["category_id"] for each in annotations if not each["iscrowd"]]
    counts = np.bincount(np.array(present, np.int64), minlength=self.num_classes)
    return InstanceScores(masks, boxes, counts, _image_scores(matches, sorted(self.images)))


def coco_annotations(objects: Objects) -> list[Row]:
  """Objects in COCO's form: boxes (x y width height), masks as RLE, scores where they have any."""
  rows = []
  for i in range(len(objects)):
    y0, x0, y1, x1 = objects.boxes[i].astype(float).tolist()
    row = {
      "category_id": int(objects.classes[i]),
      "bbox": [x0, y0, x1 - x0, y1 - y0],
      "segmentation": encode_rle(objects.crop(i), objects.frames[i].tolist(), objects.size),
      "area": float(objects.areas[i]),
      "iscrowd": int(objects.crowd[i]),
    }
    if objects.scores is not None:
      row["score"] = float(objects.scores[i])
    rows.append(row)
  return rows


def coco_results(
  images: Iterable[tuple[int | str, Objects]], category_ids: Sequence[int]
) -> list[Row]:
  """Returns detected objects as COCO's results, ready for `json.dump`.

  Args:
    images: (image id, its detected objects) of each image.
    category_ids: COCO's id of each class, `ClassInfo.values`.
  """
  results = []
  for image_id, objects in images:
    for row in coco_annotations(objects):
      rle = {"size": list(objects.size), "counts": row["segmentation"]["counts"].decode()}
      results.append(
        {
          "image_id": image_id,
          "category_id": category_ids[row["category_id"]],
          "bbox": [round(n, 2) for n in row["bbox"]],
          "segmentation": rle,
          "score": row["score"],
        }
      )
  return results


def _evaluate(
  images: list[Row],
  categories: list[Row],
  annotations: list[Row],
  results: list[Row],
  kind: str,
  max_detections: int,
) -> tuple[Precisions, list[Row]]:
  """Returns the precisions, and what COCO has matched by image, class and size."""
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  def coco(rows: Sequence[Row]) -> Any:
    # What COCO.loadRes makes of results, but for its refusal of none at all. Ids begin at 1: the
    # matching takes 0 for "no match".
    index = COCO()
    numbered = [{**row, "id": i} for i, row in enumerate(rows, 1)]
    index.dataset = {"images": images, "categories": categories, "annotations": numbered}
    index.createIndex()
    return index

  if kind == "bbox":
    results = [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in results]
  with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
    evaluation = COCOeval(coco(annotations), coco(results), kind)
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
  # [IoUs, recalls, classes, sizes, 1] and [IoUs, classes, sizes, 1]; -1 where there is no truth.
  precision, recall = (
    np.where(a < 0, np.nan, a)[..., 0]
    for a in (evaluation.eval["precision"], evaluation.eval["recall"])
  )

  def by_class(values: np.ndarray) -> np.ndarray:
    """NaN for the background, then means over all but the last axis."""
    axes = tuple(range(values.ndim - 1))
    return np.append(np.nan, values.mean(axes))

  precisions = Precisions(
    ap=mean_of_present(precision[..., 0]),
    ap50=mean_of_present(precision[0, ..., 0]),
    ap75=mean_of_present(precision[5, ..., 0]),
    ap_by_size={s: mean_of_present(precision[..., i]) for i, s in enumerate(_SIZES) if i},
    ar=mean_of_present(recall[..., 0]),
    ar_by_size={s: mean_of_present(recall[..., i]) for i, s in enumerate(_SIZES) if i},
    ap_by_class=by_class(precision[..., 0]),
    ap50_by_class=by_class(precision[0, ..., 0]),
    ar_by_class=by_class(recall[..., 0]),
  )
  return precisions, [each for each in evaluation.evalImgs if each is not None]


def _image_scores(matches: Sequence[Row], images: Sequence[int]) -> ImageScores:
  """Objects that were matched, missed and false in each image, of what COCO has matched.

  Args:
    matches: what COCO has matched, by image, class and size.
    images: positions of all images in the split, ascending.
  """
  row = {index: i for i, index in enumerate(images)}
  found = np.zeros((3, len(images)), np.int64)
  whole = max((each["aRng"][1] for each in matches if each["aRng"][0] == 0), default=0)
  for each in matches:
    if tuple(each["aRng"]) == (0, whole):  # objects of all sizes
      counts = ~each["dtIgnore"][0].astype(bool) & (np.array(each["dtScores"]) >= _LEAST_SCORE)
      hits = int((counts & (each["dtMatches"][0] > 0)).sum())
      truth = int((~each["gtIgnore"].astype(bool)).sum())
      found[:, row[each["image_id"]]] += hits, truth - hits, int(counts.sum()) - hits
  matched, missed, false = found
  with np.errstate(invalid="ignore"):
    f1 = 2 * matched / (2 * matched + missed + false)
  columns: dict[str, np.ndarray] = {"matched": matched, "missed": missed, "false": false, "f1": f1}
  return ImageScores(np.array(images, np.int64), columns, "f1")
