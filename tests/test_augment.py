import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.augment import Example, color, geometry, make_augment
from jseg.images import IMAGENET_MEAN, IMAGENET_STD, denormalize, normalize, prepare
from jseg.types import IGNORE, InputError

EVERYTHING = {
  "scale": (0.4, 2.2),
  "flip_vertical": 0.5,
  "rotation": 30,
  "elastic": 1,
  "blur": 1,
  "brightness": 0.5,
  "contrast": 0.5,
  "saturation": 0.5,
  "hue": 0.1,
  "noise": 0.1,
}


# These tests spend their time compiling; what they run is tiny.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
read_linear = jit(geometry.read_linear)
blur = jit(color.blur)
elastic = jit(geometry.elastic, static_argnums=(2, 3))


@functools.cache
def compiled(crop, **values):
  return jit(jax.vmap(make_augment(size=crop, **values)))


def augment_many(number, image, label, crop, covered=None, seed=0, **values):
  """A batch of results from one example, which fills its canvas or what is `covered` of it."""
  keys = jax.random.split(jax.random.key(seed), number)
  size = np.array(label.shape if covered is None else covered, np.int32)
  batch = [np.broadcast_to(x, (number, *x.shape)) for x in (image, label, size)]
  image, label, size = batch
  result = compiled(crop, **values)(keys, Example(image=image, label=label, size=size))
  images, labels = result.image, result.label
  assert images.dtype == jnp.float32
  assert labels.dtype == jnp.int32
  return np.asarray(images), np.asarray(labels)


def example(height=12, width=15, channels=3, seed=0):
  """Noise, and a label that is another number at each pixel."""
  image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
  return image, np.arange(height * width, dtype=np.int32).reshape(height, width)


def middle(size, image_size):
  """Positions of `size` pixels across the whole of an image, and the ratio."""
  ratio = jnp.array(image_size, jnp.float32) / jnp.array(size)
  return geometry.to_source(geometry.grid(*size), jnp.zeros(2), ratio), ratio


# Normalization.


def test_normalize_numbers():
  black, white = normalize(np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
  np.testing.assert_allclose(black, -np.divide(IMAGENET_MEAN, IMAGENET_STD), rtol=1e-6)
  np.testing.assert_allclose(white, (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD, rtol=1e-6)
  np.testing.assert_allclose(normalize(np.array([51], np.uint8)), (0.2 - 0.449) / 0.226, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalize_inverts(channels):
  values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], channels, axis=1)
  np.testing.assert_allclose(denormalize(normalize(values)), values, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 4), (2,), ()])
def test_normalize_refuses_other_channels(shape):
  with pytest.raises(ValueError, match=r"must end in 3 \(RGB\) or 1 \(gray\) channels"):
    normalize(np.zeros(shape, np.uint8))


def test_prepare_zeroes_the_padding_only():
  image = np.random.default_rng(0).integers(1, 256, (2, 4, 5, 3), np.uint8)
  out = prepare(image, np.array([[4, 5], [2, 3]], np.int32))
  np.testing.assert_array_equal(out[0], normalize(image[0]))
  np.testing.assert_array_equal(out[1, :2, :3], normalize(image[1, :2, :3]))
  assert not out[1, 2:].any()
  assert not out[1, :, 3:].any()


# Geometry.


SLICES = {"scale": (1, 1), "flip": 0.3, "flip_vertical": 0.7}
PLAIN = {"scale": (1, 2)}


