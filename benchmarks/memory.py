"""What training takes of a device's memory, by its compiler: nothing runs, and no device is needed.

  pip install -e ".[tpu-compile,cuda-compile]"
  python benchmarks/memory.py --remat             # by what is computed again
  python benchmarks/memory.py --crops             # every paper's crop and batch
  python benchmarks/memory.py --largest           # the largest batch at 512 x 512
  python benchmarks/memory.py --crops --networks=unet,pspnet --chips=t4
  python benchmarks/memory.py --table             # what is there, into docs/howto/memory_and_nan.md

Programs are the training steps of runs, with augmentation and update, on one device: this CPU
(float32), a T4, Colab's free GPU (float16), or one chip of a v5e (bfloat16). For a TPU XLA compiles
without optimizing much (`ahead.quickly`), in a fraction of the time. A GPU needs more than this:
cuDNN's workspace, of which XLA knows once it has tried cuDNN's forms. Results are written after
each program, and what is there is kept.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # else JAX looks for the chips of an installed libtpu

import ahead
import jax
import report
from absl import app, flags

from jseg import config as configs
from jseg import models, recipes
from jseg.nn.remat import KINDS

Found = Mapping[str, Any]

_PAPERS = "paper/"
_RECIPES = [name.removeprefix(_PAPERS) for name in recipes.files() if name.startswith(_PAPERS)]
_CHIPS = flags.DEFINE_list("chips", ["cpu", "t4", "v5e"], "kinds of devices; only --remat has cpu")
_NETWORKS = flags.DEFINE_list("networks", [], "networks, or recipes of papers; empty: all")
_AGAIN = flags.DEFINE_bool("again", False, "compile again what has a result")
_REMAT = flags.DEFINE_bool("remat", False, "compile the training step by kind of remat")
_CROPS = flags.DEFINE_bool("crops", False, "find what makes each paper's batch fit")
_LARGEST = flags.DEFINE_bool("largest", False, "find the largest batch at 512 x 512")
_TABLE = flags.DEFINE_bool("table", False, "write the results that are there into the page")

_FILE = pathlib.Path(__file__).parent / "results" / "memory.json"
_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "howto" / "memory_and_nan.md"
_CLASSES = 21
# Images a device, their size, and settings of the network.
_BY_REMAT: dict[str, tuple[int, int, dict[str, Any]]] = {
  "unet": (8, 512, {}),
  "deeplab_v3": (8, 512, {"backbone": "resnet50"}),
  "mask_rcnn": (2, 1024, {"norm": "batch"}),
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of device.

  Attributes:
    name: as in the tables.
    dtype: what its runs compute in.
    find: gives the devices to compile for.
    options: options for XLA.
    left: bytes of its memory that a training step can have.
    left_as: the same in words.
  """

  name: str
  dtype: str
  find: Callable[[], Sequence[jax.Device]]
  options: Mapping[str, int] | None = None
  left: float = math.inf
  left_as: str = ""

  def memory(self, config: Any, per_device: int) -> ahead.Cost | float:
    """What the training step takes, or only its bytes where the compiler refuses it.

    Args:
      config: configuration of a run.
      per_device: images on each device.
    """
    devices = self.find()
    config.dtype, config.data.batch_size = self.dtype, per_device * len(devices)
    lowered = ahead.Programs(config, _CLASSES, devices).training()
    try:
      return ahead.compiled(lowered, self.options)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      needed = re.search(r"\(([\d.]+)([KMG])\) exceeds", str(error))
      return float(needed[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[needed[2]] if needed else math.inf

  def __str__(self) -> str:
    return ", ".join(filter(None, [self.name, self.dtype, self.left_as]))


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("cpu", "float32", lambda: jax.devices("cpu")[:1]),
    # The driver, CUDA's context and cuDNN's workspace take the rest.
    Chip("t4", "float16", ahead.t4, left=13.5 * 2**30, left_as="13.5 of its 15 GiB"),
    Chip(
      "v5e",
      "bfloat16",
      functools.partial(ahead.tpu, "v5e:2x2"),
      options=ahead.quickly(),
      left=15 * 2**30,
      left_as="15 of its 16 GiB",
    ),
  )
}


def total(found: ahead.Cost | float) -> float:
  """Bytes of memory."""
  return found.memory if isinstance(found, ahead.Cost) else found


def by_remat(chip: Chip, name: str, kind: str) -> dict[str, float]:
  """Bytes of intermediate results, gradients included."""
  batch, size, settings = _BY_REMAT[name]
  config = configs.default(name, **settings)
  config.data.size, config.remat = (size, size), kind
  found = chip.memory(config, batch)
  assert isinstance(found, ahead.Cost)
  return {"temporaries": found.temporaries, "compiling": found.compiling}


