"""The generated data set: deterministic, and without hints only shape tells classes apart."""

import cv2
import numpy as np
import pytest

from jseg.data.files.images import decode_image, decode_raw
from jseg.data.sources import shapes
from jseg.types import IGNORE, InputError


def pictures(count, size=64, hints=0.9):
  return [shapes.draw(np.random.default_rng(i), size, hints) for i in range(count)]


def test_a_picture_is_a_function_of_seed_split_and_index():
  def data(**changes):
    fields = {"size": 48, "seed": 1, "split": 0, "index": 5, "hints": 0.9} | changes
    return shapes.ShapesItem(**fields).load().image

  assert data() == data()
  others = {data(seed=2), data(split=1), data(index=6)}
  assert len(others | {data()}) == 4


def test_examples_agree_with_what_is_drawn():
  example = shapes.ShapesItem(48, 0, 0, 3, 0.9).load()
  label, objects = decode_raw(example.label), example.objects
  assert decode_image(example.image).shape == (48, 48, 3)
  assert example.counts.sum() == 48 * 48
  assert example.counts[2] == (label == 2).sum()
  for i in range(len(objects)):
    mask = objects.mask(i)
    assert mask.sum() == objects.areas[i] > 10
    assert set(np.unique(label[mask]).tolist()) - {IGNORE} == {objects.classes[i]}


def test_each_object_has_one_class_and_void_runs_along_outlines():
  for _, label, instance in pictures(20):
    for number in range(1, instance.max() + 1):
      classes = set(np.unique(label[instance == number]).tolist()) - {IGNORE}
      assert len(classes) == 1
      assert classes <= {1, 2, 3, 4}
    void = label == IGNORE
    assert 0.01 < void.mean() < 0.25
    # Wherever two objects meet, the outline of the nearer one lies between them.
    right = instance[:, 1:] != instance[:, :-1]
    assert (void[:, 1:] | void[:, :-1])[right].mean() > 0.95


def test_no_object_is_buried():
  for _, _, instance in pictures(20):
    assert instance.max() >= 2
    assert (np.bincount(instance.ravel())[1:] > 10).all()


@pytest.mark.parametrize(("hints", "alike"), [(0.0, True), (1.0, False)])
def test_classes_are_balanced_and_colors_tell_as_much_as_is_asked(hints, alike):
  colors, counts = {i: [] for i in range(1, 5)}, np.zeros(5)
  for image, label, _ in pictures(150, hints=hints):
    for i in colors:
      counts[i] += (label == i).any()
      colors[i].append(image[label == i].mean(0) if (label == i).any() else [np.nan] * 3)
  assert (counts[1:] > 60).all()
  means = np.array([np.nanmean(colors[i], 0) for i in colors])
  # Of 255, where single objects differ by a hundred.
  assert np.ptp(means, 0).max() < 30 if alike else np.ptp(means, 0).min() > 60


def test_discs_are_round_and_rectangles_fill_their_hull():
  def roundness(kind):
    """Area over that of the smallest enclosing circle, for objects away from the border."""
    values = []
    for seed in range(30):
      rng = np.random.default_rng(seed)
      axis = np.arange(-32, 32, dtype=np.float32) + 0.5
      distance = shapes._distance(rng, kind, axis[None, :] + 0 * axis[:, None], axis[:, None], 20)
      inside = (np.broadcast_to(distance, (64, 64)) < 0).astype(np.uint8)
      (outline,), _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
      _, radius = cv2.minEnclosingCircle(outline)
      values.append(inside.sum() / (np.pi * (radius + 0.5) ** 2))
    return np.mean(values)

  disc, rectangle, triangle, star = (roundness(kind) for kind in (1, 2, 3, 4))
  assert disc > 0.95
  assert 0.5 < rectangle < 0.68  # 2/pi for a square
  assert 0.3 < triangle < 0.45  # 0.41 for an equilateral one
  assert 0.25 < star < 0.55


def test_splits_of_zero_are_left_out():
  source = shapes.shapes_source(size=32, train=3, val=2, test=0)
  assert {split: len(items) for split, items in source.splits.items()} == {"train": 3, "val": 2}
  other = shapes.shapes_source(size=32, train=3, val=2, test=0, seed=1)
  assert source.fingerprint() != other.fingerprint()


def test_impossible_options():
  with pytest.raises(InputError, match="size 16 leaves no room"):
    shapes.shapes_source(size=16)
  with pytest.raises(InputError, match="must be 0 or more"):
    shapes.shapes_source(train=-1)
