"""From a source file to a run: what is recognized, what it becomes, and what is said of it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.golden import read
from helpers.pth import save_pth
from helpers.variables import draw
from safetensors.numpy import load_file, save_file

from jseg.cli import main
from jseg.config import default
from jseg.data import ClassInfo
from jseg.data.class_lists import CITYSCAPES, VOC
from jseg.data.published import class_info
from jseg.images import IMAGENET_MEAN, normalize
from jseg.loop import initialize
from jseg.models import create
from jseg.predict import Segmenter
from jseg.run import Run, load_model
from jseg.state import TrainState
from jseg.types import InputError
from jseg.weights import Preprocessing, convert, fold_preprocessing, load, recognize
from jseg.weights.source_model import CAFFE_BGR

TINY = {"model.width": 0.0625, "data.size": (64, 64)}


def names(name, change=None):
  """The reference's tensors, without values."""
  shapes = [(n, tuple(shape)) for n, shape in read(name)[1]["state_dict"]]
  shapes = change(shapes) if change else shapes
  return {n: np.broadcast_to(np.float32(1), shape) for n, shape in shapes}


def deeper(shapes):
  """Of a ResNet-50: ResNet-101."""
  (sixth,) = {n.split("layer3.5.")[0] for n, _ in shapes if "layer3.5." in n}
  more = [(n, s) for n, s in shapes if n.startswith(f"{sixth}layer3.5.")]
  return shapes + [(n.replace(".5.", f".{i}.", 1), s) for i in range(6, 23) for n, s in more]


TORCHVISION_V3 = {
  "output_stride": 8,
  "multi_grid": (1,),
  "keep_first_rate": True,
  "head": "torchvision",
  "aux": True,
}


@pytest.mark.parametrize(
  ("name", "change", "what", "settings", "without", "parameters"),
  [
    # torchvision
    ("fcn_resnet50", None, "fcn_resnet50", {"aux": True}, 32_957_013, 35_322_218),
    (
      "fcn_resnet50",
      deeper,
      "fcn_resnet101",
      {"backbone": "resnet101", "aux": True},
      51_949_141,
      54_314_346,
    ),
    (
      "deeplab_v3_resnet50",
      None,
      "deeplabv3_resnet50",
      TORCHVISION_V3 | {"backbone": "resnet50"},
      39_638_869,
      42_004_074,
    ),
    (
      "deeplab_v3_resnet50",
      deeper,
      "deeplabv3_resnet101",
      TORCHVISION_V3,
      58_630_997,
      60_996_202,
    ),
    # kazuto1011/deeplab-pytorch
    ("deeplab_v2", None, "deeplab_v2 on resnet101", {"scales": (1.0,)}, None, 44_048_532),
    (
      "deeplab_v3",
      None,
      "deeplab_v3 on resnet101",
      {"stride_on": "1x1", "ceil": True},
      None,
      58_040_661,
    ),
    # hszhao/semseg
    ("pspnet_resnet50", None, "PSPNet on resnet50", {}, 46_716_373, 49_081_578),
    (
      "pspnet_resnet50",
      deeper,
      "PSPNet on resnet101",
      {"backbone": "resnet101"},
      65_708_501,
      68_073_706,
    ),
    # DrSleep/refinenet-pytorch
    (
      "refinenet_resnet50",
      None,
      "RefineNet on resnet50",
      {"backbone": "resnet50"},
      None,
      99_060_309,
    ),
    ("refinenet_resnet50", deeper, "RefineNet on resnet101", {}, None, 118_052_437),
    # qubvel-org/segmentation_models.pytorch
    ("unet_resnet34", None, "Unet on resnet34", {"backbone": "resnet34"}, None, 24_439_269),
  ],
)
def test_parameters_are_counted_alike(name, change, what, settings, without, parameters):
  """Published counts, of what is recognized and of our network; `without` is without "aux"."""
  tensors = names(name, change)
  source = recognize(tensors)
  assert what in source.description
  assert source.num_classes == 21
  trained = {n: t.size for n, t in tensors.items() if not n.endswith(("_mean", "_var"))}
  assert sum(trained.values()) == parameters
  ((model, knobs),) = source.networks.items()
  network = create(model, 21, **knobs)
  assert network == create(model, 21, **settings)
  image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
  ours = {n: math.prod(a.shape) for n, a in flatten_dict(shapes, sep="/").items()}
  assert sum(ours.values()) == parameters
  assert {n.rpartition(".")[0] for n in tensors} == set(source.layers)  # nothing is left over
  if without is not None:
    fewer = recognize({n: t for n, t in tensors.items() if not n.startswith("aux")})
    assert fewer.networks == {model: knobs | {"aux": False}}
    assert sum(n for name, n in ours.items() if not name.startswith("aux/")) == without


IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
LEAVES = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight"}


def invert(source, variables):
  """PyTorch's tensors of our variables: what an importer must undo."""
  tensors = {}
  for name, layer in source.layers.items():
    for tree in variables.values():
      for part in layer.path.split("/"):
        tree = tree.get(part, {})
      for leaf, value in tree.items():
        value = np.asarray(value)
        if leaf == "kernel":
          last = (-2, -1) if layer.kind == "transposed" else (-1, -2)
          value = value.transpose(*(value.ndim + i for i in last), *range(value.ndim - 2))
          value = value.reshape(len(value), -1) if layer.kind == "dense" else value
        tensors[f"{name}.{LEAVES.get(leaf, leaf)}"] = np.ascontiguousarray(value)
  return tensors


def small(name, num_classes=21, **knobs):
  """(recognized, our narrow network, its variables, the source tensors)."""
  source = recognize(names(name))
  ((model, own),) = source.networks.items()
  network = create(model, num_classes, **own, **knobs)
  variables = draw(network, IMAGE)
  return source, network, variables, invert(source, variables)


@pytest.fixture(scope="module")
def fcn(tmp_path_factory):
  """A file with torchvision's names, and the variables it should give."""
  _, network, variables, tensors = small("fcn_resnet50", width=0.0625)
  path = tmp_path_factory.mktemp("fcn") / "fcn.safetensors"
  save_file(tensors, path)
  return path, network, variables


def same(ours, expected):
  ours, expected = (flatten_dict(jax.device_get(tree), sep="/") for tree in (ours, expected))
  assert ours.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(ours[name], value, err_msg=name)


def sets(changes):
  return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


def test_a_file_becomes_a_run(fcn, tmp_path, capsys):
  path, network, variables = fcn
  run = tmp_path / "run"
  main(["import-weights", str(path), "--out", str(run), *sets(TINY)])
  said = " ".join(capsys.readouterr().out.split())
  assert "torchvision's fcn_resnet50 with auxiliary head" in said
  assert (
    "fcn_resnet(backbone=resnet50, aux=True, width=0.0625), 21 classes (background, aeroplane"
    in said
  )
  assert "not in" not in said
  _, loaded = load_model(run)
  same(loaded, variables)
  opened = Run.open(run)
  assert (opened.config.data.name, tuple(opened.config.data.size)) == ("voc", (64, 64))
  assert opened.classes.names == VOC.names
  report = json.loads((run / "import.json").read_text())
  assert report["what"].startswith("torchvision's")
  assert not report["kept"] + report["unused"]
  # It predicts what the network does.
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  expected = jax.jit(network.apply)(variables, normalize(image)[None]).logits[0].argmax(-1)
  np.testing.assert_array_equal(Segmenter.from_run(run)(image).mask, expected)
  with pytest.raises(SystemExit) as error:
    main(["import-weights", str(path), "--out", str(run)])
  assert str(error.value) == f"error: {run} holds a run already; name another folder with --out"


def test_in_python(fcn):
  path, network, variables = fcn
  loaded = load(path, width=0.0625)
  assert (loaded.name, loaded.num_classes, loaded.model) == ("fcn_resnet", 21, network)
  same(loaded.variables, variables)


