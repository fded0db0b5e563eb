"""Windows, flips and scales: one protocol for evaluation and prediction."""

import dataclasses
import functools
import itertools
import json
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.untrained import make_run
from helpers.variables import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jseg
from jseg import cli, data
from jseg import config as configs
from jseg.crf import CrfParams, params_to_dict
from jseg.evaluation import evaluate
from jseg.metrics import host_confusion
from jseg.models import Network
from jseg.nn import resize_bilinear
from jseg.run import Run
from jseg.step import replicate
from jseg.tasks.inference import PROTOCOLS, Inference, protocol_changes
from jseg.tasks.semantic import evaluation
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.tasks.semantic.task import SemanticTask
from jseg.tasks.windows import blend, gaussian_weights, mean_of_strips, overlapping, tiles
from jseg.types import InputError, Outputs

CLASSES = data.ClassInfo(("a", "b", "c"))
rng = np.random.default_rng(0)


def cut(image, window, size):
  """What a window shows, on a canvas of its own size."""
  shown = np.zeros(size, image.dtype)
  shown[tuple(slice(len(index)) for index in window.index)] = image[np.ix_(*window.index)]
  return shown


@settings(max_examples=60, deadline=None)
@given(
  shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
  size=st.tuples(st.integers(10, 40), st.integers(10, 40)),
  overlap=st.sampled_from([0, 0.25, 0.5, 0.9]),
  grid=st.sampled_from([1, 8, 32]),
  gaussian=st.booleans(),
)
def test_windows_of_an_image_blend_to_the_image(shape, size, overlap, grid, gaussian):
  image = np.random.default_rng(1).integers(1, 9, shape).astype(np.float32)
  weights = gaussian_weights(size) if gaussian else np.ones(size, np.float32)
  assert (weights > 0).all()
  windows = overlapping(shape, size, overlap, grid)
  assert all(first.index[0][0] % grid == 0 for first in windows if size[0] > grid)
  strips = list(blend(((w, cut(image, w, size)[..., None]) for w in windows), shape, weights))
  assert [s.start for s, _ in strips[1:]] == [s.stop for s, _ in strips[:-1]]
  assert max(s.stop - s.start for s, _ in strips) <= size[0]
  result = np.concatenate([scores[..., 0] for _, scores in strips])
  np.testing.assert_allclose(result, image, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
  shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20)),
  margin=st.sampled_from([0, 2, 3]),
)
def test_tiles_decide_each_voxel_once_from_their_middle(shape, margin):
  size = (16, 12, 10)
  image = np.random.default_rng(1).integers(1, 9, shape).astype(np.float32)
  windows = tiles(shape, size, [margin] * 3, 8)
  decided = np.zeros(shape, int)
  for window in windows:
    decided[window.place] += 1
    shown = cut(image, window, size)
    np.testing.assert_array_equal(shown[window.inner], image[window.place])
    assert all(len(index) == n for index, n in zip(window.index, size, strict=True))
  assert (decided == 1).all()


def test_blending_by_hand():
  # Two windows of 4 on 6 pixels, the second two pixels on; weights 1 2 2 1.
  windows = overlapping((6,), (4,), 0.5, 1)
  assert [w.index[0].tolist() for w in windows] == [[0, 1, 2, 3], [2, 3, 4, 5]]
  scored = zip(windows, (np.full((4, 1), 3.0), np.full((4, 1), 9.0)), strict=True)
  strips = list(blend(scored, (6,), np.array([1, 2, 2, 1], np.float32)))
  assert [scores[:, 0].tolist() for _, scores in strips] == [[3, 3], [5, 7, 9, 9]]


def test_the_mean_of_strips_that_end_anywhere():
  images = np.arange(30, dtype=np.float32).reshape(3, 10, 1) ** 2
  cuts = [(0, 4, 10), (0, 1, 2, 9, 10), (0, 10)]
  streams = [
    iter([(slice(a, b), image[a:b]) for a, b in itertools.pairwise(ends)])
    for image, ends in zip(images, cuts, strict=True)
  ]
  found = list(mean_of_strips(streams))
  assert [(rows.start, rows.stop) for rows, _ in found] == [(0, 1), (1, 2), (2, 4), (4, 9), (9, 10)]
  np.testing.assert_allclose(np.concatenate([part for _, part in found]), images.mean(0), rtol=1e-6)


