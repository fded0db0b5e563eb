import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.losses import (
  PIXEL_LOSSES,
  REGION_LOSSES,
  cross_entropy,
  focal,
  lovasz_softmax,
  make_loss,
  ohem,
  soft_dice,
  takes_weights,
  tversky,
)
from jseg.types import IGNORE, InputError

NAMES = [*PIXEL_LOSSES, *REGION_LOSSES, "cross_entropy+dice", "ohem+lovasz"]


def example(seed, shape=(2, 3, 4), k=3):
  """Logits [b h w k] and a label with every class and void."""
  rng = np.random.default_rng(seed)
  label = rng.choice([*range(k), IGNORE], shape)
  label.reshape(-1)[: k + 1] = [*range(k), IGNORE]
  return rng.normal(size=(*shape, k)).astype(np.float32) * 2, label


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def two_classes(*p):
  """Logits whose probabilities of class 1 are p."""
  p = np.array(p)
  return jnp.array(np.stack([np.log(1 - p), np.log(p)], -1), jnp.float32)


def test_hand_worked():
  # softmax of (0, ln 3) is (1/4, 3/4): the losses are ln 4 and ln 4/3; the third pixel is void.
  logits = jnp.array([[0.0, jnp.log(3.0)]] * 3)
  total, count = cross_entropy(logits, jnp.array([0, 1, IGNORE]))
  assert float(total) == pytest.approx(np.log(4.0) + np.log(4.0 / 3.0), rel=1e-6)
  assert float(count) == 2.0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_ignored_pixels_have_neither_loss_nor_gradient(wrap):
  logits = jnp.array([[1.0, -2.0, 0.5], [1e4, -1e4, 0.0]])
  gradient = wrap(jax.grad(lambda x: cross_entropy(x, jnp.array([2, IGNORE]))[0]))(logits)
  assert np.isfinite(gradient).all()
  assert (np.asarray(gradient[1]) == 0).all()
  assert np.abs(gradient[0]).max() > 0.1


def test_nothing_valid_is_zero_over_zero_without_nan():
  total, count = jax.jit(cross_entropy)(jnp.ones((2, 3)), jnp.full(2, IGNORE))
  assert (float(total), float(count)) == (0.0, 0.0)


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.zeros((4096, 2), jnp.bfloat16)
  total, count = cross_entropy(logits, jnp.zeros(4096, jnp.int32))
  assert total.dtype == count.dtype == jnp.float32
  assert float(total) == pytest.approx(4096 * np.log(2.0), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-50.0, 50.0))
def test_adding_a_constant_to_all_logits_changes_nothing(seed, shift):
  rng = np.random.default_rng(seed)
  logits, label = rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 4, 7)
  base, shifted = (
    cross_entropy(jnp.array(x), jnp.array(label))[0] for x in (logits, logits + shift)
  )
  assert float(shifted) == pytest.approx(float(base), abs=1e-3)


def test_class_weights_divide_the_mean_and_pixel_weights_do_not():
  # Losses ln 4 (class 0), ln 4/3 (class 1), void.
  logits, label = two_classes(0.75, 0.75, 0.5), jnp.array([0, 1, IGNORE])
  a, b = np.log(4.0), np.log(4 / 3)
  by_class, by_pixel = jnp.array([0.5, 3.0]), jnp.array([10.0, 1.0, jnp.nan])
  results = [
    cross_entropy(logits, label, class_weights=by_class),
    cross_entropy(logits, label, pixel_weights=by_pixel),
    cross_entropy(logits, label, class_weights=by_class, pixel_weights=by_pixel),
  ]
  expected = [(0.5 * a + 3 * b, 3.5), (10 * a + b, 2.0), (5 * a + 3 * b, 3.5)]
  np.testing.assert_allclose(results, expected, rtol=1e-6)


