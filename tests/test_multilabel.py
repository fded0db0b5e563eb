"""Classes that may overlap, from their masks to a prediction's files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jseg
import jseg.config
from jseg import losses, tasks
from jseg.data import ClassInfo, check_folder
from jseg.data.files import FileError
from jseg.data.overlaps import distinct, expand, mix_colors
from jseg.data.sources import make_source
from jseg.losses import binary
from jseg.metrics import OverlapScores, overlap_counts
from jseg.predict import predict_files
from jseg.tasks.multilabel.decision import Thresholds
from jseg.tasks.multilabel.forward import count_batch, truth_of
from jseg.tasks.multilabel.predict import MultilabelPrediction
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.types import IGNORE, InputError, Outputs

NAMES = ("disc", "left", "stripe")


def planes_of(seed, size=(40, 48)):
  """A disc, a half-plane and stripes that overlap in all ways, each bool [h w]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: size[0], : size[1]]
  row, column, radius = rng.uniform(0.3, 0.7) * size[0], rng.uniform(0.3, 0.7) * size[1], 9
  disc = np.hypot(y - row, x - column) < radius
  return [disc, x < rng.integers(12, 30), ((x + y) // 8 % 2 == 0) & (y > size[0] // 2)]


def write_set(root, counts=None, in_one=False, names=NAMES, **about):
  """Writes a data set; returns its folder."""
  root.mkdir(parents=True, exist_ok=True)
  about = {"classes": names, "task": "multilabel", **about}
  (root / "classes.json").write_text(json.dumps(about))
  for number, (split, count) in enumerate((counts or {"train": 3, "val": 2}).items()):
    images, masks = root / split / "images", root / split / "masks"
    for folder in (images, *([masks] if in_one else [masks / name for name in names])):
      folder.mkdir(parents=True)
    for i in range(count):
      planes = planes_of(100 * number + i)
      shown = np.stack([150 * plane + 50 for plane in planes], -1).astype(np.uint8)
      Image.fromarray(shown).save(images / f"{i}.png")
      if in_one:
        np.save(masks / f"{i}.npy", np.stack(planes, -1))
      else:
        for name, plane in zip(names, planes, strict=True):
          Image.fromarray(plane.astype(np.uint8) * 255).save(masks / name / f"{i}.png")
  return root


def configure(root, **changes):
  config = jseg.config.default("unet", widths=(8, 16))
  config.data.name, config.data.root = "multilabel", str(root)
  config.data.data_dir = str(root.parent / "prepared")
  config.data.size, config.data.batch_size, config.data.eval_batch_size = (48, 48), 4, 2
  config.compilation_cache = ""
  return jseg.config.change(config, changes)


def test_each_combination_of_classes_is_a_label():
  one = np.array([[0, 1, 1], [0, IGNORE, 1]], np.uint8)
  two = np.array([[0, 0, 1], [IGNORE, IGNORE, 1]], np.uint8)
  rows, index = distinct([one, two])
  assert rows.tolist() == [[0, 0], [0, 255], [1, 0], [1, 1], [255, 255]]
  assert index.tolist() == [[0, 2, 3], [1, 4, 3]]
  np.testing.assert_array_equal(expand(index.astype(np.uint8), rows), np.stack([one, two], -1))
  assert (expand(np.array([IGNORE], np.uint8), rows) == IGNORE).all()
  np.testing.assert_array_equal(truth_of(jnp.array([3, IGNORE]), rows), [[1, 1], [255, 255]])
  palette = np.array([[200, 0, 0], [0, 100, 0]], np.uint8)
  assert mix_colors(rows, palette).tolist() == [
    [0] * 3,
    [0] * 3,
    [200, 0, 0],
    [100, 50, 0],
    [0] * 3,
  ]


def test_masks_of_a_class_each_and_of_all_in_one_are_the_same(tmp_path):
  several = make_source("multilabel", root=write_set(tmp_path / "several"))
  one = make_source("multilabel", root=write_set(tmp_path / "one", in_one=True))
  assert several.classes.combinations == one.classes.combinations
  for item, other in zip(several.splits["train"], one.splits["train"], strict=True):
    assert item.load().label == other.load().label
  dataset = jseg.data.load(several, data_dir=tmp_path)
  example = dataset.source("val")[1]
  assert several.classes.combinations is not None
  found = expand(example["label"], several.classes.combinations)
  np.testing.assert_array_equal(found, np.stack(planes_of(101), -1))
  pixels = dataset.classes.by_class(dataset.pixel_counts("val"))
  assert pixels.tolist() == [sum(int(planes_of(s)[i].sum()) for s in (100, 101)) for i in range(3)]
  report = check_folder(tmp_path / "several")
  assert report.ok
  counted = report.to_dict()["splits"]["val"]["pixels"]
  assert list(counted.values()) == pixels.tolist()
  # Another mask is another fingerprint.
  before = several.fingerprint()
  Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "several/train/masks/left/0.png")
  changed = make_source("multilabel", root=tmp_path / "several")
  assert changed.fingerprint() != before


@pytest.mark.parametrize(("missing", "state"), [("absent", 0), ("unknown", IGNORE)])
def test_a_class_without_a_mask_is_what_the_option_says(tmp_path, missing, state):
  root = write_set(tmp_path / "set")
  (root / "train/masks/stripe/1.png").unlink()
  refused = make_source("multilabel", root=root)
  assert "has no mask of stripe" in str(refused.problems[0])
  with pytest.raises(InputError, match=r"1\.png: has no mask of stripe\. Put it at .*missing"):
    jseg.data.load(refused, data_dir=tmp_path)
  source = make_source("multilabel", root=root, options={"missing": missing})
  example = jseg.data.load(source, data_dir=tmp_path).source("train")[1]
  expected = np.stack(planes_of(1), -1).astype(np.uint8)
  expected[..., 2] = state
  np.testing.assert_array_equal(expand(example["label"], source.classes.combinations), expected)


def third(root):
  mask = np.zeros((40, 48), np.uint8)
  mask[:9], mask[9:12] = 7, 9
  Image.fromarray(mask).save(root / "train/masks/disc/0.png")


def small(root):
  Image.fromarray(np.zeros((20, 48), np.uint8)).save(root / "train/masks/disc/0.png")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (third, r"0\.png: holds 7, 9: a mask of one class has 0 and one other value\. Give each"),
    (small, r"0\.png: is 48 wide x 40 high, and another class's mask 48 x 20\. Save all"),
    (lambda root: (root / "train/masks/disk").mkdir(), r"disk: is no class of classes\.json"),
    (lambda root: (root / "train/images/0.png").unlink(), r"0\.png: has no image of its name"),
  ],
)
def test_masks_that_say_something_else_are_refused(tmp_path, spoil, message):
  root = write_set(tmp_path / "set")
  spoil(root)
  with pytest.raises(InputError, match=message):
    jseg.data.load("multilabel", root=root, data_dir=tmp_path)