@pytest.mark.parametrize("covered", [(11, 14), (3, 4), (12, 4)])
def test_unit_scale_is_slices_flips_and_padding(covered):
  image, label = example()
  images, labels = augment_many(2000, image, label, (6, 8), covered, **SLICES)
  seen = set()
  for got_image, got_label in zip(images[:60], labels[:60], strict=True):
    valid = got_label != IGNORE
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    assert (len(rows), len(columns)) == (min(covered[0], 6), min(covered[1], 8))
    top, left = divmod(got_label.min(), 15)
    window = np.s_[top : top + len(rows), left : left + len(columns)]
    inner = got_label[valid].reshape(len(rows), len(columns))
    order = np.s_[
      :: -1 if inner[0, 0] > inner[1, 0] else 1, :: -1 if inner[0, 0] > inner[0, 1] else 1
    ]
    expected_image, expected_label = np.zeros((6, 8, 3)), np.full((6, 8), IGNORE)
    where = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    expected_image[where] = normalize(image[window][order])
    expected_label[where] = label[window][order]
    np.testing.assert_array_equal(got_label, expected_label)
    np.testing.assert_allclose(got_image, expected_image, atol=1e-5)
    seen.add((top, left, rows[0], columns[0]))
  assert len(seen) > 8


def test_enlarging_by_hand():
  image = np.array([[0, 100], [200, 40]], np.uint8)[..., None]
  where, ratio = middle((4, 4), (2, 2))
  got = read_linear(image, where, np.array([2, 2]), ratio)[..., 0]
  expected = [
    [0, 25, 75, 100],
    [50, 58.75, 76.25, 85],
    [150, 126.25, 78.75, 55],
    [200, 160, 80, 40],
  ]
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  got = geometry.read_nearest(image[..., 0], where, np.array([2, 2]))
  np.testing.assert_array_equal(got, np.repeat(np.repeat(image[..., 0], 2, 0), 2, 1))


def test_shrinking_by_hand():
  image = np.array([[0, 0, 100, 100]], np.uint8)[..., None]
  where, ratio = middle((1, 2), (1, 4))
  got = read_linear(image, where, np.array([1, 4]), ratio)[..., 0]
  # A triangle of half-width 2 about .5 weighs pixels 0, 1, 2 by .75, .75, .25.
  np.testing.assert_allclose(got, [[25 / 1.75, 150 / 1.75]], rtol=1e-6)


def test_shrinking_does_not_alias():
  stripes = np.tile(np.array([0, 200], np.uint8), (42, 21))[..., None]
  where, ratio = middle((14, 14), (42, 42))  # every third pixel: 200, 0, 200, ...
  for positions in (where, tuple(jnp.broadcast_arrays(*where))):
    got = read_linear(stripes, positions, np.array([42, 42]), ratio)
    np.testing.assert_allclose(got[:, 1:-1], 100, atol=12)


def test_warp_by_zero_is_the_grid():
  image, label = example()
  where, ratio = middle((20, 31), label.shape)
  full = tuple(jnp.broadcast_arrays(*where))
  got = read_linear(image, full, np.array(label.shape), ratio)
  expected = read_linear(image, where, np.array(label.shape), ratio)
  np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("extra", [{"rotation": 1e-5}, {"blur": 1e-6, "hue": 1e-6, "noise": 1e-6}])
def test_a_setting_leaves_the_draws_of_the_others(extra):
  image, label = example()
  nothing = augment_many(400, image, label, (8, 8), (9, 11), **PLAIN)
  hardly = augment_many(400, image, label, (8, 8), (9, 11), **PLAIN, **extra)
  np.testing.assert_allclose(nothing[0], hardly[0], atol=1e-3)
  np.testing.assert_array_equal(nothing[1], hardly[1])


def test_quarter_turn_is_clockwise():
  _, label = example(7, 7)
  where = geometry.rotate(geometry.grid(7, 7), jnp.float32(jnp.pi / 2), 7, 7)
  got = geometry.read_nearest(label, where, np.array([7, 7]))
  np.testing.assert_array_equal(got, np.rot90(label, -1))


