"""The dense CRF after a network, and as its last layer."""

import contextlib
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import tiny_config
from helpers.untrained import make_run
from PIL import Image

import jseg
from jseg import cli, loop, tuning
from jseg.crf import CrfParams, DenseCRF, dense_crf, params_to_dict
from jseg.data import read_image
from jseg.evaluation import evaluate
from jseg.images import normalize
from jseg.loop import train
from jseg.metrics import ConfusionState, confusion, host_confusion
from jseg.models.with_crf import WithCRF
from jseg.run import Run, load_model
from jseg.tasks.inference import Inference
from jseg.tasks.semantic.predict import SemanticPrediction, SemanticPredictor
from jseg.tuning import search
from jseg.types import InputError

# Exact filtering compiles quickly; the lattice has its own tests.
VALUES = {"iterations": 2, "bilateral_sigma_xy": 8, "bilateral_sigma_rgb": 20, "method": "exact"}
MILD = CrfParams(**VALUES)
TEXT = "iterations=2,bilateral_sigma_xy=8,bilateral_sigma_rgb=20,method=exact"


def with_crf(**params):
  """Changes by which a CRF of these parameters follows the network."""
  return {"inference.crf": True, **{f"inference.crf_params.{k}": v for k, v in params.items()}}


REFINED = with_crf(**VALUES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An untrained run; tests must not change it but for its evaluation folder."""
  folder = tmp_path_factory.mktemp("runs")
  shapes = ("background", "disc", "rectangle", "triangle", "star")
  return make_run(folder / "tiny", classes=shapes, data_dir=folder / "data")


def test_the_hosts_confusion_is_the_devices():
  rng = np.random.default_rng(0)
  prediction = rng.integers(0, 3, (5, 7)).astype(np.uint8)
  label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 7))
  expected = confusion(prediction.astype(np.int32), label.astype(np.int32), 3)
  np.testing.assert_array_equal(host_confusion(prediction, label, 3), expected)


def test_a_segmenter_with_a_crf_is_the_crf_of_its_probabilities(run):
  image = np.random.default_rng(0).integers(0, 256, (40, 28, 3), np.uint8)
  plain = jseg.Segmenter.from_run(run)(image)
  refined = jseg.Segmenter.from_run(run, changes=REFINED)(image)
  expected = dense_crf(np.log(plain.probabilities), image, MILD)
  np.testing.assert_allclose(refined.probabilities, expected, atol=1e-4)
  np.testing.assert_array_equal(refined.mask, refined.probabilities.argmax(-1))
  assert (refined.mask != plain.mask).any()
  tiled = jseg.Segmenter.from_run(run, protocol="tile", changes=REFINED)(image)
  assert tiled.mask.shape == (40, 28)


def test_a_crf_without_kernels_changes_nothing(run):
  off = with_crf(spatial_weight=0.0, bilateral_weight=0.0)
  result = evaluate(run, changes=off, metrics=("boundary", "rand=disc"))
  before = result.extra["without_crf"]
  assert before["miou"] == pytest.approx(result.scores.miou, abs=1e-9)
  assert before["boundary_miou"] == result.extra["boundary_miou"]
  assert before["rand"] == result.extra["rand"]


def test_evaluation_measures_the_masks_that_are_predicted_and_those_without_the_crf(run, capsys):
  cli.main(["evaluate", str(run), "--crf-params", TEXT, "--metrics", "boundary"])
  shown = capsys.readouterr().out
  assert "without CRF" in shown
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert saved["inference"]["crf"] is True
  assert saved["inference"]["crf_params"] == params_to_dict(MILD)
  state = np.zeros((5, 5), np.int64)
  segmenter = jseg.Segmenter.from_run(run, changes=REFINED)
  source = Run.open(run).dataset().source("val")
  for index in range(len(source)):
    mask, label = segmenter(source[index]["image"]).mask, source[index]["label"]
    state += host_confusion(mask, label, 5)
  union = state.sum(0) + state.sum(1) - state.diagonal()
  iou = state.diagonal()[union > 0] / union[union > 0]
  assert saved["miou"] == pytest.approx(iou.mean())
  assert saved["miou"] != saved["without_crf"]["miou"]
  assert {"miou", "boundary_miou", "per_class"} <= saved.keys() & saved["without_crf"].keys()


def test_predict_refines(run, tmp_path):
  # Of the size of the segmenter's image above, for which the CRF is compiled.
  image = np.random.default_rng(1).integers(0, 256, (40, 28, 3), np.uint8)
  Image.fromarray(image).save(tmp_path / "a.png")
  arguments = ["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
  cli.main([*arguments, "--crf-params", TEXT])
  expected = jseg.Segmenter.from_run(run, changes=REFINED)(read_image(tmp_path / "a.png")).mask
  with Image.open(tmp_path / "out" / "a.png") as written:
    np.testing.assert_array_equal(np.asarray(written), expected)


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("speed=1", "speed: there is no such parameter; choose from iterations, "),
    ("a.b=1", "a.b: there is no such parameter"),
    ("iterations=-1", "iterations: -1 must be at least 0"),
  ],
)
def test_mistakes_in_the_parameters_of_a_command(run, text, match):
  with pytest.raises(SystemExit, match=match):
    cli.main(["evaluate", str(run), "--crf-params", text])


def test_a_crf_is_not_for_volumes():
  classes = jseg.data.ClassInfo.load  # not reached
  with pytest.raises(InputError, match="CRF after a network is for images; leave it out"):
    SemanticPredictor(None, classes, (8, 8, 8), 1, inference=Inference("window", crf=True))


def prediction_of(probability, image):
  """A prediction of two classes: float [h w], the second one's probability."""
  classes = jseg.data.ClassInfo(("a", "b"))
  logits = np.log(np.stack([1 - probability, probability], -1)).astype(np.float32)
  mask = logits.argmax(-1).astype(np.uint8)
  return SemanticPrediction(image, mask, classes, lambda: logits, mask.shape)


def test_the_search_finds_the_best_of_its_grid():
  image = np.zeros((12, 12, 3), np.uint8)
  image[:, 6:] = 200
  label = (image[..., 0] > 0).astype(np.uint8)
  wrong = np.random.default_rng(0).random(label.shape) < 0.2
  probability = np.where(label ^ wrong, 0.7, 0.3)
  examples = [(prediction_of(probability, image), label)]
  base = CrfParams(spatial_weight=0.0, bilateral_sigma_xy=5.0, method="exact")
  ranges = {"bilateral_weight": (0.0, 4.0), "bilateral_sigma_rgb": (10.0, 2000.0)}
  result = search(examples, ranges, base)
  assert result.without == pytest.approx(
    ConfusionState.empty(2).update(host_confusion(examples[0][0].mask, label, 2)).compute().miou
  )
  assert result.miou > result.without
  assert result.params.bilateral_weight > 0
  assert result.params.bilateral_sigma_rgb < 2000
  assert result.params.bilateral_sigma_xy == 5.0
  assert [miou for _, miou in result.trials] == sorted((m for _, m in result.trials), reverse=True)
  assert examples[0][0].refine(result.params).mask.mean() == pytest.approx(0.5, abs=0.1)
  tried = [tuple(values.values()) for values, _ in result.trials]
  assert {(0.0, 10.0), (2.0, 1005.0), (4.0, 2000.0)} <= set(tried)
  assert len(set(tried)) == len(tried) <= 18


def test_tune_crf_writes_what_crf_uses(run, capsys, monkeypatch):
  small = {"bilateral_weight": (1.0, 2.0), "bilateral_sigma_xy": (6.0, 8.0)}
  monkeypatch.setitem(tuning.RANGES, "v2", small)
  fixed = "bilateral_sigma_rgb=20,iterations=1,spatial_weight=0,method=exact"
  cli.main(["tune-crf", str(run), "--images", "2", "--crf-params", fixed])
  shown = capsys.readouterr().out
  assert "without CRF" in shown
  params = CrfParams(**Run.open(run, {"inference.crf": True}).config.inference.crf_params)
  given = Run.open(run, protocol="deeplab_crf", changes={"inference.crf_params.iterations": 7})
  saved = json.loads((run / "crf.json").read_text())
  (run / "crf.json").unlink()
  assert (params.method, params.iterations) == ("exact", 1)
  assert given.config.inference.crf_params.to_dict() == {**params_to_dict(params), "iterations": 7}
  assert 1 <= params.bilateral_weight <= 2
  assert 6 <= params.bilateral_sigma_xy <= 8
  assert saved["images"] == 2
  assert saved["split"] == "val"


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"ranges": "v3"}, "no ranges 'v3'; choose from v1, v2"),
    ({"images": 0}, "images: 0 must be at least 1"),
    ({"split": "dev"}, "no split 'dev'"),
  ],
)
def test_mistakes_in_tuning(run, options, match):
  with pytest.raises(InputError, match=match):
    tuning.tune_crf(run, **options)


