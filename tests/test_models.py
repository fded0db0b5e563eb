"""The registry, and U-Net against the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jseg import models
from jseg.types import InputError


def test_names_and_knobs():
  assert "unet" in models.names()
  assert models.knobs("unet") == {
    "widths": (64, 128, 256, 512, 1024),
    "padding": "SAME",
    "norm": "batch",
    "dropout": 0.0,
  }


@pytest.mark.parametrize("name", models.names())
def test_tiny_presets_are_knobs_and_a_copy(name):
  assert set(models.tiny(name)) <= set(models.knobs(name))
  models.tiny(name).clear()
  assert models.tiny(name)


@pytest.mark.parametrize(
  ("name", "num_classes", "overrides", "message"),
  [
    ("unett", 2, {}, r"model 'unett' is unknown; choose from .*unet"),
    ("unet", 2, {"width": 3}, r"unet has no setting 'width'; choose from widths, padding, norm"),
    ("unet", 1, {}, r"num_classes: 1 must be 2 to 255"),
    ("unet", 256, {}, r"num_classes: 256 must be 2 to 255"),
    ("unet", 2.0, {}, r"num_classes: 2.0 must be a whole number"),
    ("unet", True, {}, r"num_classes: True must be a whole number"),
    ("unet", 2, {"padding": "same"}, r"padding: 'same' is unknown; choose SAME or VALID"),
    ("unet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("unet", 2, {"dropout": 1.0}, r"dropout: 1.0 must be at least 0 \(off\) and below 1"),
    ("unet", 2, {"widths": ()}, r"widths: \(\) must be one or more positive"),
  ],
)
def test_bad_values_are_refused_when_the_network_is_made(name, num_classes, overrides, message):
  with pytest.raises(InputError, match=message):
    models.create(name, num_classes, **overrides)


def test_parameter_count_of_the_published_unet():
  published = {"padding": "VALID", "norm": "none"}
  assert models.count_parameters("unet", 2, channels=1, **published) == 31_030_658
  model = models.create("unet", 2, **published)
  image = jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32)
  outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert outputs.logits.shape == (1, 388, 388, 2)
  kernels = [a for a in jax.tree.leaves(variables["params"]) if a.ndim == 4]
  assert len(kernels) == 23


def test_batch_norm_replaces_the_biases_before_it():
  with_norm = models.count_parameters("unet", 2, widths=(4, 8))
  without = models.count_parameters("unet", 2, widths=(4, 8), norm="none")
  assert with_norm - without == 2 * (4 + 8 + 4)  # scale and bias instead of bias, twice a block


def xla_conv(x, p, padding="VALID"):
  layout = ("NHWC", "HWIO", "NHWC")
  y = lax.conv_general_dilated(x, p["kernel"], (1, 1), padding, dimension_numbers=layout)
  return y + p["bias"][None, None, None]


def published_unet(params, x, depth):
  """The paper's figure 1, step by step."""
  convs = [params[f"Conv_{i}"] for i in range(4 * depth + 3)]
  ups = [params[f"UpConv_{i}"] for i in range(depth)]
  skips = []
  for level in range(depth + 1):
    if level:
      skips.append(x)
      x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for _ in range(2):
      x = jnp.maximum(xla_conv(x, convs.pop(0)), 0)
  for up in ups:
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h, 2 * w, up["kernel"].shape[-1]), np.float32)
    for i in range(2):
      for j in range(2):
        y[:, i::2, j::2] = x @ up["kernel"][i, j] + up["bias"][None, None, None]
    skip = skips.pop()
    top, left = (skip.shape[1] - 2 * h) // 2, (skip.shape[2] - 2 * w) // 2
    x = jnp.concatenate([skip[:, top : top + 2 * h, left : left + 2 * w], y], -1)
    for _ in range(2):
      x = jnp.maximum(xla_conv(x, convs.pop(0)), 0)
  return xla_conv(x, convs.pop(0))


def test_unpadded_unet_equals_the_paper_step_by_step():
  model = models.create("unet", 3, widths=(4, 8, 16), padding="VALID", norm="none")
  x = jax.random.normal(jax.random.key(0), (2, 44, 52, 1))
  variables = model.init(jax.random.key(1), x)
  # Biases start at zero, where a forgotten one would not show.
  params = jax.tree.map(lambda a: a + 0.1, variables["params"])
  logits = model.apply({"params": params}, x).logits
  assert logits.shape == (2, 4, 12, 3)
  expected = published_unet(params, x, depth=2)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_padded_unet_keeps_pixels_in_place():
  # A step at column 24 must come out as a step there: skips, pooling and up-convolution aligned.
  model = models.create("unet", 2, widths=(4, 8), norm="none")
  x = jnp.zeros((1, 20, 48, 1))
  variables = model.init(jax.random.key(0), x)
  base = model.apply(variables, x).logits
  moved = model.apply(variables, x.at[:, 9, 24].set(1.0)).logits
  rows, columns = np.nonzero(np.abs(moved - base).max((0, 3)))
  # Two 3x3s, a pool, two 3x3s at half resolution, up, two 3x3s: at most 9 pixels on each side.
  assert 9 - 9 <= rows.min() < 9 < rows.max() <= 9 + 9
  assert 24 - 9 <= columns.min() < 24 < columns.max() <= 24 + 9


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((256, 572), r"height 256 does not fit .* at each of 4 levels; use 252 or 268"),
    ((572, 573), r"width 573 does not fit .*; use 572 or 588"),
    ((572, 100), r"width 100 does not fit .*; use 188, or padding SAME"),
  ],
)
def test_sizes_that_do_not_halve_evenly(shape, message):
  model = models.create("unet", 2, padding="VALID", norm="none")
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape, 1)))


def test_dropout_acts_at_the_two_coarsest_levels_in_training_only():
  model = models.create("unet", 2, widths=(4, 8, 16), norm="none", dropout=0.5)
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  variables = model.init(jax.random.key(1), x)
  logits = model.apply(variables, x).logits
  np.testing.assert_array_equal(logits, model.apply(variables, x).logits)

  def train(seed):
    return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}).logits

  np.testing.assert_array_equal(train(1), train(1))
  assert abs(train(1) - train(2)).max() > 1e-3
  _, state = model.apply(
    variables,
    x,
    train=True,
    rngs={"dropout": jax.random.key(0)},
    capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
    mutable=["intermediates"],
  )
  shapes = [a.shape for a in jax.tree.leaves(state)]
  assert sorted(shapes) == [(1, 4, 4, 16), (1, 8, 8, 8)]
