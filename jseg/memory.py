"""What a training takes in memory, what to do when it doesn't fit, and what was needed at most."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

try:
  import resource
except ImportError:  # Windows
  resource = None  # type: ignore[assignment]

import jax
from ml_collections import ConfigDict

from jseg.allocator import without_collection
from jseg.state import TrainState
from jseg.step import TrainStep
from jseg.types import Array, Batch, InputError

_GIB = 2.0**30


def peaks() -> dict[str, float]:
  """Returns the most memory so far in GiB: `host_peak_gib`, and `device_peak_gib` of one device.

  What the platform doesn't tell is left out: a CPU's devices have no memory of their own.
  """
  found = {}
  if resource is not None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["host_peak_gib"] = most * (1 if sys.platform == "darwin" else 1024) / _GIB
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if devices := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
    found["device_peak_gib"] = max(devices) / _GIB
  return found


def compile_for(function: Any, *args: Any) -> Any:
  """Compiles a jitted function for arguments of these shapes.

  Python looks for no garbage while JAX traces it.
  """
  with without_collection():
    lowered = function.lower(*args)
  return lowered.compile()


def compile_step(step: Any, state: TrainState, batch: Batch, key: Array) -> tuple[TrainStep, str]:
  """Compiles a training step, once, and tells what it takes.

  Args:
    step: what `jseg.step.make_train_step` gives.
    state: first argument of the step.
    batch: second argument.
    key: third argument.

  Returns:
    (the step for arguments of these shapes, sizes on each device as text). What XLA plans besides
    the state is "activations and the like": gradients too, and space to compute in.
  """
  compiled = compile_for(step, state, batch, key)
  trees = {
    "parameters": (state.params, state.batch_stats, state.ema),
    "optimizer": state.opt_state,
  }
  sizes = {name: sum(a.nbytes for a in jax.tree.leaves(tree)) for name, tree in trees.items()}
  if (analysis := compiled.memory_analysis()) is not None:
    sizes["activations and the like"] = analysis.temp_size_in_bytes
  parts = [f"{name} {size / 2**20:,.1f}" for name, size in sizes.items()]
  return compiled, f"MiB on a device: {', '.join(parts)}"


@contextlib.contextmanager
def out_of_memory(config: ConfigDict) -> Iterator[None]:
  """Tells what saves memory when a device has too little for what is done inside.

  Args:
    config: configuration of the run.

  Raises:
    InputError: a device ran out of memory.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    first = str(error).strip().splitlines()[0]
    raise InputError(
      f"out of memory ({first}). What saves most comes first: {'; '.join(savers(config))}. All but "
      "remat and data.eval_batch_size want another --workdir"
    ) from error


def savers(config: ConfigDict) -> list[str]:
  """Settings that would save memory, each with what it does, from the largest saving on.

  Args:
    config: configuration of the run; what it has set already is left out.
  """
  share = config.data.batch_size // (jax.device_count() * config.accumulate)
  crop = config.get("augment", {}).get("crop") or config.data.size
  found = []
  if share > 1:
    found.append(
      f"accumulate={config.accumulate * share} works through the {share} images of a device one by "
      f"one, to 1/{share} of the activations (a smaller data.batch_size does too, but is another "
      "training)"
    )
  if config.remat != "all":
    kind = "stages" if config.remat == "none" else "all"
    found.append(f"remat={kind} computes activations again, the same result in more time")
  if config.dtype == "float32":
    found.append("dtype=bfloat16 (float16 on GPUs without it) halves the activations, and rounds")
  found.append(
    f"smaller crops or images than {tuple(crop)} (augment.crop, data.size) save in proportion to "
    "their area"
  )
  found.append(
    f"data.eval_batch_size below {config.data.eval_batch_size}, if it happened in an evaluation"
  )
  return found
