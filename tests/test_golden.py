"""Networks equal independent implementations on the same weights; see tests/golden/README.md."""

import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import formula

from jseg.backbones import VGG16, AlexNet, GoogLeNet, ResNet
from jseg.data.normalize import normalize
from jseg.models.deeplab_v1 import DeepLabV1
from jseg.models.deeplab_v2 import DeepLabV2
from jseg.models.deeplab_v3 import DeepLabV3
from jseg.models.fcn import FCN8s, FCN16s, FCN32s
from jseg.models.fcn_resnet import FCNResNet
from jseg.models.pspnet import PSPNet
from jseg.models.refinenet import RefineNet
from jseg.models.segnet import SegNet, SegNetBasic
from jseg.models.unet import UNet
from jseg.models.unet3d import UNet3D
from jseg.nn import resize_bilinear
from jseg.weights import Layer, convert

FOLDER = pathlib.Path(__file__).parent / "golden"
VGG16_NAMES = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]


def load(name):
  """The reference's results, channels last, and `meta`."""
  with np.load(FOLDER / f"{name}.npz") as file:
    results = {key: np.moveaxis(file[key], 1, -1) for key in file.files if key != "meta"}
    return results, json.loads(str(file["meta"]))


def image(meta):
  given = {"scale": 1, "offset": 0} | meta["input"]
  x = formula.image(given["name"], tuple(given["shape"]))
  return np.moveaxis(x * np.float32(given["scale"]) + np.float32(given["offset"]), 1, -1)


def weights(meta, pattern=""):
  """The reference's tensors whose names match, without those that are 0 and that we don't have."""
  tensors = {
    name: formula.weight(name, tuple(shape))
    for name, shape in meta["state_dict"]
    if name not in meta.get("zero", ()) and re.match(pattern, name)
  }
  for found_in, factor in meta.get("scale", {}).items():
    for name in filter(re.compile(found_in).search, tensors):
      tensors[name] *= np.float32(factor)
  return tensors


def translate(tensors, layer):
  """Our variables, and the names that `layer`, foreign name -> Layer or None, doesn't know."""
  names = {name.rpartition(".")[0] for name in tensors}
  layers = {name: layer(name) for name in names}
  return convert(tensors, {name: layer for name, layer in layers.items() if layer})


def count(params, norms=True):
  flat = flatten_dict(params, sep="/")
  return sum(math.prod(a.shape) for name, a in flat.items() if norms or "Norm" not in name)


def check(model, variables, x, **options):
  """The variables are the network's, none missing or over."""
  expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **options), x)
  expected, given = (
    {name: a.shape for name, a in flatten_dict(tree, sep="/").items() if name != "batch_stats"}
    for tree in (expected, {k: v for k, v in variables.items() if v})
  )
  assert given == expected


def apply(model, variables, x, **options):
  return jax.jit(lambda variables, x: model.apply(variables, x, **options))(variables, x)


def run(model, variables, x, **options):
  """The outputs, of variables that are checked."""
  check(model, variables, x, **options)
  return apply(model, variables, x, **options)


def compare(ours, reference, stride=1):
  channels, pixels = stride if isinstance(stride, list) else (1, stride)
  every = slice(None, None, pixels)
  ours = np.asarray(ours)[(slice(None), *[every] * (ours.ndim - 2), slice(None, None, channels))]
  np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * reference.std())


def vgg16_layer(name):
  i = int(name.split(".")[1])
  return Layer(VGG16_NAMES[(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28).index(i)])


def vgg16_bn_layer(name):
  i = int(name.split(".")[1])
  positions = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
  if i in positions:
    return Layer(VGG16_NAMES[positions.index(i)])
  return Layer(VGG16_NAMES[positions.index(i - 1)].replace("conv", "norm"), "norm")


def alexnet_layer(name):
  return Layer(f"conv{(0, 3, 6, 8, 10).index(int(name.split('.')[1])) + 1}")


GOOGLENET_STEM = {"conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2"}
GOOGLENET_BRANCHES = {
  "branch1": "1x1",
  "branch2.0": "3x3_reduce",
  "branch2.1": "3x3",
  "branch3.0": "5x5_reduce",
  "branch3.1": "5x5",
  "branch4.1": "pool",
}