def test_weights_are_a_gaussian_of_an_eighth():
  weights = gaussian_weights((16, 8))
  assert weights[8, 4] / weights[10, 4] == pytest.approx(np.exp((2.5**2 - 0.5**2) / 8))
  np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)


@pytest.fixture(scope="module")
def net():
  """A padded network that sees far and isn't its mirror image, its variables, and an image."""
  model = jseg.models.create("unet", 3, widths=(4,))
  return (
    model,
    draw(model, np.zeros((1, 32, 32, 3), np.float32)),
    rng.integers(0, 256, (70, 45, 3), np.uint8),
  )


def predict(net, size=(32, 32), batch_size=4, **options):
  model, variables, image = net
  inference = Inference(**options)
  predictor = SemanticPredictor(model, CLASSES, size, inference=inference, batch_size=batch_size)
  return predictor(variables, image)


def test_windows_that_see_as_far_as_the_network_give_what_the_whole_image_gives():
  # Four convolutions of 3 see 4 pixels far. A window's own pixels end 32 beyond a tile's.
  model = jseg.models.create("unet", 3, widths=(4,), norm="none")
  variables = draw(model, np.zeros((1, 32, 32, 3), np.float32))
  net = model, variables, rng.integers(0, 256, (150, 203, 3), np.uint8)
  whole = predict(net, (160, 224)).probabilities
  tiled = predict(net, (96, 128), mode="tile", margin=32).probabilities
  inside = (slice(5, -5), slice(5, -5))  # tiles go on as a mirror image, where padding is 0
  np.testing.assert_allclose(tiled[inside], whole[inside], atol=1e-5)
  # Blended, a pixel's windows weigh most where they see all of what it depends on.
  windows = predict(net, (96, 128), mode="window").probabilities
  np.testing.assert_allclose(windows, whole, atol=0.02)


# Name and margin, the next multiple of 32 above how far the tiny preset sees. Left out are networks
# whose every pixel depends on the whole image or a large part of it: PSPNet (pyramid pooling),
# DeepLab V3 (image pooling), DeepLab V2 (scales, which are resized by the image's own size) and
# RefineNet, which sees more than 300 pixels far.
REACHES = [("unet", 32), ("segnet", 224), ("fcn8s", 256), ("deeplab_v1", 224), ("fcn_resnet", 224)]


@pytest.mark.parametrize(("name", "margin"), REACHES)
def test_logits_of_tiles_are_those_of_the_whole_image(name, margin):
  model = jseg.models.create(name, 3, **jseg.models.get(name).TINY)
  variables = draw(model, np.zeros((1, 64, 64, 3), np.float32))
  # Two rows of three tiles, which meet where their margins see no more than the image has.
  shape, tile = (2 * margin + 64, 3 * margin + 64), (3 * margin + 32, 3 * margin + 32)
  image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)

  def logits(size, **options):
    inference = Inference(**options)
    predictor = SemanticPredictor(model, CLASSES, size, inference=inference)
    return np.asarray(predictor(variables, image)._logits_at(shape))

  whole = logits(shape)
  tiled = logits(tile, mode="tile", margin=margin)
  # Tiles go on as a mirror image, where the whole image is padded.
  inside = tuple(slice(margin, n - margin) for n in shape)
  scale = np.abs(whole[inside]).max()
  np.testing.assert_allclose(tiled[inside], whole[inside], atol=1e-5 * scale)


def test_the_batch_and_the_devices_change_nothing(net):
  for options in ({"mode": "window"}, {"mode": "tile", "margin": 0}):
    every = [predict(net, batch_size=n, **options) for n in (1, 4, 8)]
    for other in every[1:]:
      np.testing.assert_allclose(other.probabilities, every[0].probabilities, atol=1e-5)