def test_focal_hand_worked():
  # p of the truth 1/4 and 3/4: (3/4)^2 ln 4 + (1/4)^2 ln 4/3.
  total, count = focal(two_classes(0.75, 0.75, 0.5), jnp.array([0, 1, IGNORE]))
  assert float(total) == pytest.approx(9 / 16 * np.log(4.0) + np.log(4 / 3) / 16, rel=1e-6)
  assert float(count) == 2.0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_certain_pixels(gamma):
  # p = 1 exactly, where (1 - p)^gamma has no finite slope below gamma 1; p = 0; p = 1/2.
  logits = jnp.array([[1e4, 0.0], [-1e4, 0.0], [0.0, 0.0]])
  label = jnp.zeros(3, jnp.int32)
  gradient = jax.grad(lambda x: focal(x, label, gamma=gamma)[0])(logits)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(gradient[:2], [[0.0, 0.0], [-1.0, 1.0]], atol=1e-6)
  # d/dp of -(1-p)^g ln p, times dp/dx = p (1 - p) = 1/4.
  slope = 0.25 * (gamma * 0.5 ** (gamma - 1) * np.log(0.5) - 0.5**gamma / 0.5)
  np.testing.assert_allclose(gradient[2], [slope, -slope], rtol=1e-5)


@pytest.mark.parametrize("weights", [{}, {"class_weights": np.array([0.5, 1.0, 2.0])}])
def test_focal_and_ohem_contain_cross_entropy(weights):
  logits, label = map(jnp.array, example(0))
  expected = cross_entropy(logits, label, **weights)
  np.testing.assert_allclose(focal(logits, label, gamma=0.0, **weights), expected, rtol=1e-6)
  np.testing.assert_allclose(ohem(logits, label, hardest=1.0, **weights), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("hardest", "threshold", "kept"),
  [
    (0.0, 0.5, [0.1, 0.4]),  # the threshold alone
    (0.6, 0.0, [0.1, 0.4, 0.6]),  # 3 of the 5 valid pixels, not of all 7
    (0.5, 0.0, [0.1, 0.4, 0.6]),  # 2.5 is rounded up
    (0.2, 0.5, [0.1, 0.4]),  # the share is met by the threshold
    (0.8, 0.5, [0.1, 0.4, 0.6, 0.8]),  # and here it isn't
    (0.0, 0.05, []),
  ],
)
def test_ohem_keeps_the_hardest(hardest, threshold, kept):
  logits = two_classes(0.6, 0.001, 0.1, 0.9, 0.4, 0.999, 0.8)
  label = jnp.array([1, IGNORE, 1, 1, 1, IGNORE, 1])
  total, count = jax.jit(lambda x, y: ohem(x, y, hardest=hardest, threshold=threshold))(
    logits, label
  )
  assert float(count) == len(kept)
  assert float(total) == pytest.approx(-np.log(kept).sum(), rel=1e-5)
  gradient = jax.grad(lambda x: ohem(x, label, hardest=hardest, threshold=threshold)[0])(logits)
  assert (np.abs(gradient[:, 0]) > 0).sum() == len(kept)


@functools.partial(jax.jit, static_argnums=2)
def hardest_alone(logits, label, hardest):
  return ohem(logits, label, hardest=hardest, threshold=0.0)


@given(
  # Halves collide often, which ties do too; 1e4 gives a probability of 0.
  st.lists(
    st.tuples(st.sampled_from([-1e4, -2.0, -1.5, 0.5, 1.0, 1e4]), st.booleans()),
    min_size=12,
    max_size=12,
  ),
  st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 0.99, 1.0]),
)
@settings(max_examples=50, deadline=None)
def test_the_hardest_share_is_that_of_a_sort(pixels, hardest):
  x, valid = map(np.array, zip(*pixels, strict=True))
  logits = jnp.stack([jnp.zeros(len(x)), jnp.asarray(x, jnp.float32)], -1)
  label = jnp.where(valid, 1, IGNORE)
  _, count = hardest_alone(logits, label, hardest)
  least = np.ceil(np.float32(hardest) * np.float32(valid.sum())).astype(int)
  # Of logits 0 and x; as an array of one shape, which is compiled once.
  loss = np.asarray(-jax.nn.log_softmax(logits)[:, 1])[valid]
  assert count == (loss >= np.sort(loss)[::-1][least - 1]).sum() if least else count == 0


