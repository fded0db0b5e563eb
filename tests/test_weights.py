"""Weights of other sources: reading, renaming, folding of preprocessing, and their transfer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.numpy import save_file

from jseg.images import normalize
from jseg.types import InputError
from jseg.weights import (
  LayerTarget,
  convert,
  read_tensors,
  recognize,
  source_variables,
  transfer,
)

# Positions in torchvision's `features`: convolutions and ReLUs alternate, pools are in between.
BLOCKS = (2, 2, 3, 3, 3)
NAMES = [f"{block}_{i}" for block, layers in enumerate(BLOCKS, 1) for i in range(1, layers + 1)]


def vgg16(norm=False, classifier=False, width=2):
  """Random tensors under torchvision's names."""
  rng = np.random.default_rng(0)
  tensors, position, channels = {}, 0, 3
  for layers in BLOCKS:
    for _ in range(layers):
      prefix = f"features.{position}"
      tensors[f"{prefix}.weight"] = rng.normal(size=(width, channels, 3, 3))
      tensors[f"{prefix}.bias"] = rng.normal(size=width)
      if norm:
        prefix = f"features.{position + 1}"
        for leaf in ("weight", "bias", "running_mean", "running_var"):
          tensors[f"{prefix}.{leaf}"] = rng.normal(size=width)
        tensors[f"{prefix}.num_batches_tracked"] = np.array(7)
      position += 3 if norm else 2
      channels = width
    position += 1
  if classifier:
    for layer, (f, c) in {0: (5, 49 * width), 3: (4, 5), 6: (10, 4)}.items():
      tensors[f"classifier.{layer}.weight"] = rng.normal(size=(f, c))
      tensors[f"classifier.{layer}.bias"] = rng.normal(size=f)
  return {name: np.asarray(a, np.float32) for name, a in tensors.items()}


def test_read_tensors(tmp_path):
  tensors = vgg16()
  save_file(tensors, tmp_path / "weights.safetensors")
  read = read_tensors(str(tmp_path / "weights.safetensors"))
  assert set(read) == set(tensors)
  for name, a in tensors.items():
    np.testing.assert_array_equal(read[name], a)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("none.safetensors", None, r"there is no file .*none.safetensors; give a run .*, a .safeten"),
    ("vgg16.pth", b"abc", r"vgg16.pth is no PyTorch checkpoint but something else"),
    ("garbage.safetensors", b"\x00\xff" * 99, r"garbage.safetensors is damaged or no .safetensors"),
    ("empty.safetensors", b"", r"empty.safetensors is damaged"),
  ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    read_tensors(tmp_path / name)


def test_a_truncated_file(tmp_path):
  path = tmp_path / "half.safetensors"
  save_file(vgg16(), path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(InputError, match=r"half.safetensors is damaged"):
    read_tensors(path)


def test_kinds_of_layers():
  rng = np.random.default_rng(0)
  shapes = {"conv": (2, 3, 5, 7), "volume": (2, 3, 5, 7, 4), "up": (2, 3, 5, 7), "fc": (2, 3 * 35)}
  tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
  tensors |= {"vector.weight": rng.normal(size=(2, 3)), "fc.bias": np.array([1.0, 2.0])}
  tensors |= {f"bn.{leaf}": rng.normal(size=2) for leaf in ("weight", "bias", "running_mean")}
  tensors |= {"bn.running_var": np.ones(2), "bn.num_batches_tracked": np.array(3)}
  tensors |= {"bn.extra": np.ones(2), "other.weight": np.ones((1, 1, 1, 1))}
  layers = {
    "conv": LayerTarget("a/b/conv"),
    "volume": LayerTarget("volume"),
    "up": LayerTarget("up", "transposed"),
    "fc": LayerTarget("fc", "dense", (5, 7)),
    "vector": LayerTarget("vector", "dense"),
    "bn": LayerTarget("a/norm", "norm"),
    "absent": LayerTarget("absent"),
  }
  variables, unused = convert(tensors, layers)
  assert sorted(unused) == ["bn.extra", "other.weight"]
  params = variables["params"]
  assert set(params) == {"a", "volume", "up", "fc", "vector"}
  w = {name: np.float32(tensors[f"{name}.weight"]) for name in (*shapes, "vector")}
  for i, j, f, c in np.ndindex(5, 7, 2, 3):
    assert params["a"]["b"]["conv"]["kernel"][i, j, c, f] == w["conv"][f, c, i, j]
    assert params["up"]["kernel"][i, j, f, c] == w["up"][f, c, i, j]
    assert params["fc"]["kernel"][i, j, c, f] == w["fc"][f, 35 * c + 7 * i + j]
    np.testing.assert_array_equal(
      params["volume"]["kernel"][i, j, :, c, f], w["volume"][f, c, i, j]
    )
  np.testing.assert_array_equal(params["vector"]["kernel"], w["vector"].T[None, None])
  np.testing.assert_array_equal(params["fc"]["bias"], [1, 2])
  for ours, theirs in [
    (params["a"]["norm"]["scale"], "weight"),
    (params["a"]["norm"]["bias"], "bias"),
    (variables["batch_stats"]["a"]["norm"]["mean"], "running_mean"),
    (variables["batch_stats"]["a"]["norm"]["var"], "running_var"),
  ]:
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, np.float32(tensors[f"bn.{theirs}"]))


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_a_kernel_without_room_is_refused(shape):
  message = re.escape(f"x.weight: a tensor of shape {shape} is no convolution's kernel")
  with pytest.raises(InputError, match=message):
    convert({"x.weight": np.ones(shape)}, {"x": LayerTarget("x")})