def test_elastic_moves_by_the_nodes():
  y, x = elastic(geometry.grid(6, 9), np.tile(np.float32([1, -2]), (3, 3, 1)), 6, 9)
  np.testing.assert_allclose(y, np.broadcast_to(np.arange(6)[:, None] + 1.0, (6, 9)), atol=1e-5)
  np.testing.assert_allclose(x, np.broadcast_to(np.arange(9)[None] - 2.0, (6, 9)), atol=1e-5)
  nodes = np.zeros((3, 3, 2), np.float32)
  nodes[1, 1, 0] = 5
  y, x = elastic(geometry.grid(9, 9), nodes, 9, 9)
  assert y[4, 4] - 4 == pytest.approx(5)  # the middle node is the middle pixel
  np.testing.assert_array_equal(x, np.broadcast_to(np.arange(9.0)[None], (9, 9)))


@pytest.mark.parametrize(("vertical", "horizontal"), [(False, True), (True, False)])
def test_flip_reverses_a_warped_grid(vertical, horizontal):
  where = geometry.rotate(geometry.grid(4, 5), jnp.float32(0.4), 4, 5)
  for got, plain in zip(geometry.flip(where, vertical, horizontal), where, strict=True):
    np.testing.assert_array_equal(got, plain[::-1] if vertical else plain[:, ::-1])


@pytest.mark.parametrize("values", [{}, {"rotation": 30, "elastic": 3, "blur": 0.5}])
def test_image_and_label_stay_aligned(values):
  rng = np.random.default_rng(0)
  label = np.kron(rng.integers(0, 4, (6, 6)), np.ones((10, 10))).astype(np.uint8)
  image = (label * 60 + 30)[..., None]
  images, labels = augment_many(6, image, label, (48, 48), (50, 60), scale=(0.7, 2), **values)
  seen = np.round((np.asarray(denormalize(images))[..., 0] - 30) / 60)
  # Only pixels whose surroundings are of one class: on borders the image mixes two.
  around = np.lib.stride_tricks.sliding_window_view(labels, (7, 7), axis=(1, 2))
  uniform = (around.min((-2, -1)) == around.max((-2, -1))) & (around[..., 0, 0] != IGNORE)
  assert uniform.mean() > 0.1
  np.testing.assert_array_equal(seen[:, 3:-3, 3:-3][uniform], labels[:, 3:-3, 3:-3][uniform])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31 - 1), st.booleans())
def test_nothing_outside_of_the_image_leaks_in(height, width, seed, warped):
  image, label = np.full((24, 24, 3), 255, np.uint8), np.full((24, 24), 7, np.uint8)
  image[:height, :width], label[:height, :width] = 100, 1
  values = {"rotation": 30, "elastic": 2, "blur": 2} if warped else {"blur": 2}
  images, labels = augment_many(2, image, label, (16, 20), (height, width), seed, **values)
  assert np.isin(labels, [1, IGNORE]).all()
  expected = np.where((labels == 1)[..., None], normalize(np.full(3, 100.0))[None, None, None], 0)
  np.testing.assert_allclose(images, expected, atol=1e-4)
  if not warped:
    # A rectangle of at least the smallest, at most the largest size; and never none of the image.
    rows, columns = (labels == 1).any(2).sum(1), (labels == 1).any(1).sum(1)
    np.testing.assert_array_equal((labels == 1).sum((1, 2)), rows * columns)
    assert (rows >= np.clip(height * 0.5 - 0.5, 1, 16)).all()
    assert (rows <= min(height * 2, 16)).all()
    assert (columns >= np.clip(width * 0.5 - 0.5, 1, 20)).all()
    assert (columns <= min(width * 2, 20)).all()


# Photometry.

PIXELS = np.array([[[200.0, 100.0, 50.0], [10.0, 60.0, 90.0]]], np.float32)
LUMA = np.array([124.2, 48.47])  # .299 R + .587 G + .114 B
jit_adjust = jit(color.adjust)


def adjust(image=PIXELS, size=(1, 2), **strengths):
  neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
  return np.asarray(jit_adjust(image, np.array(size), **(neutral | strengths)))