def googlenet_layer(name):
  block, *branch, kind = name.split(".")
  ours = GOOGLENET_STEM.get(block) or f"{block}_{GOOGLENET_BRANCHES['.'.join(branch)]}"
  return Layer(f"{ours}_norm", "norm") if kind == "bn" else Layer(ours)


def resnet_path(name):
  """Ours for torchvision's name."""
  for theirs, ours in (
    ("bn", "norm"),
    ("downsample.0", "conv_shortcut"),
    ("downsample.1", "norm_shortcut"),
  ):
    name = name.replace(theirs, ours)
  return re.sub(r"^(layer\d)\.(\d+)\.", r"\1_\2/", name)


def by_path(path):
  return Layer(path, "norm" if "norm" in path else "conv")


def resnet_layer(name):
  return by_path(resnet_path(name))


@pytest.mark.parametrize(
  ("name", "model", "layer", "parameters"),
  [
    ("alexnet", AlexNet(), alexnet_layer, 2_469_696),
    ("vgg16", VGG16(), vgg16_layer, 14_714_688),
    ("vgg16_bn", VGG16(norm="batch"), vgg16_bn_layer, 14_723_136),
    (
      "googlenet",
      GoogLeNet(norm="batch", five=3, last_pool=2, lrn=False),
      googlenet_layer,
      5_599_904,
    ),
    ("resnet18", ResNet(18), resnet_layer, 11_176_512),
    ("resnet50", ResNet(50), resnet_layer, 23_508_032),
    ("resnet50_dilated", ResNet(50, 8, lag=True), resnet_layer, 23_508_032),
  ],
)
def test_backbone(name, model, layer, parameters):
  results, meta = load(name)
  variables, unused = translate(weights(meta), layer)
  assert not unused
  assert count(variables["params"]) == parameters == meta["parameters"]
  features = run(model, variables, image(meta))
  assert set(results) <= set(features)
  for key, reference in results.items():
    compare(features[key], reference, meta["steps"][key])


def fcn_layer(name):
  if name.startswith("upscore"):
    return Layer(name, "transposed")
  return Layer(f"backbone/{name}" if name.startswith(("conv", "fc")) else name)


@pytest.fixture(scope="module")
def fcn_backbone():
  """Made once: it is half a gigabyte."""
  variables, _ = translate(weights(load("fcn8s")[1], "conv|fc"), fcn_layer)
  return variables["params"]


@pytest.mark.parametrize(
  ("name", "model", "parameters"),
  [
    ("fcn32s", FCN32s(21), 136_152_917),
    ("fcn16s", FCN16s(21), 134_815_994),
    ("fcn8s", FCN8s(21), 134_489_759),
    ("fcn8s_at_once", FCN8s(21, at_once=True), 134_489_759),
  ],
)
def test_fcn(name, model, parameters, fcn_backbone):
  results, meta = load(name)
  variables, unused = translate(weights(meta, "score|upscore"), fcn_layer)
  assert not unused
  params = variables["params"] | fcn_backbone
  assert count(params) == parameters == meta["parameters"]
  logits = run(model, {"params": params}, image(meta)).logits
  assert logits.shape == (1, 61, 83, 21)
  compare(logits, results["logits"], meta["stride"])


def segnet_layer(name):
  kind, side, block, layer = re.fullmatch(r"(Conv|BN)(En|De)(\d)(\d)", name).groups()
  if name == "BNDe11":
    return None
  ours = f"{'conv' if kind == 'Conv' else 'norm'}{block}_{layer}"
  ours = f"backbone/{ours}" if side == "En" else f"{ours}_d"
  return Layer(ours, "norm" if kind == "BN" else "conv")


@pytest.mark.parametrize("name", ["segnet", "segnet_odd"])
def test_segnet(name):
  results, meta = load(name)
  variables, unused = translate(weights(meta), segnet_layer)
  assert sorted(unused) == sorted(meta["unused"])
  assert count(variables["params"]) == 29_449_355
  compare(run(SegNet(11), variables, image(meta)).logits, results["logits"], meta["stride"])


def segnet_basic_layer(name):
  if name == "conv_classifier":
    return Layer("classifier")
  kind = "norm" if name.endswith("_bn") else "conv"
  end = "_d" if "decode" in name else ""
  return Layer(f"{kind}{re.search(r'[0-9]', name)[0]}{end}", kind)


