"""What a TPU would need for every network, by its compiler: nothing runs, and no TPU is needed.

  pip install -e ".[tpu-compile]"
  python benchmarks/tpu.py                        # every network, for v5e and v6e, 2x2 chips
  python benchmarks/tpu.py --networks=unet --chips=v5e --programs=training,plain
  python benchmarks/tpu.py --crf                  # the dense CRF as a layer, and behind a network
  python benchmarks/tpu.py --table                # writes the results into docs/tpu.md

Programs are those of a run: the training step with augmentation and update, evaluation, both on
2x2 chips, and the network's pass over one image; "plain" is the training step of the same network
with Flax's own layers. bfloat16. Results are written after each program, and what is there is kept,
so that the same command goes on where it was stopped: compiling takes minutes a network. What fits
a chip, `memory.py` finds.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # else JAX looks for the chips of an installed libtpu

import ahead
import jax
import jax.numpy as jnp
import report
from absl import app, flags
from jax import lax

from jseg import config as configs
from jseg import models
from jseg.crf import CrfParams, dense_crf
from jseg.crf.blocks import make_blocks
from jseg.nn.conv import per_dimension
from jseg.types import Array

_PROGRAMS = ("training", "plain", "evaluation", "prediction")
_CHIPS = flags.DEFINE_list("chips", ["v5e", "v6e"], "kinds of chips")
_NETWORKS = flags.DEFINE_list("networks", models.names(), "networks")
_DO = flags.DEFINE_list("programs", list(_PROGRAMS), f"of {', '.join(_PROGRAMS)}")
_SIZE = flags.DEFINE_integer("size", 256, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 8, "images a chip")
_AGAIN = flags.DEFINE_bool("again", False, "compile again what has a result")
_CRF = flags.DEFINE_bool("crf", False, "compile the dense CRF")
_TABLE = flags.DEFINE_bool("table", False, "write the results that are there into docs/tpu.md")

_FOLDER = pathlib.Path(__file__).parent / "results"
_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "tpu.md"
_CLASSES = 21
_ITERATIONS = 10
_FILTERS = ("exact", "landmarks", "lattice")


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip.

  Attributes:
    flops: bfloat16 operations a second.
    bandwidth: bytes a second of its memory.
    clock: cycles a second.
    pair: seconds that the exact filter of the CRF takes for a pair of pixels (docs/crf.md).
  """

  flops: float
  bandwidth: float
  clock: float | None = None
  pair: float | None = None

  def seconds(self, cost: Mapping[str, float]) -> float:
    """Returns the least time that the roofline leaves to a program."""
    return max(cost["flops"] / self.flops, cost["bytes"] / self.bandwidth)


CHIPS = {"v5e": Chip(197e12, 819e9, 1.5e9, 4.7e-12), "v6e": Chip(918e12, 1640e9)}
"""By name; Google's figures (cloud.google.com/tpu/docs/v5e and /v6e). The clock is what makes the
v5e's operations of four units of 128 x 128; of v6e it isn't known."""


class Results(ahead.Results):
  """The results of a chip.

  Args:
    chip: name of the chip.
  """

  def __init__(self, chip: str):
    packages = ("jax", "jaxlib", "flax", "libtpu")
    super().__init__(_FOLDER / f"tpu_{chip}.json", packages, again=_AGAIN.value)
    self.chip = chip


