"""`shapes`: a generated data set that needs no files: discs, rectangles, triangles and stars.

Most objects have the texture and roughly the color of their class, so that a small network learns
the set in minutes; with `hints=0` only shape tells classes apart, which takes far longer. Objects
overlap, throw shadows, and lie on noisy gradients. A thin ring around every visible
outline is void, as in Pascal VOC.
"""

import dataclasses
import hashlib

import cv2
import numpy as np

from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import encode_png
from jseg.data.files.instances import objects_from_ids
from jseg.data.sources.base import Example, ListedSource
from jseg.types import IGNORE, InputError

CLASSES = ClassInfo(
  names=("background", "disc", "rectangle", "triangle", "star"),
  palette=np.array([(38, 40, 56), (239, 91, 91), (255, 196, 61), (64, 192, 150), (92, 128, 245)]),
)
_VERSION = 2  # of the pictures: raise it whenever they change, or prepared ones are used on
_HUES = np.array([0, 4, 2])  # of red, green and blue, in sixths of a turn
_CLASS_HUES = (0.0, 0.98, 0.14, 0.4, 0.64)  # in turns, near those of the palette
_VOID_RADIUS = 0.75  # pixels either side of an outline


def shapes_source(
  size: int = 96,
  train: int = 1000,
  val: int = 100,
  test: int = 100,
  seed: int = 0,
  hints: float = 0.98,
) -> ListedSource:
  """Generates the data set.

  Args:
    size: height and width of the images, 32 or more.
    train: number of examples in the train split; a split of 0 is left out.
    val: number of examples in the val split.
    test: number of examples in the test split.
    seed: seed of all that is drawn.
    hints: share of the objects with the texture and the hue of their class; the others' are random.

  Raises:
    InputError: the size or the counts make no data set.
  """
  if size < 32:
    raise InputError(f"shapes: size {size} leaves no room for the objects; use 32 or more")
  counts = {"train": train, "val": val, "test": test}
  if min(counts.values()) < 0 or max(counts.values()) == 0:
    raise InputError(f"shapes: counts {counts} must be 0 or more, and one above 0")
  if not 0 <= hints <= 1:
    raise InputError(f"shapes: hints {hints} must be a share from 0 to 1")
  splits = {
    split: [ShapesItem(size, seed, which, i, hints) for i in range(count)]
    for which, (split, count) in enumerate(counts.items())
    if count
  }
  digest = hashlib.sha256(
    repr((_VERSION, size, train, val, test, seed, hints)).encode()
  ).hexdigest()
  return ListedSource(
    classes=CLASSES,
    splits=splits,
    make_fingerprint=lambda: digest[:16],
    has_objects=True,
  )


@dataclasses.dataclass(frozen=True)
class ShapesItem:
  """One generated picture."""

  size: int
  seed: int
  split: int
  index: int
  hints: float

  @property
  def name(self) -> str:
    """Index of the picture, in six digits."""
    return f"{self.index:06d}"

  def load(self) -> Example:
    """Draws the picture."""
    rng = np.random.default_rng((self.seed, self.split, self.index))
    image, label, instance = draw(rng, self.size, self.hints)
    counts = np.bincount(label.ravel(), minlength=256)
    # Void lies along outlines, and 255 is above every class.
    objects = objects_from_ids(instance, lambda number: int(label[instance == number].min()))
    return Example(encode_png(image), encode_png(label), label.shape, counts, objects)