def test_pixels_that_are_not_a_number_are_kept():
  logits = two_classes(0.1, 0.2, 0.9).at[2].set(jnp.nan)
  total, count = ohem(logits, jnp.array([1, 1, 1]), hardest=0.3, threshold=0.0)
  assert np.isnan(total)
  assert count == 1


def valid_images(p, label):
  """(probabilities [n k], truth [n]) of the valid pixels of each image that has any."""
  pairs = [(image[y != IGNORE], y[y != IGNORE]) for image, y in zip(p, label, strict=True)]
  return [pair for pair in pairs if pair[1].size]


def dice_by_formula(image, truth, classes, smooth):
  return 1 - np.mean(
    [
      (2 * image[truth == c, c].sum() + smooth) / (image[:, c].sum() + (truth == c).sum() + smooth)
      for c in classes
    ]
  )


def lovasz_by_formula(image, target, classes):
  """Equation 9 by its sets: the Jaccard loss of the j largest errors less that of j - 1."""

  def jaccard_loss(truth, wrong):
    return len(wrong) / len(truth | wrong) if wrong else 0.0

  losses = []
  for c in classes:
    truth = set(np.flatnonzero(target == c))
    errors = np.abs((target == c) - image[:, c])
    order = np.argsort(-errors, kind="stable").tolist()
    steps = np.diff([jaccard_loss(truth, set(order[:j])) for j in range(len(order) + 1)])
    losses.append(np.dot(errors[order], steps))
  return np.mean(losses)


@pytest.mark.parametrize(("classes", "shape"), [("present", (3, 4, 5)), ("all", (3, 2, 3, 2))])
def test_set_losses_equal_their_formulas(classes, shape):
  logits, label = example(1, shape, k=4)
  label[label == 3] = 2  # absent
  label[0] = np.where(label[0] == 1, 0, label[0])  # absent from one image
  label[-1] = IGNORE  # an image without one valid pixel
  images = valid_images(softmax(logits), label)
  of = [np.unique(y) if classes == "present" else range(4) for _, y in images]
  assert len(images) == 2
  for smooth in (0.0, 1.0):
    dice = jax.jit(functools.partial(soft_dice, classes=classes, smooth=smooth))
    total, count = dice(logits, label)
    expected = sum(dice_by_formula(*i, c, smooth) for i, c in zip(images, of, strict=True))
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == 2.0
  total, count = jax.jit(functools.partial(lovasz_softmax, classes=classes))(logits, label)
  expected = sum(lovasz_by_formula(*i, c) for i, c in zip(images, of, strict=True))
  assert float(total) == pytest.approx(expected, rel=1e-5)
  assert float(count) == 2.0


def test_dice_hand_worked():
  # Class 1: 2 (.8) / (.8 + .4 + 1); class 0: 2 (.6) / (.2 + .6 + 1); the third pixel is void.
  loss, images = soft_dice(
    two_classes(0.8, 0.4, 0.9)[None], jnp.array([[1, 0, IGNORE]]), smooth=0.0
  )
  assert float(loss) == pytest.approx(1 - (8 / 11 + 2 / 3) / 2, rel=1e-5)
  assert float(images) == 1.0


