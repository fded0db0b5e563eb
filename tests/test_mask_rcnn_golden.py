"""Mask R-CNN and its parts equal torchvision's on the same weights; see tests/golden/README.md."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import formula
from helpers.golden import check, read, weights

from jseg import models
from jseg.arithmetic import cdiv
from jseg.data import find_keypoints, objects_from_detections
from jseg.losses import detection_losses as losses
from jseg.losses import keypoint_loss
from jseg.nn import detection
from jseg.types import InputError, Targets
from jseg.weights import convert, recognize

roi_align = jax.jit(detection.roi_align, static_argnames=("size", "strides", "aligned"))
roi_pool = jax.jit(detection.roi_pool, static_argnames=("size", "strides"))

XY = [1, 0, 3, 2]  # from x y x y to y x y x, and back


def maps(name, size):
  shapes = [(1, 4, size[0] >> i, size[1] >> i) for i in range(2, 6)]
  images = [formula.image(f"{name}{i}", shape) for i, shape in enumerate(shapes, 2)]
  return [jnp.asarray(x[0].transpose(1, 2, 0)) for x in images]


@pytest.mark.parametrize(("aligned", "key"), [(False, "plain"), (True, "aligned")])
def test_roi_align(aligned, key):
  results, _ = read("detection_ops")
  boxes = jnp.asarray(results["roi_boxes"][:, XY])
  ours = roi_align(maps("map", (96, 128))[:1], boxes, size=3, strides=(4,), aligned=aligned)
  reference = results[f"roi_align_{key}"].transpose(0, 2, 3, 1)
  # A place of up to 32 cells has a rounding of 2^-19, which goes through a few operations.
  np.testing.assert_allclose(ours, reference, atol=1e-4)
  assert reference.std() > 0.1


def test_roi_align_of_a_pyramid():
  results, _ = read("detection_ops")
  boxes = jnp.asarray(results["pyramid_boxes"][:, XY])
  ours = roi_align(maps("large", (512, 512)), boxes, size=3, strides=(4, 8, 16, 32))
  reference = results["pyramid_align"].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_roi_pool():
  results, _ = read("detection_ops")
  boxes = jnp.asarray(results["pool_boxes"][:, XY])
  ours = roi_pool(maps("map", (96, 128))[:1], boxes, size=3, strides=(4,))
  np.testing.assert_allclose(ours, results["roi_pool"].transpose(0, 2, 3, 1), atol=1e-6)


def test_anchors():
  made = detection.make_anchors((96, 64), [(3, 2), (2, 1)], [(32,), (20, 45)])
  ours = np.concatenate(made)
  np.testing.assert_array_equal(ours, read("detection_ops")[0]["anchors"][:, XY])


@functools.cache
def network(name):
  results, meta = read(name)
  tensors = weights(meta)
  source = recognize(tensors)
  variables, unused = convert(tensors, source.layers)
  assert not unused
  theirs = meta["arguments"]
  model = models.create(
    "mask_rcnn",
    theirs["num_classes"],
    **source.networks["mask_rcnn"],
    proposals=(200, 200),
    candidates=(300, 300),
    detections=theirs["box_detections_per_img"],
    anchor_samples=theirs["rpn_batch_size_per_image"],
    samples=theirs["box_batch_size_per_image"],
    positives=theirs["box_positive_fraction"],
  )
  return model, jax.tree.map(jnp.asarray, variables), results, meta


def image(meta, i):
  x = formula.image(f"image{i}", (1, 3, *meta["sizes"][i]))
  return jnp.asarray(x.transpose(0, 2, 3, 1))


def close(ours, reference, name=""):
  """To 1e-3 of the standard deviation."""
  ours = np.asarray(ours)
  assert ours.shape == reference.shape, name
  np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-3 * reference.std(), err_msg=name)


def kept(x, channels_first=True):
  """What the golden file keeps of a map, [b c h w] or [n c]."""
  shape = x.shape
  limits = (8, 8, 4, 6) if len(shape) == 4 else (12, 24)
  return x[tuple(slice(None, None, cdiv(n, k)) for n, k in zip(shape, limits, strict=False))]


def to_xy(deltas):
  return deltas.reshape(*deltas.shape[:-1], -1, 4)[..., XY].reshape(deltas.shape)


@pytest.mark.parametrize(
  ("name", "i"),
  [("maskrcnn_resnet50_fpn", 0), ("maskrcnn_resnet50_fpn", 1), ("maskrcnn_resnet50_fpn_v2", 1)],
)
def test_network(name, i):
  model, variables, results, meta = network(name)
  x = image(meta, i)
  check(model, variables, x)
  found, state = jax.device_get(
    jax.jit(functools.partial(model.apply, capture_intermediates=True))(variables, x)
  )
  inner = {key: state["intermediates"][key]["__call__"] for key in ("fpn", "rpn", "box_head")}
  levels = [level.transpose(0, 3, 1, 2) for level in inner["fpn"][0]]
  ends = np.cumsum([3 * math.prod(level.shape[2:]) for level in levels])
  all_scores, all_deltas = (np.split(a, ends, axis=1) for a in inner["rpn"][0])
  assert all_scores[-1].size == all_deltas[-1].size == 0
  for number, (level, scores, deltas) in enumerate(
    zip(levels, all_scores[:-1], all_deltas[:-1], strict=True), 2
  ):
    close(kept(level), results[f"p{number}_{i}"], f"p{number}")
    size = level.shape[2:]
    scores = scores.reshape(1, *size, 3).transpose(0, 3, 1, 2)
    close(kept(scores), results[f"rpn_score{number}_{i}"], f"scores of p{number}")
    deltas = to_xy(deltas.reshape(1, *size, 12)).transpose(0, 3, 1, 2)
    close(kept(deltas), results[f"rpn_box{number}_{i}"], f"boxes of p{number}")
  valid = len(results[f"proposals_{i}"])
  class_logits, deltas = (a[:valid] for a in inner["box_head"][0])
  close(kept(class_logits), results[f"class_logits_{i}"], "class logits")
  deltas = to_xy(deltas).reshape(len(deltas), -1)
  close(kept(deltas), results[f"box_deltas_{i}"], "box deltas")

  # Detections are the same; two whose scores differ by rounding may have changed places.
  boxes, scores, labels = (results[f"{k}_{i}"] for k in ("boxes", "scores", "labels"))
  assert int(found.valid.sum()) == len(scores) >= 10
  left = list(range(len(scores)))
  for box, score, label, mask in zip(
    boxes[:, XY], scores, labels, results[f"mask_logits_{i}"], strict=True
  ):
    best = min(left, key=lambda j: np.abs(found.boxes[0, j] - box).max())
    left.remove(best)
    np.testing.assert_allclose(found.boxes[0, best], box, atol=0.5)
    np.testing.assert_allclose(found.scores[0, best], score, atol=1e-3)
    assert found.classes[0, best] == label
    probability = 1 / (1 + np.exp(-mask))
    np.testing.assert_allclose(found.masks[0, best, ::3, ::3], probability, atol=2e-3)


def test_keypoints():
  name = "keypointrcnn_resnet50_fpn"
  model, variables, results, meta = network(name)
  # 59,137,258 with frozen norms, whose 53,120 values torchvision doesn't count.
  assert meta["parameters"] == 59_137_258 + 53_120
  assert model.keypoints == 17
  assert "mask_head" not in variables["params"]
  x = image(meta, 0)
  check(model, variables, x)
  found = jax.device_get(jax.jit(model.apply)(variables, x))
  assert found.masks is None
  assert found.valid.all()
  np.testing.assert_allclose(found.scores[0], results["scores"], atol=1e-3)
  np.testing.assert_allclose(found.boxes[0], results["boxes"][:, XY], atol=0.1)
  heatmaps = found.keypoints[0]
  close(heatmaps[:, ::3, ::3, ::4].transpose(0, 3, 1, 2), results["heatmaps"])
  points = find_keypoints(heatmaps, found.boxes[0])
  # Where two pixels are equally good, rounding decides.
  near = np.abs(points[..., :2] - results["keypoints"][..., [1, 0]]).max(-1) < 0.2
  assert near.mean() > 0.97
  np.testing.assert_allclose(points[..., 2], results["keypoints_scores"], atol=5e-3)
  with pytest.raises(InputError, match="this network finds no masks"):
    objects_from_detections(jax.tree.map(lambda a: a[0], found), (128, 192), (128, 192))
  with pytest.raises(InputError, match="only masks are trained here; leave masks=True"):
    jax.eval_shape(functools.partial(model.apply, train=True), variables, x)


def test_loss_of_keypoints():
  results, meta = read("keypointrcnn_resnet50_fpn")
  logits = formula.image("heatmaps", (2, 3, 56, 56)).transpose(0, 2, 3, 1)
  points, boxes = results["points"], np.float32(meta["objects"]["boxes"])[:, XY]
  total, count = keypoint_loss(
    jnp.asarray(logits), jnp.asarray(points[..., [1, 0]]), points[..., 2] > 0, jnp.asarray(boxes)
  )
  # One of the six isn't visible, and one is outside.
  assert count == 4
  np.testing.assert_allclose(total / count, meta["losses"]["loss_keypoint"], rtol=1e-5)


def test_losses():
  model, variables, _, meta = network("maskrcnn_resnet50_fpn")
  objects = meta["objects"]
  boxes = jnp.asarray(objects["boxes"])[None, :, jnp.array(XY)]
  one = jnp.ones((1, 3), bool)
  masks = jnp.full((1, 3, 56, 56), 255, jnp.uint8)
  targets = Targets(boxes, boxes, masks, jnp.asarray([objects["labels"]]), one, ~one)
  outputs = jax.jit(functools.partial(model.apply, train=True))(
    variables, image(meta, 0), targets=targets, rngs={"sample": jax.random.key(0)}
  )
  ours = {key: float(total / count) for key, (total, count) in losses(outputs).items()}
  theirs = meta["losses"]
  pairs = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box": "loss_box_reg",
  }
  for key, reference in pairs.items():
    np.testing.assert_allclose(ours[key], theirs[reference], rtol=1e-3, err_msg=key)
  # Masks are boxes of 56 x 56 cells here and of pixels there; their edges differ a little.
  np.testing.assert_allclose(ours["mask"], theirs["loss_mask"], rtol=0.03)


def test_names_before_torchvision_0_13():
  _, meta = read("maskrcnn_resnet50_fpn")
  new = weights(meta)
  rename = (
    (r"(_blocks\.\d)\.0\.", r"\1."),
    (r"rpn\.head\.conv\.0\.0", "rpn.head.conv"),
    (r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}"),
  )
  old = {}
  for name, tensor in new.items():
    for pattern, replacement in rename:
      name = re.sub(pattern, replacement, name)
    old[name] = tensor
  assert sum(name not in new for name in old) == 2 * (8 + 1 + 4)
  ours, reference = (convert(t, recognize(t).layers) for t in (old, new))
  assert ours[1] == []
  stats, expected = (flatten_dict(a[0]["batch_stats"], sep="/") for a in (ours, reference))
  for name, value in stats.items():
    # The norm adds its 1e-5 to nothing but what was taken off.
    change = 1e-5 if name.endswith("/var") else 0
    np.testing.assert_allclose(value + np.float32(change), expected[name], rtol=1e-6)
  chex.assert_trees_all_equal(ours[0]["params"], reference[0]["params"])
