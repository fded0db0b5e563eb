"""Boxes and masks go where the image goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.masks import disc, iou

from jseg.augment import Example, make_instance_augment
from jseg.data.detections import paste
from jseg.data.files.instances import Annotation, make_objects
from jseg.data.targets import make_targets
from jseg.images import denormalize
from jseg.types import InputError, Targets

SIZE = (90, 110)
FIELDS = tuple(Targets.__dataclass_fields__)


def example():
  """Three objects, and the image that shows each in a channel of its own."""
  ring = disc(SIZE, (40, 30), 24) & ~disc(SIZE, (44, 33), 12)
  bar = np.zeros(SIZE, bool)
  bar[60:85, 20:100] = np.add.outer(np.arange(25), np.arange(80)) % 40 < 28
  masks = [ring, bar, disc(SIZE, (30, 80), 22)]
  canvas = np.zeros((96, 112, 3), np.uint8)
  canvas[: SIZE[0], : SIZE[1]] = 255 * np.stack(masks, -1)
  objects = make_objects(SIZE, [Annotation(mask, i + 1) for i, mask in enumerate(masks)])
  return canvas, Targets(**make_targets(objects, SIZE, 5, 56))


def run(count=12, **values):
  image, targets = example()
  augment = make_instance_augment(**values)
  keys = jax.random.split(jax.random.key(3), count)
  size = jnp.array(SIZE, jnp.int32)
  given = Example(image=image, size=size, targets=jax.tree.map(jnp.asarray, targets))
  result = jax.jit(jax.vmap(augment, (0, None)))(keys, given)
  moved = jax.tree.map(np.asarray, result.targets)
  return np.asarray(denormalize(result.image)), np.asarray(result.size), moved


def pasted(targets, b, i, size):
  mask = np.zeros(size, bool)
  crop, (y0, x0, y1, x1) = paste(targets.masks[b, i] / 255, targets.frames[b, i], size)
  mask[y0:y1, x0:x1] = crop
  return mask


@pytest.mark.parametrize(
  ("crop", "values"),
  [
    ((70, 64), {"scale": (0.7, 1.8), "flip": 0.5, "flip_vertical": 0.5}),
    ((120, 130), {"scale": (0.4, 1.5), "flip": 1.0}),
    ((50, 90), {"scale": (1, 1), "flip": 0.0}),
  ],
)
def test_masks_and_boxes_follow_the_image(crop, values):
  images, sizes, moved = run(size=crop, **values)
  seen = 0
  for b, size in enumerate(sizes):
    covered = np.zeros(crop, bool)
    covered[: size[0], : size[1]] = True
    for i in range(3):
      # The image's own resampling is what the mask must have become.
      warped = (images[b, ..., i] > 127.5) & covered
      if not moved.valid[b, i]:
        assert warped.sum() < 9
        continue
      seen += 1
      assert moved.classes[b, i] == i + 1
      mask = pasted(moved, b, i, crop) & covered
      assert iou(mask, warped) > (0.93 if warped.sum() > 200 else 0.5)
      if warped.sum() > 200:
        rows, columns = np.nonzero(warped)
        tight = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        # To a cell of the frame and a pixel of the image.
        cell = (moved.frames[b, i, 2:] - moved.frames[b, i, :2]).max() / 56
        assert np.abs(moved.boxes[b, i] - tight).max() < 1 + cell
      box = moved.boxes[b, i]
      assert (box[:2] >= 0).all()
      assert (box[2:] <= size).all()
      assert (box[2:] > box[:2]).all()
  assert seen > 20
  assert not moved.valid[:, 3:].any()


def test_nothing_changes_at_scale_1_without_a_flip():
  image, targets = example()
  images, sizes, moved = run(1, size=SIZE, scale=(1, 1), flip=0.0)
  np.testing.assert_allclose(images[0], image[: SIZE[0], : SIZE[1]], atol=1e-3)
  np.testing.assert_array_equal(sizes[0], SIZE)
  for name in FIELDS:
    np.testing.assert_array_equal(getattr(moved, name)[0], getattr(targets, name))


def test_a_flip_by_hand():
  _, targets = example()
  _, _, moved = run(1, size=(100, 120), scale=(1, 1), flip=1.0)
  y0, x0, y1, x1 = targets.boxes[0]
  # About the middle of the image, which stays at the top left of its canvas.
  assert moved.boxes[0, 0].tolist() == [y0, SIZE[1] - x1, y1, SIZE[1] - x0]
  np.testing.assert_array_equal(moved.masks[0, 0], targets.masks[0][:, ::-1])


def test_objects_that_vanish_leave_empty_slots():
  _, sizes, moved = run(30, size=(24, 24), scale=(1, 1))
  gone = ~moved.valid
  assert 0.2 < gone[:, :3].mean() < 0.95
  for name in FIELDS:
    assert not getattr(moved, name)[gone].any()
  assert (moved.boxes <= np.tile(sizes, 2)[:, None]).all()


def test_the_key_decides_and_images_do_not_see_each_other():
  (images, _, moved), (others, _, _) = run(2, size=(64, 64)), run(3, size=(64, 64))
  assert (images[0] != images[1]).any()
  assert images.shape[1:] == others.shape[1:] == (64, 64, 3)
  again, _, same = run(2, size=(64, 64))
  np.testing.assert_array_equal(images, again)
  np.testing.assert_array_equal(moved.boxes, same.boxes)


def test_knobs_out_of_range():
  with pytest.raises(InputError, match=r"flip: 2 must be a number from 0 to 1"):
    make_instance_augment(size=(64, 64), flip=2)
  with pytest.raises(InputError, match=r"size: \(8, 64, 64\) must be two numbers"):
    make_instance_augment(size=(8, 64, 64))