def with_layer(data_dir, **changes):
  return tiny_config(
    data_dir,
    steps=3,
    samples=1,
    crf__train=True,
    crf__iterations=1,
    crf__method="exact",
    crf__bilateral_sigma_rgb=20.0,
    data__size=(16, 16),
    data__options={"size": 32, "train": 8, "val": 4, "test": 4},
    **changes,
  )


@contextlib.contextmanager
def stop_at_once():
  event = threading.Event()
  event.set()
  yield event


def test_the_layer_is_trained_with_the_network_and_resumes(tmp_path, monkeypatch):
  run, config = tmp_path / "run", with_layer(tmp_path)
  monkeypatch.setattr(loop, "stop_signal", stop_at_once)
  learned = []
  for step in (1, 2):
    assert train(config, run) is None
    assert Run.open(run).restore("latest")[0] == step
    learned.append(load_model(run, "latest")[1]["params"]["crf"])
  start = {"compatibility": -np.eye(5), "spatial_weight": 3.0, "bilateral_weight": 4.0}
  assert learned[0].keys() == start.keys()
  for name, value in start.items():
    assert (np.asarray(learned[0][name]) != value).any(), name
    assert (learned[0][name] != learned[1][name]).any(), name

  # Evaluation applies the trained layer: it is the CRF with these parameters on the bare network.
  _, variables = load_model(run, "latest")
  params = dict(variables["params"])
  layer = params.pop("crf")
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  bare = {"params": params, "batch_stats": variables["batch_stats"]}
  config.crf.train = False
  network = jseg.config.make_model(config, 5)
  logits = jax.jit(network.apply)(bare, normalize(image)[None]).logits[0]
  expected = dense_crf(
    logits, image, CrfParams(1, method="exact", bilateral_sigma_rgb=20.0, **layer)
  )
  found = jseg.Segmenter.from_run(run, "latest")(image).probabilities
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_every_parameter_of_the_layer_gets_a_gradient():
  small = {"widths": (4,)}  # the layer is asked, not the network
  crf = {"crf__train": True, "crf__train_bandwidths": True, "crf__method": "exact"}
  config = tiny_config("", knobs=small, **crf)
  model = jseg.config.make_model(config, 3)
  image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  variables = jax.jit(model.init)(jax.random.key(1), image)
  plain = jseg.config.make_model(tiny_config("", knobs=small), 3)
  bare = jax.eval_shape(plain.init, jax.random.key(1), image)["params"]
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
  assert shapes({k: v for k, v in variables["params"].items() if k != "crf"}) == shapes(bare)

  def loss(layer):
    params = {**variables["params"], "crf": layer}
    return model.apply({**variables, "params": params}, image).logits[0, :4, :, 1].sum()

  gradients = jax.jit(jax.grad(loss))(variables["params"]["crf"])
  assert len(gradients) == 6
  for name, gradient in gradients.items():
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"crf__iterations": -1}, r"crf.iterations: -1 must be at least 0"),
    ({"crf__method": "fast"}, r"crf.method: 'fast' is unknown"),
    ({"crf__bilateral_sigma_xy": 0.0}, r"crf.bilateral_sigma_xy: 0.0 must be above 0"),
  ],
)
def test_mistakes_in_the_layers_configuration(tmp_path, changes, match):
  with pytest.raises(InputError, match=match):
    jseg.config.validate(tiny_config(tmp_path, crf__train=True, **changes))


def test_networks_of_volumes_and_of_objects_have_no_layer():
  assert not {"crf"} & set(jseg.config.default("unet3d"))


def test_logits_must_lie_on_the_image():
  network = jseg.models.create("deeplab_v1", 3, **jseg.models.get("deeplab_v1").TINY)
  model = WithCRF(3, network, DenseCRF())
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  with pytest.raises(InputError, match=r"crf.train: logits .* must lie on the image"):
    jax.eval_shape(lambda x: model.init(rngs, x, train=True), jnp.zeros((1, 33, 33, 3)))
