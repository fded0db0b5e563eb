"""Boxes, anchors, matching, sampling, suppression and RoIAlign against plain NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.nn import detection
from jseg.nn.detection import (
  Proposals,
  clip_boxes,
  decode_boxes,
  encode_boxes,
  has_sides,
  iou,
  make_anchors,
  region_levels,
  subsample_labels,
)
from jseg.types import Targets

# Operation by operation they would be dozens of programs each.
anchor_targets = jax.jit(detection.anchor_targets, static_argnames="samples")
crop_masks = jax.jit(detection.crop_masks, static_argnums=3)
detect = jax.jit(detection.detect, static_argnames=("min_score", "threshold", "limit"))
in_crowd = jax.jit(detection.in_crowd)
match_boxes = jax.jit(detection.match_boxes, static_argnames=("high", "low", "best_too"))
nms = jax.jit(detection.nms, static_argnames=("threshold", "limit"))
pool_regions = jax.jit(detection.pool_regions, static_argnames=("size", "strides", "rounded"))
propose = jax.jit(detection.propose, static_argnames=("candidates", "limit", "threshold"))
region_targets = jax.jit(
  detection.region_targets, static_argnames=("samples", "max_matches", "mask_size")
)
roi_pool = jax.jit(detection.roi_pool, static_argnames=("size", "strides"))
roi_align = jax.jit(detection.roi_align, static_argnames=("size", "strides", "ratio", "aligned"))

properties = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**31)


def random_boxes(rng, n, extent=40):
  """Whole numbers on a small map, so that there are duplicates, empty boxes and equal overlaps."""
  corner = rng.integers(-5, extent, (n, 2))
  return np.concatenate([corner, corner + rng.integers(0, 15, (n, 2))], 1).astype(np.float32)


def overlaps(boxes):
  """IoU of all pairs, in float32; 0 of empty ones."""
  a, b = boxes[:, None], boxes[None]
  low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
  shared = np.prod(np.maximum(high - low, 0), -1)
  area = np.prod(boxes[:, 2:] - boxes[:, :2], -1)
  union = area[:, None] + area[None] - shared
  return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def test_iou_by_hand():
  a = jnp.array([[0.0, 0, 4, 4], [2, 2, 2, 9]])
  b = jnp.array([[0.0, 0, 4, 4], [2, 2, 6, 4], [4, 0, 8, 4], [2, 2, 2, 9]])
  expected = [[1, 4 / 20, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(iou(a, b), expected, rtol=1e-6)


def test_clipped_boxes():
  boxes = jnp.array([[-3.0, 2, 50, 9], [-9, -9, -1, -1]])
  np.testing.assert_array_equal(
    clip_boxes(boxes, jnp.array([20, 8])), [[0, 2, 20, 8], [0, 0, 0, 0]]
  )


def test_sides_that_are_long_enough():
  boxes = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [5, 5, 3, 9], [1, 1, 1, 1]])
  assert list(has_sides(boxes, 2)) == [True, False, False, False]


def test_encoding_by_hand():
  box, reference = jnp.array([10.0, 20, 30, 60]), jnp.array([0.0, 0, 10, 80])
  # Centers (20, 40) and (5, 40), sizes (20, 40) and (10, 80).
  expected = [1.5 * 10, 0, math.log(2) * 5, -math.log(2) * 5]
  np.testing.assert_allclose(encode_boxes(box, reference, (10, 10, 5, 5)), expected, rtol=1e-6)


@properties
@given(seeds)
def test_decoding_undoes_encoding(seed):
  rng = np.random.default_rng(seed)
  one = np.array([0, 0, 1, 1])
  boxes, references = (random_boxes(rng, 20) + one for _ in range(2))
  weights = (10, 10, 5, 5)
  deltas = encode_boxes(jnp.float32(boxes), jnp.float32(references), weights)
  np.testing.assert_allclose(
    decode_boxes(deltas, jnp.float32(references), weights), boxes, atol=1e-4
  )


def test_growth_is_bounded_and_empty_boxes_are_finite():
  reference = jnp.array([[0.0, 0, 16, 16]])
  grown = decode_boxes(jnp.full((1, 4), 1e3).at[:, :2].set(0), reference)
  np.testing.assert_allclose(grown[0, 2:] - grown[0, :2], 1000, rtol=1e-5)
  empty = jnp.array([[3.0, 3, 3, 3]])
  for a, b in ((empty, reference), (reference, empty), (empty, empty)):
    assert np.isfinite(encode_boxes(a, b)).all()


def test_anchors_by_hand():
  (anchors,) = make_anchors((8, 12), [(2, 3)], [(4,)], (1, 4))
  anchors = anchors.reshape(2, 3, 2, 4)
  np.testing.assert_array_equal(anchors[0, 0], [[-2, -2, 2, 2], [-4, -1, 4, 1]])
  np.testing.assert_array_equal(anchors[1, 2, 0], [4 - 2, 8 - 2, 4 + 2, 8 + 2])


def greedy(boxes, scores, valid, threshold, most, groups):
  rivals = (overlaps(boxes) > threshold) & (groups[:, None] == groups[None])
  kept, gone = [], ~valid
  for i in np.argsort(-scores, kind="stable"):
    if not gone[i]:
      kept.append(int(i))
      gone |= rivals[i]
  return kept[:most]


@functools.partial(jax.jit, static_argnames="most")
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None, None))
def suppress(boxes, scores, valid, groups, threshold, most):
  return detection.nms(boxes, scores, valid, threshold=threshold, limit=most, groups=groups)


@properties
@given(seeds, st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.sampled_from([12, 50]))
def test_suppression_is_greedy(seed, threshold, most):
  # 120 cases an example, 3000 in all: equal scores, duplicates, empty boxes, none valid.
  rng = np.random.default_rng(seed)
  cases, n = 120, 50
  boxes = random_boxes(rng, cases * n, 25).reshape(cases, n, 4)
  scores = rng.integers(0, 30, (cases, n)).astype(np.float32) / 30
  valid = rng.random((cases, n)) < rng.choice([0, 0.5, 1], (cases, 1), p=[0.1, 0.3, 0.6])
  groups = rng.integers(0, 3, (cases, n))
  kept, filled = map(
    np.asarray, suppress(boxes, scores, valid, groups, np.float32(threshold), most)
  )
  for i in range(cases):
    expected = greedy(boxes[i], scores[i], valid[i], np.float32(threshold), most, groups[i])
    assert list(kept[i][filled[i]]) == expected
    assert list(np.flatnonzero(filled[i])) == list(range(len(expected)))


def test_suppression_over_several_blocks():
  rng = np.random.default_rng(0)
  n = 700
  boxes, scores = random_boxes(rng, n, 120), rng.random(n).astype(np.float32)
  everything, one = np.ones(n, bool), np.zeros(n, int)
  for most in (50, n):
    kept, filled = map(np.asarray, nms(boxes, scores, everything, threshold=0.3, limit=most))
    assert list(kept[filled]) == greedy(boxes, scores, everything, np.float32(0.3), most, one)


def test_a_chain_takes_as_many_rounds_as_it_has_links():
  # Each box suppresses the next alone, so that every other one stays.
  n = 300
  boxes = np.stack([np.zeros(n), np.arange(n), np.ones(n), np.arange(n) + 2.0], 1)
  kept, filled = nms(
    jnp.float32(boxes), jnp.arange(n, 0, -1.0), jnp.ones(n, bool), threshold=0.3, limit=n
  )
  assert list(kept[filled]) == list(range(0, n, 2))


OBJECTS = jnp.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 40], [0, 0, 0, 0]])


def test_matching_by_hand():
  boxes = jnp.array(
    [
      [0.0, 0, 10, 10],  # object 0 itself
      [0, 0, 10, 5],  # half of it: neither
      [0, 0, 2, 10],  # a fifth of it: background
      [20, 20, 30, 24],  # .4 of object 1, which nothing overlaps more
      [50, 50, 60, 60],
      [0, 20, 10, 40],  # object 2, which isn't valid
      [0, 0, 0, 0],
    ]
  )
  valid = jnp.array([True, True, False, False])
  run = functools.partial(match_boxes, boxes, OBJECTS, valid, high=0.7, low=0.3)
  index, label = run()
  assert list(label) == [1, -1, 0, -1, 0, 0, 0]
  assert index[0] == 0
  index, label = run(best_too=True)
  assert list(label) == [1, -1, 0, 1, 0, 0, 0]
  assert index[3] == 1


def test_boxes_in_a_crowd_by_hand():
  boxes = jnp.array(
    [
      [0.0, 20, 10, 40],  # the crowd itself
      [2, 22, 4, 30],
      [2, 12, 6, 22],  # .2 of it inside
      [5, 25, 12, 35],  # 50 of 70, just enough
      [5, 25, 13, 35],  # 50 of 80
      [0, 0, 100, 100],  # the crowd is inside of it
      [5, 25, 5, 25],  # nothing
      [20, 20, 30, 30],  # in an object that is no crowd
    ]
  )
  crowd = jnp.array([False, False, True, False])
  assert list(in_crowd(boxes, OBJECTS, crowd)) == [1, 1, 0, 1, 0, 0, 0, 0]
  assert not in_crowd(boxes, OBJECTS, ~crowd & False).any()


@pytest.mark.parametrize("best_too", [False, True])
def test_without_objects_all_is_background(best_too):
  boxes = jnp.concatenate([OBJECTS, OBJECTS + 3])
  none = jnp.zeros(4, bool)
  _, label = match_boxes(boxes, OBJECTS, none, high=0.7, low=0.3, best_too=best_too)
  assert list(label) == [0] * 8


def test_an_object_that_nothing_touches_takes_no_box():
  valid = jnp.array([True, False, False, False])
  _, label = match_boxes(OBJECTS + 100, OBJECTS, valid, high=0.7, low=0.3, best_too=True)
  assert list(label) == [0] * 4


@properties
@given(seeds, st.integers(0, 20), st.integers(0, 20))
def test_samples(seed, matches, others):
  rng = np.random.default_rng(seed)
  label = np.full(40, -1)
  label[rng.permutation(40)[: matches + others]] = [1] * matches + [0] * others
  index, filled = sample_eight(jax.random.key(seed), label)
  found = min(matches, 4)
  number = min(8, found + others)
  assert list(filled) == [True] * number + [False] * (8 - number)
  drawn = label[np.asarray(index)[:number]]
  assert list(drawn) == [1] * found + [0] * (number - found)
  assert len(set(index[:number].tolist())) == number


@jax.jit
def sample_eight(key, label):
  return subsample_labels(key, label, 8, 4)


def test_samples_are_drawn_evenly():
  label = jnp.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
  keys = jax.random.split(jax.random.key(0), 4000)
  index, _ = jax.vmap(lambda key: subsample_labels(key, label, 4, 2))(keys)
  counts = np.bincount(np.asarray(index).ravel(), minlength=10) / 4000
  np.testing.assert_allclose(counts, [0.5] * 4 + [1 / 3] * 6, atol=0.04)


def test_more_samples_than_boxes():
  index, filled = subsample_labels(jax.random.key(0), jnp.array([0, 1, -1, 0]), 9, 5)
  assert filled.sum() == 3
  assert set(index[filled].tolist()) == {0, 1, 3}


def test_proposals_by_hand():
  # Two levels; without deltas regions are the anchors, clipped to the image.
  anchors = [
    np.float32([[-4, 0, 8, 8], [0, 0, 8, 9], [20, 20, 30, 30], [40, 40, 50, 50]]),
    np.float32([[0, 0, 8, 8]]),
  ]
  logits, deltas = jnp.array([2.0, 1.0, 5.0, 3.0, 4.0]), jnp.zeros((5, 4))

  def run(candidates, limit):
    return propose(
      anchors,
      logits,
      deltas,
      jnp.array([32, 32]),
      candidates=candidates,
      limit=limit,
      threshold=0.7,
    )

  found = run(4, 5)
  # The fourth anchor is outside of the image. The second overlaps the first by 64 / 72, but the
  # first has the same box as that of the other level, which suppresses nothing here.
  expected = [[20, 20, 30, 30], [0, 0, 8, 8], [0, 0, 8, 8], [0] * 4, [0] * 4]
  np.testing.assert_array_equal(found.boxes, expected)
  assert list(found.valid) == [True] * 3 + [False] * 2
  # The two best of the first level, of which one is outside.
  found = run(2, 3)
  np.testing.assert_array_equal(found.boxes, [[20, 20, 30, 30], [0, 0, 8, 8], [0] * 4])
  assert list(run(4, 1).valid) == [True]


def test_detections_by_hand():
  boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [20, 20, 30, 30]])
  proposals = Proposals(boxes=boxes, valid=jnp.array([True, True, True, False]))
  probability = jnp.array([[0.1, 0.6, 0.3], [0.22, 0.5, 0.28], [0.6, 0.27, 0.13], [0, 1, 0]])
  # In units of a tenth of a side: class 2 of the first region is shifted by half of it.
  deltas = jnp.zeros((4, 3, 4)).at[0, 2].set(jnp.array([5.0, 0, 0, 0]))

  def run(size, limit):
    return detect(
      jnp.log(probability),
      deltas,
      proposals,
      jnp.array(size),
      min_score=0.25,
      threshold=0.5,
      limit=limit,
    )

  found = run([64, 64], 6)
  # The second region is suppressed in class 1 only.
  np.testing.assert_allclose(found.scores, [0.6, 0.3, 0.28, 0.27, 0, 0], rtol=1e-5)
  assert list(found.classes) == [1, 2, 2, 1, 0, 0]
  expected = [[0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0] * 4, [0] * 4]
  np.testing.assert_allclose(found.boxes, expected, atol=1e-4)
  assert list(found.valid) == [True] * 4 + [False] * 2
  assert found.masks is None
  # Outside of the image there is nothing; boxes end at its edge.
  found = run([12, 40], 3)
  np.testing.assert_allclose(
    found.boxes, [[0, 0, 10, 10], [5, 0, 12, 10], [0, 0, 10, 9]], atol=1e-4
  )


def some_targets():
  """Two objects, a crowd, and an empty slot."""
  boxes = jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 100, 100], [0, 0, 0, 0]])
  return Targets(
    boxes=boxes,
    frames=boxes,
    masks=jnp.zeros((4, 8, 8), jnp.uint8).at[0].set(255).at[1, :4].set(255),
    classes=jnp.array([3, 7, 1, 0]),
    valid=jnp.array([True, True, True, False]),
    crowd=jnp.array([False, False, True, False]),
  )


def test_targets_of_anchors_by_hand():
  anchors = np.float32(
    [
      [0, 0, 10, 10],  # the first object itself
      [20, 20, 40, 34],  # .7 of the second
      [20, 20, 40, 30],  # half of it: neither
      [0, 50, 10, 60],  # background
      [62, 62, 80, 80],  # in the crowd
      [110, 50, 130, 70],  # centered on padding
    ]
  )
  size = jnp.array([110, 110])
  got = anchor_targets(jax.random.key(0), anchors, some_targets(), size, samples=6)
  assert list(got.labels) == [True, True, False, False, False, False]
  assert list(got.sampled) == [True, True, False, True, False, False]
  np.testing.assert_allclose(got.deltas[0], 0, atol=1e-6)
  # The center is 3 of 14 pixels away, and 20 / 14 is the growth.
  np.testing.assert_allclose(got.deltas[1], [0, 3 / 14, 0, np.log(20 / 14)], atol=1e-6)
  assert not got.deltas[2:].any()
  got = anchor_targets(jax.random.key(0), anchors, some_targets(), size, samples=2)
  assert got.sampled.sum() == 2  # one match of the two, one of background
  assert got.sampled[3]


def test_targets_of_regions_by_hand():
  boxes = jnp.array(
    [[20.0, 20, 40, 32], [0, 50, 10, 60], [62, 62, 80, 80], [0, 0, 10, 10], [70, 0, 80, 10]]
  )
  proposals = Proposals(boxes=boxes, valid=jnp.array([True, True, True, False, True]))
  got = region_targets(
    jax.random.key(0), proposals, some_targets(), samples=8, max_matches=6, mask_size=4
  )
  # Matches are the first region and both objects themselves; background the second and the last.
  assert got.sampled.tolist() == [True] * 5 + [False] * 3
  found = {tuple(box): i for i, box in enumerate(got.boxes[:5].tolist())}
  assert set(found) == {
    (20, 20, 40, 32),
    (0, 0, 10, 10),
    (20, 20, 40, 40),
    (0, 50, 10, 60),
    (70, 0, 80, 10),
  }
  assert sorted(got.classes[:3].tolist()) == [3, 7, 7]
  assert not got.classes[3:].any()
  part = found[20, 20, 40, 32]
  # The center is 4 of 12 pixels away, times 10, and 20 / 12 is the growth, times 5.
  np.testing.assert_allclose(got.deltas[part], [0, 40 / 12, 0, 5 * np.log(20 / 12)], atol=1e-5)
  assert not got.deltas[3:].any()
  # The three matches, repeated, of which only the first three count.
  assert got.mask_valid.tolist() == [True] * 3 + [False] * 3
  np.testing.assert_array_equal(got.mask_boxes, got.boxes[jnp.array([0, 1, 2, 0, 1, 2])])
  np.testing.assert_array_equal(got.mask_classes, got.classes[jnp.array([0, 1, 2, 0, 1, 2])])
  np.testing.assert_allclose(got.masks[found[0, 0, 10, 10]], 1, atol=1e-6)
  upper = np.repeat([1.0, 1, 0, 0], 4).reshape(4, 4)
  np.testing.assert_allclose(got.masks[part], upper, atol=1e-6)
  assert not got.masks[3:].any()


def test_regions_of_a_batch_are_pooled_image_by_image():
  rng = np.random.default_rng(0)
  levels = [jnp.float32(rng.normal(size=(2, h, w, 3))) for h, w in ((9, 7), (5, 4))]
  boxes = jnp.float32([[[0, 0, 20, 20], [5, 5, 17, 30]], [[0, 0, 200, 200], [3, 1, 9, 9]]])
  listed, image = boxes.reshape(4, 4), jnp.array([0, 0, 1, 1])
  for rounded, pool in ((False, roi_align), (True, roi_pool)):
    ours = pool_regions(levels, listed, image, size=2, strides=(4, 8), rounded=rounded)
    expected = [
      pool([level[i] for level in levels], boxes[i], size=2, strides=(4, 8)) for i in range(2)
    ]
    np.testing.assert_allclose(ours, np.concatenate(expected), atol=1e-6)


def test_levels():
  edges = np.array([0, 10, 111, 112, 223, 224, 447, 448, 2000], np.float32)
  boxes = jnp.stack([jnp.zeros(9), jnp.zeros(9), edges, edges], -1)
  assert list(region_levels(boxes, (4, 8, 16, 32))) == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def bilinear(x, y0, x0):
  """torchvision's: what is outside by more than a cell is 0, else the edge is repeated."""
  h, w, _ = x.shape
  if not (-1 <= y0 <= h and -1 <= x0 <= w):
    return 0
  y0, x0 = np.clip(y0, 0, h - 1), np.clip(x0, 0, w - 1)
  i, j = int(y0), int(x0)
  k, m = min(i + 1, h - 1), min(j + 1, w - 1)
  a, b = y0 - i, x0 - j
  return (1 - a) * ((1 - b) * x[i, j] + b * x[i, m]) + a * ((1 - b) * x[k, j] + b * x[k, m])


