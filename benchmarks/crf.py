"""The dense CRF's speed and error, beside pydensecrf's where that is installed.

  python benchmarks/crf.py FOLDER             # of FOLDER/images and FOLDER/masks
  python benchmarks/crf.py FOLDER --error --run=RUN --picture=crf.png
  python benchmarks/crf.py FOLDER --large --size=3000,4000
  python benchmarks/crf.py FOLDER --exact --size=96,128    # the exact filter's time, too
  python benchmarks/crf.py FOLDER --spatial                # the spatial kernel by itself

Speed: a whole call, 10 iterations, 21 classes, with everything that depends on the image; calls
take turns and the best of each counts, as another process may hold a core. Error: how many pixels
have the label that exact mean field gives them, on crops of photos, for two or three kinds of
logits: a coarse, partly wrong mask ("mask"), smooth noise that has nothing to do with the image
("noise") and, with --run, what a trained network thinks of it ("network"). Spatial: the kernel's
error in each of its forms, and what 10 iterations of it take outside and under jit.
"""

import functools
import importlib.util
import pathlib
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from PIL import Image

from jseg import Segmenter
from jseg.arithmetic import cdiv
from jseg.crf import CrfParams, dense_crf, lattice_size, unary_from_labels
from jseg.crf.kernels import make_plan, spatial_kernel
from jseg.crf.params import SPATIAL_FILTERS
from jseg.data import read_image
from jseg.types import Array

_SIZE = flags.DEFINE_list("size", ["375", "500"], "height and width of the images that are timed")
_CLASSES = flags.DEFINE_integer("classes", 21, "number of classes")
_REPEAT = flags.DEFINE_integer("repeat", 5, "number of calls of each function")
_BATCH = flags.DEFINE_integer("batch", 0, "also time a batch of this many images")
_ERROR = flags.DEFINE_bool("error", False, "measure errors and not speed")
_CROPS = flags.DEFINE_integer("crops", 4, "number of crops")
_CROP = flags.DEFINE_integer("crop", 64, "height and width of the crops")
_RUN = flags.DEFINE_string("run", "", "run whose logits are used for errors, too")
_LARGE = flags.DEFINE_bool(
  "large", False, "time one call on an image of --size, and print the peak memory"
)
_EXACT = flags.DEFINE_bool("exact", False, "also time the exact filter; minutes for a photo")
_SPATIAL = flags.DEFINE_bool("spatial", False, "measure the spatial kernel alone")
_PICTURE = flags.DEFINE_string("picture", "", "PNG with a plot of errors or times")

BANDWIDTHS = ((80, 13), (49, 5), (67, 3))
TIMED = ("pydensecrf", "lattice", "2 lattices")
SPATIAL_SIGMAS = (1.0, 3.0, 10.0)
PARAMS = CrfParams(spatial_weight=3.0, spatial_sigma=3.0, bilateral_weight=10.0)
METHODS: dict[str, dict[str, Any]] = {
  "lattice": {},
  "2 lattices": {"lattices": 2},
  "4 lattices": {"lattices": 4},
  "landmarks 64": {"method": "landmarks", "landmarks": 64},
  "landmarks 256": {"method": "landmarks", "landmarks": 256},
  "exact": {"method": "exact"},
  "exact 1e-3": {"method": "exact", "tolerance": 1e-3},
}


def pydensecrf(logits: np.ndarray, image: np.ndarray, params: CrfParams) -> np.ndarray:
  """Calls pydensecrf with the same parameters."""
  import pydensecrf.densecrf as reference

  h, w, k = logits.shape
  crf = reference.DenseCRF2D(w, h, k)
  crf.setUnaryEnergy(-np.asarray(jax.nn.log_softmax(logits)).reshape(-1, k).T.copy())
  crf.addPairwiseGaussian(sxy=params.spatial_sigma, compat=params.spatial_weight)
  crf.addPairwiseBilateral(
    sxy=params.bilateral_sigma_xy,
    srgb=params.bilateral_sigma_rgb,
    rgbim=np.ascontiguousarray(image),
    compat=params.bilateral_weight,
  )
  return np.array(crf.inference(params.iterations)).T.reshape(h, w, k)


def sides() -> dict[str, Callable[..., Any]]:
  """Returns the compared functions of logits, image and parameters, by name."""
  found: dict[str, Callable[..., Any]] = {
    name: lambda logits, image, params, more=more: np.asarray(
      dense_crf(logits, image, params.replace(**more))
    )
    for name, more in METHODS.items()
  }
  if importlib.util.find_spec("pydensecrf"):
    found = {"pydensecrf": pydensecrf, **found}
  return found


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
  """Makes smooth random logits with a standard deviation of 1."""
  logits = np.random.default_rng(seed).normal(size=(*shape, _CLASSES.value))
  logits = np.stack([cv2.GaussianBlur(x, (0, 0), 8) for x in np.moveaxis(logits, -1, 0)], -1)
  return (logits / logits.std()).astype(np.float32)


