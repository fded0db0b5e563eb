"""What weights are wrapped in, and how they are found in it."""

import re

import numpy as np
import pytest
from helpers.golden import read
from helpers.pth import Global, legacy, save_pth
from safetensors.numpy import save_file

from jseg.types import InputError
from jseg.weights import find_network, read_tensors, recognize, source_variables


def tensors_of(name):
  """A network's tensors, a sixteenth as wide."""
  rng = np.random.default_rng(0)
  shapes = read(name)[1]["state_dict"]
  narrow = {n: [max(s // 16, 1) if s not in (1, 3, 7) else s for s in shape] for n, shape in shapes}
  return {n: np.asarray(rng.random(s), np.float32) for n, s in narrow.items()}


RESNET = tensors_of("resnet18")
OPTIMIZER = {"state": {0: {"momentum_buffer": RESNET["conv1.weight"]}}, "param_groups": [{"lr": 1}]}


def under(prefix, tensors=RESNET):
  return {f"{prefix}{name}": value for name, value in tensors.items()}


WRAPPED = {
  "plain": RESNET,
  "module.": under("module."),
  "_orig_mod.": under("_orig_mod."),
  "_orig_mod.module.": under("_orig_mod.module."),
  "module._orig_mod.": under("module._orig_mod."),
  "model.": under("model."),
  "net.": under("net."),
  "encoder.": under("encoder."),
  "backbone.body.": under("backbone.body."),
  "a.b.c.": under("a.b.c."),
  "state_dict": {"state_dict": RESNET},
  "model_state_dict": {"epoch": 3, "model_state_dict": RESNET, "optimizer_state_dict": OPTIMIZER},
  "model_state": {"model_state": RESNET},
  "model": {"model": RESNET, "optimizer": OPTIMIZER, "args": Global("argparse", "Namespace", ())},
  "net": {"net": RESNET, "acc": 0.9, "epoch": 7},
  "network": {"network": RESNET},
  "network_weights": {"network_weights": under("_orig_mod."), "grad_scaler_state": None},
  "params": {"params": RESNET},
  "params and params_ema": {"params_ema": tensors_of("resnet50"), "params": RESNET},
  "weights": {"weights": RESNET},
  "ema": {"ema": RESNET},
  "model_ema beside model": {"model_ema": tensors_of("resnet50"), "model": RESNET},
  "Lightning": {
    "epoch": 1,
    "pytorch-lightning_version": "2.1",
    "state_dict": {**under("model."), "criterion.weight": np.ones(21, np.float32)},
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"milestones": Global("collections", "Counter", ({3: 1},))}],
    "hyper_parameters": {"root": Global("pathlib", "PosixPath", ("data", "x"))},
  },
  "Lightning, compiled": {"state_dict": under("net._orig_mod.")},
  "averaged": {"n_averaged": np.array(5), **under("module.")},
  "momentum contrast": {
    "state_dict": {
      **under("module.encoder_q."),
      **under("module.encoder_k."),
      "module.queue": np.ones((3, 4), np.float32),
    }
  },
  "an unknown key": {"my_favorite_net": RESNET},
  "deeply nested": {"checkpoint": {"trainer": {"model": {"state_dict": under("module.")}}}},
  "in a list": [OPTIMIZER, RESNET],
  "in a tuple": (3, {"model": RESNET}),
  "parts in dictionaries": {
    "layer1": {n.removeprefix("layer1."): v for n, v in RESNET.items() if n.startswith("layer1.")},
    "rest": 3,
    "state": under("student.backbone."),
  },
  "parameters": {
    "state_dict": {
      n: Global("torch._utils", "_rebuild_parameter", (v, True, {})) for n, v in RESNET.items()
    }
  },
  "upper-case keys": {"MODEL": RESNET},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_network_is_found_in_whatever_wraps_it(tmp_path, name):
  assert len(WRAPPED) > 30
  for path, write in ((tmp_path / "x.PTH", save_pth), (tmp_path / "old.ckpt", None)):
    if write:
      write(WRAPPED[name], path)
    else:
      path.write_bytes(legacy(WRAPPED[name]))
    found = find_network(path)
    assert found.source.description.startswith("torchvision's or timm's resnet18")
    assert found.tensors.keys() == RESNET.keys()
    for key, value in RESNET.items():
      np.testing.assert_array_equal(found.tensors[key], value)


@pytest.mark.parametrize(
  ("name", "where", "left"),
  [
    ("plain", "", 0),
    ("module.", " (names without 'module.')", 0),
    ("net", " (under 'net')", 0),
    ("model_ema beside model", " (under 'model', 'model_ema' would fit too)", 0),
    ("Lightning", " (under 'state_dict', names without 'model.')", 1),
    (
      "momentum contrast",
      " (under 'state_dict', names without 'module.encoder_q.')",
      len(RESNET) + 1,
    ),
    ("deeply nested", " (under 'checkpoint.trainer.model.state_dict', names without 'module.')", 0),
  ],
)
def test_where_it_was_is_told(tmp_path, name, where, left):
  found = find_network(save_pth(WRAPPED[name], tmp_path / "x.pth"))
  assert found.source.description == f"torchvision's or timm's resnet18{where}"
  assert len(found.left) == left


def test_suffixes_in_upper_case(tmp_path):
  save_file(under("model."), tmp_path / "x.SafeTensors")
  assert read_tensors(tmp_path / "x.SafeTensors").keys() == RESNET.keys()


def test_a_whole_network_comes_before_a_part_of_it(tmp_path):
  unet = tensors_of("unet_resnet34")
  content = {"encoder": RESNET, "state_dict": under("model.", unet)}
  found = find_network(save_pth(content, tmp_path / "x.pth"))
  assert "Unet on resnet34" in found.source.description
  assert found.tensors.keys() == unet.keys()
  parts = {
    part: {n.removeprefix(f"{part}."): v for n, v in unet.items() if n.startswith(f"{part}.")}
    for part in ("encoder", "decoder", "segmentation_head")
  }
  found = find_network(save_pth(parts, tmp_path / "parts.pth"))
  assert "Unet on resnet34" in found.source.description
  assert found.tensors.keys() == unet.keys()


def test_an_unknown_network_is_refused_by_its_own_names(tmp_path):
  mine = {f"module.block{i}.weight": np.ones(2, np.float32) for i in range(9)}
  path = save_pth({"state_dict": mine}, tmp_path / "mine.pth")
  message = r"mine.pth: no known network has these tensors \(block0.weight, block1.weight, "
  with pytest.raises(InputError, match=message):
    find_network(path)
  assert next(iter(read_tensors(path))) == "block0.weight"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda a: a * np.float32(np.nan), r"12 of 12 numbers are NaN or infinite"),
    (lambda a: np.where(np.arange(12).reshape(a.shape) == 3, np.inf, a), "1 of 12 numbers are"),
    (
      lambda a: np.where(np.arange(12).reshape(a.shape) < 2, np.float64(1e300), a),
      "2 of 12 numbers are",
    ),
    (lambda a: np.rint(a * 100).astype(np.int8), "int8 is no type of weights; if they are quantiz"),
    (lambda a: a + 1j, "complex64 is no type of weights"),
  ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(change, message):
  name = "layer1.0.conv1.weight"
  tensors = RESNET | {name: np.ones((2, 2, 3, 1), np.float32)}
  source = recognize(RESNET)
  tensors[name] = change(tensors[name])
  with pytest.raises(InputError, match=rf"w.pth: {re.escape(name)}: {message}"):
    source_variables(tensors, source, "w.pth")


def test_what_is_not_taken_may_be_anything():
  tensors = RESNET | {f"fc.{leaf}": np.full(5, np.nan, np.float32) for leaf in ("weight", "bias")}
  _, unused = source_variables(tensors, recognize(tensors))
  assert sorted(unused) == ["fc.bias", "fc.weight"]


NETWORKS = ("resnet18", "vgg16", "vgg16_bn", "googlenet", "alexnet", "unet_resnet34", "fcn8s")
NETWORKS += ("maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "deeplab_v2", "pspnet_resnet50")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_lacks_a_tensor_or_has_an_odd_one(name):
  tensors = tensors_of(name)
  odd = [None, *(np.ones(shape, np.float32) for shape in ((), (1,), (0,), (2, 3), (1, 2, 3, 4)))]
  refused = []
  for key in [*list(tensors)[:3], *list(tensors)[-12:]]:
    for value in odd:
      changed = {n: v for n, v in tensors.items() if n != key}
      changed |= {} if value is None else {key: value}
      try:
        source_variables(changed, recognize(changed, "w.pth"), "w.pth")
      except InputError as error:
        refused.append(str(error))
  assert refused
  assert all(message.startswith("w.pth: ") for message in refused)


def test_a_first_layer_that_is_not_whole():
  tensors = tensors_of("vgg16") | {"features.0.bias": np.ones(2, np.float32)}
  tensors = {n: v for n, v in tensors.items() if not n.startswith("classifier.")}
  with pytest.raises(InputError, match=r"conv1_1: .*vgg16 .* adds a number to each of its 4 outp"):
    source_variables(tensors, recognize(tensors))
  tensors["features.0.weight"] = np.ones((4, 1, 3, 3), np.float32)
  with pytest.raises(InputError, match=r"shape \(3, 3, 1, 4\), where .* begins with 3 channels"):
    source_variables(tensors, recognize(tensors))


def test_a_classifier_that_is_no_number_in_part():
  tensors = tensors_of("vgg16") | {"classifier.0.weight": np.ones((5, 4 * 49), np.float32)}
  tensors["classifier.0.weight"][0, 0] = np.nan
  with pytest.raises(InputError, match=r"classifier.0.weight: 1 of \d+ numbers are NaN"):
    source_variables(tensors, recognize(tensors))
