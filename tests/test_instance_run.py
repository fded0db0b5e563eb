"""A network of objects the whole way: train, kill, resume, evaluate, predict."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers.tiny import logged, tiny_config
from PIL import Image

import jseg
from jseg import cli, loop
from jseg.data import Dataset, objects_from_detections
from jseg.data.targets import make_targets
from jseg.evaluation import evaluate
from jseg.metrics import AveragePrecisionState
from jseg.run import Run, load_model
from jseg.types import Detections


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  config = tiny_config(
    tmp_path_factory.mktemp("data"),
    "mask_rcnn",
    optim__lr=0.02,
    steps=8,
    eval_every=8,
    checkpoint_every=2,
    keep=3,
    samples=0,  # a program of its own; `Segmenter` is tested below
    data__eval_batch_size=4,
    knobs={"backbone": "vgg16"},
    data__max_objects=3,
    data__mask_size=28,
  )
  config.model.min_score = 0.0
  return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
  """A finished run; tests must not change it but for its evaluation folder."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  with pytest.MonkeyPatch.context() as patch:
    printed = []
    patch.setattr(loop.CONSOLE, "print", lambda *a, **_: printed.extend(map(str, a)))
    scores = loop.train(config, workdir)
  assert scores is not None
  return workdir, "\n".join(printed)


@pytest.fixture(scope="module")
def segmenter(run):
  """Of the only step that was evaluated, the latest and the best."""
  return jseg.Segmenter.from_run(run[0], "latest")


def test_a_run_directory_holds_what_the_readme_says(run):
  workdir, printed = run
  lines = logged(workdir)
  train = [line for line in lines if line["split"] == "train"]
  assert [line["step"] for line in train] == [2, 4, 6, 8]
  assert train[-1]["loss"] < train[0]["loss"]
  for term in ("rpn_objectness", "rpn_box", "box_class", "box", "mask"):
    assert train[0][term] > 0
  assert {"map", "map50", "box_map", "box_map50"} <= set(lines[-1])
  for name in ("curves.png", "evaluation/val.json"):
    assert (workdir / name).is_file(), name
  assert "training images have more than data.max_objects=3 objects" in printed