def crop(chip: Chip, name: str) -> dict[str, Any]:
  """Finds the fewest parts in which a device works through the batch of a paper's recipe.

  Where an image at a time is too much, activations are computed again.
  """
  config = recipes.read(_PAPERS + name)
  batch = config.data.batch_size
  divisors = [n for n in range(1, batch + 1) if batch % n == 0]
  needed = found = 0.0
  for remat, parts in [*(("none", n) for n in divisors), *((kind, batch) for kind in KINDS[1:])]:
    if parts < min(needed, batch):
      continue
    config.remat, config.accumulate = remat, parts
    found = total(chip.memory(config, batch))
    print(f"{remat} {parts}: {found / 2**30:.2f} GiB", end="; ", flush=True)
    if found <= chip.left:
      break
    # Activations shrink with the part and the rest doesn't, so fewer parts than this can't do.
    needed = parts * found / chip.left / 1.5
  size = config.augment.crop or config.data.size
  return {
    "size": list(size),
    "batch": batch,
    "accumulate": config.accumulate,
    "remat": config.remat,
    "memory": found,
  }


def largest(chip: Chip, name: str) -> Found:
  """Finds the largest power of two that fits as batch, with images of 512 x 512."""
  best: Found = {"batch": 0, "memory": 0}
  while True:
    config, batch = configs.default(name), 2 * best["batch"] or 1
    if len(config.data.size) == 3:
      config.data.size, config.data.channels = (64, 128, 128), 1
    else:
      config.data.size = (512, 512)
    found = total(chip.memory(config, batch))
    if found > chip.left:
      return best
    best = {"batch": batch, "memory": found}


def table(results: ahead.Results) -> str:
  """The results as Markdown."""
  crops = _by_chip(results, "crops", _RECIPES, ("the paper's recipe", "crop", "batch"), _asked)
  batches = _by_chip(results, "largest", models.names(), ("largest batch at 512 x 512",))
  return "\n".join([f"Compiled by {results.versions()}.", *_remats(results), *crops, *batches])


def _remats(results: ahead.Results) -> Iterator[str]:
  found = results.values.get("remat", {})
  if found:
    yield from _head(["temporaries, MiB", "device", *(f"`{kind}`" for kind in KINDS)])
  for name, (batch, size, _) in _BY_REMAT.items():
    for chip in CHIPS.values():
      if kinds := found.get(chip.name, {}).get(name):
        sizes = [f"{kinds[k]['temporaries'] / 2**20:,.0f}" if k in kinds else "" for k in KINDS]
        what = f"{name}, {batch} of {size} x {size}"
        yield _row([what, f"{chip.name}, {chip.dtype}", *sizes])


def _by_chip(
  results: ahead.Results,
  kind: str,
  names: Sequence[str],
  heads: Sequence[str],
  asked: Callable[[Found], Sequence[str]] = lambda found: (),
) -> Iterator[str]:
  """Lines of a table of what fits, with a column for each kind of device."""
  found = results.values.get(kind, {})
  chips = [chip for name, chip in CHIPS.items() if name in found]
  if chips:
    yield from _head([*heads, *map(str, chips)])
  for name in names:
    known = [found[chip.name].get(name) for chip in chips]
    if some := next(filter(None, known), None):
      cells = [_fit(each, chip) if each else "" for each, chip in zip(known, chips, strict=True)]
      yield _row([name, *asked(some), *cells])


def _asked(found: Found) -> Sequence[str]:
  """Crop and batch of a paper."""
  return " x ".join(map(str, found["size"])), str(found["batch"])


def _fit(found: Found, chip: Chip) -> str:
  """What makes a paper's batch fit, or the batch that does, and the memory that it takes."""
  much = f"{found['memory'] / 2**30:.1f} GiB"
  if "accumulate" not in found:
    return f"{found['batch']} ({much})"
  settings = [f"`accumulate={found['accumulate']}`"] if found["accumulate"] > 1 else []
  settings += [f"`remat={found['remat']}`"] if found["remat"] != "none" else []
  return f"{', '.join([*settings, much])}{'' if found['memory'] <= chip.left else ': too much'}"


def _head(cells: Sequence[str]) -> Iterator[str]:
  yield from ("", _row(cells), "|" + "-|" * len(cells))


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  packages = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-pjrt")
  results = ahead.Results(_FILE, packages, again=_AGAIN.value)
  if _TABLE.value:
    report.write(_PAGE, "memory", table(results))
  asked = _NETWORKS.value
  for chip in (CHIPS[name] for name in _CHIPS.value):
    for name in asked or _BY_REMAT if _REMAT.value else ():
      for kind in KINDS:
        results.add(
          "remat", chip.name, name, kind, compute=functools.partial(by_remat, chip, name, kind)
        )
    if chip.name == "cpu":
      continue
    for name in asked or _RECIPES if _CROPS.value else ():
      results.add("crops", chip.name, name, compute=functools.partial(crop, chip, name))
    for name in asked or models.names() if _LARGEST.value else ():
      results.add("largest", chip.name, name, compute=functools.partial(largest, chip, name))


if __name__ == "__main__":
  app.run(main)