def test_flips_are_the_mean_over_mirror_images(net):
  model, variables, image = net
  for average in ("probabilities", "logits"):
    both = predict(net, (70, 45), flip="horizontal", average=average).probabilities
    one = predict(net, (70, 45)).probabilities
    mirrored = predict((model, variables, image[:, ::-1]), (70, 45)).probabilities[:, ::-1]
    if average == "logits":
      expected = np.sqrt(one * mirrored)
      expected /= expected.sum(-1, keepdims=True)
    else:
      expected = (one + mirrored) / 2
    np.testing.assert_allclose(both, expected, atol=1e-5)
  every = predict(net, (70, 45), flip="all").probabilities
  turned = predict((model, variables, image[::-1, ::-1]), (70, 45), flip="all")
  again = turned.probabilities[::-1, ::-1]
  np.testing.assert_allclose(every, again, atol=1e-5)


@pytest.mark.parametrize("mode", ["shrink", "window"])
def test_scales_are_the_mean_over_sizes(net, mode):
  size = (70, 45) if mode == "shrink" else (32, 32)
  scales = ((1.0,), (0.5,), (0.5, 1.0))
  once, half, both = (predict(net, size, mode=mode, scales=s).probabilities for s in scales)
  np.testing.assert_allclose(both, (half + once) / 2, atol=1e-5)
  assert np.abs(half - once).max() > 0.05


def test_a_volume_in_windows():
  model = jseg.models.create("unet3d", 3, widths=(2,))
  variables = draw(model, np.zeros((1, 8, 16, 16, 1), np.float32))
  volume = rng.normal(size=(11, 30, 17, 1)).astype(np.float32)
  for mode in ("window", "tile"):
    predictor = SemanticPredictor(
      model, CLASSES, (8, 16, 16), 1, inference=Inference(mode, flip="horizontal", margin=4)
    )
    prediction = predictor(variables, volume)
    assert prediction.mask.shape == volume.shape[:3]
    np.testing.assert_array_equal(prediction.probabilities.argmax(-1), prediction.mask)
  for options in ({"mode": "shrink"}, {"mode": "window", "scales": (0.5,)}):
    with pytest.raises(InputError, match="volumes"):
      SemanticPredictor(model, CLASSES, (8, 16, 16), 1, inference=Inference(**options))


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"mode": "slide"}, "mode: 'slide' is unknown; choose from shrink, window, tile"),
    ({"blend": "max"}, "blend: 'max' is unknown"),
    ({"average": "votes"}, "average: 'votes' is unknown"),
    ({"flip": True}, "flip: True is unknown"),
    ({"overlap": 1.0}, "overlap: 1.0 must be at least 0 and below 1"),
    ({"overlap": -0.1}, "overlap: -0.1"),
    ({"margin": -2}, "margin: -2 must be at least 0"),
    ({"scales": ()}, r"scales: \(\) must be numbers above 0"),
    ({"scales": (1.0, 0)}, r"scales: \(1.0, 0\)"),
    ({"scales": ("1",)}, "scales"),
    ({"scales": (True,)}, r"scales: \(True,\) must be numbers"),
    ({"mode": "tile", "scales": (0.5, 1.0)}, "scales: tiles are shown at the image's own size"),
    ({"output_size": "512"}, "output_size: '512' must be image, canvas, or HEIGHTxWIDTH in pixels"),
    ({"output_size": "0x512"}, "output_size: '0x512'"),
    ({"output_size": (5, 5)}, r"output_size: \(5, 5\)"),
    ({"output_size": "40000x40000"}, r"output_size: .* of at most 2\^30 in all"),
  ],
)
def test_impossible_protocols(options, match):
  with pytest.raises(InputError, match=match):
    Inference(**options)
  config = configs.default("unet")
  for key, value in options.items():
    if isinstance(value, type(config.inference[key])):
      config.inference[key] = value
  if config.inference.to_dict() != configs.default("unet").inference.to_dict():
    with pytest.raises(InputError, match=f"inference.{match}"):
      configs.validate(config)


