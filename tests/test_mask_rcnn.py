"""Mask R-CNN's network in training and inference."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.variables import draw

import jseg.config
from jseg import models
from jseg.losses import detection_losses as losses
from jseg.models import mask_rcnn
from jseg.models.mask_rcnn import MaskRCNN
from jseg.nn.detection import iou
from jseg.nn.devices import AXIS
from jseg.types import InputError, InstanceOutputs, Targets

K = 4
SIZE = (70, 83)


@pytest.mark.parametrize(
  ("arguments", "reference", "frozen"),
  # torchvision doesn't count what frozen batch norm holds.
  [({}, 44_401_393, 53_120), (MaskRCNN.V2, 46_359_409, 0)],
  ids=["v1", "v2"],
)
def test_parameters_are_torchvisions(arguments, reference, frozen):
  assert models.count_parameters("mask_rcnn", 91, **arguments) == reference + frozen


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"roi": "crop"}, "roi: 'crop' is unknown; choose from align, pool"),
    ({"anchor_sizes": (8, 16)}, r"anchor_sizes: \(8, 16\) must be 5 edges"),
    ({"proposals": (0, 5)}, r"proposals: \(0, 5\) must be two numbers"),
    ({"positives": 1.5}, "positives: 1.5 must be 0 to 1"),
    ({"samples": 2}, "positives: 0.25 of 2 samples is less than one"),
    ({"detections": 0}, "detections: 0 must be at least 1"),
    ({"norm": "layer"}, "norm: 'layer' is unknown"),
  ],
)
def test_arguments_that_cannot_be(arguments, message):
  with pytest.raises(InputError, match=message):
    models.create("mask_rcnn", 3, **arguments)


def test_a_canvas_holds_the_shorter_side():
  config = jseg.config.default("mask_rcnn")
  config.data.short_side = 800
  with pytest.raises(InputError, match=r"data.short_side: 800 must fit data.size, \(256, 256\)"):
    jseg.config.validate(config)
  config.data.size = (800, 900)
  jseg.config.validate(config)


@functools.cache
def build(**arguments):
  model = models.create("mask_rcnn", K, **{**MaskRCNN.TINY, **arguments})
  image = jax.random.normal(jax.random.key(0), (2, *SIZE, 3))
  return model, draw(model, image, gain=1.0), image


def make_targets(**changes):
  """Three objects in the first image, of all classes, and none in the second."""
  boxes = np.zeros((2, 4, 4), np.float32)
  boxes[0, :3] = [[5, 5, 40, 30], [30, 40, 68, 80], [10, 50, 22, 62]]
  valid = np.zeros((2, 4), bool)
  valid[0, :3] = True
  rng = np.random.default_rng(0)
  given = Targets(
    boxes=boxes,
    frames=boxes.copy(),
    masks=rng.integers(0, 256, (2, 4, 8, 8), np.uint8),
    classes=np.array([[1, 2, 3, 0], [0] * 4], np.int32),
    valid=valid,
    crowd=np.zeros((2, 4), bool),
  )
  return given.replace(**changes)


def train(variables, image, given, key):
  return build()[0].apply(variables, image, train=True, targets=given, rngs={"sample": key})


# A few regions at a time; the network itself would take so few slots at once.
chunks = mock.patch.multiple(mask_rcnn, _BOX_CHUNK=5, _MASK_CHUNK=3)


@jax.jit
@chunks
def trained(variables, image, given, key):
  """Outputs, losses by name, and the gradient of their sum."""

  def loss(params):
    outputs = train({**variables, "params": params}, image, given, key)
    parts = losses(outputs)
    total = sum(value / jnp.maximum(count, 1) for value, count in parts.values())
    return total, (outputs, parts)

  (_, rest), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
  return *rest, gradient


def run(given):
  _, variables, image = build()
  result = trained(variables, image, given, jax.random.key(3))
  chex.assert_tree_all_finite(result)
  return result


@jax.jit
@chunks
def detect(variables, image, size):
  return build()[0].apply(variables, image, size=size)


def test_losses_by_hand():
  # One image, two anchors, three regions of which the last doesn't count, more classes than bytes.
  zero = jnp.zeros((1, 3, 4))
  outputs = InstanceOutputs(
    rpn_logits=jnp.array([[2.0, -1.0]]),
    rpn_deltas=jnp.array([[[1.0, 0, 0, 1 / 18], [9, 9, 9, 9]]]),
    rpn_labels=jnp.array([[True, False]]),
    rpn_targets=zero[:, :2],
    rpn_sampled=jnp.array([[True, True]]),
    class_logits=jnp.zeros((1, 3, 300)).at[0, 0, 255].set(5.0),
    deltas=zero.at[0, 0, 2].set(-0.5).at[0, 1:].set(7.0),
    classes=jnp.array([[255, 0, 299]]),
    targets=zero,
    sampled=jnp.array([[True, True, False]]),
    mask_logits=jnp.array([[[[0.0, 3.0]], [[jnp.inf, jnp.nan]]]]),
    masks=jnp.array([[[[1.0, 0.25]], [[0.0, 0.0]]]]),
    mask_valid=jnp.array([[True, False]]),
  )
  ours = {name: (float(total), float(count)) for name, (total, count) in losses(outputs).items()}
  expected = {
    "rpn_objectness": (np.logaddexp(0, -2) + np.logaddexp(0, -1), 2),
    # A parabola below a ninth, a line above.
    "rpn_box": (1 - 1 / 18 + (1 / 18) ** 2 * 4.5, 2),
    "box_class": (np.log(299 + np.exp(5)) - 5 + np.log(300), 2),
    "box": (0.5 - 1 / 18, 2),
    "mask": (np.logaddexp(0, 0) + np.logaddexp(0, 3) - 0.75, 2),
  }
  assert ours == {name: pytest.approx(pair, rel=1e-5) for name, pair in expected.items()}


def test_detections():
  _, variables, image = build()
  size = np.array([[70, 83], [33, 47]])
  found = jax.device_get(detect(variables, image, size))
  chex.assert_tree_all_finite(found)
  assert found.boxes.shape == (2, 8, 4)
  assert found.masks.shape == (2, 8, 28, 28)
  for i in range(2):
    valid = found.valid[i]
    assert valid.any()
    boxes, scores, classes = (a[i][valid] for a in (found.boxes, found.scores, found.classes))
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= size[i][None]).all()
    assert (np.diff(scores) <= 0).all()
    assert (scores > 0.05).all()
    same = (classes[:, None] == classes[None]) & ~np.eye(len(classes), dtype=bool)
    assert (np.where(same, iou(boxes, boxes), 0) <= 0.5).all()
    assert ((classes >= 1) & (classes < K)).all()
    rest = (found.boxes, found.scores, found.classes, found.masks)
    assert not any(a[i][~valid].any() for a in rest)
  # What lies beyond the image's size is not looked at, even if it is no number.
  other = image.at[1, 33:].set(jnp.nan).at[1, :, 47:].set(-9.0)
  chex.assert_trees_all_equal(detect(variables, other, size), found)


def test_every_parameter_is_trained():
  outputs, parts, gradient = run(make_targets())
  untrained = [name for name, g in flatten_dict(gradient, sep="/").items() if not g.any()]
  assert not untrained
  counts = {name: int(count) for name, (_, count) in parts.items()}
  matched = int(outputs.mask_valid.sum())
  # The objects themselves are regions, so there are at least as many matches.
  assert matched >= 3
  assert counts == {
    "rpn_objectness": 64,
    "rpn_box": 64,
    "box_class": 32,
    "box": 32,
    "mask": matched * 28 * 28,
  }
  assert set(outputs.classes[0][outputs.classes[0] > 0].tolist()) <= {1, 2, 3}
  # Matches come first, a quarter at most; the masks' truth is of the same regions.
  found = outputs.classes > 0
  assert list(found[0]) == sorted(found[0].tolist(), reverse=True)
  assert (found.sum(1) == outputs.mask_valid.sum(1)).all()
  assert found.sum(1).max() <= 4


NINES = np.full((2, 4, 4), 9, np.float32)


@pytest.mark.parametrize(
  "changes",
  [{"valid": np.zeros((2, 4), bool)}, {"boxes": NINES}, {"boxes": NINES, "frames": NINES}],
  ids=["none", "no area", "no frame"],
)
def test_nothing_to_find(changes):
  outputs, parts, gradient = run(make_targets(**changes))
  assert not outputs.rpn_labels.any()
  assert not outputs.classes.any()
  assert [float(parts[name][0]) for name in ("rpn_box", "box", "mask")] == [0, 0, 0]
  assert float(parts["mask"][1]) == 0
  assert int(parts["box_class"][1]) > 0
  assert not any(g.any() for g in jax.tree.leaves(gradient["mask_head"]))


def test_crowds_are_neither_objects_nor_background():
  given = make_targets()
  given.boxes[:, 3] = (0, 0, *SIZE)
  given.valid[:, 3], given.crowd[:, 3], given.classes[:, 3] = True, True, 1
  outputs, parts, _ = run(given)
  # In the image nothing is background, and the crowd itself is no region.
  assert not outputs.sampled[1].any()
  assert not outputs.rpn_sampled[1].any()
  assert ((outputs.classes[0] > 0) == outputs.sampled[0]).all()
  assert (outputs.rpn_labels[0] | ~outputs.rpn_sampled[0]).all()
  assert int(parts["mask"][1]) > 0
  # A crowd is nothing to match, wherever it lies.
  matched = run(make_targets())[0].rpn_labels
  np.testing.assert_array_equal(outputs.rpn_labels, matched)


def test_frames_may_reach_beyond_the_image():
  given = make_targets()
  # What is seen is the right half of the frame, which is full.
  given.frames[..., 1] -= given.boxes[..., 3] - given.boxes[..., 1]
  given.masks[:] = 0
  given.masks[..., 4:] = 255
  outputs, *_ = run(given)
  exact = outputs.mask_valid & (jnp.abs(outputs.targets[:, :4]).max(-1) < 1e-3)
  assert exact.any()
  np.testing.assert_allclose(outputs.masks[exact], 1, atol=1e-5)


def test_devices_do_not_matter():
  _, variables, image = build()
  given, key = make_targets(), jax.random.key(3)
  # The same image twice: each draws for itself.
  image = jnp.stack([image[0]] * 2)
  given = jax.tree.map(lambda a: np.stack([a[0]] * 2), given)
  one, *_ = trained(variables, image, given, key)
  assert (one.rpn_sampled[0] != one.rpn_sampled[1]).any()
  split = jax.tree.map(lambda a: a[:, None], (image, given))
  two = jax.pmap(train, AXIS, in_axes=(None, 0, 0, None))(variables, *split, key)
  two = jax.tree.map(lambda a: a[:, 0], two)
  # One device works through its matches in chunks, two take all slots at once.
  unused = ~two.mask_valid[..., None, None]
  assert unused.any()
  two = two.replace(mask_logits=jnp.where(unused, 0, two.mask_logits))
  one = one.replace(mask_logits=jnp.where(unused, 0, one.mask_logits))
  drawn = ("rpn_sampled", "sampled", "classes", "mask_valid")
  chex.assert_trees_all_equal(*({name: vars(o)[name] for name in drawn} for o in (one, two)))
  chex.assert_trees_all_close(one, two, atol=1e-4)


def test_half_precision_is_close():
  model, variables, image = build()

  def run_at(dtype):
    apply = functools.partial(
      model.clone(dtype=dtype).apply,
      capture_intermediates=lambda module, _: module.name in ("fpn", "rpn"),
    )
    found, state = jax.jit(apply)(variables, image)
    maps = [jax.tree.leaves(state["intermediates"][name]) for name in ("fpn", "rpn")]
    return found, [np.concatenate([np.float32(a).ravel() for a in levels]) for levels in maps]

  (half, rough), (full, exact) = run_at(jnp.bfloat16), run_at(None)
  assert [a.dtype for a in jax.tree.leaves(half)] == [a.dtype for a in jax.tree.leaves(full)]
  # Each layer rounds a few times, to 2^-9 of its values; these errors add like random steps.
  layers = sum(
    a.ndim > 1 for name in ("backbone", "fpn") for a in jax.tree.leaves(variables["params"][name])
  )
  bound = 16 * 2**-9 * np.sqrt(layers)
  for a, b in zip(rough, exact, strict=True):
    assert 2**-12 < abs(a - b).mean() / b.std() < bound
  # All slots at once, or in chunks.
  chex.assert_trees_all_close(detect(variables, image, np.array([SIZE] * 2)), full, atol=1e-4)
  # The best object, which nothing suppresses. A score follows its logits half as steeply at most.
  assert abs(half.scores[:, 0] - full.scores[:, 0]).max() < bound


def test_pooling_instead_of_alignment():
  # The same parameters and results, and a pooling that has tests of its own.
  model, variables, image = build()
  pooling, aligning = (
    str(jax.make_jaxpr(m.apply)(variables, image)) for m in (model.clone(roi="pool"), model)
  )
  assert "reduce_max" in pooling
  assert pooling != aligning
  shapes = [jax.eval_shape(m.apply, variables, image) for m in (model.clone(roi="pool"), model)]
  chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)


def test_training_needs_targets():
  model, variables, image = build()
  with pytest.raises(InputError, match="targets are missing"):
    jax.eval_shape(functools.partial(model.apply, train=True), variables, image)