def level_by_hand(box, strides):
  edge = math.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
  level = 0
  while level + 1 < len(strides) and edge >= 56 * strides[0] / 4 * 2 ** (level + 1):
    level += 1
  return level


def align_by_hand(levels, boxes, size, strides, ratio, aligned):
  result = np.zeros((len(boxes), size, size, levels[0].shape[-1]))
  for p, box in enumerate(np.float64(boxes)):
    level = level_by_hand(box, strides)
    start, end = box[:2] / strides[level], box[2:] / strides[level]
    if aligned:
      start, end = start - 0.5, end - 0.5
    length = end - start if aligned else np.maximum(end - start, 1)
    for i in range(size):
      for j in range(size):
        for a in range(ratio):
          for b in range(ratio):
            at = start + length * np.array([i + (a + 0.5) / ratio, j + (b + 0.5) / ratio]) / size
            result[p, i, j] += bilinear(levels[level], *at) / ratio**2
  return result


def pool_by_hand(levels, boxes, size, strides):
  result = np.zeros((len(boxes), size, size, levels[0].shape[-1]))
  for p, box in enumerate(np.float64(boxes)):
    level = level_by_hand(box, strides)
    x = levels[level]
    corners = np.floor(box / strides[level] + 0.5).astype(int)
    cells = np.maximum(corners[2:] - corners[:2] + 1, 1)
    for i, j in itertools.product(range(size), repeat=2):
      first = corners[:2] + np.array([i, j]) * cells // size
      last = corners[:2] - (-(np.array([i, j]) + 1) * cells // size)
      (y0, x0), (y1, x1) = np.maximum(first, 0), np.maximum(last, 0)
      bin_ = x[y0:y1, x0:x1]
      result[p, i, j] = bin_.max((0, 1)) if bin_.size else 0
  return result


def some_regions(seed):
  """40 regions of all kinds, and a pyramid of two levels."""
  rng = np.random.default_rng(seed)
  levels = [rng.normal(size=(h, w, 2)).astype(np.float32) for h, w in ((9, 7), (5, 4))]
  corner, size = rng.uniform(-30, 60, (40, 2)), rng.exponential(60, (40, 2))
  size[:5] = 0
  boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
  # On the border between levels rounding decides.
  boxes = boxes[np.abs(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], 1)) - 112) > 0.1]
  return levels, np.concatenate([boxes, np.zeros((40 - len(boxes), 4), np.float32)])