def test_a_file_of_other_channels_is_refused(tmp_path):
  root = write_set(tmp_path / "set", in_one=True)
  np.save(root / "train/masks/0.npy", np.zeros((40, 48, 2), np.uint8))
  with pytest.raises(FileError, match=r"0\.npy: has 2 channel\(s\), but there are 3 classes"):
    make_source("multilabel", root=root).splits["train"][0].load()


def test_a_value_of_not_known_is_void_of_its_class_alone(tmp_path):
  root = write_set(tmp_path / "set", ignore_label=128)
  mask = 255 * planes_of(0)[0].astype(np.uint8)
  mask[:5] = 128
  Image.fromarray(mask).save(root / "train/masks/disc/0.png")
  source = make_source("multilabel", root=root)
  example = jseg.data.load(source, data_dir=tmp_path).source("train")[0]
  found = expand(example["label"], source.classes.combinations)
  assert (found[:5, :, 0] == IGNORE).all()
  np.testing.assert_array_equal(found[..., 1:], np.stack(planes_of(0)[1:], -1))


def test_regions_of_one_mask_are_lists_of_its_values(tmp_path):
  # As BraTS has them: of 1, 2 and 4 each region holds the next.
  path = tmp_path / "classes.json"
  about = {"classes": ["whole", "core"], "mask_values": [[1, 2, 4], [1, 4]]}
  path.write_text(json.dumps(about))
  classes = ClassInfo.load(path)
  assert classes.values == (0, 1, 2, 4)
  assert classes.combinations == ((0, 0), (1, 1), (1, 0), (1, 1))
  classes.save(tmp_path / "run.json")
  assert ClassInfo.load(tmp_path / "run.json").combinations == classes.combinations
  table = classes.table()
  assert [table[v] for v in (0, 1, 2, 4, 3, 255)] == [0, 1, 2, 3, -1, IGNORE]
  assert classes.label_names == ("no class", "whole + core", "whole", "whole + core")
  path.write_text(json.dumps({**about, "mask_values": [[1, 2], []]}))
  with pytest.raises(InputError, match=r"mask_values: .* must be 2 lists of values, none empty"):
    ClassInfo.load(path)
  path.write_text(json.dumps({**about, "mask_values": [[0], [1]]}))
  with pytest.raises(InputError, match=r"mask_values: .* but 0 is of no class; leave it out"):
    ClassInfo.load(path)