def configuration(name: str, batch: int, size: int, **changes: Any) -> Any:
  """The configuration of a network, with a batch for four chips."""
  config = configs.default(name, **changes)
  config.dtype = "bfloat16"
  if len(config.data.size) == 3:
    config.data.size, config.data.channels = (size // 8, size // 4, size // 4), 1
  else:
    config.data.size = (size, size)
  config.data.batch_size = config.data.eval_batch_size = 4 * batch
  return config


def cost(lowered: Any) -> dict[str, Any]:
  """What a program costs, as plain values."""
  found = ahead.compiled(lowered)
  return {**dataclasses.asdict(found), "memory": found.memory}


def network(results: Results, name: str) -> None:
  """Compiles the programs of a network."""
  devices = ahead.tpu(f"{results.chip}:2x2")
  config = configuration(name, _BATCH.value, _SIZE.value)
  results.add(
    "networks",
    name,
    "shape",
    compute=lambda: {"batch": _BATCH.value, "size": list(config.data.size)},
  )
  for program in _DO.value:

    def compute(program: str = program) -> dict[str, Any]:
      programs = ahead.Programs(config, _CLASSES, devices)
      if program != "plain":
        return cost(getattr(programs, program)())
      with plain_layers():
        return cost(programs.training())

    results.add("networks", name, program, compute=compute)


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
  """What is traced inside computes as Flax's layers do: `nn.Conv` and `nn.BatchNorm`.

  Pooling and up-convolution are XLA's own on a TPU, as Flax's are; pooling with indices, which
  Flax doesn't have, and interpolation stay.
  """

  def conv(
    x: Array, kernel: Array, *, strides: Any = 1, padding: Any = "SAME", dilation: Any = 1
  ) -> Array:
    rank = x.ndim - 2
    spatial = "DHW"[-rank:]
    return lax.conv_general_dilated(
      x,
      kernel,
      per_dimension(strides, rank),
      [(padding, padding)] * rank if isinstance(padding, int) else padding,
      rhs_dilation=per_dimension(dilation, rank),
      dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )

  def normalize(
    x: Array, mean: Array, variance: Array, scale: Array, bias: Array, *, epsilon: float
  ) -> Array:
    return (x - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias

  with (
    mock.patch("jseg.nn.conv.conv", conv),
    mock.patch("jseg.nn.norm._normalize", normalize),
  ):
    yield


def crf(results: Results) -> None:
  """Compiles the dense CRF on one chip, and behind a small network on all of them."""
  devices = ahead.tpu(f"{results.chip}:2x2")
  for size in ((375, 500), (321, 321), (513, 513)):
    for method in _FILTERS:
      for program in ("forward", "gradient"):

        def alone(size: Any = size, method: str = method, program: str = program) -> Any:
          with ahead.as_if_on(devices):
            found = cost(jax.jit(_crf_program(method, program)).lower(*_crf_inputs(devices, size)))
          return found | ({"pairs": _pairs(size, program)} if method == "exact" else {})

        results.add("crf", method, f"{size[0]}x{size[1]}", program, compute=alone)
  for method in ("exact", "lattice"):
    for program in ("training", "evaluation"):

      def behind(method: str = method, program: str = program) -> dict[str, Any]:
        config = configuration("unet", 1, 256, widths=(16, 32, 64, 128))
        config.crf.train, config.crf.method = True, method
        return cost(getattr(ahead.Programs(config, _CLASSES, devices), program)())

      results.add("crf", method, "256x256 behind a U-Net", program, compute=behind)


def _crf_program(method: str, program: str) -> Any:
  params = CrfParams(iterations=_ITERATIONS, method=method, spatial_sigma=3.0)

  def forward(logits: Array, image: Array) -> Array:
    return dense_crf(logits, image, params)

  def gradient(logits: Array, image: Array) -> Array:
    return jax.grad(lambda a: jnp.square(forward(a, image)).sum())(logits)

  return forward if program == "forward" else gradient


def _crf_inputs(devices: Sequence[jax.Device], size: tuple[int, int]) -> Any:
  logits, image = (jax.ShapeDtypeStruct((*size, c), jnp.float32) for c in (_CLASSES, 3))
  return ahead.on(devices[0], (logits, image))


def _pairs(size: tuple[int, int], program: str) -> int:
  """Pairs of places that the exact filter's kernel goes through in a program that skips none."""
  blocks = jax.eval_shape(
    lambda f: make_blocks(f, jnp.ones(len(f)), 0.0), jnp.zeros((size[0] * size[1], 5))
  )
  # The sums of rows, each iteration, and its transpose.
  return len(blocks.used) ** 2 * (1 + _ITERATIONS * (1 if program == "forward" else 2))


def tables(results: Results) -> str:
  """The results of a chip as Markdown."""
  chip, values = CHIPS[results.chip], results.values
  lines = [f"**{results.chip}**, one of 2x2 chips, bfloat16 ({results.versions()}):"]
  if values.get("networks"):
    lines += [
      "",
      "| network | program | images a chip | TFLOP | GB | plain Flax's GB "
      "| cycles beside plain Flax's | HBM, GiB | ms |",
      "|-|-|-|-|-|-|-|-|-|",
    ]
  for name, programs in values.get("networks", {}).items():
    shape = programs["shape"]
    what = f"{shape['batch']} of {'x'.join(map(str, shape['size']))}"
    for program in ("training", "evaluation", "prediction"):
      if program not in programs:
        continue
      plain = programs.get("plain", {}) if program == "training" else {}
      images = f"1 of {what.partition(' of ')[2]}" if program == "prediction" else what
      lines.append(_row(name, program, images, programs[program], chip, plain))
  if values.get("crf"):
    lines += [
      "",
      "| CRF | size | program | compiled in, s | GB | HBM, GiB | ms |",
      "|-|-|-|-|-|-|-|",
    ]
  for method, sizes in values.get("crf", {}).items():
    for size, programs in sizes.items():
      lines += [_crf_row(method, size, program, found, chip) for program, found in programs.items()]
  return "\n".join(lines)


def _crf_row(method: str, size: str, program: str, found: Mapping[str, float], chip: Chip) -> str:
  time = ""
  if chip.clock and chip.pair and found["cycles"] and program in ("forward", "gradient"):
    seconds = found["cycles"] / chip.clock + found.get("pairs", 0) * chip.pair
    time = f"{1e3 * seconds:.0f}"
  return (
    f"| {method} | {size} | {program} | {found['compiling']:.0f} | {found['bytes'] / 1e9:.2f} | "
    f"{found['memory'] / 2**30:.2f} | {time} |"
  )


def _row(
  name: str,
  program: str,
  images: str,
  found: Mapping[str, float],
  chip: Chip,
  plain: Mapping[str, float],
) -> str:
  size = f"{plain['bytes'] / 1e9:.2f}" if plain else ""
  known = found.get("cycles") and plain.get("cycles")
  cycles = f"{found['cycles'] / plain['cycles'] - 1:+.1%}" if known else ""
  return (
    f"| {name} | {program} | {images} | {found['flops'] / 1e12:.3f} | {found['bytes'] / 1e9:.2f} | "
    f"{size} | {cycles} | {found['memory'] / 2**30:.2f} | {1e3 * chip.seconds(found):.1f} |"
  )


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  if _TABLE.value:
    found = [results for chip in CHIPS if (results := Results(chip)).values]
    report.write(_PAGE, "tpu", "\n\n".join(map(tables, found)))
    return
  for chip in _CHIPS.value:
    results = Results(chip)
    if _CRF.value:
      crf(results)
    else:
      for name in _NETWORKS.value:
        network(results, name)


if __name__ == "__main__":
  app.run(main)
