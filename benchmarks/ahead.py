"""The programs that a run compiles, lowered from shapes for devices that need not be there.

For a TPU the compiler is all that it takes: `libtpu` knows every topology, and the compiled program
tells its floating-point operations, the bytes that it moves, and its memory. For an NVIDIA GPU it
takes JAX's plugin, `ptxas` and a description of the GPU; the program tells its memory.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast
from unittest import mock

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import images, tasks
from jseg.data import ClassInfo
from jseg.optim import frozen_names
from jseg.state import create_train_state
from jseg.step import make_train_step
from jseg.tasks.instance.forward import make_detect_step
from jseg.tasks.semantic.forward import make_eval_step
from jseg.types import Array, Variables

Tree = Any

# What XLA asks of a device (`GpuTargetConfigProto`). NVIDIA's figures: T4 data sheet, and the CUDA
# programming guide's table of compute capability 7.5; of the memory 15,360 MiB can be used.
_T4 = """
gpu_device_info {
  cuda_compute_capability { major: 7 minor: 5 }
  core_count: 40
  fpus_per_core: 64
  clock_rate_ghz: 1.59
  memory_bandwidth: 320000000000
  device_memory_size: 16106127360
  l2_cache_size: 4194304
  threads_per_block_limit: 1024
  threads_per_core_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 65536
  shared_memory_per_core: 65536
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "Tesla T4"
"""


class Results:
  """Results of compiling, a JSON file that is written after each of them.

  Args:
    path: the file.
    packages: what may have compiled; versions of those that are installed are kept.
    again: whether to compute what is there.
  """

  def __init__(self, path: pathlib.Path, packages: Sequence[str], *, again: bool):
    self._path, self._packages, self._again = path, packages, again
    self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

  def add(self, *keys: str, compute: Callable[[], Any]) -> None:
    """Computes a result, unless it is there.

    Args:
      *keys: where it belongs.
      compute: returns a plain value.
    """
    section = self.values
    for key in keys[:-1]:
      section = section.setdefault(key, {})
    if keys[-1] in section and not self._again:
      return
    print(self._path.stem, *keys, end=": ", flush=True)
    section[keys[-1]] = compute()
    print(section[keys[-1]], flush=True)
    versions = self.values.setdefault("versions", {})
    for name in self._packages:
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions[name] = sorted({*versions.get(name, []), importlib.metadata.version(name)})
    self._path.parent.mkdir(exist_ok=True)
    self._path.write_text(json.dumps(self.values, indent=1, sort_keys=True) + "\n")

  def versions(self) -> str:
    """Versions as text."""
    return ", ".join(f"{k} {' and '.join(v)}" for k, v in self.values.get("versions", {}).items())


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a compiled program takes on one device, as XLA counts it.

  Attributes:
    flops: floating-point operations. The body of a loop counts once. 0 where XLA doesn't tell, as
      for a GPU that isn't there.
    bytes: bytes that its operations read and write, once each; loops and 0 as above.
    temporaries: bytes of memory for intermediate results.
    arguments: bytes of what it is given.
    results: bytes of what it returns beside the memory that it was given.
    compiling: seconds of all cores that compiling took.
    cycles: clock cycles that the TPU's compiler expects of all operations, one after the other;
      loops as often as they run where that is a constant. Pallas kernels are not in it. 0 where
      JAX can't read the program, as may be with a libtpu newer than it.
  """

  flops: float
  bytes: float
  temporaries: int
  arguments: int
  results: int
  compiling: float
  cycles: float

  @property
  def memory(self) -> int:
    """Bytes of a device's memory: arguments, results and temporaries."""
    return self.temporaries + self.arguments + self.results


def tpu(name: str) -> Sequence[jax.Device]:
  """Returns the devices of a topology, such as "v5e:2x2", to compile for.

  JAX itself must be told to stay on the CPU (`JAX_PLATFORMS=cpu`) before its first use: it would
  look for the chips of an installed libtpu.
  """
  # Nobody is there to ask for the machine's place in a pod.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def t4() -> Sequence[jax.Device]:
  """Returns a Tesla T4, Colab's free GPU, to compile for; else as `tpu`.

  Raises:
    RuntimeError: JAX's plugin for CUDA isn't installed.
  """
  return topologies.get_topology_desc(platform="cuda", target_config=_T4, topology="1x1x1").devices


def quickly() -> dict[str, int]:
  """Returns options for XLA that compile for a TPU in a fraction of the time.

  A U-Net's training step for a v5e had 1,584 MiB of temporaries so, after 33 CPU seconds, and 1,579
  fully optimized, after minutes; another one 1 % more, and with `remat=all` 6 %.
  """
  level = 9  # EFFORT_O0 in xla.proto, for which this JAX has no name
  return {"optimization_level": level, "memory_fitting_level": level}


def compiled(lowered: Any, options: Mapping[str, int] | None = None) -> Cost:
  """Compiles a program.

  Args:
    lowered: the program.
    options: options for XLA.
  """
  start = time.process_time()
  program = lowered.compile(compiler_options=options)
  seconds = time.process_time() - start
  memory, cost = program.memory_analysis(), program.cost_analysis() or {}
  try:
    text = program.as_text()
  except jax.errors.JaxRuntimeError:  # what it costs is known all the same
    text = ""
  return Cost(
    flops=cost.get("flops", 0.0),
    bytes=cost.get("bytes accessed", 0.0),
    temporaries=memory.temp_size_in_bytes,
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    compiling=seconds,
    cycles=expected_cycles(text),
  )


def expected_cycles(text: str) -> float:
  """Sums up the compiler's estimates in a compiled program's text; see `Cost.cycles`."""
  parts = (re.match(r"(ENTRY )?%([\w.-]+) .*", part) for part in re.split(r"\n(?=%|ENTRY )", text))
  named = {m[2]: m.string for m in parts if m}

  @functools.cache
  def total(name: str) -> float:
    return sum(map(of_line, named[name].splitlines()[1:]))

  def of_line(line: str) -> float:
    if " while(" in line:
      (condition,), (body,) = _callees(line, "condition"), _callees(line, "body")
      ends = re.findall(r"s32\[\]\S* constant\((\d+)\)", named[condition])
      return (int(ends[0]) if len(ends) == 1 else 1) * total(body)
    if " conditional(" in line:
      return max(map(total, _callees(line, "(?:true_computation|false_computation|branch_\\w+)")))
    if " call(" in line:
      return sum(map(total, _callees(line, "to_apply")))
    found = re.search(r'"estimated_cycles":"(\d+)"', line)
    return float(found[1]) if found else 0.0

  entry = re.search(r"^ENTRY %([\w.-]+)", text, re.MULTILINE)
  return total(entry[1]) if entry else 0.0


def _callees(line: str, attribute: str) -> list[str]:
  """Names of the computations that an attribute of an operation holds, one or a list."""
  found = re.findall(attribute + r"=(\{[^}]*\}|%[\w.-]+)", line)
  return re.findall(r"%([\w.-]+)", " ".join(found))


class Programs:
  """The programs of a run: its steps over all devices, and prediction on the first.

  Args:
    config: configuration of the run; its batch sizes are those of all devices.
    num_classes: number of classes, background included.
    devices: devices to compile for.
  """

  def __init__(self, config: ConfigDict, num_classes: int, devices: Sequence[jax.Device]):
    self._config, self._devices = config, devices
    self._model = configs.make_model(config, num_classes)
    classes = ClassInfo(tuple(f"class {i}" for i in range(num_classes)))
    self._task = tasks.create(config, self._model, classes)
    self._optimizer = configs.make_optimizer(config)[0]
    shape = (*config.data.size, config.data.channels)
    with as_if_on(devices):
      self._state = jax.eval_shape(
        lambda key: create_train_state(
          self._model, self._optimizer, key, shape, ema=config.ema > 0
        ),
        _key(),
      )

  def training(self) -> Any:
    """Lowers the training step, as a run makes it: augmentation, gradient and update."""
    config, task = self._config, self._task
    # All that a step asks of a data set, if its loss is balanced.
    dataset = mock.Mock(median_frequency_weights=lambda _: [1.0] * len(task.classes.names))
    with as_if_on(self._devices):
      step = make_train_step(
        self._optimizer,
        task.forward(),
        task.losses(dataset),
        task.counts,
        weights=task.loss_weights(),
        ema=config.ema,
        freeze=frozen_names(self._state.params, config.optim.freeze, config.optim.groups),
        accumulate=config.accumulate,
        norms=config.log_norms,
      )
      batch = self._batch(config.data.batch_size, self._truth())
      return cast(Any, step).lower(self._state, batch, _key())

  def evaluation(self) -> Any:
    """Lowers the evaluation step, with labels of the size of the canvas."""
    prepare = functools.partial(images.prepare, statistics=None)
    size = self._config.data.size
    batch = {"index": ((), "int32")}
    with as_if_on(self._devices):
      if self._model.task == "instance":
        step: Any = make_detect_step(self._model, prepare)
      else:
        batch |= {"label": (tuple(size), "uint8"), "label_size": ((len(size),), "int32")}
        step = make_eval_step(self._model, prepare)
      given = self._batch(self._config.data.eval_batch_size, batch)
      return step.lower(self._state.variables(), given)

  def prediction(self) -> Any:
    """Lowers the network's pass over one prepared image."""

    def predict(variables: Variables, image: Array, size: Array) -> Any:
      sizes = {"size": size} if self._model.task == "instance" else {}
      prepared = images.prepare(image, size)
      return self._model.apply(variables, prepared, train=False, **sizes)

    batch = jax.tree.map(
      lambda a: _shape(a.shape[1:], a.dtype), self._batch(len(self._devices), {})
    )
    given = on(self._devices[0], (self._state.variables(), batch["image"], batch["size"]))
    with as_if_on(self._devices):
      return jax.jit(predict).lower(*given)

  def _truth(self) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of what is known of one training image, by name."""
    data = self._config.data
    if self._model.task == "semantic":
      return {"label": (tuple(data.size), "uint8")}
    n, m = data.max_objects, data.mask_size
    return {
      **dict.fromkeys(("boxes", "frames"), ((n, 4), "float32")),
      **dict.fromkeys(("valid", "crowd"), ((n,), "bool")),
      "classes": ((n,), "int32"),
      "masks": ((n, m, m), "uint8"),
    }

  def _batch(self, size: int, fields: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Tree]:
    """Shapes of a batch that is spread over the devices."""
    data = self._config.data
    dtype = "float32" if self._model.ndim == 3 else "uint8"
    fields = {
      "image": ((*data.size, data.channels), dtype),
      "size": ((len(data.size),), "int32"),
      **fields,
    }
    devices = len(self._devices)
    assert size % devices == 0, f"{size} images on {devices} devices"
    return {k: _shape((devices, size // devices, *s), d) for k, (s, d) in fields.items()}


def on(device: jax.Device, tree: Tree) -> Tree:
  """Returns the shapes of a tree, placed on one device."""
  place = jax.sharding.SingleDeviceSharding(device)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


@contextlib.contextmanager
def as_if_on(devices: Sequence[jax.Device]) -> Iterator[None]:
  """What is made and lowered inside is so as where these devices are those that JAX finds."""
  real = jax.pmap

  def pmap(function: Callable[..., Any], **options: Any) -> Any:
    return real(function, **{**options, "devices": devices})

  with (
    mock.patch.object(jax, "pmap", pmap),
    mock.patch.object(jax, "default_backend", return_value=devices[0].platform),
  ):
    yield