@pytest.mark.parametrize("mode", ["shrink", "window"])
def test_masks_of_another_size_are_decided_from_scores_of_that_size(mode, tmp_path):
  model, image = Edges(num_classes=3), rng.integers(0, 256, (70, 45, 3), np.uint8)
  variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))

  def predicted(output_size):
    protocol = Inference(mode, output_size=output_size)
    predictor = SemanticPredictor(model, CLASSES, (32, 40), inference=protocol, confident=True)
    return predictor(variables, image)

  canvas, fixed = map(predicted, ("canvas", "30x99"))
  # The canvas shows the image whole, at its own aspect; windows show it as large as it is.
  assert canvas.mask.shape == ((32, 21) if mode == "shrink" else (70, 45))
  scores = np.asarray(canvas._logits())[tuple(map(slice, canvas.mask.shape))]
  np.testing.assert_array_equal(canvas.mask, scores.argmax(-1))
  expected = jax.nn.softmax(resize_bilinear(scores[None], (30, 99))[0])
  np.testing.assert_allclose(fixed.probabilities, expected, atol=1e-5)
  np.testing.assert_array_equal(fixed.mask, fixed.probabilities.argmax(-1))
  np.testing.assert_allclose(fixed.confidence, fixed.probabilities.max(-1), atol=1e-5)
  for path in fixed.save(tmp_path, "a", write=("mask", "overlay", "confidence")):
    with Image.open(path) as picture:
      assert picture.size == (99, 30)


def test_other_sizes_are_for_predictions_of_images(run):
  for output_size in ("canvas", "16x16"):
    protocol = Inference("window", output_size=output_size)
    assert protocol.by_rows == (output_size == "canvas")
    with pytest.raises(InputError, match=r"output_size: .* masks of volumes lie on"):
      protocol.check((8, 16, 16))
    with pytest.raises(InputError, match=r"output_size: .* objects lie on the image"):
      protocol.check_objects()
    task = Run.open(run, {"inference.output_size": output_size}).task
    for measure in (task.evaluator, functools.partial(task.measure, {})):
      with pytest.raises(InputError, match=r"inference\.output_size: .* is for predictions, and"):
        measure(None, "val")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("runs") / "run", classes=SHAPES)


SHAPES = ("background", "disc", "rectangle", "triangle", "star")
CRF = {"iterations": 1, "bilateral_sigma_rgb": 20.0, "method": "exact"}  # which compiles quickly


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluation_and_prediction_are_the_same(run, protocol):
  changes = {"data.size": (24, 24)}  # of images of 32
  if len(PROTOCOLS[protocol].scales) > 1:
    changes["inference.scales"] = (1.0, 1.5)
  if PROTOCOLS[protocol].crf:
    changes |= {f"inference.crf_params.{key}": value for key, value in CRF.items()}
  result = evaluate(run, protocol=protocol, changes=changes, worst=0)
  segmenter = jseg.Segmenter.from_run(run, protocol=protocol, changes=changes)
  source, matrix = Run.open(run).dataset().source("val"), 0
  for i in range(len(source)):
    mask = segmenter(source[i]["image"]).mask
    matrix = matrix + host_confusion(mask, source[i]["label"], len(SHAPES))
  np.testing.assert_array_equal(result.scores.matrix, matrix)
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  expected = dataclasses.asdict(PROTOCOLS[protocol])
  expected["scales"] = changes.get("inference.scales", (1.0,))
  if PROTOCOLS[protocol].crf:
    expected["crf_params"] = params_to_dict(CrfParams(**CRF))
  assert saved["inference"] == json.loads(json.dumps(expected))