def test_more_combinations_than_a_byte_tells_are_refused():
  every = tuple(tuple(i >> bit & 1 for bit in range(8)) for i in range(256))
  with pytest.raises(InputError, match=r"overlap in 256 ways .* 1 to 255 are possible"):
    ClassInfo(tuple("abcdefgh"), combinations=every)
  assert len(ClassInfo(tuple("abcdefgh"), combinations=every[:255]).values) == 255


LOGITS = np.array([[[[2.0, -1.0], [0.5, 3.0]]]], np.float32)
TRUTH = np.array([[[[1, 0], [IGNORE, 1]]]])


def compiled(loss, truth=TRUTH, logits=LOGITS, **options):
  return jax.jit(functools.partial(loss, **options))(logits, truth)


def test_binary_losses_are_those_of_the_known_truths():
  p = 1 / (1 + np.exp(-LOGITS[0, 0]))
  terms = [-np.log(p[0, 0]), -np.log(1 - p[0, 1]), -np.log(p[1, 1])]
  total, count = compiled(binary.cross_entropy)
  np.testing.assert_allclose((total, count), (sum(terms), 3), rtol=1e-6)
  weighted = compiled(binary.cross_entropy, class_weights=np.array([2.0, 5.0]))
  np.testing.assert_allclose(weighted, (2 * terms[0] + terms[1] + 5 * terms[2], 8), rtol=1e-6)
  total, _ = compiled(binary.cross_entropy, pixel_weights=np.array([[[1.0, 10.0]]]))
  np.testing.assert_allclose(total, terms[0] + terms[1] + 10 * terms[2], rtol=1e-6)
  smooth, _ = compiled(binary.cross_entropy, label_smoothing=0.2)
  others = [-np.log(1 - p[0, 0]), -np.log(p[0, 1]), -np.log(1 - p[1, 1])]
  np.testing.assert_allclose(smooth, 0.9 * sum(terms) + 0.1 * sum(others), rtol=1e-6)
  focal, count = compiled(binary.focal, gamma=2.0)
  right = [p[0, 0], 1 - p[0, 1], p[1, 1]]
  by_hand = sum((1 - q) ** 2 * t for q, t in zip(right, terms, strict=True))
  np.testing.assert_allclose((focal, count), (by_hand, 3), rtol=1e-5)
  np.testing.assert_allclose(compiled(binary.focal, gamma=0.0)[0], sum(terms), rtol=1e-6)


def test_binary_region_losses_take_each_class_over_its_known_pixels():
  p = 1 / (1 + np.exp(-LOGITS[0, 0]))
  first = 1 - (2 * p[0, 0] + 1) / (p[0, 0] + 1 + 1)
  second = 1 - (2 * p[1, 1] + 1) / (p[0, 1] + p[1, 1] + 1 + 1)
  np.testing.assert_allclose(compiled(binary.dice), ((first + second) / 2, 1), rtol=1e-6)
  # With both weights a half, Tversky's index is Dice.
  same = compiled(binary.tversky, smooth=0.5, false_positives=0.5, false_negatives=0.5)
  np.testing.assert_allclose(same, ((first + second) / 2, 1), rtol=1e-6)
  # Of a class of which nothing is known there is no loss, and no share in the mean.
  unknown = np.concatenate([TRUTH[..., 1:], np.full_like(TRUTH[..., :1], IGNORE)], -1)
  swapped = LOGITS[..., ::-1]
  for classes in ("present", "all"):
    alone, _ = compiled(binary.dice, unknown, swapped, classes=classes)
    np.testing.assert_allclose(alone, second, rtol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy+tversky", "focal+dice"])
def test_what_is_not_known_has_no_gradient(name):
  loss = losses.make_loss(name=name, overlapping=True)
  derive = jax.jit(jax.value_and_grad(lambda x, truth: loss(x, truth)[0]))
  _, gradient = derive(LOGITS, TRUTH)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[..., 0] == 0, TRUTH[..., 0] == IGNORE)
  nothing, gradient = derive(LOGITS, np.full_like(TRUTH, IGNORE))
  assert float(nothing) == 0
  np.testing.assert_array_equal(gradient, 0)


def test_losses_that_need_one_class_a_pixel_are_refused():
  with pytest.raises(
    InputError, match=r"'ohem' is unknown; choose from cross_entropy, focal, dice"
  ):
    losses.make_loss(name="ohem", overlapping=True)