def test_a_training_with_other_classes_takes_all_but_the_head(fcn, tmp_path, capsys):
  path, _, variables = fcn
  start = jax.tree.map(jnp.asarray, draw(create("fcn_resnet", 4, width=0.0625), IMAGE, seed=1))
  params, stats = start["params"], start["batch_stats"]
  optimizer = optax.sgd(0.1)
  state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), {})
  new, taken = initialize(
    state, str(path), Run(tmp_path, default("fcn_resnet", width=0.0625), ClassInfo(tuple("abcd")))
  )
  said = " ".join(capsys.readouterr().out.split())
  assert "of another shape, so newly initialized: head/classifier/bias (21,), here (4,)" in said
  assert "in it but not in the network: aux/classifier/bias, aux/classifier/kernel" in said
  same(new.params["backbone"], variables["params"]["backbone"])
  same(new.batch_stats["head"], variables["batch_stats"]["head"])
  same(new.params["head"]["classifier"], start["params"]["head"]["classifier"])
  assert not any(name.startswith("head/classifier") for name in taken)


def test_training_in_an_imported_run_is_refused(fcn, tmp_path):
  run = tmp_path / "run"
  main(["import-weights", str(fcn[0]), "--out", str(run), *sets(TINY)])
  with pytest.raises(
    InputError, match=r"holds imported weights and no training; .*init_from=.*run"
  ):
    Run.start(run, Run.open(run).config, Run.open(run).classes)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  source = recognize(names("resnet18"))
  network = create("fcn_resnet", 5, backbone="resnet18", width=0.0625)
  variables = draw(network, IMAGE)
  tensors = invert(source, variables) | {"fc.weight": np.ones((9, 32), np.float32)}
  path = tmp_path_factory.mktemp("classifier") / "resnet18.safetensors"
  save_file(tensors, path)
  return path, variables


def test_wrappers_are_taken_off_and_told(classifier, tmp_path, capsys):
  path, variables = classifier
  wrapped = {f"net.backbone.{name}": tensor for name, tensor in load_file(path).items()}
  wrapped["criterion.weight"] = np.ones(21, np.float32)
  checkpoint = save_pth({"epoch": 3, "state_dict": wrapped}, tmp_path / "last.CKPT")
  command = ["import-weights", str(checkpoint), "--model", "fcn_resnet"]
  main([*command, "--out", str(tmp_path / "run"), *sets(TINY)])
  said = " ".join(capsys.readouterr().out.split())
  assert "timm's resnet18 (under 'state_dict', names without 'net.backbone.')" in said
  assert "in it but not in the network: fc.weight, criterion.weight" in said
  _, loaded = load_model(tmp_path / "run")
  same(loaded["params"]["backbone"], variables["params"]["backbone"])


def test_weights_that_diverged_are_refused(classifier, tmp_path):
  tensors = load_file(classifier[0])
  tensors["layer2.0.conv1.weight"][0] = np.nan
  save_file(tensors, tmp_path / "nan.safetensors")
  with pytest.raises(InputError, match=r"nan.safetensors: layer2.0.conv1.weight: 36 of 288 n"):
    load(tmp_path / "nan.safetensors", "fcn_resnet", width=0.0625)


