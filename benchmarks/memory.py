"""What a training step takes in memory and time, by what it computes again (`remat`).

  python benchmarks/memory.py                                    # on this machine's first device

Gradients of a network's own task, augmentation included; XLA's memory analysis of the compiled
program for one device. For a TPU that isn't there: `benchmarks/tpu.py --remat`.
"""

import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags

from jseg import config as configs
from jseg import tasks
from jseg.data import ClassInfo
from jseg.nn.remat import KINDS
from jseg.types import Array, Params

_NETWORKS = flags.DEFINE_list("networks", ["unet", "deeplab_v3", "mask_rcnn"], "networks")
_REMAT = flags.DEFINE_list("remat", list(KINDS), "kinds of rematerialization")
_SIZE = flags.DEFINE_integer("size", 257, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_DTYPE = flags.DEFINE_string("dtype", "float32", "dtype of the computation")
_ROUNDS = flags.DEFINE_integer("rounds", 0, "times that the step is run, on this machine")

_OBJECTS = 16  # slots of objects in an image


def batch_of(task: str, size: tuple[int, ...]) -> dict[str, Any]:
  """Shapes of a training batch."""
  b = _BATCH.value
  shapes = {"image": ((b, *size, 3), "uint8"), "size": ((b, 2), "int32")}
  if task == "semantic":
    shapes["label"] = ((b, *size), "uint8")
  else:
    shapes |= dict.fromkeys(("boxes", "frames"), ((b, _OBJECTS, 4), "float32"))
    shapes["classes"] = ((b, _OBJECTS), "int32")
    shapes["masks"] = ((b, _OBJECTS, 56, 56), "uint8")
    shapes |= dict.fromkeys(("valid", "crowd"), ((b, _OBJECTS), "bool"))
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def measure(name: str, remat: str) -> str:
  """Compiles the gradient, and returns what it takes."""
  config = configs.default(name)
  config.remat, config.dtype = remat, _DTYPE.value
  config.data.size = (_SIZE.value,) * 2
  model = configs.make_model(config, 21)
  task = tasks.create(config, model, ClassInfo(tuple(f"class {i}" for i in range(21))))
  forward, losses = task.forward(), task.losses(mock.Mock())

  def total(params: Params, rest: Any, batch: Any, key: Array) -> Array:
    outputs, targets, _ = forward({"params": params, **rest}, batch, key, ["batch_stats"])
    return sum(
      (s / jnp.maximum(n, 1) for s, n in losses(outputs, targets).values()), jnp.float32(0)
    )

  image = jnp.zeros((1, *config.data.size, 3))
  variables = dict(jax.eval_shape(lambda: model.init(jax.random.key(0), image)))
  arguments = [variables.pop("params"), variables, batch_of(model.task, config.data.size)]
  arguments.append(jax.eval_shape(lambda: jax.random.key(0)))
  step = jax.jit(jax.value_and_grad(total))
  lowered = step.lower(*arguments)
  start = time.perf_counter()
  compiled = lowered.compile()
  took = time.perf_counter() - start
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  text = f"temporaries {memory.temp_size_in_bytes / 2**20:8.1f} MiB, "
  text += f"{cost['flops'] / 1e9:8.1f} GFLOP, compiled in {took:.0f} s"
  if not _ROUNDS.value:
    return text
  values = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments[:3])
  values[2]["size"] = jnp.full((_BATCH.value, 2), _SIZE.value, jnp.int32)
  times = []
  for _ in range(_ROUNDS.value):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*values, jax.random.key(0)))
    times.append(time.perf_counter() - start)
  return f"{text}, {min(times):.3f} s a step"


def main(_: list[str]) -> None:
  """Prints a line for each network and kind."""
  for name in _NETWORKS.value:
    for remat in _REMAT.value:
      print(f"{name:12} {remat:7} {measure(name, remat)}", flush=True)


if __name__ == "__main__":
  app.run(main)