@pytest.mark.parametrize("norm", [False, True])
def test_vgg16_is_recognized(norm):
  tensors = vgg16(norm, classifier=True)
  source = recognize(tensors)
  variables, unused = source_variables(tensors, source)
  what = source.description
  assert what == f"torchvision's vgg16{'_bn' if norm else ''}"
  assert sorted(unused) == ["classifier.6.bias", "classifier.6.weight"]  # the 1000 classes
  assert set(variables["params"]) == {"backbone"}
  params = variables["params"]["backbone"]
  convolutions = [name for name, a in tensors.items() if a.ndim == 4]
  expected = {f"conv{name}" for name in NAMES} | {"fc6", "fc7"}
  assert set(params) == expected | {f"norm{name}" for name in NAMES if norm}
  for name, theirs in zip(NAMES, convolutions, strict=True):
    ours = params[f"conv{name}"]["kernel"]
    np.testing.assert_array_equal(ours, tensors[theirs].transpose(2, 3, 1, 0))
    if norm:
      after = f"features.{int(theirs.split('.')[1]) + 1}"
      ours = variables["batch_stats"]["backbone"][f"norm{name}"]["var"]
      np.testing.assert_array_equal(ours, tensors[f"{after}.running_var"])
  assert params["fc6"]["kernel"].shape == (7, 7, 2, 5)
  assert params["fc7"]["kernel"].shape == (1, 1, 5, 4)


