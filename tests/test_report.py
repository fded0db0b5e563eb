import dataclasses
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jseg import report
from jseg.data.files.instances import Annotation, coco_masks, make_objects
from jseg.metrics import AveragePrecisionState, ConfusionState, coco_results
from jseg.types import IGNORE

PALETTE = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)


def test_overlay_by_hand():
  image = np.full((1, 3, 3), 100, np.uint8)
  mask = np.array([[0, 1, IGNORE]], np.uint8)
  shown = report.overlay(image, mask, PALETTE, alpha=0.5)
  assert shown.tolist() == [[[50, 50, 50], [150, 100, 50], [100, 100, 100]]]
  gray = report.overlay(image[..., :1], mask, PALETTE, alpha=0.5)
  assert gray.tolist() == shown.tolist()


def test_the_table_names_classes_means_and_absent_ones():
  scores = ConfusionState(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).compute()
  console = Console(width=100)
  with console.capture() as capture:
    console.print(scores.table(["sky", "road", "bus"], "val"))
  text = capture.get()
  for part in ("sky", "75.0 %", "80.0 %", "absent", "77.5 %", "87.5 %"):
    assert part in text, part


def test_pictures_are_written(tmp_path):
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 255, (5, 3, 20, 30, 3), np.uint8)
  legend = [("a", (0, 0, 0)), ("b", (200, 100, 0))]
  report.save_samples(rows, legend, tmp_path / "samples.png", "step 3")
  report.save_samples(rows, (), tmp_path / "plain.png", "step 3")
  scores = ConfusionState(np.array([[3, 1], [0, 0]])).compute()
  report.save_confusion_plot(scores, ["a", "b"], tmp_path / "confusion.png")
  lines = [
    {"step": 1, "split": "train", "loss": 1.0, "miou": 0.1},
    {"step": 1, "split": "val", "miou": None},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  report.save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
  for name in ("samples", "plain", "confusion", "curves"):
    with Image.open(tmp_path / f"{name}.png") as picture:
      pixels = np.asarray(picture)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 10


def test_the_legend_leaves_out_what_the_image_has_not():
  both = report.legend({"a": 0.25, "b": 0.75}, PALETTE)
  one = report.legend({"a": 1.0, "b": 0.0}, PALETTE)
  assert both.height > one.height
  orange = (np.asarray(one) == PALETTE[1]).all(-1).sum()
  assert orange == 0
  assert (np.asarray(both) == PALETTE[1]).all(-1).sum() > 50


@pytest.mark.parametrize(
  "name", ["$x_{", "a$b$", "$\\frac{$", "_under", "[/b]", "a\x1b[31m", "a\nb"]
)
def test_names_are_drawn_as_they_are(tmp_path, name):
  # As mathematics, a name would be another or end a training.
  assert np.asarray(report.legend({name: 1.0}, PALETTE[:1])).std() > 0
  rows = np.zeros((1, 3, 8, 8, 3), np.uint8)
  report.save_samples(rows, [(name, (0, 0, 0))], tmp_path / "samples.png", "step 3")
  scores = ConfusionState(np.array([[3]])).compute()
  report.save_confusion_plot(scores, [name], tmp_path / "confusion.png")
  objects = dataclasses.replace(two_objects(), classes=np.array([1, 1], np.int32))
  report.draw_objects(np.zeros((30, 40, 3), np.uint8), objects, ["none", name])


def test_a_name_with_dollars_takes_the_room_of_its_letters():
  wide, narrow = (report.legend({"x" * n: 1.0}, PALETTE[:1]) for n in (18, 12))
  shown = report.legend({"$xxxx$xxxx$xxxx$xx": 1.0}, PALETTE[:1])
  ink = lambda picture: (np.asarray(picture) < 128).any((0, 2)).sum()  # noqa: E731
  assert ink(shown) > ink(narrow)
  assert wide.size == shown.size


def test_an_overlay_of_a_large_image_takes_little_more_than_itself():
  image = np.zeros((2000, 3000, 3), np.uint8)
  mask = np.zeros((2000, 3000), np.uint8)
  tracemalloc.start()
  shown = report.overlay(image, mask, PALETTE)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert shown.nbytes < peak < 2 * shown.nbytes


def two_objects(scores=None, size=(30, 40)):
  """A 10 x 10 square, and a 4 x 8 one over its corner."""
  square, bar = np.zeros(size, bool), np.zeros(size, bool)
  square[5:15, 5:15], bar[12:16, 10:18] = True, True
  objects = make_objects(size, [Annotation(square, 1), Annotation(bar, 2)])
  scores = None if scores is None else np.array(scores, np.float32)
  return dataclasses.replace(objects, scores=scores)


def test_objects_are_drawn_where_they_are_in_colors_of_their_own():
  image = np.full((30, 40, 1), 100, np.uint8)
  shown = report.draw_objects(image, two_objects(), ["none", "square", "bar"], longest=400)
  assert shown.shape == (300, 400, 3)
  plain = report.draw_objects(image, None, ["none", "square", "bar"], longest=400)
  assert (plain == 100).all()
  changed = (shown != 100).any(-1)
  assert not changed[200:].any()
  assert not changed[:, 250:].any()
  inside = {tuple(shown[y, x].tolist()) for y, x in ((100, 60), (140, 170))}
  assert len(inside) == 2
  # Below .5 nothing is drawn.
  found = report.draw_objects(
    image, two_objects([0.9, 0.3]), ["none", "square", "bar"], longest=400
  )
  assert (found[100, 60] == shown[100, 60]).all()
  assert (found[155, 170] == 100).all()


def test_found_objects_have_the_colors_of_those_that_they_cover():
  truth = two_objects()
  # The other way round, of other classes, and with one that is nowhere in front.
  size = truth.size
  elsewhere = np.zeros(size, bool)
  elsewhere[20:28, 20:28] = True
  masks = [elsewhere, truth.mask(1), truth.mask(0)]
  found = make_objects(size, [Annotation(mask, 1) for mask in masks])
  found = dataclasses.replace(found, scores=np.array([0.9, 0.8, 0.7], np.float32))
  numbers = report.same_colors(truth, found)
  assert numbers[1:] == [1, 0]
  assert numbers[0] not in (0, 1)
  image, names = np.full((30, 40, 1), 100, np.uint8), ["none", "square", "bar"]
  shown, drawn = (
    report.draw_objects(image, objects, names, longest=400, numbers=given)
    for objects, given in ((truth, None), (found, numbers))
  )
  for y, x in ((100, 60), (145, 170)):
    assert drawn[y, x].tolist() == shown[y, x].tolist()
  # Of two on one object the better one has its color; below an IoU of .5 nobody, nor in a crowd.
  part = np.zeros(size, bool)
  part[5:15, 5:9] = True
  twice = make_objects(size, [Annotation(mask, 1) for mask in (truth.mask(0), truth.mask(0), part)])
  twice = dataclasses.replace(twice, scores=np.array([0.6, 0.9, 0.8], np.float32))
  assert report.same_colors(truth, twice) == [2, 0, 4]
  crowd = dataclasses.replace(truth, crowd=np.array([True, False]))
  assert report.same_colors(crowd, twice) == [2, 3, 4]
  none = make_objects(size, [])
  assert report.same_colors(truth, dataclasses.replace(none, scores=np.zeros(0))) == []
  assert report.same_colors(none, twice) == [0, 1, 2]


def test_large_images_and_objects_of_no_pixel_are_drawn():
  objects = two_objects([0.9, 0.8], size=(900, 1300))
  objects.frames[1] = [3, 3, 3, 3]
  objects.masks[1] = zlib.compress(b"")
  shown = report.draw_objects(np.zeros((900, 1300, 3), np.uint8), objects, list("abc"), longest=100)
  assert shown.shape == (69, 100, 3)
  assert shown.any()


def test_the_instance_map_has_the_best_in_front(tmp_path):
  for scores, corner in (([0.9, 0.2], 1), ([0.2, 0.9], 2), (None, 2)):
    report.save_instance_map(two_objects(scores), tmp_path / "map.png")
    ids = np.asarray(Image.open(tmp_path / "map.png"))
    assert ids.dtype == np.uint16
    assert ids[13, 12] == corner  # where they overlap
    assert (ids[6, 6], ids[15, 17], ids[0, 0]) == (1, 2, 0)


def test_results_are_cocos():
  objects = two_objects([0.25, 0.5])
  results = json.loads(json.dumps(coco_results([(42, objects)], [0, 7, 90])))
  assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
    (42, 7, 0.25),
    (42, 90, 0.5),
  ]
  assert results[1]["bbox"] == [10, 12, 8, 4]
  for i, row in enumerate(results):
    decoded = coco_masks().decode(row["segmentation"])
    np.testing.assert_array_equal(decoded, objects.mask(i))


def test_the_table_of_precisions():
  state = AveragePrecisionState.empty(4).update(0, two_objects(), two_objects([0.9, 0.8]))
  names = ["background", "square", "bar", "never"]
  console = Console(width=100)
  with console.capture() as capture:
    console.print(state.compute().table(names, "val, step 3"))
  text = capture.get()
  for part in ("square", "100.0 %", "never", "absent", "mask AP75", "large absent"):
    assert part in text, part
  assert "background" not in text