def coarse(label: np.ndarray, seed: int = 0) -> np.ndarray:
  """Makes logits of a mask at an eighth of the resolution, of which a tenth is wrong."""
  rng = np.random.default_rng(seed)
  h, w = label.shape
  small = cv2.resize(label, (cdiv(w, 8), cdiv(h, 8)), interpolation=cv2.INTER_NEAREST)
  wrong = rng.random(small.shape) < 0.1
  small = np.where(wrong, rng.integers(0, _CLASSES.value, small.shape), small).astype(np.uint8)
  label = cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST)
  return np.asarray(unary_from_labels(label, _CLASSES.value, 0.7))


def network(image: np.ndarray, segmenter: Segmenter) -> np.ndarray:
  """Computes the logits of a network."""
  return np.log(np.maximum(segmenter(image).probabilities, 1e-10))


def timed(calls: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
  """Returns the best wall and CPU seconds of each call, taking turns, after one that compiles."""
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
  for _ in range(_REPEAT.value + 1):
    for name, call in calls.items():
      start, busy = time.perf_counter(), time.process_time()
      call()
      times[name].append((time.perf_counter() - start, time.process_time() - busy))
  return {
    name: (min(wall for wall, _ in turns[1:]), min(busy for _, busy in turns[1:]))
    for name, turns in times.items()
  }


def photo(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  """Reads an image and resizes it."""
  return cv2.resize(read_image(path), shape[::-1], interpolation=cv2.INTER_AREA)


def speed(images: list[pathlib.Path]) -> dict[tuple[float, float], dict[str, float]]:
  """Prints and returns seconds by bandwidths."""
  h, w = map(int, _SIZE.value)
  image, logits = photo(images[0], (h, w)), noise((h, w))
  timed_ones = (*TIMED, "exact", "exact 1e-3") if _EXACT.value else TIMED
  both = {name: call for name, call in sides().items() if name in timed_ones}
  table: dict[tuple[float, float], dict[str, float]] = {}
  for xy, rgb in BANDWIDTHS:
    params = PARAMS.replace(bilateral_sigma_xy=float(xy), bilateral_sigma_rgb=float(rgb))
    calls = {name: functools.partial(f, logits, image, params) for name, f in both.items()}
    if _BATCH.value:
      batch = [np.stack([x] * _BATCH.value) for x in (logits, image)]
      calls["lattice, an image of a batch"] = functools.partial(both["lattice"], *batch, params)
    found = timed(calls)
    print(f"({xy}, {rgb}), {lattice_size(image, params)} vertices")
    table[xy, rgb] = {}
    for name, (wall, busy) in found.items():
      count = _BATCH.value if "batch" in name else 1
      table[xy, rgb][name] = wall / count
      print(f"  {name}: {wall / count:.3f} s, {busy / count:.3f} s of all cores", flush=True)
  return table


def error(
  images: list[pathlib.Path], masks: pathlib.Path
) -> dict[str, dict[tuple[float, float], dict[str, float]]]:
  """Prints and returns the share of labels as in exact mean field, by logits and bandwidths."""
  size = _CROP.value
  segmenter = Segmenter.from_run(_RUN.value) if _RUN.value else None
  table: dict[str, dict[tuple[float, float], dict[str, float]]] = {}
  for kind in ("mask", "noise", "network") if segmenter else ("mask", "noise"):
    table[kind] = {}
    for xy, rgb in BANDWIDTHS:
      params = PARAMS.replace(bilateral_sigma_xy=float(xy), bilateral_sigma_rgb=float(rgb))
      agreement: dict[str, list[float]] = {}
      for seed, path in enumerate(images[: _CROPS.value]):
        image, label = read_image(path), np.asarray(Image.open(masks / f"{path.stem}.png"))
        top, left = ((n - size) // 2 for n in label.shape)
        place = np.s_[top : top + size, left : left + size]
        logits = network(image, segmenter)[place] if kind == "network" and segmenter else None
        image, label = image[place], label[place]
        if logits is None:
          logits = coarse(label, seed) if kind == "mask" else noise(label.shape, seed)
        exact = params.replace(method="exact", spatial_filter="exact")
        truth = np.asarray(dense_crf(logits, image, exact)).argmax(-1)
        for name, f in sides().items():
          same = f(logits, image, params).argmax(-1) == truth
          agreement.setdefault(name, []).append(same.mean())
      table[kind][xy, rgb] = {name: float(np.mean(x)) for name, x in agreement.items()}
      text = ", ".join(f"{name} {x:.3f}" for name, x in table[kind][xy, rgb].items())
      print(f"{kind} ({xy}, {rgb}): {text}", flush=True)
  return table


def spatial(images: list[pathlib.Path]) -> None:
  """Prints error and time of the spatial kernel's forms, with sigma concrete and traced."""
  h, w = map(int, _SIZE.value)
  image, logits = photo(images[0], (h, w)), noise((h, w))
  for sigma in SPATIAL_SIGMAS:
    calls: dict[str, Callable[[], Any]] = {}
    for form in SPATIAL_FILTERS:
      params = PARAMS.replace(bilateral_weight=0.0, spatial_filter=form)

      @jax.jit
      def under_jit(logits: Array, image: Array, sigma: Array, params: CrfParams = params) -> Array:
        return dense_crf(logits, image, params.replace(spatial_sigma=sigma))

      outside = params.replace(spatial_sigma=sigma)
      calls[form] = lambda params=outside: np.asarray(dense_crf(logits, image, params))
      calls[f"{form}, traced"] = lambda f=under_jit, sigma=sigma: np.asarray(
        f(logits, image, jnp.float32(sigma))
      )
    found = timed(calls)
    for form in SPATIAL_FILTERS:
      differ = abs(calls[form]() - calls[f"{form}, traced"]()).max()
      concrete, traced = found[form], found[f"{form}, traced"]
      print(
        f"sigma {sigma:g}, {form}: error {spatial_error(sigma, form):.1e}; "
        f"{concrete[0]:.3f} s, {concrete[1]:.3f} s of all cores; traced: {traced[0]:.3f} s, "
        f"{traced[1]:.3f} s of all cores, q differs by {differ:.1e}",
        flush=True,
      )


def spatial_error(sigma: float, form: str) -> float:
  """The largest sum of a row's absolute errors, of the normalized kernel, over the row's sum."""
  n = _CROP.value // 2
  params = CrfParams(spatial_sigma=sigma, spatial_filter=form)
  axes = [jnp.ones(n)] * 2
  plans = make_plan(params, 2).axes
  found = jax.jit(lambda x: spatial_kernel(params, axes, (), plans).apply(x))(jnp.eye(n * n))
  along = np.exp(-0.5 * np.square(np.subtract.outer(np.arange(n), np.arange(n)) / sigma))
  along /= np.sqrt(np.outer(along.sum(1), along.sum(1)))
  exact = np.kron(along, along)
  return float((abs(np.asarray(found) - exact).sum(1) / exact.sum(1)).max())


def large(images: list[pathlib.Path]) -> None:
  """Prints time and memory of a large photo."""
  h, w = map(int, _SIZE.value)
  image, logits = photo(images[0], (h, w)), noise((h, w))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  start = time.perf_counter()
  np.asarray(dense_crf(logits, image))
  seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f"{h} x {w}: {seconds:.1f} s with compilation, peak memory {peak:.2f} GiB, {before:.2f} GiB "
    f"before; logits are {logits.nbytes / 2**30:.2f} GiB"
  )


def plot(panels: dict[str, dict[tuple[float, float], dict[str, float]]], unit: str) -> None:
  """Bars by bandwidths, one panel for each table."""
  _, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), squeeze=False)
  for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
    names = list(next(iter(table.values())))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
      places = np.arange(len(table)) + (i - (len(names) - 1) / 2) * width
      ax.bar(places, [row[name] for row in table.values()], width, label=name)
    ax.set_xticks(range(len(table)), [f"({xy}, {rgb})" for xy, rgb in table])
    ax.set(title=title, xlabel="sigma of place and of color", ylabel=unit)
  axes[0][0].legend(fontsize="small")
  plt.tight_layout()
  plt.savefig(_PICTURE.value, dpi=100)


def main(argv: list[str]) -> None:
  """Runs the benchmark that the flags select."""
  root = pathlib.Path(argv[1])
  images = sorted((root / "images").iterdir())
  if _LARGE.value:
    large(images)
  elif _SPATIAL.value:
    spatial(images)
  elif _ERROR.value:
    panels = {
      kind: {at: {n: 100 * (1 - x) for n, x in row.items()} for at, row in rows.items()}
      for kind, rows in error(images, root / "masks").items()
    }
    if _PICTURE.value:
      plot(panels, "pixels unlike exact mean field, %")
  else:
    times = {"whole call": speed(images)}
    if _PICTURE.value:
      plot(times, "seconds")


if __name__ == "__main__":
  app.run(main)