def test_segnet_basic():
  results, meta = load("segnet_basic")
  variables, unused = translate(weights(meta), segnet_basic_layer)
  assert not unused
  assert count(variables["params"]) == 1_416_075
  logits = run(SegNetBasic(11), variables, normalize(image(meta))).logits
  compare(logits, results["logits"], meta["stride"])


def skips_first(tensors, pattern):
  """For references that put upsampled channels before the skipped ones, as many as come out."""
  return {
    name: np.roll(a, len(a), axis=1) if re.fullmatch(pattern, name) else a
    for name, a in tensors.items()
  }


def unet_layer(name):
  if name == "last":
    return Layer("Conv_18")
  pattern = r"(down|up)_path\.(\d)\.(?:(?:conv_block\.)?block\.(\d)|up)"
  side, i, j = re.fullmatch(pattern, name).groups()
  if j is None:
    return Layer(f"UpConv_{i}", "transposed")
  return Layer(f"Conv_{(0 if side == 'down' else 10) + 2 * int(i) + int(j) // 2}")


def test_unet():
  results, meta = load("unet")
  tensors = skips_first(weights(meta), r"up_path.*block\.0\.weight")
  variables, unused = translate(tensors, unet_layer)
  assert not unused
  assert count(variables["params"]) == 31_030_658
  model = UNet(2, padding="VALID", norm="none")
  compare(run(model, variables, image(meta), train=True).logits, results["logits"])


def unet3d_layer(name):
  _, i, layer = name.split(".")
  if layer == "conv_fc":
    return Layer("Conv_14")
  if layer == "upconv":
    return Layer(f"UpConv_{int(i) - 3}", "transposed")
  place = 2 * int(i) + int(layer[-1]) - 1
  return Layer(f"Norm_{place}", "norm") if layer.startswith("bn") else Layer(f"Conv_{place}")


def test_unet3d_unpadded():
  results, meta = load("unet3d")
  variables, unused = translate(weights(meta), unet3d_layer)
  assert not unused
  # One input channel; the paper's count, with three, is of the next test.
  assert count(variables["params"], norms=False) == 19_069_955 - 2 * 27 * 32
  model = UNet3D(3, padding="VALID", norm="frozen_batch")
  compare(run(model, variables, image(meta), train=True).logits, results["logits"])


UNET3D_BLOCKS = (
  *("a_block1", "a_block2", "a_block3", "bottleNeck"),
  *("s_block3", "s_block2", "s_block1"),
)


def unet3d_padded_layer(name):
  block, layer = name.split(".")
  i = UNET3D_BLOCKS.index(block)
  if layer == "conv3":
    return Layer("Conv_14")
  if layer == "upconv1":
    return Layer(f"UpConv_{i - 4}", "transposed")
  place = 2 * i + int(layer[-1]) - 1
  return Layer(f"Norm_{place}", "norm") if layer.startswith("bn") else Layer(f"Conv_{place}")


def test_unet3d():
  results, meta = load("unet3d_padded")
  tensors = skips_first(weights(meta), r"s_block\d\.conv1\.weight")
  # Here the two convolutions of a decoder block share a norm, "bn".
  for name in [name for name in tensors if ".bn." in name]:
    shared = tensors.pop(name)
    tensors |= {name.replace(".bn.", f".bn{i}."): shared for i in (1, 2)}
  variables, unused = translate(tensors, unet3d_padded_layer)
  assert not unused
  assert count(variables["params"], norms=False) == 19_069_955
  compare(run(UNet3D(3), variables, image(meta)).logits, results["logits"], meta["stride"])


def deeplab_layer(name):
  if match := re.fullmatch(r"block_(\d)\.conv(\d)", name):
    return Layer("backbone/conv{}_{}".format(*match.groups()))
  return Layer({"conv6": "backbone/fc6", "conv7": "backbone/fc7", "conv8": "fc8"}[name])


def deeplab_msc_layer(name):
  if match := re.fullmatch(r"features(\d)\.(\d)", name):
    return Layer(f"backbone/conv{match[1]}_{int(match[2]) // 2 + 1}")
  if match := re.fullmatch(r"MSc(\d)(?:\.(\d)|_score)", name):
    layer = {"0": 1, "3": 2, None: 3}[match[2]]
    return Layer(f"msc{int(match[1]) - 1}_{layer}")
  return Layer({"fc.1": "backbone/fc6", "fc.4": "backbone/fc7", "score": "fc8"}[name])


