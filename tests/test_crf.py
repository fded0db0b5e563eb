"""Mean field against brute force; properties; gradients; errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.doubles import doubles
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg import crf
from jseg.crf import blocks, call, embedding, gaussian, lattice, lattice_tables, stages
from jseg.types import InputError

PARAMS = crf.CrfParams(3, 2.0, 1.5, 4.0, 5.0, 20.0)


def example(shape=(5, 6), k=3, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*shape, k)).astype(np.float32)
  image = rng.integers(0, 256, (*shape, channels)).astype(np.float32)
  return logits, image


def brute_force(logits, image, params):
  """float64 and dense; scalar weights."""
  shape, k = logits.shape[:-1], logits.shape[-1]
  place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
  color = image.reshape(-1, image.shape[-1]).astype(float)

  def kernel(features):
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    dense = np.exp(-distance / 2)
    sums = dense.sum(1)
    return {
      "symmetric": dense / np.sqrt(sums[:, None] * sums[None]),
      "before": dense / sums[None],
      "after": dense / sums[:, None],
      "none": dense,
    }[params.normalization]

  spatial = kernel(place / np.asarray(params.spatial_sigma))
  bilateral = kernel(
    np.concatenate(
      [
        place / np.asarray(params.bilateral_sigma_xy),
        color / np.asarray(params.bilateral_sigma_rgb),
      ],
      1,
    )
  )
  mu = -np.eye(k) if params.compatibility is None else np.asarray(params.compatibility)
  mu = np.diag(mu) if mu.ndim == 1 else mu
  unary = logits.reshape(-1, k).astype(float)

  def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)

  q = softmax(unary)
  for _ in range(params.iterations):
    message = params.spatial_weight * spatial @ q + params.bilateral_weight * bilateral @ q
    q = softmax(unary - message @ mu.T)
  return q.reshape(logits.shape)


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
def test_exact_equals_brute_force(normalization):
  logits, image = example()
  scale = 0.1 if normalization == "none" else 1.0
  params = PARAMS.replace(
    method="exact", normalization=normalization, spatial_weight=scale, bilateral_weight=4 * scale
  )
  found = crf.dense_crf(logits, image, params)
  np.testing.assert_allclose(found, brute_force(logits, image, params), atol=2e-5)


@pytest.mark.parametrize(
  "changes",
  [
    {"compatibility": np.array([-1.0, -2.0, -0.5])},
    {"compatibility": np.array([[0.0, 1, 2], [3, 0, 1], [0, 2, -1]])},
    {"bilateral_sigma_rgb": (10.0, 20.0, 40.0), "spatial_sigma": (1.0, 2.0)},
  ],
)
def test_compatibility_and_bandwidths_by_axis(changes):
  logits, image = example()
  params = PARAMS.replace(method="exact", **changes)
  found = crf.dense_crf(logits, image, params)
  np.testing.assert_allclose(found, brute_force(logits, image, params), atol=2e-5)


def test_whatever_the_input_it_computes_in_float32():
  logits, image = example()
  params = PARAMS.replace(method="exact")
  found = crf.dense_crf(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(image, jnp.uint8), params)
  assert found.dtype == jnp.float32
  rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)
  np.testing.assert_allclose(found, brute_force(rounded, image, params), atol=2e-5)


@pytest.mark.parametrize(("shape", "channels"), [((5, 6), 1), ((5, 6), 5), ((3, 4, 2), 1)])
def test_channels_and_volumes(shape, channels):
  logits, image = example(shape, channels=channels)
  params = PARAMS.replace(method="exact")
  found = crf.dense_crf(logits, image, params, ndim=len(shape))
  np.testing.assert_allclose(found, brute_force(logits, image, params), atol=2e-5)
  near = crf.dense_crf(logits, image, PARAMS, ndim=len(shape))
  assert np.abs(near - found).mean() < 0.03


def test_many_narrow_channels_fit_the_keys():
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 6)).astype(np.float32)
  params = crf.CrfParams(bilateral_sigma_rgb=3.0, lattices=2)
  assert crf.lattice_size(image, params) > 2000
  with pytest.raises(InputError, match="lattices: 0 must be"):
    crf.lattice_size(image, params.replace(lattices=0))


def test_landmarks_on_every_color_are_exact():
  logits, image = example()
  params = PARAMS.replace(method="landmarks", landmarks=30, bilateral_sigma_rgb=60.0)
  found = crf.dense_crf(logits, image, params)
  np.testing.assert_allclose(found, brute_force(logits, image, params), atol=2e-3)


@pytest.mark.parametrize(
  ("n", "sigma", "most"), [(30, 1.0, 1e-5), (41, 2.5, 0.016), (60, 3.0, 0.009)]
)
def test_taps_and_half_the_resolution(n, sigma, most):
  plan = gaussian.plan_axis(sigma, half=True)
  assert plan.half == (sigma >= 2.5)
  f = gaussian.axis_filter(n, jnp.float32(sigma), plan)
  assert isinstance(f.middle, gaussian.Stencil)
  eye = jnp.eye(n)
  before, after = np.random.default_rng(0).uniform(1, 2, (2, n)).astype(np.float32)

  @jax.jit
  def both(x):
    scaled = gaussian.scale_filter(f, jnp.asarray(before), jnp.asarray(after))
    plain, transpose = jax.vjp(lambda x: gaussian.grid_filter(x, [f]), x)
    return plain, transpose(x)[0], gaussian.grid_filter(x, [scaled])

  found, by_x, scaled = map(np.asarray, both(eye))
  np.testing.assert_allclose(found, found.T, atol=1e-6)
  np.testing.assert_allclose(by_x, found.T, atol=1e-6)
  np.testing.assert_allclose(scaled, after[:, None] * found * before, atol=1e-5)
  exact = np.asarray(gaussian.axis_matrix(n, jnp.float32(sigma)))
  assert (abs(found - exact).sum(1) / (sigma * np.sqrt(2 * np.pi))).max() < most


@pytest.mark.parametrize("half", [True, False])
def test_a_traced_sigma_filters_as_a_concrete_one(half):
  n, eye = 60, jnp.eye(60)

  @jax.jit
  def traced(sigma):
    f = gaussian.axis_filter(n, sigma, gaussian.plan_axis(None, half=half))
    return gaussian.grid_filter(eye, [f])

  by_sigma = jax.jit(jax.jacfwd(traced))
  # Taps and a matrix, at half the resolution from 2.5 on.
  for sigma in (0.7, 2.4, 2.5, 30.0):
    f = gaussian.axis_filter(n, jnp.float32(sigma), gaussian.plan_axis(sigma, half=half))
    expected = gaussian.grid_filter(eye, [f])
    np.testing.assert_allclose(traced(sigma), expected, atol=1e-6, err_msg=str(sigma))
    step = 1e-2 * sigma
    numeric = (traced(sigma + step) - traced(sigma)) / step
    np.testing.assert_allclose(by_sigma(sigma), numeric, atol=2e-2 / sigma, err_msg=str(sigma))


def test_traced_bandwidths_give_what_concrete_ones_give():
  logits, image = example((9, 10))
  params = PARAMS.replace(spatial_sigma=3.1, iterations=1, method="exact")
  concrete = crf.dense_crf(logits, image, params)
  sigmas = {name: jnp.float32(getattr(params, name)) for name in call.SIGMAS}
  traced = jax.jit(lambda sigmas: crf.dense_crf(logits, image, params.replace(**sigmas)))(sigmas)
  np.testing.assert_allclose(traced, concrete, atol=2e-6)


def test_zero_weights_give_softmax():
  logits, image = example()
  params = PARAMS.replace(spatial_weight=0.0, bilateral_weight=0.0)
  np.testing.assert_allclose(
    crf.dense_crf(logits, image, params), jax.nn.softmax(logits), atol=1e-6
  )


@functools.cache
def corners(seed=0, n=40, d=5, spread=2):
  features = spread * np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
  return jax.jit(lattice.barycentric)(features)


def host_lattice(**kwargs):
  found = corners(**kwargs)
  return lattice_tables.host_lattice(np.asarray(found.corner), np.asarray(found.order), (1, 0))


def filtered(x):
  weight = corners().weight
  return jax.jit(lattice.lattice_filter)(x, weight, weight, host_lattice())


def test_barycentric_weights():
  weight = corners().weight
  np.testing.assert_allclose(weight.sum(0), 1, atol=1e-5)
  assert float(weight.min()) > -1e-5


@pytest.mark.parametrize("kwargs", [{}, {"n": 120, "d": 3, "spread": 0.3}])
def test_the_lattice_under_jit_is_the_hosts(kwargs):
  host = host_lattice(**kwargs)
  size = int(host.vertex.max()) + 1
  make = functools.partial(lattice_tables.make_lattice, major=(1, 0), capacity=size)
  under_jit = jax.jit(make)(corners(**kwargs))
  np.testing.assert_array_equal(under_jit.vertex, host.vertex)
  sink = host.neighbors.shape[-1] - 1
  neighbors = np.where(host.neighbors == sink, size, host.neighbors)
  np.testing.assert_array_equal(under_jit.neighbors, neighbors[..., : size + 1])
  np.testing.assert_array_equal(under_jit.first[:, :size], host.first[:, :size])
  assert not under_jit.overflow
  assert (host.neighbors[..., :size] < sink).sum() > 30  # Some are neighbors.
  for found in (host, under_jit):
    # Each corner is in one group, that of its vertex.
    own = np.arange(found.first.shape[1])
    pairs = [(found.first, own), (found.more, np.asarray(found.owner))]
    pairs = [(np.asarray(g).ravel(), np.broadcast_to(v, g.shape).ravel()) for g, v in pairs]
    entry, vertex = (np.concatenate(x) for x in zip(*pairs, strict=True))
    used = entry < host.vertex.size
    assert len(entry[used]) == host.vertex.size
    np.testing.assert_array_equal(vertex[used][np.argsort(entry[used])], host.vertex.ravel())


def test_filter_is_the_product_of_its_matrices():
  kwargs = {"n": 120, "d": 3, "spread": 0.3}
  found, grid = corners(**kwargs), host_lattice(**kwargs)
  assert (grid.owner < grid.neighbors.shape[-1] - 1).sum() > 10  # Some have many points.
  weight, n = np.asarray(found.weight), 120
  x = np.random.default_rng(2).normal(size=(n, 2)).astype(np.float32)
  values = np.zeros((grid.neighbors.shape[-1], 2))
  for k in range(4):
    np.add.at(values, grid.vertex[k], weight[k][:, None] * x)
  for before, after in grid.neighbors:
    values = values + (values[before] + values[after]) / 2
  expected = sum(weight[k][:, None] * values[grid.vertex[k]] for k in range(4))
  actual = jax.jit(lattice.lattice_filter)(x, found.weight, found.weight, grid)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_two_lattices_are_closer_than_one():
  errors = np.zeros((2, 4))
  for seed in range(4):
    logits, image = example((12, 12), seed=seed)
    image = image[:1] / 8 + 60  # A smooth image: many points a vertex.
    image = np.broadcast_to(image, (12, 12, 3))
    params = PARAMS.replace(spatial_weight=0.0, bilateral_weight=8.0)
    exact = brute_force(logits, image, params)
    for i in (0, 1):
      found = crf.dense_crf(logits, image, params.replace(lattices=i + 1))
      errors[i, seed] = abs(found - exact).mean()
  one, two = errors.mean(1)
  assert 0 < two < 0.8 * one


def test_transposed_filter():
  rng = np.random.default_rng(1)
  x, y = jnp.asarray(rng.normal(size=(2, 40, 3)), jnp.float32)
  transposed = jax.vjp(filtered, x)[1](y)[0]
  assert np.vdot(y, filtered(x)) == pytest.approx(np.vdot(transposed, x), rel=1e-4)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**31), shift=st.floats(-50, 50))
def test_properties(seed, shift):
  logits, image = example((4, 5), seed=seed)
  q = crf.dense_crf(logits, image, PARAMS)
  np.testing.assert_allclose(q.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(crf.dense_crf(logits + shift, image, PARAMS), q, atol=1e-4)
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(
    crf.dense_crf(logits[..., order], image, PARAMS), q[..., order], atol=1e-5
  )


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_batch_jit_and_vmap_equal_one_by_one(method):
  params = PARAMS.replace(method=method)
  pairs = [example((4, 5), seed=seed) for seed in (0, 1, 2)]
  logits, image = (np.stack(x) for x in zip(*pairs, strict=True))
  # Colors at 0 lie on the border between two simplices, where rounding picks the vertices.
  image = image + np.float32(0.137)
  one = np.stack([crf.dense_crf(a, b, params) for a, b in zip(logits, image, strict=True)])
  f = functools.partial(crf.dense_crf, params=params)
  for name, g in {"eager": f, "jit": jax.jit(f), "vmap": jax.jit(jax.vmap(f))}.items():
    np.testing.assert_allclose(g(logits, image), one, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ("changes", "most"),
  [
    ({"method": "exact"}, 1e-5),
    ({"method": "landmarks", "landmarks": 200, "bilateral_sigma_rgb": 60.0}, 1e-5),
    # Its vertices lie elsewhere in the mirror image.
    ({}, 0.02),
  ],
)
def test_the_mirror_image_gives_the_mirrored_result(changes, most):
  shape = (14, 16)
  y, x = np.mgrid[: shape[0], : shape[1]]
  logits = example(shape)[0]
  image = np.stack([9 * x, 15 * y, 200 * (x > 6)], -1).astype(np.float32)
  params = PARAMS.replace(**changes)
  q = crf.dense_crf(logits, image, params)
  for flip in (np.s_[::-1], np.s_[:, ::-1]):
    mirrored = crf.dense_crf(logits[flip], image[flip], params)[flip]
    assert abs(mirrored - q).mean() < most


def test_images_of_many_sizes_share_programs(monkeypatch):
  traces = []

  def counted(*args):
    traces.append(args)
    return crf.mean_field(*args)

  monkeypatch.setattr(call, "mean_field", counted)
  for shape in ((35, 44), (36, 42), (36, 44)):
    logits, _ = example(shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([5 * x, 5 * y, x + y], -1).astype(np.float32)
    q = crf.dense_crf(logits, image, PARAMS)
    assert q.shape == logits.shape
    assert abs(q - brute_force(logits, image, PARAMS)).mean() < 0.03
  assert len(traces) == 1


def test_numbers_by_class_and_axis_may_be_lists():
  logits, image = example()
  values = {
    "spatial_weight": [1.0, 2.0, 3.0],
    "compatibility": [[0.0, 1, 2], [3, 0, 1], [0, 2, -1]],
    "bilateral_sigma_xy": (4.0, 5.0),
  }
  arrays = {name: np.asarray(value) for name, value in values.items()}
  params = PARAMS.replace(method="exact")
  np.testing.assert_array_equal(
    crf.dense_crf(logits, image, params.replace(**values)),
    crf.dense_crf(logits, image, params.replace(**arrays)),
  )


def test_capacity_overflow_is_not_silent():
  logits, image = example((4, 5))
  f = jax.jit(functools.partial(crf.dense_crf, params=PARAMS.replace(capacity=4)))
  assert np.isnan(f(logits, image)).all()
  size = crf.lattice_size(image, PARAMS)
  f = jax.jit(functools.partial(crf.dense_crf, params=PARAMS.replace(capacity=size)))
  np.testing.assert_allclose(f(logits, image), crf.dense_crf(logits, image, PARAMS), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (30, 30)])
def test_constant_images(shape):
  logits, image = example(shape, k=1 if shape == (1, 1) else 2)
  q = crf.dense_crf(logits, np.full_like(image, 7), PARAMS)
  np.testing.assert_allclose(q.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"spatial_sigma": 0.0}, "spatial_sigma: 0.0 must be above 0"),
    ({"iterations": -1}, "iterations: -1 must be at least 0"),
    ({"bilateral_sigma_xy": (1.0, 2.0, 3.0)}, "one per spatial axis: 2"),
    ({"compatibility": np.ones(4)}, "for 3 classes"),
    ({"bilateral_sigma_rgb": 1e-6}, "bilateral_sigma_rgb: .* 1e-06 need more .* 64-bit keys"),
    ({"bilateral_sigma_rgb": (1e-9, 1e3, 1e3)}, "64-bit keys"),
    ({"spatial_sigma": 1e-9, "spatial_filter": "lattice"}, "^spatial_sigma: 1e-09 .* 64-bit keys"),
  ],
)
def test_wrong_parameters(changes, match):
  logits, image = example()
  with pytest.raises(InputError, match=match):
    crf.dense_crf(logits, image, PARAMS.replace(**changes))


def test_wrong_inputs():
  logits, image = example()
  here = logits == logits[0, 0, 0]
  for a, b, match in (
    (logits, image[:-1], "resize the logits"),
    (logits, image[..., 0], "gray images need a channel axis"),
    (logits[:0], image[:0], "must not be empty"),
    (np.where(here, np.nan, logits), image, "logits: 1 pixels have NaN"),
    (np.where(here, np.inf, logits), image, r"logits: 1 pixels have NaN or \+inf"),
    (np.full_like(logits, -np.inf), image, "logits: 30 pixels .* -inf for every class"),
    (logits, np.where(image == image[0, 0, 0], np.nan, image), "image: .* NaN"),
  ):
    with pytest.raises(InputError, match=match):
      crf.dense_crf(a, b, PARAMS)


def test_a_class_ruled_out_stays_out():
  logits, image = example()
  logits[..., 1] = -np.inf
  q = np.asarray(crf.dense_crf(logits, image, PARAMS))
  assert np.isfinite(q).all()
  assert (q[..., 1] == 0).all()


def test_unaries():
  q = jax.nn.softmax(crf.unary_from_labels(np.array([[0, 2, 255]]), 3, 0.5))
  np.testing.assert_allclose(q[0], [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [1 / 3] * 3], atol=1e-6)
  np.testing.assert_allclose(
    np.exp(crf.unary_from_probabilities([[0.0, 1.0]], scale=0.5)), [[0.25, 0.75]], atol=1e-6
  )
  with pytest.raises(InputError, match="labels: 7 is none of 3 classes"):
    crf.unary_from_labels(np.array([0, 7]), 3, 0.5)
  with pytest.raises(InputError, match="gt_prob: 1 must lie between"):
    crf.unary_from_labels(np.array([0]), 3, 1)


def numeric(f, x, eps=1e-5):
  x = np.asarray(x, np.float64)
  g = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    step = np.zeros_like(x)
    step[i] = eps
    g[i] = (f(x + step) - f(x - step)) / (2 * eps)
  return g


def check_gradients(logits, image, start):
  """Holds the gradients by logits, image and all numbers of `start` to finite differences."""
  target = np.random.default_rng(5).normal(size=logits.shape)
  names = [*call.WEIGHTS, "compatibility", *call.SIGMAS]

  def loss(values):
    params = start.replace(**{name: values[name] for name in names})
    return (crf.dense_crf(values["logits"], values["image"], params) * target).sum()

  values = {name: np.asarray(getattr(start, name), np.float64) for name in names}
  values |= {"logits": logits, "image": image}
  # One program for both: compiling takes longer than all the differences.
  f = jax.jit(jax.value_and_grad(loss))
  _, gradient = f(values)
  for name, value in values.items():
    expected = numeric(lambda x, name=name: float(f({**values, name: x})[0]), value)
    np.testing.assert_allclose(gradient[name], expected, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
  ("method", "spatial_filter", "spatial_sigma"),
  [("lattice", "half", 3.0), ("exact", "exact", 2.0), ("landmarks", "lattice", 1.7)],
)
def test_gradients_equal_finite_differences(method, spatial_filter, spatial_sigma):
  with doubles():
    logits, image = (x.astype(np.float64) for x in example((3, 3), k=2))
    start = PARAMS.replace(
      method=method,
      spatial_filter=spatial_filter,
      spatial_sigma=spatial_sigma,
      landmarks=4,
      lattices=2,
      spatial_weight=np.array([1.0, 2.0]),
      bilateral_weight=np.array([3.0, 4.0]),
      compatibility=np.array([[-1.0, 0.2], [0.1, -0.7]]),
    )
    check_gradients(logits, image + 0.137, start)  # Colors at 0 lie between two simplices.


def test_gradients_of_ten_iterations_in_blocks_equal_finite_differences(monkeypatch):
  monkeypatch.setattr(blocks, "POINTS", 8)
  monkeypatch.setattr(blocks, "MULTIPLE", 4)
  rng = np.random.default_rng(0)
  image = rng.uniform(0, 40, (5, 6, 3))
  image[:, 3:] += 200  # Two colors, whose blocks are far apart.
  start = crf.CrfParams(
    iterations=10,
    method="exact",
    spatial_weight=np.array([0.5, 0.9, 0.7]),
    spatial_sigma=np.array([1.5, 2.6]),
    bilateral_weight=np.array([1.2, 0.8, 1.0]),
    bilateral_sigma_xy=np.array([3.0, 4.0]),
    bilateral_sigma_rgb=np.array([25.0, 20.0, 30.0]),
    compatibility=np.array([[-1.0, 0.2, 0.1], [0.1, -0.7, 0.3], [0.0, 0.2, -0.9]]),
  )
  with doubles():
    place = embedding.positions((5, 6), start.bilateral_sigma_xy)
    features = jnp.concatenate([place, embedding.colors(image, start.bilateral_sigma_rgb)], 1)
    kept = np.asarray(blocks.make_blocks(features, jnp.ones(30), start.tolerance).keep)
    assert kept.shape == (4, 4)
    assert np.eye(4).sum() < kept.sum() < 16  # Some pairs of blocks are skipped, others aren't.
    check_gradients(rng.normal(size=(5, 6, 3)), image, start)


def test_layer_starts_as_the_function_and_learns():
  logits, image = example((4, 5))
  logits, image = logits[None], image[None]
  layer = crf.DenseCRF(PARAMS, train_bandwidths=True)
  variables = jax.jit(layer.init)(jax.random.key(0), logits, image)
  assert variables["params"]["compatibility"].shape == (3, 3)

  def loss(v):
    log_q = layer.apply(v, logits, image)
    return log_q[..., 0].mean(), log_q

  gradients, log_q = jax.jit(jax.grad(loss, has_aux=True))(variables)
  np.testing.assert_allclose(np.exp(log_q), crf.dense_crf(logits, image, PARAMS), atol=1e-5)
  for path, g in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(g).all(), path
    assert np.any(g != 0), path


def test_at_a_stride_the_layer_is_the_crf_of_the_small_image():
  rng = np.random.default_rng(0)
  small = [rng.uniform(0, high, (1, 3, 4, c)).astype(np.float32) for high, c in ((3, 2), (255, 3))]
  flat = [np.repeat(np.repeat(x, 4, 1), 4, 2) for x in small]
  params = PARAMS.replace(method="exact", spatial_sigma=4.0, bilateral_sigma_xy=8.0)
  layer = crf.DenseCRF(params, stride=4)
  log_q = jax.jit(lambda *x: layer.init_with_output(jax.random.key(0), *x)[0])(*flat)
  shrunk = [jax.image.resize(x, y.shape, "linear") for x, y in zip(flat, small, strict=True)]
  scaled = params.replace(spatial_sigma=1.0, bilateral_sigma_xy=2.0)
  q = jax.image.resize(crf.dense_crf(*shrunk, scaled), flat[0].shape, "linear")
  np.testing.assert_allclose(np.exp(log_q), q, atol=1e-5)
  np.testing.assert_allclose(np.exp(log_q).sum(-1), 1, atol=1e-5)
  with pytest.raises(InputError, match="stride: 0 must be at least 1"):
    crf.DenseCRF(params, stride=0).init(jax.random.key(0), *flat)


def test_an_older_jax_is_refused_under_jit_by_name(monkeypatch):
  monkeypatch.delattr(jax, "enable_x64")
  image, logits = jnp.zeros((4, 5, 3)), jnp.zeros((4, 5, 2))
  with pytest.raises(InputError, match=r"under jit or as a layer needs JAX 0\.8 .*outside of jit"):
    jax.jit(lambda *x: crf.dense_crf(*x, crf.CrfParams()))(logits, image)


def test_a_number_that_is_none_spoils_no_other_of_what_is_stored():
  stored = stages.stored(jnp.square, jnp.asarray([np.nan, 2.0]))
  np.testing.assert_array_equal(stored, [np.nan, 4.0])