def test_metrics_count_each_class_by_itself():
  prediction = np.array([[True, True], [True, False], [False, True]])
  truth = np.array([[1, 0], [0, 1], [1, IGNORE]])
  counts = overlap_counts(prediction, truth)
  assert counts.tolist() == [[1, 0], [1, 1], [1, 1]]
  scores = OverlapScores(np.stack([counts, counts]).astype(np.int64))
  np.testing.assert_allclose(scores.iou, [1 / 3, 0])
  np.testing.assert_allclose(scores.dice, [1 / 2, 0])
  assert scores.summary() == {"miou": 1 / 6, "mdice": 1 / 4, "macc": 1 / 4, "mprecision": 1 / 4}
  found = scores.to_dict(["a", "b"])["per_class"]
  assert found["a"] == {"iou": 1 / 3, "dice": 0.5, "accuracy": 0.5, "precision": 0.5, "pixels": 4}
  absent = OverlapScores(np.zeros((1, 3, 2), np.int64))
  assert np.isnan(absent.primary)
  assert absent.to_dict(["a", "b"])["per_class"]["a"]["iou"] is None


def test_a_pixel_is_of_every_class_that_reaches_its_threshold():
  decision = Thresholds((0.5, 0.9))
  logits = np.array([[0.0, 2.1], [-0.1, 2.3]], np.float32)  # the logit of .9 is 2.197
  expected = [[True, False], [False, True]]
  p = np.asarray(decision.probabilities(logits))
  assert decision.decide(jnp.asarray(logits), False)[0].tolist() == expected
  assert decision.decide_on_host(logits, True, False)[0].tolist() == expected
  assert decision.decide_on_host(p, False, False)[0].tolist() == expected
  np.testing.assert_allclose(decision.logits(p), logits, atol=1e-5)
  assert np.isfinite(decision.logits(np.array([0.0, 1.0], np.float32))).all()


class Same:
  """A network whose logits are its image's channels."""

  task, ndim, colors_only = "semantic", 2, False

  def apply(self, variables, image, train=False):
    return Outputs(image)


def test_windows_and_the_whole_decide_alike(monkeypatch):
  # The network is the identity on normalized images, so that all protocols see the same scores.
  classes = ClassInfo(NAMES, combinations=((0, 0, 0),))
  image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
  decision = Thresholds((0.5, 0.3, 0.8))

  def predict(size, mode):
    make = {"decision": decision, "make": MultilabelPrediction}
    protocol = jseg.tasks.inference.Inference(mode)
    predictor = SemanticPredictor(Same(), classes, size, inference=protocol, **make)
    return predictor({}, image)

  whole, windows = predict((48, 48), "shrink"), predict((32, 32), "window")
  normal = np.asarray(jseg.images.normalize(image[None]))[0]
  np.testing.assert_allclose(whole.probabilities, 1 / (1 + np.exp(-normal)), atol=1e-5)
  np.testing.assert_allclose(windows.probabilities, whole.probabilities, atol=1e-5)
  np.testing.assert_array_equal(whole.mask, whole.probabilities >= np.array(decision.values))
  assert (windows.mask != whole.mask).mean() < 1e-3  # rounding, at a threshold
  # Evaluation counts the same, here of two images on one canvas.
  label = np.random.default_rng(1).integers(0, 2, (1, 40, 48), np.uint8)
  batch = {"label": label, "size": np.array([[40, 48]]), "label_size": np.array([[40, 48]])}
  combinations = ((0, 1, 0), (1, 1, 1))
  (counts,) = count_batch(jnp.asarray(normal[None]), batch, combinations, decision)
  expected = overlap_counts(whole.mask, expand(label[0], combinations))
  np.testing.assert_array_equal(counts[0], expected)