class Edges(Network):
  """One convolution, which compiles in no time."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(nn.Conv(self.num_classes, (3, 3))(image))


class Opened(list):
  """Examples, of which none is read by rows."""

  open = list.__getitem__


class Shown:
  """Stands for a data set of images of several sizes, the truth of which is what is predicted."""

  ndim = 2

  def __init__(self, shapes, predict):
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    self.examples = Opened({"image": image, "label": predict(image).mask} for image in images)
    self.classes = CLASSES

  def source(self, split):
    return self.examples

  def max_size(self, split):
    return tuple(np.max([example["label"].shape for example in self.examples], 0).tolist())


def test_several_scales_take_the_memory_of_rows_of_windows():
  model, image = Edges(num_classes=3), rng.integers(0, 256, (6000, 60, 3), np.uint8)
  variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  protocol = Inference("window", overlap=0.0, scales=(0.5, 1.0, 1.5))
  predictor = SemanticPredictor(model, CLASSES, (32, 96), inference=protocol, batch_size=8)
  predictor(variables, image[:100])  # compiles
  tracemalloc.start()
  found = [(rows, mask) for one in predictor.rows(variables, [image]) for rows, mask, _ in one]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6000 * 60 * 3 * 4  # bytes of scores that are whole, which were there three times
  np.testing.assert_array_equal(
    np.concatenate([mask for _, mask in found]), predictor(variables, image).mask
  )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_devices_and_batches_change_no_pixel(protocol, monkeypatch):
  config = configs.default("unet")
  config.data.size = (32, 40)
  for key, value in protocol_changes(config, protocol).items():
    config.inference[key.removeprefix("inference.")] = value
  if len(config.inference.scales) > 1:
    config.inference.scales = (0.5, 1.0)
  if config.inference.crf:
    with config.unlocked():
      config.inference.crf_params = CRF
  model, devices = Edges(num_classes=3), jax.local_devices()
  variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  dataset = None
  for count, batch_size in ((4, 1), (1, 3), (2, 4)):
    for name in ("devices", "local_devices"):
      monkeypatch.setattr(jax, name, lambda n=count: devices[:n])
      monkeypatch.setattr(jax, f"{name[:-1]}_count", lambda n=count: n)
    config.data.eval_batch_size = batch_size
    task = SemanticTask(config, model, CLASSES)
    predict = functools.partial(task.predictor(), variables)
    dataset = dataset or Shown([(70, 45), (20, 40), (33, 9)], predict)
    for example in dataset.examples:
      np.testing.assert_array_equal(predict(example["image"]).mask, example["label"])
    matrix = task.evaluator(dataset, "val")(replicate(variables)).matrix
    np.testing.assert_array_equal(matrix, np.diag(matrix.diagonal()))
    assert matrix.sum() == 70 * 45 + 20 * 40 + 33 * 9
    assert (matrix.diagonal() > 0).all()


def test_windows_of_several_images_are_counted_in_shared_batches(monkeypatch):
  model = Edges(num_classes=3)
  variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  predictor = SemanticPredictor(
    model, CLASSES, (32, 32), inference=Inference("window", overlap=0.0), batch_size=8
  )
  shapes = [(32, 32), (30, 32), (64, 32), (96, 96), (32, 20)]  # 1, 1, 2, 9 and 1 window(s)
  dataset = Shown(shapes, functools.partial(predictor, variables))
  monkeypatch.setattr(evaluation, "LARGE", 64 * 64 * 3)  # so that the fourth is alone
  scores, covered = predictor._scores, []

  def spy(average, variables, image, size):
    covered.append(int((np.asarray(size) > 1).all(-1).sum()))
    return scores(average, variables, image, size)

  monkeypatch.setattr(predictor, "_scores", spy)
  matrix = evaluation.count_images(predictor, variables, dataset, "val").matrix
  np.testing.assert_array_equal(matrix, np.diag(matrix.diagonal()))
  assert matrix.sum() == sum(h * w for h, w in shapes)
  # What is alone is averaged as logits, so the third of the first three has a batch of its own.
  assert covered == [2, 2, 8, 1, 1]


def test_the_command_takes_a_protocol_and_details(run, capsys):
  command = ["evaluate", str(run), "--protocol", "window", "--worst", "0"]
  cli.main([*command, "--set", "inference.overlap=0.25"])
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert (saved["inference"]["mode"], saved["inference"]["overlap"]) == ("window", 0.25)


def test_protocols_have_names(run):
  config = Run.open(run).config
  assert Run.open(run, protocol=None).config == config
  assert protocol_changes(config, "pspnet")["inference.overlap"] == 1 / 3
  with pytest.raises(InputError, match="'psp' is unknown; choose from shrink, tile, window"):
    protocol_changes(config, "psp")
  alone = configs.default("unet")
  with alone.unlocked():
    del alone["inference"]  # as of a task of one's own
  with pytest.raises(InputError, match="the task of unet has no other protocol"):
    protocol_changes(alone, "tile")


def test_a_run_goes_on_with_another_protocol():
  old, new = configs.default("unet"), configs.default("unet")
  new.inference.flip = "horizontal"
  assert configs.differences(old, new) == []


def test_the_logits_of_averaged_probabilities_are_finite(net):
  model, variables, image = net
  sure = jax.tree.map(lambda a: 100 * a, variables)
  prediction = predict((model, sure, image), flip="horizontal", scales=(0.5, 1.0))
  assert np.isfinite(prediction.probabilities).all()