@jax.jit
def costs(logits, label):
  return lovasz_softmax(logits, label)[0], soft_dice(logits, label, smooth=0.0)[0]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_certain_predictions_cost_one_minus_iou_and_one_minus_dice(seed):
  _, label = example(seed, (1, 4, 5))
  guess = np.random.default_rng(seed).integers(0, 3, label.shape)
  logits = jnp.array(np.where(guess[..., None] == np.arange(3), 1e3, 0.0), jnp.float32)
  valid = label != IGNORE
  sizes = [((label == c) & valid, (guess == c) & valid) for c in range(3)]
  iou = np.mean([(t & g).sum() / (t | g).sum() for t, g in sizes])
  dice = np.mean([2 * (t & g).sum() / (t.sum() + g.sum()) for t, g in sizes])
  lovasz, overlap = costs(logits, label)
  assert float(lovasz) == pytest.approx(1 - iou, abs=1e-5)
  assert float(overlap) == pytest.approx(1 - dice, abs=1e-5)


def test_tversky_hand_worked():
  # Probabilities of class 1 are .9, .6 and .2; the truth is 1, 1 and 0; the last pixel is void.
  logits = two_classes(0.9, 0.6, 0.2, 0.5)[None]
  label = jnp.array([[1, 1, 0, IGNORE]])
  # Class 1: TP 1.5, FP .2, FN .5. Class 0: TP .8, FP .5, FN .2. Losses are errors / (TP + errors).
  knobs = {"smooth": 0.0, "false_positives": 0.3, "false_negatives": 0.7}
  one, zero = 0.41 / (1.5 + 0.41), 0.29 / (0.8 + 0.29)
  total, images = tversky(logits, label, **knobs)
  assert float(images) == 1
  assert float(total) == pytest.approx((one + zero) / 2, rel=1e-5)
  focal_total, _ = tversky(logits, label, **knobs, tversky_gamma=4 / 3)
  assert float(focal_total) == pytest.approx((one**0.75 + zero**0.75) / 2, rel=1e-5)
  smooth, _ = tversky(logits, label, **{**knobs, "smooth": 1.0})
  assert float(smooth) == pytest.approx((0.41 / 2.91 + 0.29 / 2.09) / 2, rel=1e-5)