def test_brightness_and_contrast_by_hand():
  np.testing.assert_allclose(adjust(), PIXELS, atol=1e-4)
  np.testing.assert_allclose(adjust(brightness=1.5), PIXELS * 1.5, rtol=1e-5)
  mean = LUMA.mean()
  got = adjust(brightness=2.0, contrast=0.5)
  np.testing.assert_allclose(got, 2 * (mean + 0.5 * (PIXELS - mean)), rtol=1e-5)
  got = adjust(size=(1, 1), contrast=0.0)  # the mean of what is not padding
  np.testing.assert_allclose(got, np.full((1, 2, 3), LUMA[0]), rtol=1e-5)
  gray = np.array([[[10.0], [30.0]]], np.float32)
  got = adjust(gray, contrast=2.0, saturation=0.0, hue=0.3)
  np.testing.assert_allclose(got[..., 0], [[0.0, 40.0]], atol=1e-5)


def test_saturation_and_hue_keep_luma_and_grays():
  luma = np.repeat(LUMA[None, :, None], 3, axis=2)
  np.testing.assert_allclose(adjust(saturation=0.0), luma, rtol=1e-5)
  np.testing.assert_allclose(adjust(saturation=2.0), 2 * PIXELS - luma, atol=1e-3)
  np.testing.assert_allclose(adjust(hue=0.5), 2 * luma - PIXELS, atol=1e-3)  # the opposite color
  np.testing.assert_allclose(adjust(hue=1.0), PIXELS, atol=1e-3)
  turned = adjust(hue=0.2)
  np.testing.assert_allclose(turned @ np.array([0.299, 0.587, 0.114]), LUMA[None], rtol=1e-5)
  assert np.abs(turned - PIXELS).max() > 20
  gray = np.full((1, 2, 3), 77.0, np.float32)
  np.testing.assert_allclose(adjust(gray, saturation=1.7, hue=0.3), gray, rtol=1e-5)


def test_blur_by_hand():
  spike = jnp.zeros((9, 9, 1)).at[4, 4].set(100.0)
  np.testing.assert_array_equal(blur(spike, jnp.float32(0)), spike)
  got = np.asarray(blur(spike, jnp.float32(0.8)))[..., 0]
  bell = np.exp(-0.5 * (np.arange(-4, 5) / 0.8) ** 2)
  bell /= bell.sum()
  np.testing.assert_allclose(got, 100 * np.outer(bell, bell), atol=1e-3)
  flat = jnp.full((5, 7, 3), 50.0)
  np.testing.assert_allclose(blur(flat, jnp.float32(3)), flat, rtol=1e-5)


def test_noise_has_the_stated_strength():
  image, label = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32), np.uint8)
  images, _ = augment_many(200, image, label, (32, 32), scale=(1, 1), noise=0.1)
  values = images * np.array(IMAGENET_STD, np.float32) + np.array(IMAGENET_MEAN, np.float32)
  deviations = values.reshape(200, -1).std(1)
  assert deviations.max() <= 0.103  # uniform from 0 to .1
  assert deviations.mean() == pytest.approx(0.05, abs=0.007)
  assert values.mean() == pytest.approx(128 / 255, abs=1e-3)
  assert np.corrcoef(values[0, ..., 0].ravel(), values[0, ..., 1].ravel())[0, 1] < 0.2


# The whole.


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_at_once_is_finite_deterministic_and_in_range(channels):
  image, _ = example(channels=channels)
  label = np.random.default_rng(0).integers(0, 3, (12, 15), np.uint8)
  images, labels = augment_many(16, image, label, (14, 14), **EVERYTHING)
  assert np.isfinite(images).all()
  extremes = np.asarray(normalize(np.array([[0] * channels, [255] * channels], np.uint8)))
  assert (images >= extremes[0] - 1e-5).all()
  assert (images <= extremes[1] + 1e-5).all()
  assert np.isin(labels, [0, 1, 2, IGNORE]).all()
  assert not images[labels == IGNORE].any()
  assert len({x.tobytes() for x in images}) == 16
  again, labels_again = augment_many(16, image, label, (14, 14), **EVERYTHING)
  np.testing.assert_array_equal(images, again)
  np.testing.assert_array_equal(labels, labels_again)