def test_a_classifier_needs_a_network(classifier):
  message = (
    r"resnet18.safetensors is torchvision's or timm's resnet18, a classifier of images; name the "
    r"network .* \(--model\): deeplab_v3, deeplab_v2, fcn_resnet, unet, refinenet, mask_rcnn, "
    r"fcn32s, fcn16s, fcn8s$"
  )
  with pytest.raises(InputError, match=message):
    load(classifier[0])
  message = r"model segnet: .*resnet18.safetensors is .*, which fits deeplab_v3, deeplab_v2, fcn_"
  with pytest.raises(InputError, match=message):
    load(classifier[0], "segnet")


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg16_bn", "googlenet", "resnet18"])
def test_every_network_that_a_classifier_fits_has_its_layers(name):
  source = recognize(names(name))
  theirs = {layer.path for layer in source.layers.values()}
  for model, arguments in source.networks.items():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(create(model, 21, **arguments).init, jax.random.key(0), image)
    ours = {path.rpartition("/")[0] for path in flatten_dict(variables["params"], sep="/")}
    backbone = {path for path in ours if path.startswith("backbone/")}
    # Not all have fully connected layers, and SegNet adds norms to a VGG16 that has none.
    free = {"backbone/fc6", "backbone/fc7"}
    if (name, model) == ("vgg16", "segnet"):
      free |= {path for path in backbone if "norm" in path}
    assert backbone - free == theirs - free, model


def test_a_network_strides_where_the_classifier_did(classifier):
  loaded = load(classifier[0], "deeplab_v2", num_classes=3, width=0.0625)
  assert loaded.model == create("deeplab_v2", 3, backbone="resnet18", stride_on="3x3", width=0.0625)


def test_a_classifier_gives_the_backbone_of_a_run(classifier, tmp_path, capsys):
  path, variables = classifier
  classes = tmp_path / "classes.json"
  classes.write_text('{"classes": ["a", "b", "c", "d", "e"]}')
  command = ["import-weights", str(path), "--model", "fcn_resnet", "--classes", str(classes)]
  main([*command, "--out", str(tmp_path / "run"), *sets(TINY)])
  said = " ".join(capsys.readouterr().out.split())
  assert "fcn_resnet(backbone=resnet18, width=0.0625), 5 classes (a, b, c, ...)" in said
  assert "not in it, so newly initialized: head/classifier/bias, head/classifier/kernel" in said
  assert "in it but not in the network: fc.weight" in said
  _, loaded = load_model(tmp_path / "run")
  same(loaded["params"]["backbone"], variables["params"]["backbone"])
  assert np.std(loaded["params"]["head"]["classifier"]["kernel"]) > 0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: {k: v for k, v in t.items() if "layer2.1.conv2" not in k},
      r"looks like torchvision's fcn_resnet50.* isn't quite that: missing: "
      r"backbone/layer2_1/conv2/kernel. Its weights may still start a training",
    ),
    (
      lambda t: t | {"classifier.1.bias": np.ones(3, np.float32)},
      r"of another shape: head/norm/bias \(3,\), here \(32,\)",
    ),
    (
      lambda t: t | {"backbone.layer1.0.conv2.weight": np.ones((4, 4, 3, 3, 1), np.float32)},
      r"of another shape: backbone/layer1_0/conv2/kernel",
    ),
    (
      lambda t: t | {"backbone.layer1.0.conv2.weight": np.ones((8, 2, 3, 3), np.float32)},
      r"no known network has these tensors",  # a ResNeXt
    ),
    (
      lambda t: {k: v for k, v in t.items() if "backbone" not in k},
      r"no known network has these tensors",
    ),
  ],
)
def test_a_part_of_a_network_is_refused(fcn, tmp_path, change, message):
  _, _, _, tensors = small("fcn_resnet50", width=0.0625)
  path = tmp_path / "changed.safetensors"
  save_file(change(tensors), path)
  with pytest.raises(InputError, match=message):
    load(path, width=0.0625)