@properties
@given(seeds)
def test_roi_pool_is_a_maximum(seed):
  levels, boxes = some_regions(seed)
  # So is half a cell.
  parts = [np.abs(boxes / stride % 1 - 0.5).min(1) > 1e-3 for stride in (4, 8)]
  boxes[~np.logical_and(*parts)] = 0
  ours = roi_pool(levels, boxes, size=2, strides=(4, 8))
  np.testing.assert_array_equal(ours, pool_by_hand(levels, boxes, 2, (4, 8)).astype(np.float32))


@properties
@given(seeds, st.sampled_from([(2, False), (2, True), (1, False)]))
def test_roi_align_is_a_mean_of_samples(seed, form):
  # A thousand regions in all.
  levels, boxes = some_regions(seed)
  ratio, aligned = form
  ours = roi_align(levels, boxes, size=2, strides=(4, 8), ratio=ratio, aligned=aligned)
  np.testing.assert_allclose(ours, align_by_hand(levels, boxes, 2, (4, 8), *form), atol=2e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_of_roi_align(aligned):
  rng = np.random.default_rng(0)
  levels = tuple(jnp.float32(rng.normal(size=(h, w, 2))) for h, w in ((9, 7), (5, 4)))
  corner = rng.uniform(-10, 30, (6, 2))
  boxes = jnp.float32(np.concatenate([corner, corner + rng.uniform(0, 200, (6, 2))], 1))
  align = functools.partial(roi_align, boxes=boxes, size=3, strides=(4, 8), aligned=aligned)
  # Pooling is linear: y . (A x) is (A' y) . x, for regions of two images at a time.
  batch = tuple(jnp.stack([level, level[::-1]]) for level in levels)
  pooled, pull = jax.vjp(jax.jit(jax.vmap(align)), batch)
  y = jnp.float32(rng.normal(size=pooled.shape))
  (gradient,) = pull(y)
  for i in range(2):
    sums = [(g[i] * x[i]).sum() for g, x in zip(gradient, batch, strict=True)]
    np.testing.assert_allclose(sum(sums), (y[i] * pooled[i]).sum(), rtol=1e-4)
  assert all(g.any() for g in gradient)


def test_roi_align_of_a_line_is_exact():
  # Bilinear samples of a linear map are the map itself; cell i is centered at i + .5 if aligned.
  rows = jnp.broadcast_to(jnp.arange(16.0)[:, None, None], (16, 16, 1))
  box = jnp.array([[8.0, 8, 40, 40]])
  aligned = roi_align([rows], box, size=2, strides=(4,), aligned=True)
  np.testing.assert_allclose(aligned[0, :, 0, 0], [4 - 0.5, 8 - 0.5])
  plain = roi_align([rows], box, size=2, strides=(4,))
  np.testing.assert_allclose(plain[0, :, 0, 0], [4, 8])


def test_masks_are_cropped():
  mask = np.zeros((1, 8, 8), np.uint8)
  mask[:, :4] = 255  # the upper half
  frame = jnp.array([[10.0, 20, 26, 36]])
  whole = crop_masks(jnp.asarray(mask), frame, frame, 4)
  np.testing.assert_allclose(whole[0], [[1] * 4] * 2 + [[0] * 4] * 2, atol=1e-6)
  # Beyond the frame's upper edge and off its grid; no cell is faded towards an edge.
  above = crop_masks(jnp.asarray(mask), frame, jnp.array([[7.0, 20, 19, 28]]), 2)
  np.testing.assert_allclose(above[0], [[3 / 6] * 2, [5 / 6] * 2], rtol=1e-5)
  inside = crop_masks(jnp.asarray(mask), frame, jnp.array([[10.0, 20, 11, 36]]), 4)
  np.testing.assert_allclose(inside[0], np.ones((4, 4)), rtol=1e-5)
  far = crop_masks(jnp.asarray(mask), frame, frame + 100, 4)
  assert not far.any()
  empty = crop_masks(jnp.asarray(mask), jnp.zeros((1, 4)), jnp.zeros((1, 4)), 4)
  assert np.isfinite(empty).all()


@properties
@given(seeds)
def test_cropped_masks_keep_the_covered_area(seed):
  # Boxes of any size around, inside and across the frame; cells of 3 pixels, counted one by one.
  rng = np.random.default_rng(seed)
  masks = rng.integers(0, 256, (20, 8, 8), np.uint8)
  pixels = np.zeros((20, 72, 72))
  pixels[:, 24:48, 24:48] = masks.repeat(3, 1).repeat(3, 2) / 255
  low = rng.integers(0, 60, (20, 2))
  size = 4 * np.minimum(rng.integers(1, 15, (20, 2)), (72 - low) // 4)
  frames = np.tile(np.float32([[24, 24, 48, 48]]), (20, 1))
  boxes = np.concatenate([low, low + size], 1).astype(np.float32)
  ours = crop_masks(jnp.asarray(masks), jnp.asarray(frames), jnp.asarray(boxes), 4)
  for mask, (y, x), (h, w), result in zip(pixels, low, size, ours, strict=True):
    expected = mask[y : y + h, x : x + w].reshape(4, h // 4, 4, w // 4).mean((1, 3))
    np.testing.assert_allclose(result, expected, atol=1e-5)