@pytest.mark.parametrize(
  ("name", "msc", "layer", "parameters"),
  [
    ("deeplab_v1", False, deeplab_layer, 20_505_429),
    ("deeplab_v1_msc", True, deeplab_msc_layer, 20_505_429 + 1_206_121),
  ],
)
def test_deeplab_v1(name, msc, layer, parameters):
  results, meta = load(name)
  variables, unused = translate(weights(meta), layer)
  assert not unused
  assert count(variables["params"]) == parameters == meta["parameters"]
  model = DeepLabV1(21, msc=msc, dropout=0.0)
  x = image(meta)
  compare(run(model, variables, x, train=True).logits, results["scores"])
  if "logits" in results:
    compare(run(model, variables, x).logits, results["logits"], meta["stride"])


def heads(names):
  """Of torchvision and semseg: modules 2 and 3 are ReLU and dropout."""
  layers = {0: "conv", 1: "norm", 4: "classifier"}
  return {f"{a}.{i}": f"{b}/{layer}" for a, b in names.items() for i, layer in layers.items()}


TORCHVISION_FCN = heads({"classifier": "head", "aux_classifier": "aux"})
TORCHVISION_V3 = {
  **heads({"aux_classifier": "aux"}),
  **{f"classifier.0.convs.{i}.0": f"aspp/conv{i}" for i in range(4)},
  **{f"classifier.0.convs.{i}.1": f"aspp/conv{i}_norm" for i in range(4)},
  "classifier.0.convs.4.1": "aspp/image",
  "classifier.0.convs.4.2": "aspp/image_norm",
  "classifier.0.project.0": "aspp/project",
  "classifier.0.project.1": "aspp/project_norm",
  "classifier.1": "conv",
  "classifier.2": "norm",
  "classifier.4": "classifier",
}
SEMSEG = {
  **{f"layer0.{3 * i}": f"backbone/conv{i + 1}" for i in range(3)},
  **{f"layer0.{3 * i + 1}": f"backbone/norm{i + 1}" for i in range(3)},
  **{f"ppm.features.{i}.1": f"pyramid/level{bins}" for i, bins in enumerate((1, 2, 3, 6))},
  **{f"ppm.features.{i}.2": f"pyramid/level{bins}_norm" for i, bins in enumerate((1, 2, 3, 6))},
  **heads({"cls": "head", "aux": "aux"}),
}


def drsleep_decoder():
  """RefineNet's, whose blocks count from 1 and begin at layer4."""
  names = {"clf_conv": "classifier"}
  for i in range(1, 5):
    level, flow = f"layer{5 - i}", f"mflow_conv_g{i}"
    names |= {
      f"p_ims1d2_outl{i}_dimred": f"{level}_reduce",
      f"adapt_stage{i}_b2_joint_varout_dimred": f"{level}_fuse",
      f"{flow}_b3_joint_varout_dimred": f"carry{i}_fuse",
    }
    names |= {f"{flow}_pool.0.{n}_outvar_dimred": f"chain{i - 1}_{n - 1}" for n in range(1, 5)}
    for theirs, ours, count in (
      (f"adapt_stage{i}_b", f"{level}_unit", 2),
      (f"{flow}_b", f"out{i - 1}", 3),
    ):
      for n in range(1, count + 1):
        names[f"{theirs}.0.{n}_conv"] = f"{ours}_{n - 1}_1"
        names[f"{theirs}.0.{n}_conv_relu_varout_dimred"] = f"{ours}_{n - 1}_2"
  return names


def kazuto_path(name):
  """Ours for the name that kazuto1011/deeplab-pytorch has for a layer of ResNet."""
  layer, block, *part, kind = name.split(".")
  kind = {"conv": "conv", "bn": "norm"}[kind]
  if layer == "layer1":
    return f"{kind}1"
  place = {"reduce": "1", "conv3x3": "2", "increase": "3", "shortcut": "_shortcut"}[part[0]]
  return f"layer{int(layer[-1]) - 1}_{int(block.removeprefix('block')) - 1}/{kind}{place}"