def test_what_is_left_over_is_listed(tmp_path):
  _, _, _, tensors = small("fcn_resnet50", width=0.0625)
  path = tmp_path / "more.safetensors"
  save_file(tensors | {"backbone.fc.weight": np.ones(1, np.float32)}, path)
  assert load(path, width=0.0625).report.unused == ["backbone.fc.weight"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"model": "pspnet"},
      r"model pspnet: .* is torchvision's fcn_resnet50.*, which fits fcn_resnet",
    ),
    (
      {"num_classes": 4},
      r"scores 21 classes, not 4; import it as it is, then train another number",
    ),
    ({"depths": 4}, r"has no setting 'depths'; choose from backbone, aux"),
  ],
)
def test_arguments_that_do_not_go_with_the_file(fcn, arguments, message):
  with pytest.raises(InputError, match=message):
    load(fcn[0], **arguments)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("data.sizes=(64, 64)", r"unknown config key data.sizes; did you mean data.size"),
    ("data.size=small", r"data.size: 'small' must be of the kind of its default"),
    ("steps", r"--set steps: give KEY=VALUE"),
  ],
)
def test_changes_that_are_impossible(fcn, tmp_path, change, message):
  command = ["import-weights", str(fcn[0]), "--out", str(tmp_path / "run"), "--set", change]
  with pytest.raises(SystemExit, match=message):
    main([*command, "--set", "model.width=0.0625"])
  assert not (tmp_path / "run").exists()


def test_classes_by_their_number():
  assert class_info(21) is VOC
  assert class_info(19) is CITYSCAPES
  ade20k = class_info(150).names
  assert len(set(ade20k)) == 150
  assert (ade20k[0], ade20k[5], ade20k[44]) == ("wall", "ceiling", "chest of drawers")
  coco = class_info(91).names
  assert (coco[0], coco[1], coco[12], coco[13], coco[90]) == (
    *("background", "person", "class_12", "stop sign", "toothbrush"),
  )
  assert class_info(3).names == ("class_0", "class_1", "class_2")


def preprocessed(image, preprocessing):
  """The source network's own input."""
  x = (image / 255 - np.float32(preprocessing.mean)) / preprocessing.std
  return jnp.asarray((x[..., ::-1] if preprocessing.bgr else x)[None], jnp.float32)


FOLDED = pytest.mark.parametrize(
  ("name", "knobs"),
  [
    ("fcn8s", {"width": 0.0625, "fc": 16}),  # a bias takes the mean
    ("deeplab_v2", {"width": 0.0625}),  # or the statistics of the norm
  ],
)


@FOLDED
def test_folded_preprocessing(name, knobs):
  """A source network on source images, and ours on ours."""
  source, network, variables, tensors = small(name, **knobs)
  assert source.preprocessing == CAFFE_BGR
  image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
  apply = jax.jit(network.apply)

  def difference(preprocessing):
    known = type(source)(**{**vars(source), "preprocessing": preprocessing})
    folded, unused = convert(tensors, source.layers)
    assert not unused
    folded = fold_preprocessing(folded, known)
    theirs = apply(variables, preprocessed(image, preprocessing)).logits
    ours = apply(folded, normalize(image)[None]).logits
    return float(jnp.abs(ours - theirs).max() / jnp.std(theirs))

  # With our mean zero padding is the same, and so is all but the rounding of values up to 255 in
  # twenty layers; channels in the other order differ by as much as the logits do.
  assert difference(Preprocessing(IMAGENET_MEAN, 1 / 255, bgr=True)) < 1e-3
  assert difference(Preprocessing(IMAGENET_MEAN, 0.5)) < 1e-3
  # With Caffe's, the frame of padding is of a color that differs by a gray level.
  assert difference(CAFFE_BGR) < 0.05


@FOLDED
def test_a_folded_mean_is_exact_inside(name, knobs):
  source, _, variables, tensors = small(name, **knobs)
  plain, _ = convert(tensors, source.layers)
  folded = fold_preprocessing(plain, source)
  same(plain, variables)  # the argument stays as it was
  image = np.random.default_rng(0).integers(0, 256, (30, 32, 3), np.uint8)

  def first(v, x):
    conv = v["params"]["backbone"][source.first.split("/")[1]]
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, conv["kernel"], (1, 1), "VALID", dimension_numbers=layout)
    if "bias" in conv:
      return y + conv["bias"][None, None, None]
    stats = v["batch_stats"]["backbone"]["norm1"]
    return y - stats["mean"][None, None, None]

  theirs = np.asarray(first(variables, preprocessed(image, CAFFE_BGR)))
  ours = first(folded, normalize(image)[None])
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())