def test_preprocessing_is_folded_into_the_first_convolution():
  tensors = vgg16(width=4)
  source = recognize(tensors)
  variables, unused = source_variables(tensors, source)
  what = source.description
  assert not unused
  assert what == "torchvision's vgg16 without classifier, for images in 0..255 less the mean"
  image = np.random.default_rng(1).uniform(0, 255, (1, 6, 7, 3)).astype(np.float32)

  def conv(x, kernel, bias):
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
    return y + bias[None, None, None]

  # Caffe's mean of VGG16, here in the order R G B.
  centered = image - np.float32([123, 117, 104])[None, None, None]
  kernel = tensors["features.0.weight"].transpose(2, 3, 1, 0)
  theirs = conv(centered, kernel, tensors["features.0.bias"])
  folded = variables["params"]["backbone"]["conv1_1"]
  ours = conv(normalize(image), folded["kernel"], folded["bias"])
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.std(theirs))
  # No other layer changes.
  second = variables["params"]["backbone"]["conv1_2"]["kernel"]
  np.testing.assert_array_equal(second, tensors["features.2.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
  "tensors",
  [
    {"layer1.0.conv1.weight": np.ones((1, 1, 1, 1)), "fc.bias": np.ones(1)},
    {k: v for k, v in vgg16().items() if not k.startswith("features.28")},  # one layer less
    {},
  ],
)
def test_unknown_names(tensors):
  known = ", ".join(sorted(tensors)[:4])
  message = re.escape(f"net.safetensors: no known network has these tensors ({known}, ...)")
  sources = r"known are torchvision's fcn_resnet .*Unet on ResNet, .*PSPNet, .*ImageNet classifiers"
  with pytest.raises(InputError, match=rf"{message}; {sources}"):
    recognize(tensors, "net.safetensors")


def test_transfer():
  variables = {
    "params": {
      "backbone": {"conv": {"kernel": jnp.zeros((1, 1, 2, 2)), "bias": jnp.zeros(2)}},
      "classifier": {"kernel": jnp.zeros((1, 1, 2, 5), jnp.bfloat16)},
    },
    "batch_stats": {"backbone": {"norm": {"mean": jnp.zeros(2)}}},
  }
  source = {
    "params": {
      "backbone": {"conv": {"kernel": np.ones((1, 1, 2, 2)), "other": np.ones(3)}},
      "classifier": {"kernel": np.ones((1, 1, 2, 21))},
      "fc": {"bias": np.ones(1)},
    },
    "batch_stats": {"backbone": {"norm": {"mean": np.array([1.0, 2.0])}}},
  }
  new, report = transfer(variables, source)
  assert sorted(report.taken) == ["backbone/conv/kernel", "backbone/norm/mean"]
  assert report.kept == ["backbone/conv/bias"]
  assert report.reshaped == ["classifier/kernel (1, 1, 2, 21), here (1, 1, 2, 5)"]
  assert report.unused == ["backbone/conv/other", "fc/bias"]
  assert str(report) == (
    "2 tensors taken; not in it, so newly initialized: backbone/conv/bias; of another shape, so "
    "newly initialized: classifier/kernel (1, 1, 2, 21), here (1, 1, 2, 5); in it but not in the "
    "network: backbone/conv/other, fc/bias"
  )
  np.testing.assert_array_equal(new["params"]["backbone"]["conv"]["kernel"], 1)
  np.testing.assert_array_equal(new["params"]["backbone"]["conv"]["bias"], 0)
  np.testing.assert_array_equal(new["params"]["classifier"]["kernel"], 0)
  np.testing.assert_array_equal(new["batch_stats"]["backbone"]["norm"]["mean"], [1, 2])


def test_transfer_keeps_the_type_of_the_network():
  variables = {"params": {"kernel": jnp.zeros(2, jnp.bfloat16)}}
  new, _ = transfer(variables, {"params": {"kernel": np.ones(2)}})
  assert new["params"]["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(new["params"]["kernel"], 1)


def test_long_lists_are_shortened():
  variables = {"params": {f"p{i:02}": jnp.zeros(1) for i in range(11)}}
  _, report = transfer(variables, {"params": {"p00": np.ones(1)}})
  assert str(report).endswith("p01, p02, p03, p04, p05, p06, p07, p08 and 2 more")


def test_nothing_fits():
  variables = {"params": {"conv": {"kernel": jnp.zeros((3, 3, 1, 2))}}}
  source = {"params": {"conv": {"kernel": np.zeros((3, 3, 3, 2))}}}
  with pytest.raises(InputError, match=r"nothing in a.safetensors fits this network: 0 tensors .*"):
    transfer(variables, source, "a.safetensors")


def test_a_classifier_that_is_no_number_counts_as_none():
  tensors = vgg16(classifier=True)
  head = {name for name in tensors if name.startswith("classifier.")}
  broken = {name: np.full_like(t, np.nan) if name in head else t for name, t in tensors.items()}
  source, expected_source = recognize(broken), recognize(vgg16())
  variables, unused = source_variables(broken, source)
  expected, _ = source_variables(vgg16(), expected_source)
  what = "torchvision's vgg16 without classifier, for images in 0..255 less the mean"
  assert source.description == expected_source.description == what
  assert set(unused) == head
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_dense_layer_of_another_window():
  layers = {"fc": LayerTarget("fc", "dense", (5, 7))}
  with pytest.raises(InputError, match=r"fc.weight: a tensor of shape \(2, 36\) is no"):
    convert({"fc.weight": np.zeros((2, 36))}, layers)
