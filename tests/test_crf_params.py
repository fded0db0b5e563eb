"""Parameters of the dense CRF: their text form and their checks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.crf import (
  CrfParams,
  dense_crf,
  load_params,
  params_from_dict,
  params_to_dict,
  parse_params,
)
from jseg.crf.params import check_params, check_shapes
from jseg.types import InputError


def test_assignments():
  params = parse_params("bilateral_weight=4.5, iterations=3,method=exact", CrfParams(landmarks=7))
  assert params == CrfParams(bilateral_weight=4.5, iterations=3, method="exact", landmarks=7)


@pytest.mark.parametrize("read", [load_params, lambda path: parse_params(str(path))])
@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"params": values}])
def test_files(tmp_path, read, wrap):
  path = tmp_path / "crf.json"
  path.write_text(json.dumps(wrap({"spatial_weight": [1, 2], "iterations": 3})))
  assert read(path) == CrfParams(spatial_weight=[1, 2], iterations=3)


def test_json_and_back():
  params = CrfParams(
    iterations=2,
    spatial_weight=[1.0, 2.0],
    compatibility=[[0.0, 1.0], [1.0, 0.0]],
    method="exact",
    capacity=9,
  )
  assert params_from_dict(json.loads(json.dumps(params_to_dict(params)))) == params


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("weight=3", r"weight: there is no such parameter; choose from iterations, "),
    ("iterations=2.5", r"iterations: 2.5 must be a whole number, such as 10"),
    ("iterations=true", r"iterations: True must be a whole number"),
    ("capacity=0", r"capacity: 0 must be at least 1; None is always enough"),
    ("bilateral_weight=much", r"bilateral_weight: 'much' must be a number"),
    ("bilateral_weight=NaN", r"bilateral_weight: nan must be finite"),
    ("", "'' is not KEY=VALUE"),
    (" ", "' ' is not KEY=VALUE"),
    ("bilateral_weight=4,5", r"'5' is not KEY=VALUE; write bilateral_weight=4"),
    ("bilateral_sigma_xy=0", r"bilateral_sigma_xy: 0 must be above 0 and finite; to switch"),
    ("bilateral_sigma_xy=Infinity", r"bilateral_sigma_xy: inf must be above 0 and finite"),
    ("method=fast", r"method: 'fast' is unknown; choose from auto, lattice"),
    ("nowhere.json", r"nowhere.json cannot be read \(No such file"),
  ],
)
def test_mistakes_in_text(text, match):
  with pytest.raises(InputError, match=match):
    parse_params(text)


@pytest.mark.parametrize("value", [[], [1, "2"], [True], [[1, 2], [3]], [1, [2]], "3", None])
def test_weights_are_numbers_or_rectangles_of_numbers(value):
  with pytest.raises(InputError, match=r"spatial_weight: .* must be a number or a list of numbers"):
    params_from_dict({"spatial_weight": value})


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("[1]", "must hold an object"),
    ('{"params": 1}', "must hold an object"),
    ("{", "not valid"),
    ("[" * 100_000, "not valid"),
    ('{"compatibility": 1' + "0" * 30 + "}", "must be a number or a list"),
    ('{"compatibility": ' + "[" * 600 + "1" + "]" * 600 + "}", "must be a number or a list"),
  ],
)
def test_mistakes_in_files(tmp_path, text, match):
  path = tmp_path / "p.json"
  path.write_text(text)
  with pytest.raises(InputError, match=match):
    load_params(path)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"spatial_sigma": 0.0}, "spatial_sigma: 0.0 must be above 0"),
    ({"bilateral_sigma_rgb": -3.0}, "bilateral_sigma_rgb: -3.0 must be above 0"),
    ({"lattices": 0}, "lattices: 0 must be 1 to 6"),
    ({"spatial_weight": np.nan}, "spatial_weight: nan must be finite"),
    ({"compatibility": np.array([1.0, np.inf])}, "compatibility: .* must be finite"),
    ({"tolerance": -1e-3}, "tolerance: -0.001 must be a number from 0 to below 1"),
    ({"tolerance": 1}, "tolerance: 1 must be a number from 0"),
    ({"method": "grid"}, "method: 'grid' is unknown; choose from auto, lattice, landmarks, exact"),
    ({"normalization": "both"}, "normalization: 'both' is unknown; choose from symmetric, before"),
    ({"spatial_filter": "fast"}, "spatial_filter: 'fast' is unknown; choose from half, exact"),
    ({"iterations": -1}, "iterations: -1 must be at least 0"),
    ({"landmarks": 0}, "landmarks: 0 must be at least 1"),
  ],
)
def test_wrong_values(changes, match):
  with pytest.raises(InputError, match=match):
    check_params(CrfParams(**changes))


def test_traced_values_pass():
  def f(sigma):
    check_params(CrfParams(spatial_sigma=sigma, bilateral_weight=sigma))
    return sigma

  assert jnp.isnan(jax.jit(f)(jnp.nan))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"compatibility": np.ones(4)}, r"compatibility: the shape \(4,\) .* for 3 classes"),
    ({"compatibility": 2.0}, r"compatibility: the shape \(\) must be one of"),
    ({"spatial_weight": np.ones((3, 2))}, r"spatial_weight: the shape \(3, 2\) must be one of"),
    ({"bilateral_sigma_xy": (1.0, 2.0, 3.0)}, "bilateral_sigma_xy: .* one per spatial axis: 2"),
    ({"bilateral_sigma_rgb": (1.0, 2.0, 3.0)}, "bilateral_sigma_rgb: .* one per channel: 4"),
  ],
)
def test_wrong_shapes(changes, match):
  with pytest.raises(InputError, match=match):
    check_shapes(CrfParams(**changes), classes=3, channels=4, ndim=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_colors_of_0_to_1_are_refused_where_the_bandwidth_is_for_0_to_255(channels):
  image = np.random.default_rng(0).random((4, 5, channels))
  logits = np.zeros((4, 5, 2), np.float32)
  with pytest.raises(InputError, match=r"colors lie in 0\.\S+ to 0\.\S+, .*give colors in 0..255"):
    dense_crf(logits, image, CrfParams(iterations=1, method="exact"))
  # Nothing is wrong with a bandwidth for such colors, with few gray levels, or with one color.
  fine = CrfParams(iterations=1, method="exact", bilateral_sigma_rgb=5 / 255)
  few = (image > 0.5).astype(np.uint8)
  plain = CrfParams(iterations=1, method="exact")
  for colors, params in ((image, fine), (few, plain), (0 * image, plain)):
    np.testing.assert_allclose(dense_crf(logits, colors, params), 0.5, rtol=1e-5)
