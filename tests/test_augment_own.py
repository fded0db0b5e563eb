"""New augmentations: one function and one line, or a user's own; and no other draws anything else.

The recorded numbers are those of the first release. An example that is drawn otherwise is another
picture altogether, so the tolerance needn't be tight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg import augment
from jseg.augment import Example, base, image, volume
from jseg.augment.base import Filter, Setting
from jseg.images import denormalize, normalize
from jseg.types import IGNORE, InputError, Targets

# These tests spend their time compiling; what they run is tiny.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

EVERY = {
  "scale": (0.6, 1.8),
  "flip": 0.5,
  "flip_vertical": 0.5,
  "blur": 1.0,
  "brightness": 0.3,
  "contrast": 0.3,
  "noise": 0.1,
}
COLOR = {"saturation": 0.4, "hue": 0.2}
WARP = {"rotation": 25, "elastic": 1.5}
CHEAP = {"scale": (0.8, 1.2), "brightness": 0.2, "noise": 0.1}


def picture(**fields):
  ramp = np.arange(24 * 28 * 3)
  pixels = (ramp * 37 % 251).astype(np.uint8).reshape(24, 28, 3)
  return Example(image=pixels, size=np.array([22, 28], np.int32), **fields)


def labeled():
  return picture(label=(np.arange(24 * 28) * 3 % 9).astype(np.uint8).reshape(24, 28))


def with_object():
  box = np.array([[2, 3, 20, 25]], np.float32)
  return picture(
    targets=Targets(
      boxes=box,
      frames=box,
      masks=np.full((1, 4, 4), 255, np.uint8),
      classes=np.array([1], np.int32),
      valid=np.array([True]),
      crowd=np.array([False]),
    )
  )


def scan():
  wave = np.sin(np.arange(8 * 12 * 10 * 2) * 0.37).astype(np.float32).reshape(8, 12, 10, 2)
  label = (np.arange(8 * 12 * 10) % 5).astype(np.uint8).reshape(8, 12, 10)
  return Example(image=wave, size=np.array([8, 11, 10], np.int32), label=label)


def run(function, example, seed=5):
  return jit(jax.vmap(function, (0, None)))(jax.random.split(jax.random.key(seed), 2), example)


# The random streams of old runs.


def test_images_are_drawn_as_ever():
  got = run(augment.make_augment(size=(16, 20), **EVERY, **COLOR, **WARP), labeled())
  expected = [
    [0.111, 0.5652, -0.3967, -0.2289, -0.1448, 0.0, -0.2082, -0.5715, 0.0],
    [0.0427, -0.1113, 1.2691, 0.7531, 0.7838, 0.84, 1.2387, 0.2946, 0.1742],
  ]
  np.testing.assert_allclose(got.image[:, ::7, ::9, 1].reshape(2, -1), expected, atol=2e-3)
  assert got.label.sum((1, 2)).tolist() == [8781, 906]


def test_volumes_are_drawn_as_ever():
  got = run(augment.make_augment(size=(6, 8, 7), **EVERY, **WARP), scan())
  expected = [
    [0.0, 0.0, 0.0, 0.0, -0.6131, 0.5437, 0.0988, -0.7707],
    [-0.9204, 0.3161, 0.2717, -0.732, -0.2298, 0.6897, -0.6848, -0.2824],
  ]
  np.testing.assert_allclose(got.image[:, ::3, ::4, ::5, 1].reshape(2, -1), expected, atol=2e-3)
  assert got.label.sum((1, 2, 3)).tolist() == [16324, 765]


def test_objects_are_drawn_as_ever():
  got = run(augment.make_instance_augment(size=(16, 20), **EVERY, **COLOR), with_object())
  expected = [
    [0.2261, 0.349, 0.4925, 0.2359, 0.5148, 0.5065, 0.3084, -0.1273, 0.5287],
    [1.3419, -0.0638, 2.0989, 0.0506, 0.0672, 0.4739, 0.7041, 0.5081, 0.2],
  ]
  np.testing.assert_allclose(got.image[:, ::7, ::9, 1].reshape(2, -1), expected, atol=2e-3)
  assert got.size.tolist() == [[16, 20], [16, 20]]
  boxes = [[[0.0, 0.0, 13.3636, 15.9286]], [[0.0, 0.0, 16.0, 20.0]]]
  np.testing.assert_allclose(got.targets.boxes, boxes, atol=1e-3)


# One function ...


def _invert(random, values, pixels):
  white = 255.0 if pixels.ndim == 3 else 0.0
  return jnp.where(random.uniform("invert") < values["invert"], white - pixels, pixels)


INVERSION = Filter({"invert": Setting("a probability", limit=1)}, _invert)


# ... and one line.


@pytest.mark.parametrize(
  ("module", "table", "size", "example"),
  [
    (image, "IMAGE_AUGMENTATIONS", (16, 20), labeled),
    (volume, "VOLUME_AUGMENTATIONS", (6, 8, 7), scan),
  ],
)
def test_a_new_augmentation_is_a_function_and_a_line(module, table, size, example, monkeypatch):
  before = run(augment.make_augment(size=size, **CHEAP), example())
  longer = (*getattr(module, table), INVERSION)
  for place in (image, volume):
    if hasattr(place, table):
      monkeypatch.setattr(place, table, longer)
  assert augment.arguments()["invert"] == 0.0
  off = run(augment.make_augment(size=size, **CHEAP), example())
  np.testing.assert_array_equal(before.image, off.image)
  never = run(augment.make_augment(size=size, **CHEAP, invert=1e-9), example())
  np.testing.assert_allclose(before.image, never.image, atol=1e-5)
  always = run(augment.make_augment(size=size, **CHEAP, invert=1.0), example())
  np.testing.assert_array_equal(always.label, before.label)
  if module is volume:
    np.testing.assert_allclose(always.image, -before.image, atol=1e-5)
  else:
    seen = always.label != IGNORE
    inverse = 255 - denormalize(before.image)[seen]
    np.testing.assert_allclose(denormalize(always.image)[seen], inverse, atol=1e-3)
  with pytest.raises(InputError, match="invert: 2 must be a number from 0 to 1, a probability"):
    augment.make_augment(size=size, invert=2)


def test_new_names_draw_from_streams_of_their_own():
  def draws(key):
    random = image.make_random(key)
    return [random.uniform(name) for name in ("first", "second", "noise")]

  values = np.array(jit(jax.vmap(draws))(jax.random.split(jax.random.key(0), 4000)))
  assert np.abs(values.mean(1) - 0.5).max() < 0.03
  assert np.abs(np.corrcoef(values) - np.eye(3)).max() < 0.06


# A user's own.


def darken(key, example):
  """Halves the brightness of the left column; marks it in the label; draws from the key."""
  column = denormalize(example.image[:, :1]) * 0.5
  pixels = example.image.at[:, :1].set(normalize(column))
  label = example.label
  if label is not None:
    label = label.at[:, 0].set(jax.random.randint(key, (), 100, 200))
  return example.replace(image=pixels, label=label)


def crop_more(key, example):
  return example.replace(image=example.image[1:])


NOT_ONE = 3
PLAIN = {"scale": (1, 1), "flip": 0.0}


@pytest.mark.parametrize("own", [f"{__name__}:darken", darken])
def test_ones_own_augmentation_comes_last(own):
  plain = run(augment.make_augment(size=(16, 20), **PLAIN), labeled())
  got = run(augment.make_augment(size=(16, 20), **PLAIN, custom=[own]), labeled())
  np.testing.assert_array_equal(got.image[:, :, 1:], plain.image[:, :, 1:])
  np.testing.assert_array_equal(got.label[:, :, 1:], plain.label[:, :, 1:])
  half = denormalize(plain.image[:, :, 0]) / 2
  np.testing.assert_allclose(denormalize(got.image[:, :, 0]), half, atol=1e-3)
  marks = np.unique(got.label[:, :, 0])
  assert len(marks) == 2  # one of each example: their keys differ
  assert ((marks >= 100) & (marks < 200)).all()


def test_ones_own_augmentation_of_objects():
  plain = run(augment.make_instance_augment(size=(16, 20), **PLAIN), with_object())
  got = run(augment.make_instance_augment(size=(16, 20), **PLAIN, custom=[darken]), with_object())
  np.testing.assert_array_equal(got.targets.boxes, plain.targets.boxes)
  half = denormalize(plain.image[:, :, 0]) / 2
  np.testing.assert_allclose(denormalize(got.image[:, :, 0]), half, atol=1e-3)


@pytest.mark.parametrize(
  ("custom", "message"),
  [
    ("darken", r"custom: 'darken' must be a list, such as"),
    ([f"{__name__}:NOT_ONE"], r"custom: .*:NOT_ONE must be a function \(key, example\)"),
    ([f"{__name__}:absent"], r"custom: '.*:absent': .* has no absent"),
    (["no_such_module:f"], r"there is no module no_such_module"),
  ],
)
def test_what_is_no_augmentation(custom, message):
  with pytest.raises(InputError, match=message):
    augment.make_augment(size=(4, 4), custom=custom)


def test_ones_own_augmentation_must_keep_the_shape():
  function = augment.make_augment(size=(16, 20), **PLAIN, custom=[crop_more])
  with pytest.raises(InputError, match=r"custom: crop_more makes \(15, 20, 3\) of an image"):
    run(function, labeled())


def test_settings_that_there_are_not():
  with pytest.raises(InputError, match="blurr: there is no such augmentation; there are bright"):
    augment.make_augment(size=(4, 4), blurr=1)
  with pytest.raises(InputError, match="elastic: there is no such augmentation; there are"):
    augment.make_instance_augment(size=(4, 4), elastic=1)


def test_arguments_are_those_of_the_tables():
  assert augment.arguments()["flip"] == augment.instance_arguments()["flip"] == 0.5
  assert augment.arguments()["scale"] == (0.5, 2.0)
  assert augment.instance_arguments()["scale"] == (0.8, 1.25)
  assert set(augment.arguments()) - set(augment.instance_arguments()) == {"rotation", "elastic"}
  augment.make_augment(size=(4, 4), **augment.arguments())
  augment.make_instance_augment(size=(4, 4), **augment.instance_arguments())
  assert base.defaults({"a": Setting("a number", default=2.0)}) == {"a": 2.0}