def draw(
  rng: np.random.Generator, size: int, hints: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a picture.

  Args:
    rng: generator of all random numbers.
    size: height and width of the picture.
    hints: share of the objects with the texture and the hue of their class.

  Returns:
    image uint8 [h w 3], label uint8 [h w] (IGNORE at outlines), instance ids uint8 [h w]
    (0 is background; outlines belong to the object inside).
  """
  image = _background(rng, size)
  label = np.zeros((size, size), np.uint8)
  instance = np.zeros((size, size), np.uint8)
  void = np.zeros((size, size), bool)
  areas: dict[int, int] = {}
  wanted = int(rng.integers(3, 6))
  for _ in range(4 * wanted):  # some attempts would bury an earlier object
    if len(areas) == wanted:
      break
    kind = int(rng.integers(1, len(CLASSES.names)))
    radius = size * rng.uniform(0.13, 0.26)
    window, u, v = _place(rng, radius, size)
    distance = _distance(rng, kind, u, v, radius)
    inside = distance < 0
    visible = np.bincount(instance.ravel(), minlength=len(areas) + 1)
    hidden = np.bincount(instance[window][inside], minlength=len(areas) + 1)
    if any(visible[i] - hidden[i] < 0.65 * area for i, area in areas.items()):
      continue
    number = len(areas) + 1
    areas[number] = int(inside.sum())
    hinted = rng.uniform() < hints
    pattern = kind if hinted else int(rng.integers(6))
    hue = _CLASS_HUES[kind] + rng.uniform(-0.045, 0.045) if hinted else rng.uniform()
    image[:, *window] = _paint(rng, image[:, *window], distance, u, v, radius, pattern, hue)
    label[window][inside], instance[window][inside] = kind, number
    void[window] = (void[window] & ~inside) | (np.abs(distance) < _VOID_RADIUS)
  label[void] = IGNORE
  return _photograph(rng, image, size), label, instance


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
  """A gradient between two quiet colors with soft clouds. Float32 [3 h w] in 0..1."""
  first, second = (_color(rng, rng.uniform(), saturation=(0.05, 0.4)) for _ in range(2))
  cos, sin = _direction(rng)
  axis = np.arange(size, dtype=np.float32) / size - 0.5
  ramp = 0.5 + (axis * cos + axis[:, None] * sin) / 1.42
  clouds = _noise(rng, (size, size), cells=int(rng.integers(3, 9)))
  mix = np.clip(ramp + np.float32(rng.uniform(0.1, 0.5)) * clouds, 0, 1)
  return first + (second - first) * mix


def _place(
  rng: np.random.Generator, radius: float, size: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
  """Somewhere to put an object: a window of the picture that holds it and its shadow, and the
  object's own turned coordinates u, v there, in pixels from its center.
  """
  cx, cy = rng.uniform(0.1 * size, 0.9 * size, 2)
  cos, sin = _direction(rng)
  reach = 1.5 * radius
  rows = slice(max(0, int(cy - reach)), min(size, int(cy + reach) + 1))
  columns = slice(max(0, int(cx - reach)), min(size, int(cx + reach) + 1))
  y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
  x = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - cx)
  return (rows, columns), cos * x + sin * y, cos * y - sin * x


def _distance(
  rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray, radius: float
) -> np.ndarray:
  """Signed distance to the outline of an object of a class, in pixels, inside < 0. [h w]

  Beyond a corner it is the distance to the edges' lines, which is less than to the corner.
  """
  if kind == 1:
    return np.hypot(u, v) - np.float32(0.9 * radius)
  if kind == 2:
    tall = rng.uniform(0.45, 1.0)
    half = radius / np.hypot(1, tall)
    return np.maximum(np.abs(u) - np.float32(half), np.abs(v) - np.float32(half * tall))
  if kind == 3:
    corners = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.3, 0.3, 3)
    tips = 1.1 * radius * np.stack([np.cos(corners), np.sin(corners)], -1)
    edges = zip(tips, np.roll(tips, -1, 0), strict=True)
    return np.maximum.reduce([_line_distance(u, v, a, b) for a, b in edges])
  points = int(rng.integers(5, 7))
  # Folded into one half of one arm, a star is a single edge from tip to notch.
  half_arm = np.float32(np.pi / points)
  angle = np.abs((np.arctan2(v, u) + half_arm) % (2 * half_arm) - half_arm)
  length = np.hypot(u, v)
  tip = 1.15 * radius * np.array([1, 0])
  notch = rng.uniform(0.42, 0.52) * radius * np.array([np.cos(half_arm), np.sin(half_arm)])
  return _line_distance(length * np.cos(angle), length * np.sin(angle), tip, notch)


def _line_distance(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Signed distance to the line from a to b, negative on its left."""
  (x, y) = (b - a) / np.hypot(*(b - a))
  return np.float32(y) * (u - np.float32(a[0])) - np.float32(x) * (v - np.float32(a[1]))


def _paint(
  rng: np.random.Generator,
  image: np.ndarray,
  distance: np.ndarray,
  u: np.ndarray,
  v: np.ndarray,
  radius: float,
  pattern: int,
  hue: float,
) -> np.ndarray:
  """Lays a textured, shaded object with its shadow over a window of the picture. [3 h w]"""
  shift = np.array([[1, 0, 0.12 * radius], [0, 1, 0.12 * radius]])
  moved = cv2.warpAffine(distance, shift, distance.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
  image = image * (1 - 0.45 / (1 + np.exp(moved / np.float32(0.09 * radius))))
  first = _color(rng, hue, away_from=image.mean((1, 2)))
  second = np.clip(first + rng.uniform(-0.35, 0.35, (3, 1, 1)), 0.03, 1).astype(np.float32)
  surface = first + (second - first) * _texture(rng, u, v, radius, pattern)
  light = 1.08 - np.float32(0.16 / radius * rng.uniform(-1, 1)) * (u + v)
  rim = 1 - 0.25 * np.exp(-((distance + 0.6) ** 2) / 2)  # a darker edge, as of a thin solid
  cover = np.clip(0.5 - distance, 0, 1)  # share of each pixel inside: anti-aliasing
  return image + (surface * (light * rim) - image) * cover


def _texture(
  rng: np.random.Generator, u: np.ndarray, v: np.ndarray, radius: float, pattern: int
) -> np.ndarray:
  """How much of the second color each pixel has, 0..1; patterns 1 to 4 are the classes'."""
  period = radius * rng.uniform(0.3, 0.7)
  wave, crisp = np.float32(2 * np.pi / period), np.float32(period / 4)
  cos, sin = _direction(rng)
  first, second = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
  a, b = wave * (u * cos + v * sin) + first, wave * (v * cos - u * sin) + second
  match pattern:
    case 0:  # plain
      return np.zeros_like(u)
    case 1:  # gradient
      return np.clip(0.5 + (u * cos + v * sin) / np.float32(2 * radius), 0, 1)
    case 2:  # stripes
      return np.clip(0.5 + crisp * np.sin(a), 0, 1)
    case 3:  # checkers
      return np.clip(0.5 + crisp * np.sin(a) * np.sin(b), 0, 1)
    case 4:  # dots
      return np.clip(0.5 + crisp * (np.cos(a) + np.cos(b) - 0.8), 0, 1)
    case _:  # marble
      return np.clip(0.5 + 0.8 * _noise(rng, u.shape, cells=5), 0, 1)


def _photograph(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
  """Uneven light, a little blur, sensor noise, eight bits. [3 h w] to uint8 [h w 3]"""
  image = image * (1 + 0.12 * _noise(rng, (size, size), cells=3))
  image = cv2.GaussianBlur(image.transpose(1, 2, 0), (0, 0), rng.uniform(0.3, 0.6))
  noise = np.float32(0.01) * rng.standard_normal(image.shape, np.float32)
  noise += np.float32(rng.uniform(0.01, 0.03)) * rng.standard_normal((size, size, 1), np.float32)
  return np.clip((image + noise) * 255 + 0.5, 0, 255).astype(np.uint8)


def _direction(rng: np.random.Generator) -> tuple[np.float32, np.float32]:
  """Cosine and sine of a random angle."""
  angle = rng.uniform(0, 2 * np.pi)
  return np.float32(np.cos(angle)), np.float32(np.sin(angle))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> np.ndarray:
  """Smooth noise of about `cells` bumps across, in -1..1. Float32 [h w]"""
  coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
  return cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _color(
  rng: np.random.Generator,
  hue: float,
  saturation: tuple[float, float] = (0.45, 0.95),
  away_from: np.ndarray | None = None,
) -> np.ndarray:
  """A color of a hue, float32 [3 1 1] in 0..1; if asked, visibly different from another [3]."""
  for _ in range(8):
    sat, value = rng.uniform(*saturation), rng.uniform(0.45, 0.98)
    ramp = np.clip(np.abs((hue * 6 + _HUES) % 6 - 3) - 1, 0, 1)
    color = value * (1 - sat + sat * ramp)
    if away_from is None or np.abs(color - away_from).max() > 0.3:
      break
  return color.astype(np.float32)[:, None, None]