def test_draws_follow_their_distributions():
  image, label = example()
  _, labels = augment_many(2000, image, label, (6, 8), (8, 12), **SLICES)
  top, left = np.divmod(labels.min((1, 2)), 15)
  np.testing.assert_allclose(np.bincount(top, minlength=3) / 2000, 1 / 3, atol=0.05)
  np.testing.assert_allclose(np.bincount(left, minlength=5) / 2000, 1 / 5, atol=0.05)
  flipped, upside = labels[:, 0, 0] > labels[:, 0, 1], labels[:, 0, 0] > labels[:, 1, 0]
  assert flipped.mean() == pytest.approx(0.3, abs=0.05)
  assert upside.mean() == pytest.approx(0.7, abs=0.05)
  assert (flipped & upside).mean() == pytest.approx(0.21, abs=0.05)


def test_examples_of_a_batch_are_independent():
  image, label = (np.stack(x) for x in zip(*(example(seed=s) for s in range(400)), strict=True))
  size = np.tile(np.array([[12, 15], [5, 15], [12, 1], [1, 1]], np.int32), (100, 1))
  keys = jax.random.split(jax.random.key(0), 400)
  batch = compiled((8, 8), **PLAIN)(keys, Example(image=image, label=label, size=size))
  images, labels = batch.image, batch.label
  for i in range(4):
    alone_image, alone_label = augment_many(400, image[i], label[i], (8, 8), size[i], **PLAIN)
    np.testing.assert_allclose(images[i], alone_image[i], atol=1e-5)
    np.testing.assert_array_equal(labels[i], alone_label[i])


def test_scale_is_uniform():
  image, label = example()
  _, labels = augment_many(400, image, label, (8, 8), (4, 4), **PLAIN)
  rows, columns = ((labels != IGNORE).any(axis).sum(1) for axis in (2, 1))
  np.testing.assert_array_equal(rows, columns)
  # From 4 to 8, rounded.
  shares = np.bincount(rows, minlength=9)[4:] / 400
  np.testing.assert_allclose(shares, [0.125, 0.25, 0.25, 0.25, 0.125], atol=0.08)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"size": (0, 4)}, r"size: \(0, 4\) must be two positive whole numbers"),
    ({"size": (4.5, 4)}, r"size"),
    ({"size": 4}, r"size"),
    ({"scale": (2, 1)}, r"scale: \(2, 1\) must be two factors.*smallest <= largest"),
    ({"scale": (0, 1)}, r"scale"),
    ({"scale": 1.0}, r"scale"),
    ({"scale": (1, float("inf"))}, r"scale"),
    ({"flip": 1.5}, r"flip: 1\.5 must be a number from 0 to 1, the probability of"),
    ({"flip_vertical": -0.1}, r"flip_vertical"),
    ({"rotation": 181}, r"rotation: 181 must be a number from 0 to 180"),
    ({"elastic": -1}, r"elastic: -1 must be a number 0 or more"),
    ({"blur": float("nan")}, r"blur"),
    ({"brightness": "a lot"}, r"brightness: 'a lot' must be a number"),
    ({"contrast": 1.1}, r"contrast"),
    ({"saturation": -1}, r"saturation"),
    ({"hue": 0.6}, r"hue: 0\.6 must be a number from 0 to 0\.5"),
    ({"noise": True}, r"noise"),
  ],
)
def test_impossible_settings_are_refused(values, message):
  with pytest.raises(InputError, match=message):
    make_augment(**{"size": (4, 4), **values})
