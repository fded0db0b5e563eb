"""Augmentation of volumes: exact where it copies, aligned and masked where it interpolates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.augment import Example, geometry, make_augment, volume
from jseg.types import IGNORE, InputError

EVERYTHING = {
  "scale": (0.7, 1.5),
  "flip": 0.5,
  "flip_vertical": 0.5,
  "rotation": 30,
  "elastic": 1.0,
  "blur": 0.7,
  "brightness": 0.5,
  "contrast": 0.5,
  "noise": 0.1,
}
PLAIN = {"scale": (1, 1), "flip": 0}
WARP = {"scale": (0.8, 1.6), "rotation": 40, "elastic": 2.0}

# These tests spend their time compiling; what they run is tiny.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
elastic = jit(volume.elastic)


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


def example(size=(5, 7, 6), channels=2, seed=0):
  """Noise, and a label that is another number at each voxel, past all that are void."""
  image = np.random.default_rng(seed).normal(size=(*size, channels)).astype(np.float32)
  return image, 1000 + np.arange(np.prod(size), dtype=np.int32).reshape(size)


# The second scale leaves the copying path for the interpolating one, which must agree at factor 1.
@pytest.mark.parametrize("scale", [(1, 1), (1, 1 + 1e-6)])
@pytest.mark.parametrize("covered", [(5, 7, 6), (2, 7, 3), (5, 3, 2)])
def test_unit_scale_is_slices_flips_and_padding(covered, scale):
  image, label = example()
  crop = (3, 4, 4)
  values = {"scale": scale, "flip": 0.3, "flip_vertical": 0.7}
  images, labels = augment_many(300, image, label, crop, covered, **values)
  seen, flips = set(), []
  for got_image, got_label in zip(images, labels, strict=True):
    valid = np.argwhere(got_label != IGNORE)
    low, high = valid.min(0), valid.max(0) + 1
    assert (high - low).tolist() == [min(c, n) for c, n in zip(crop, covered, strict=True)]
    inner = got_label[tuple(map(slice, low, high))]
    start = np.array(np.unravel_index(inner.min() - 1000, label.shape))
    assert (start + inner.shape <= covered).all()  # the rest of the canvas is never read
    down = inner[0, 0, 0] > inner[0, 1, 0]
    across = inner[0, 0, 0] > inner[0, 0, 1]
    flips.append((down, across))
    source = tuple(map(slice, start, start + inner.shape))
    order = np.s_[:, :: -1 if down else 1, :: -1 if across else 1]
    expected_image, expected_label = np.zeros((*crop, 2)), np.full(crop, IGNORE)
    expected_image[tuple(map(slice, low, high))] = image[source][order]
    expected_label[tuple(map(slice, low, high))] = label[source][order]
    np.testing.assert_array_equal(got_label, expected_label)
    np.testing.assert_allclose(got_image, expected_image, atol=1e-5 if scale[1] > 1 else 0)
    seen.add((*start, *low))
  room = [abs(c - n) + 1 for c, n in zip(crop, covered, strict=True)]
  assert len(seen) > 0.9 * np.prod(room)  # every position comes up
  np.testing.assert_allclose(np.mean(flips, 0), [0.7, 0.3], atol=0.1)


def test_the_key_decides_and_knobs_do_not_move_each_other():
  image, label = example()
  many = functools.partial(augment_many, 4, image, label, (4, 6, 5))
  first, second = many(**EVERYTHING), many(**EVERYTHING)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (many(seed=1, **EVERYTHING)[0] != first[0]).any()
  flips = {"scale": (1, 1), "flip": 0.5, "flip_vertical": 0.5}
  np.testing.assert_array_equal(many(**flips, noise=0.1)[1], many(**flips)[1])


def test_a_quarter_turn_is_within_the_slices():
  image, label = example((2, 5, 5), 1)
  _, labels = augment_many(400, image, label, (2, 5, 5), rotation=180, **PLAIN)
  middle = labels[:, :, 2, 2] - 1000
  assert (middle == [12, 37]).all()  # the axis of rotation stays
  inside = labels != IGNORE
  slices = np.where(inside, (labels - 1000) // 25, np.arange(2)[:, None, None])
  assert (slices == np.arange(2)[:, None, None]).all()
  corner = labels[:, 0, 0, 2] - 1000  # above the axis: all four sides come up
  assert {2, 10, 14, 22} <= set(corner.tolist())


def test_image_and_label_stay_aligned():
  rng = np.random.default_rng(1)
  label = np.kron(rng.integers(0, 3, (2, 2, 2)), np.ones((10, 12, 11))).astype(np.uint8)
  image = label[..., None].astype(np.float32) + 1
  images, labels = augment_many(4, image, label, (16, 16, 16), **WARP)
  around = np.lib.stride_tricks.sliding_window_view(labels, (5, 5, 5), axis=(1, 2, 3))
  flat = around.reshape(*around.shape[:4], -1)
  uniform = (flat.min(-1) == flat.max(-1)) & (flat[..., 0] != IGNORE)
  assert uniform.mean() > 0.1
  inner = np.s_[:, 2:-2, 2:-2, 2:-2]
  np.testing.assert_allclose(images[inner][..., 0][uniform], labels[inner][uniform] + 1, atol=1e-4)
  assert not images[labels == IGNORE].any()


def test_linear_ramps_stay_linear():
  """Trilinear reading of z + 10 y + 100 x gives the positions that nearest rounds for labels."""
  size = (6, 8, 9)
  z, y, x = np.indices(size)
  image = np.stack([z, y, x], -1).astype(np.float32)
  label = (1000 + z * 100 + y * 10 + x).astype(np.int32)
  images, labels = augment_many(3, image, label, size, **PLAIN, elastic=1.5, rotation=20)
  inside = labels != IGNORE
  assert 0.4 < inside.mean() < 1
  nearest = np.stack([(labels - 1000) // 100, (labels - 1000) // 10 % 10, labels % 10], -1)
  off = np.abs(images - nearest)[inside]
  assert off.max() <= 0.5 + 1e-4
  assert off.max() > 0.3  # something did move by parts of a voxel


def test_scaling_by_two_by_hand():
  image = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2, 1)
  label = np.array([[[1, 2]]], np.uint8)
  images, labels = augment_many(1, image, label, (2, 2, 4), scale=(2, 2), flip=0)
  np.testing.assert_allclose(images[0, ..., 0], np.broadcast_to([0, 1, 3, 4], (2, 2, 4)), atol=1e-6)
  assert (labels[0] == [1, 1, 2, 2]).all()


def test_elastic_interpolates_its_nodes():
  counts = volume.node_counts((65, 33, 1))
  assert counts == (3, 2, 1)
  nodes = jax.random.normal(jax.random.key(0), (*counts, 3))
  own = geometry.grid(65, 33, 1)
  moved = [np.asarray(a - b) for a, b in zip(elastic(own, nodes), own, strict=True)]
  np.testing.assert_allclose(np.stack(moved, -1)[::32, ::32], nodes, atol=1e-4)
  # Where the grid overhangs, it does so alike on both sides: constant nodes move all alike.
  own = geometry.grid(40, 20, 5)
  moved = elastic(own, jnp.full((*volume.node_counts((40, 20, 5)), 3), 2.0))
  for after, before in zip(moved, own, strict=True):
    np.testing.assert_allclose(after - before, np.full((40, 20, 5), 2.0), atol=1e-4)


def test_intensity_by_hand():
  image, label = example((3, 4, 4), 1)
  many = functools.partial(augment_many, 400, image, label, (3, 4, 4), **PLAIN)
  lit = many(brightness=0.4, contrast=0.2)[0]
  design = np.stack([image.ravel(), np.ones(image.size)], 1)
  (factor, shift), residual, *_ = np.linalg.lstsq(design, lit.reshape(400, -1).T)
  assert residual.max() < 1e-8  # one factor and one shift a volume
  for drawn, middle, range_ in ((factor, 1, 0.2), (shift, 0, 0.4)):
    assert np.abs(drawn - middle).max() < range_ + 1e-5
    assert drawn.min() < middle - 0.9 * range_
    assert drawn.max() > middle + 0.9 * range_
  noise = (many(noise=0.5)[0] - image).reshape(400, -1)
  assert abs(noise.mean()) < 0.02
  # The deviation is uniform from 0 to 0.5, and its square has the mean 0.5^2 / 3.
  assert noise.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.1)
  blurred = many(blur=1.0)[0]
  assert blurred.mean() == pytest.approx(image.mean(), abs=0.1)
  assert blurred.std() < 0.8 * image.std()


def test_padding_is_neither_read_nor_lit():
  image, label = example()
  image[4:], image[:, 5:], image[:, :, 3:] = 1e6, 1e6, 1e6
  for seed in range(5):
    images, labels = augment_many(4, image, label, (4, 6, 5), (4, 5, 3), seed, **EVERYTHING)
    assert np.abs(images).max() < 100
    assert not images[labels == IGNORE].any()
    inside = labels[labels != IGNORE] - 1000
    assert (inside // 42 < 4).all()
    assert (inside // 6 % 7 < 5).all()
    assert (inside % 6 < 3).all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"hue": 0.1}, r"hue: 0\.1 must be 0: volumes have no such augmentation"),
    ({"saturation": 1}, r"saturation: 1 must be 0: volumes have no such augmentation"),
    ({"size": (4, 4, 0)}, r"size: \(4, 4, 0\) must be .* Volumes have three"),
    ({"size": (4, 4, 4, 4)}, r"size: \(4, 4, 4, 4\)"),
    ({"noise": 2}, r"noise: 2 must be a number from 0 to 1"),
  ],
)
def test_impossible_knobs(changes, message):
  with pytest.raises(InputError, match=message):
    make_augment(**{"size": (4, 4, 4)} | changes)