def test_a_prediction_is_written_class_by_class(tmp_path):
  mask = np.stack(planes_of(5), -1)
  image = np.full((40, 48, 3), 90, np.uint8)
  names = ("disc", "left/right", "Left_Right", "overlay")
  mask = np.concatenate([mask, mask[..., :1]], -1)
  classes = ClassInfo(names, np.eye(4, 3, dtype=np.uint8) * 200, combinations=((0,) * 4,))
  prediction = MultilabelPrediction(image, mask, classes, lambda: mask, (40, 48))
  kinds = ("masks", "overlay", "legend", "stack")
  paths = prediction.save(tmp_path, "a", write=kinds)
  files = ["a_disc", "a_left_right_1", "a_Left_Right_2", "a_overlay_3"]
  assert [p.name for p in paths[:4]] == [f"{f}.png" for f in files]
  for i, path in enumerate(paths[:4]):
    np.testing.assert_array_equal(np.asarray(Image.open(path)) == 255, mask[..., i])
  np.testing.assert_array_equal(np.load(tmp_path / "a_stack.npy"), mask)
  drawn = np.asarray(Image.open(tmp_path / "a_overlay.png"))
  none = ~mask.any(-1)
  assert (drawn[none] == 90).all()
  assert (drawn[~none] != 90).any(-1).all()
  assert prediction.shares()["disc"] == mask[..., 0].mean()
  for call, what in ((prediction.refine, "crf"), (lambda: prediction.confidence, "confidence")):
    with pytest.raises(InputError, match=f"^{what}: "):
      call()
  with pytest.raises(InputError, match="source_ids: classes overlap"):
    prediction.save(tmp_path, "b", source_ids=True)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"loss.balance": "median"}, "loss.balance: 'median' needs one class a pixel, and the classes"),
    ({"loss.border_weight": 10.0}, "loss.border_weight: 10.0 needs one class a pixel"),
    ({"crf.train": True}, "crf.train: True needs one class a pixel"),
    ({"inference.crf": True}, "inference.crf: True needs one class a pixel"),
    ({"best_metric": "fwiou"}, "best_metric: 'fwiou' needs one class a pixel"),
    ({"loss.name": "lovasz"}, "loss.name: 'lovasz' is unknown; choose from cross_entropy, focal"),
    ({"loss.class_weights": (1.0, 2.0)}, "loss.class_weights: 2 numbers, .* has 3 classes"),
    ({"multilabel.threshold": (0.5, 0.4)}, "multilabel.threshold: 2 numbers, .* give one for all"),
    ({"multilabel.threshold": (1.5,)}, "multilabel.threshold: .* must be numbers above 0"),
  ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, changes, message):
  root = write_set(tmp_path / "set", {"train": 1, "val": 1})
  with pytest.raises(InputError, match=message):
    jseg.config.make_task(configure(root, **changes))


def test_the_task_is_chosen_by_the_data(tmp_path):
  task, dataset = jseg.config.make_task(configure(write_set(tmp_path / "set")))
  assert isinstance(task, tasks.get("multilabel"))
  targets = jseg.tasks.semantic.forward.Targets(
    jnp.asarray(dataset.source("train")[0]["label"])[None]
  )
  logits = jnp.stack([20.0 * plane - 10 for plane in planes_of(0)], -1)[None]
  (total, count) = task.losses(dataset)(Outputs(logits), targets)["main"]
  assert count == 40 * 48 * 3
  assert total / count < 1e-4
  counts = task.counts(Outputs(logits), targets)
  assert task.training_metrics({"overlaps": np.asarray(counts["overlaps"])}) == {"miou": 1.0}


def test_from_masks_to_files(tmp_path):
  root = write_set(tmp_path / "set", {"train": 12, "val": 3})
  changes = {"steps": 24, "eval_every": 24, "checkpoint_every": 24, "optim.optimizer": "adam"}
  changes |= {"optim.lr": 0.02, "loss.name": "cross_entropy+dice", "augment.scale": (1.0, 1.0)}
  config, run = configure(root, **changes), tmp_path / "run"
  scores = jseg.train(config, run)
  assert scores.primary > 0.6  # the colors tell all; an untrained network is below .3
  evaluation = jseg.evaluate(run, changes={"data.eval_batch_size": 1})
  np.testing.assert_array_equal(evaluation.scores.counts, scores.counts)
  written = json.loads((run / "evaluation/val.json").read_text())
  assert written["threshold"] == [0.5, 0.5, 0.5]
  # Image by image, what is predicted and written is what was counted.
  out = tmp_path / "out"
  predict_files(run, [root / "val/images"], out, write=("masks",))
  for i in range(3):
    truth, found = (
      np.stack([np.asarray(Image.open(name(each))) for each in NAMES], -1) == 255
      for name in (
        lambda each, i=i: root / f"val/masks/{each}/{i}.png",
        lambda each, i=i: out / f"{i}_{each}.png",
      )
    )
    np.testing.assert_array_equal(overlap_counts(found, truth.astype(int)), scores.counts[i])
  # A lower threshold finds more.
  lower = jseg.evaluate(run, changes={"multilabel.threshold": (0.1,)}).scores
  assert (lower.accuracy >= scores.accuracy).all()
  assert lower.counts[:, 1].sum() > scores.counts[:, 1].sum()
  with pytest.raises(InputError, match=r"inference\.crf: a CRF gives each pixel"):
    jseg.Segmenter.from_run(run, protocol="deeplab_crf")
  windows = jseg.evaluate(run, protocol="window", changes={"data.size": (32, 32)}).scores
  assert windows.primary > 0.5