def test_a_run_resumes_bit_for_bit(run, config, tmp_path):
  # What a run that was killed after step 5 has left; test_end_to_end.py kills one.
  workdir, again = run[0], tmp_path / "run"
  shutil.copytree(workdir, again)
  for step in (6, 8):
    shutil.rmtree(again / "checkpoints" / str(step))
  lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
  (again / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
  loop.train(config, again)
  assert logged(again) == logged(workdir)
  one, other = (load_model(path, "latest")[1] for path in (workdir, again))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_precision_does_not_depend_on_batches_and_devices(run, monkeypatch):
  # Batches of 4 on four devices when it was trained; now of 3, on one.
  workdir, _ = run
  saved = json.loads((workdir / "evaluation" / "val.json").read_text())
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  evaluation = evaluate(workdir, checkpoint="latest", batch_size=3)
  scores = evaluation.scores.to_dict(evaluation.names)
  assert saved | scores == saved
  assert scores["box_map"] == pytest.approx(logged(workdir)[-1]["box_map"], abs=1e-9)
  # Seven images, each counted once.
  assert sum(row["objects"] for row in scores["per_class"].values()) == sum(
    len(record["objects"]) for record in map(source(workdir).__getitem__, range(7))
  )


def test_evaluation_finds_what_prediction_finds(run, segmenter, monkeypatch):
  # The true objects are those that the network finds in one image at a time. Of others, eight steps
  # of training find too few for a precision above 0 on every CPU.
  workdir, _ = run
  examples = source(workdir)

  class Answers:
    names = examples.names
    __len__ = examples.__len__

    def __getitem__(self, index):
      found = segmenter(examples[index]["image"]).objects
      return {**examples[index], "objects": dataclasses.replace(found, scores=None)}

  monkeypatch.setattr(Dataset, "source", lambda self, split, **_: Answers())
  evaluation = evaluate(workdir, checkpoint="latest", worst=0)
  assert evaluation.scores.counts.sum() > len(examples)
  assert evaluation.scores.boxes.ap > 0.95
  assert evaluation.scores.masks.ap > 0.8  # some masks are empty, and such ones match nothing


def source(workdir):
  return Run.open(workdir).dataset().source("val")


def test_truth_in_the_networks_own_form_is_perfect(run):
  # Boxes and masks of 28 x 28 cells, as if the network had found all objects; in their own images
  # they are worth as much as the objects themselves, but for what cells can't show.
  state = AveragePrecisionState.empty(5)
  examples = source(run[0])
  for index in range(len(examples)):
    truth = examples[index]["objects"]
    targets = make_targets(truth, (64, 48), 8, 28)
    found = Detections(
      targets["boxes"],
      targets["valid"].astype(np.float32),
      targets["classes"],
      targets["masks"] / np.float32(255),
      targets["valid"],
    )
    state = state.update(index, truth, objects_from_detections(found, (64, 48), truth.size))
  scores = state.compute()
  assert scores.boxes.ap == pytest.approx(1, abs=1e-9)
  assert [scores.masks.ap50, scores.masks.ap75] == pytest.approx([1, 1], abs=1e-9)
  assert scores.masks.ap > 0.9


def test_prediction_by_command_line_and_python_agree(run, segmenter, tmp_path, capsys):
  workdir, _ = run
  rng = np.random.default_rng(0)
  shapes = {"wide": (20, 50, 3), "tall": (40, 24), "large": (90, 70, 4)}
  pictures = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
  for name, pixels in pictures.items():
    Image.fromarray(pixels).save(tmp_path / f"{name}.png")
  out = tmp_path / "out"
  cli.main(["predict", str(workdir), str(tmp_path), "--out", str(out)])
  assert "3 image(s)" in capsys.readouterr().out
  results = json.loads((out / "detections.json").read_text())
  for name, pixels in pictures.items():
    prediction = segmenter(pixels)
    with Image.open(out / f"{name}.png") as written:
      assert written.size == pixels.shape[1::-1]
      shown = set(np.unique(np.asarray(written)).tolist())
    assert shown <= set(range(len(prediction.scores) + 1))
    assert prediction.masks.shape == (len(prediction.scores), *pixels.shape[:2])
    assert (prediction.boxes[:, 2:] <= pixels.shape[:2]).all()
    rows = [row for row in results if row["image_id"] == f"{name}.png"]
    assert [row["score"] for row in rows] == pytest.approx(prediction.scores.tolist())
    assert (out / f"{name}_overlay.png").is_file()
  # A window that holds the image gives what the whole image gives.
  windows = jseg.Segmenter.from_run(workdir, protocol="window")
  windows._predict._detect = segmenter._predict._detect
  image = source(workdir)[0]["image"]
  one, other = (predict(image).objects for predict in (segmenter, windows))
  assert len(one) == len(other) > 0
  np.testing.assert_array_equal(one.boxes, other.boxes)
  np.testing.assert_array_equal(one.scores, other.scores)
  assert one.masks == other.masks
  # One program for images of all sizes.
  assert segmenter._predict._detect._cache_size() == 1


def test_windows_are_the_same_in_evaluation_and_prediction(run):
  workdir, _ = run
  settings = {
    "protocol": "window",
    "changes": {"data.size": (24, 24), "inference.flip": "horizontal", "data.eval_batch_size": 8},
  }
  evaluation = evaluate(workdir, checkpoint="latest", worst=0, **settings)
  saved = json.loads((workdir / "evaluation" / "val.json").read_text())
  assert (saved["inference"]["mode"], saved["inference"]["flip"]) == ("window", "horizontal")
  segmenter = jseg.Segmenter.from_run(workdir, "latest", **settings)
  state, examples, count = AveragePrecisionState.empty(5), source(workdir), 0
  for index in range(len(examples)):
    found = segmenter(examples[index]["image"]).objects
    count += len(found)
    state = state.update(index, examples[index]["objects"], found)
  expected = state.compute(max_detections=None).to_dict(evaluation.names)
  assert evaluation.scores.to_dict(evaluation.names) == expected
  assert count > 0


@pytest.mark.parametrize(
  ("arguments", "match"),
  [
    (["evaluate", "RUN", "--metrics", "boundary"], "metrics: mask_rcnn has no such option"),
    (
      ["evaluate", "RUN", "--crf"],
      "inference.crf: a CRF is for classes of pixels, not for",
    ),
    (["evaluate", "RUN", "--split", "dev"], "no split 'dev'; it has train, val, test"),
    (
      ["predict", "RUN", "IMAGES", "--out", "OUT", "--protocol", "tile"],
      "inference.mode: tiles decide single pixels, and objects lie in several; choose shrink or",
    ),
    (["evaluate", "RUN", "--protocol", "pspnet"], r"inference.scales: \(0.5, .* is for classes of"),
    (["evaluate", "RUN", "--protocol", "nnunet"], "inference.average: 'logits' is for classes of"),
    (
      ["evaluate", "RUN", "--protocol", "window", "--set", "inference.overlap=0"],
      "inference.overlap: 0 leaves nothing by which the parts of an object are known",
    ),
    (
      ["evaluate", "RUN", "--protocol", "window", "--set", "data.short_side=24"],
      "inference.mode: windows show an image at its own size, and data.short_side 24 asks for",
    ),
    (["predict", "RUN", "IMAGES", "--out", "OUT", "--crf"], "inference.crf: a CRF is for classes"),
    (["tune-crf", "RUN"], "mask_rcnn: the CRF is for classes of images; there is nothing to tune"),
    (["export", "RUN"], "mask_rcnn finds objects; only networks with one class per pixel"),
    (["evaluate", "RUN", "--set", "model.detections=0"], "detections: 0 must be at least 1"),
  ],
)
def test_what_is_not_for_objects_is_refused(run, tmp_path, arguments, match):
  Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
  places = {"RUN": run[0], "IMAGES": tmp_path, "OUT": tmp_path / "out"}
  with pytest.raises(SystemExit, match=match) as exit_info:
    cli.main([str(places.get(word, word)) for word in arguments])
  assert str(exit_info.value.code).startswith("error: ")