KAZUTO_V2 = {f"aspp.c{i}": f"fc8_{i + 1}" for i in range(4)}
KAZUTO_V3 = {"fc2": "classifier"}
for theirs, ours in {
  **{f"aspp.stages.c{i}": f"aspp/conv{i}" for i in range(4)},
  "aspp.stages.imagepool.conv": "aspp/image",
  "fc1": "aspp/project",
}.items():
  KAZUTO_V3 |= {f"{theirs}.conv": ours, f"{theirs}.bn": f"{ours}_norm"}


def network(meta, table, backbone=resnet_path):
  """Our variables: layers in the table by it, the others by their place in the backbone."""

  def layer(name):
    name = name.removeprefix("backbone.").removeprefix("base.")
    return by_path(table.get(name) or f"backbone/{backbone(name)}")

  variables, unused = translate(weights(meta), layer)
  assert not unused
  assert count(variables["params"]) == meta["parameters"]
  return variables


@pytest.mark.parametrize(
  ("name", "model", "table", "parameters"),
  [
    ("fcn_resnet50", FCNResNet(21, aux=True), TORCHVISION_FCN, 35_322_218),
    (
      "deeplab_v3_resnet50",
      DeepLabV3(21, 50, output_stride=8, multi_grid=(1,), lag=True, head="torchvision", aux=True),
      TORCHVISION_V3,
      42_004_074,
    ),
  ],
)
def test_torchvision(name, model, table, parameters):
  results, meta = load(name)
  assert meta["parameters"] == parameters
  outputs = run(model, network(meta, table), image(meta))
  assert outputs.logits.shape == outputs.aux["aux"].shape == (1, 33, 297, 21)
  compare(outputs.logits, results["logits"], meta["steps"]["logits"])
  compare(outputs.aux["aux"], results["aux_logits"], meta["steps"]["aux_logits"])


def scored(logits, scores, **options):
  """Logits are the reference's complete scores, interpolated."""
  compare(logits, np.asarray(resize_bilinear(scores, logits.shape[1:3], **options)))


def test_deeplab_v2_at_one_scale_and_at_the_largest_of_three():
  (single, meta), (three, meta3) = load("deeplab_v2"), load("deeplab_v2_msc")
  assert meta["parameters"] == 44_048_532
  variables, x = network(meta, KAZUTO_V2, kazuto_path), image(meta)
  scored(run(DeepLabV2(21, scales=(1.0,)), variables, x).logits, single["scores"])
  # The same layers under longer names, and so with other weights.
  assert [(name.removeprefix("base."), shape) for name, shape in meta3["state_dict"]] == [
    tuple(entry) for entry in meta["state_dict"]
  ]
  variables, x = network(meta3, KAZUTO_V2, kazuto_path), image(meta3)
  scored(apply(DeepLabV2(21, scales=(1.0, 0.5, 0.75)), variables, x).logits, three["scores"])


def test_deeplab_v3_at_either_stride_with_the_same_weights():
  (at16, meta), (at8, same) = load("deeplab_v3"), load("deeplab_v3_os8")
  assert all(meta[key] == same[key] for key in ("state_dict", "scale", "input"))
  assert meta["parameters"] == 58_040_661
  variables, x = network(meta, KAZUTO_V3, kazuto_path), image(meta)
  published, finer = (
    DeepLabV3(21, output_stride=stride, stride_on="1x1", ceil=True) for stride in (16, 8)
  )
  scored(run(published, variables, x).logits, at16["scores"])
  scored(apply(finer, variables, x).logits, at8["scores"])


def test_pspnet():
  results, meta = load("pspnet_resnet50")
  variables, x = network(meta, SEMSEG), image(meta)
  assert meta["parameters"] == 49_081_578
  assert count({k: v for k, v in variables["params"].items() if k != "aux"}) == 46_716_373
  outputs = run(PSPNet(21), variables, x)
  compare(outputs.logits, results["logits"], meta["stride"])
  scored(outputs.logits, results["scores"], align_corners=True)
  scored(outputs.aux["aux"], results["aux_scores"], align_corners=True)


def test_refinenet():
  results, meta = load("refinenet_resnet50")
  assert meta["parameters"] == 99_060_309
  variables = network(meta, drsleep_decoder())
  scored(run(RefineNet(21, 50), variables, image(meta)).logits, results["scores"])