def test_tversky_of_halves_is_dice_and_its_gradient_is_finite_where_all_is_right():
  logits, label = example(3)
  halves = {"false_positives": 0.5, "false_negatives": 0.5}
  # (2 TP + s) / (sum p + sum g + s) with s = 2 is (TP + 1) / (TP + FP / 2 + FN / 2 + 1).
  found, expected = tversky(logits, label, **halves), soft_dice(logits, label, smooth=2.0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  sure = 100.0 * np.eye(4, 3, dtype=np.float32)[np.minimum(label, 3)]
  slope = jax.grad(lambda x: tversky(x, label, tversky_gamma=4 / 3)[0])(sure)
  assert np.isfinite(slope).all()


def test_label_smoothing_hand_worked():
  # Probabilities 1/4 and 3/4; of a share .2, each class gets .1.
  logits = jnp.array([[0.0, jnp.log(3.0)]] * 3)
  label = jnp.array([0, 1, IGNORE])
  four, third = np.log(4.0), np.log(4.0 / 3.0)
  total, count = cross_entropy(logits, label, label_smoothing=0.2)
  assert float(total) == pytest.approx(0.8 * (four + third) + 2 * 0.1 * (four + third), rel=1e-6)
  assert float(count) == 2
  # Class weights weigh the truth's part by the truth, the even part by each class, as in PyTorch:
  # F.cross_entropy(..., weight=[2, 3], label_smoothing=.2, reduction="sum").
  weights = jnp.array([2.0, 3.0])
  total, count = cross_entropy(logits, label, label_smoothing=0.2, class_weights=weights)
  expected = 0.8 * (2 * four + 3 * third) + 0.1 * 2 * (2 * four + 3 * third)
  assert float(total) == pytest.approx(expected, rel=1e-6)
  assert float(count) == 5
  total, _ = cross_entropy(logits, label, label_smoothing=0.2, pixel_weights=jnp.array([1.0, 0, 9]))
  assert float(total) == pytest.approx(0.8 * four + 0.1 * (four + third), rel=1e-6)


def test_lovasz_gradient_is_the_steps():
  # Class 1 of errors .7 (true), .6 (not true), .1 (true): the Jaccard loss goes 0, 1/2, 2/3, 1.
  label = jnp.array([[1, 0, 1]])
  logits = two_classes(0.3, 0.6, 0.9)[None]
  p = np.array([0.3, 0.6, 0.9])
  # Class 0 has errors .7, .6 (true), .1: the loss goes 0, 1/2 (one false), 1, 1.
  steps = np.array([-1 / 2 - 1 / 2, 1 / 6 + 1 / 2, -1 / 3]) / 2
  gradient = jax.jit(jax.grad(lambda x: lovasz_softmax(x, label)[0]))(logits)
  np.testing.assert_allclose(gradient[0, :, 1], steps * p * (1 - p), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss(name):
  loss = make_loss(name=name)
  logits, label = example(2)
  void = (label == IGNORE)[..., None]

  def run(logits, label):
    (total, count), pull = jax.vjp(lambda x: loss(x, label), logits)
    return total, count, pull((jnp.ones(()), jnp.zeros(())))[0]

  assert "scatter" not in str(jax.make_jaxpr(run)(logits, label))
  run = jax.jit(run)
  total, count, gradient = run(logits, label)
  assert total.dtype == count.dtype == jnp.float32
  assert np.abs(gradient).max() > 1e-3
  assert (np.asarray(gradient)[np.broadcast_to(void, gradient.shape)] == 0).all()
  # Nothing under void matters.
  other = run(np.where(void, 77.0, logits).astype(np.float32), label)
  for a, b in zip((total, count, gradient), other, strict=True):
    np.testing.assert_array_equal(a, b)
  # Certain predictions, right and wrong, are no NaN.
  for value in run(np.sign(logits) * np.float32(1e4), label):
    assert np.isfinite(value).all()
  # No valid pixel: no loss, no gradient.
  for value in run(logits, np.full_like(label, IGNORE)):
    assert (np.asarray(value) == 0).all()


@pytest.mark.parametrize("name", ["focal", "dice", "cross_entropy+dice", "ohem+lovasz"])
def test_halves_of_the_batch_add_up(name):
  loss = jax.jit(make_loss(name=name))
  logits, label = example(3)
  parts = [loss(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
  np.testing.assert_allclose(loss(logits, label), np.sum(parts, 0), rtol=1e-5)


def test_a_sum_is_the_sum_of_the_means_where_images_are_equally_valid():
  logits, label = example(4)
  label = jnp.array(label % 3)
  weights = {"class_weights": jnp.ones(3), "pixel_weights": jnp.full(label.shape, 2.0)}
  loss = jax.jit(make_loss(name="cross_entropy+dice", set_weight=0.5))
  total, count = loss(logits, label, **weights)
  cross, pixels = cross_entropy(logits, label, **weights)
  dice, images = soft_dice(logits, label)
  assert float(count) == float(pixels) == 24.0
  assert float(total / count) == pytest.approx(
    float(cross / pixels + 0.5 * dice / images), rel=1e-5
  )


def test_options_reach_their_losses():
  logits, label = example(5, k=4)
  label[label == 3] = 2
  options = {"gamma": 1.0, "hardest": 0.5, "threshold": 0.1, "classes": "all", "smooth": 0.5}

  @jax.jit
  def direct(logits, label):
    return {
      "focal": focal(logits, label, gamma=1.0),
      "ohem": ohem(logits, label, hardest=0.5, threshold=0.1),
      "dice": soft_dice(logits, label, classes="all", smooth=0.5),
      "lovasz": lovasz_softmax(logits, label, classes="all"),
    }

  @jax.jit
  def made(logits, label):
    return {
      name: (make_loss(name=name, **options)(logits, label), make_loss(name=name)(logits, label))
      for name in ("focal", "ohem", "dice", "lovasz")
    }

  expected = direct(logits, label)
  for name, (with_options, without) in made(logits, label).items():
    np.testing.assert_allclose(with_options, expected[name], rtol=1e-6)
    assert abs(float(with_options[0]) - float(without[0])) > 1e-3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"label_smoothing": 1.0}, r"label_smoothing: 1.0 must be at least 0 \(off\) and below 1"),
    ({"false_positives": -1.0}, r"false_positives: -1.0 must be at least 0"),
    ({"tversky_gamma": 0.0}, r"tversky_gamma: 0.0 must be above 0"),
    ({"name": "x"}, r"^name: 'x' is unknown; choose from cross_entropy, focal, .*lovasz"),
    ({"name": "dice+lovasz"}, r"name: 'dice' is unknown"),
    ({"name": "focal+"}, r"name: '' is unknown"),
    ({"classes": "some"}, r"^classes: 'some' is unknown; choose from present, all"),
    ({"gamma": -1.0}, r"^gamma: -1\.0 must be at least 0"),
    ({"smooth": float("nan")}, r"^smooth: nan must be at least 0"),
    ({"hardest": 1.5}, r"^hardest: 1\.5 must be from 0 to 1"),
    ({"hardest": 0.0, "threshold": 0.0}, "hardest: 0, as threshold is, keeps no pixel; raise one"),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(InputError, match=message):
    make_loss(**options)


def test_ones_own_losses_by_name(tmp_path, monkeypatch):
  (tmp_path / "my_losses.py").write_text(
    "from jseg.types import IGNORE\n"
    "def of_pixels(logits, label, *, sharp=2.0, class_weights=None, pixel_weights=None):\n"
    "  valid = label != IGNORE\n"
    "  return sharp * valid.sum(dtype='float32'), valid.sum(dtype='float32')\n"
    "def of_regions(logits, label, *, shift=0.5):\n"
    "  return shift * len(label) + 0 * logits.sum(), 0 * logits.sum() + len(label)\n"
    "number = 3\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  logits, label = np.zeros((2, 1, 3, 2), np.float32), np.array([[[0, 1, IGNORE]], [[1, 1, 0]]])
  pixels, regions = "my_losses:of_pixels", "my_losses:of_regions"
  for name, hyperparameters, expected in (
    (pixels, {}, (2 * 5, 5)),
    (pixels, {"options": {"sharp": 3.0}}, (3 * 5, 5)),
    (regions, {"options": {"shift": 0.25}}, (0.5, 2)),
    (f"{pixels}+{regions}", {"set_weight": 4.0}, (2 * 5 + 4 * 0.5 * 5, 5)),
  ):
    loss = make_loss(name=name, **hyperparameters)
    # As a task calls them: without weights both are None.
    np.testing.assert_allclose(
      loss(logits, label, class_weights=None, pixel_weights=None), expected
    )
  assert [takes_weights(name) for name in (pixels, regions, "dice", "ohem")] == [1, 0, 0, 1]
  with pytest.raises(InputError, match=r"takes no weights"):
    make_loss(name=regions)(logits, label, class_weights=jnp.ones(2))
  with pytest.raises(
    InputError, match=r"^sharp: no loss has this argument; .* name, options, label_smoothing, gamma"
  ):
    make_loss(name=regions, sharp=3.0)
  with pytest.raises(InputError, match=r"options.sharp: 'my_.*no such .*; there are shift"):
    make_loss(name=regions, options={"sharp": 3.0})
  with pytest.raises(
    InputError, match=r"options.gamma: 'focal' .*; they are for a loss of your own"
  ):
    make_loss(name="focal", options={"gamma": 3.0})
  with pytest.raises(InputError, match=r"^name: 'my_losses:number' is 3; it must be a function"):
    make_loss(name="my_losses:number")


def test_weights_for_a_loss_that_has_no_use_for_them():
  logits, label = example(6)
  with pytest.raises(InputError, match=r"'dice' takes no weights .* alone or \+ dice"):
    make_loss(name="dice")(logits, label, class_weights=jnp.ones(3))
