"""Speed and memory of jseg's networks beside plain PyTorch, on this machine's CPU.

  pip install -e ".[bench]"
  python benchmarks/networks.py --name=my_machine           # all networks; half an hour
  python benchmarks/networks.py --networks=unet,pspnet --modes=infer
  python benchmarks/networks.py --check                     # the same losses over 20 steps
  python benchmarks/report.py                               # table and plot in the documentation

The PyTorch side (twins.py; torchvision's Mask R-CNN) has the same layers and the same number of
parameters, and runs as its users would run it: eager, float32, `channels_last`. A training step is
forward, loss, gradients, and SGD with momentum. Each side is a process of its own, ours with the
settings of our commands (memory, convolutions), and only one works at a time: they take turns, and
the median of each counts. Their peak memory and the time to their first step, with compiling, are
those of the processes.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

NETWORKS: dict[str, dict[str, Any]] = {
  "unet": {},
  "unet3d": {},
  "segnet": {},
  "fcn8s": {},
  "deeplab_v1": {},
  "deeplab_v2": {},
  "deeplab_v3": {"backbone": "resnet50"},
  "fcn_resnet": {},
  "pspnet": {},
  "refinenet": {},
  "mask_rcnn": {"norm": "batch"},
}
# Norms are frozen in two of them, and residual branches begin small so that maps don't grow. With a
# batch's own statistics fifty new layers are so badly conditioned that the gradients of PyTorch's
# float32 are 4 % off those of its float64. At higher rates rounding alone drives the sides apart.
_CHECKED: dict[str, tuple[float, dict[str, Any]]] = {
  "unet": (1e-3, {}),
  "deeplab_v3": (3e-5, {"backbone": "resnet50", "norm": "frozen_batch"}),
  "pspnet": (3e-5, {"dropout": 0.0, "norm": "frozen_batch"}),
}
_RESULTS = pathlib.Path(__file__).parent / "results"
_SIDES = ("pytorch", "jseg")

_NAME = flags.DEFINE_string(
  "name", "", "file of results to write, results/NAME.json; none if empty"
)
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "networks")
_MODES = flags.DEFINE_list("modes", ["train", "infer"], "what is timed")
_SIZE = flags.DEFINE_integer("size", 256, "height and width of the images")
_VOLUME = flags.DEFINE_list("volume", ["32", "64", "64"], "depth, height and width of volumes")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch; one volume")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each side runs after its first call")
_ISA = flags.DEFINE_enum(
  "isa", None, ["AVX2"], "instructions that both sides are kept to; all of the CPU's if not given"
)
_CHECK = flags.DEFINE_bool("check", False, "compare losses with the same weights instead")
_WEIGHTS = flags.DEFINE_string("weights", "", "for the script itself: a file of both sides")
_WORKER = flags.DEFINE_string("worker", "", "for the script itself: NETWORK:SIDE:MODE")

Call = Callable[[], Any]


def example(network: str) -> tuple[Any, Any]:
  """Images float32 [b h w 3] or a volume [1 d h w 1], and their labels."""
  import numpy as np

  rng = np.random.default_rng(0)
  volume = network == "unet3d"
  size = tuple(map(int, _VOLUME.value)) if volume else (_SIZE.value,) * 2
  shape = (1 if volume else _BATCH.value, *size)
  image = rng.normal(size=(*shape, 1 if volume else 3)).astype(np.float32)
  return image, rng.integers(0, 21, shape)


def pytorch(network: str, mode: str) -> tuple[int, Call, Call]:
  """Number of parameters, the call to time, and the floating point operations of one."""
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  if network == "mask_rcnn":
    import objects

    weights = pathlib.Path(_WEIGHTS.value)
    size, *calls = objects.theirs(*objects.example(_BATCH.value, _SIZE.value), weights)
    call = calls[mode == "infer"]
  else:
    import twins

    image, label = example(network)
    last = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
    twin = twins.TWINS[network]().to(memory_format=last)
    x = torch.from_numpy(image).movedim(-1, 1).contiguous(memory_format=last)
    y = torch.from_numpy(label)
    optimizer = torch.optim.SGD(
      [p for p in twin.parameters() if p.requires_grad], 0.01, momentum=0.9
    )
    twin.train(mode == "train")
    size = sum(p.numel() for p in twin.parameters())

    def train() -> float:
      optimizer.zero_grad()
      loss = twin.loss(twin(x), y)
      loss.backward()
      optimizer.step()
      return loss.item()

    def infer() -> Any:
      with torch.inference_mode():
        return twin(x)

    call = train if mode == "train" else infer

  def operations() -> int:
    with FlopCounterMode(display=False) as counter:
      call()
    return counter.get_total_flops()

  return size, call, operations


def jseg(network: str, mode: str) -> tuple[int, Call, Call]:
  """The same of jseg's network; it doesn't count operations."""
  from beside import sides

  from jseg import models
  from jseg.allocator import keep_freed_memory
  from jseg.xla_flags import set_cpu_flags

  keep_freed_memory()
  set_cpu_flags()
  if network == "mask_rcnn":
    import objects

    # What is found decides what inference costs. Making weights is a part of training's start.
    weights = pathlib.Path(_WEIGHTS.value) if mode == "infer" else None
    size, *calls = objects.ours(*objects.example(_BATCH.value, _SIZE.value), weights)
  else:
    model = models.create(network, 21, **NETWORKS[network])
    size, *calls = sides(model, pixel_loss(model), *example(network))
  return size, calls[mode == "infer"], lambda: 0


def pixel_loss(model: Any) -> Callable[..., Any]:
  """The mean cross entropy of logits and auxiliary logits, by the network's own weights."""
  import jax.numpy as jnp
  import optax

  def mean(logits: Any, label: Any) -> Any:
    counted = label < logits.shape[-1]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, label, 0))
    return jnp.sum(each, where=counted) / counted.sum()

  def loss(variables: Any, key: Any, image: Any, label: Any) -> Any:
    outputs, new = model.apply(
      variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    total = mean(outputs.logits, model.training_labels(label))
    for name, logits in outputs.aux.items():
      total += model.AUX_WEIGHTS[name] * mean(logits, label)
    return total, new

  return loss


def matmul_peak() -> float:
  """GFLOP/s of a float32 product of 2048 x 2048, of whichever side is faster."""
  import jax
  import jax.numpy as jnp
  import torch

  a, b = jnp.ones((2048, 2048)), torch.ones((2048, 2048))
  product = jax.jit(lambda a: a @ a)
  calls = [lambda: product(a).block_until_ready(), lambda: b @ b]
  return max(2 * 2048**3 / min(seconds(call) for _ in range(10)) / 1e9 for call in calls)


def seconds(call: Call) -> float:
  """Seconds that a call takes."""
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def work(network: str, side: str, mode: str) -> None:
  """A process of one side: tells its start, then for every line that it reads a time."""
  out = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print must not come between
  if network == "peak":
    print(json.dumps(matmul_peak()), file=out)
    return
  for module in {"pytorch": ("torchvision", "twins"), "jseg": ("beside", "jseg.models")}[side]:
    importlib.import_module(module)
  start = time.perf_counter()
  size, call, operations = {"pytorch": pytorch, "jseg": jseg}[side](network, mode)
  call()
  print(json.dumps({"parameters": size, "first": time.perf_counter() - start}), file=out)
  for line in sys.stdin:
    if line == "time\n":
      print(seconds(call), file=out)
    elif line == "memory\n":
      print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=out)
    else:
      print(operations(), file=out)


def kept_to(isa: str | None) -> dict[str, str]:
  """Variables that keep oneDNN, PyTorch, MKL and XLA to a set of instructions.

  YNNPACK can't be told, so oneDNN and Eigen compute what XLA would give to it.
  """
  if isa is None:
    return {}
  fusions = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"
  names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
  return {
    **dict.fromkeys(names, isa),
    "ATEN_CPU_CAPABILITY": isa.lower(),
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fusions} --xla_cpu_max_isa={isa}",
  }


class Process:
  """A worker, and the questions that it answers."""

  def __init__(self, network: str, side: str, mode: str, cache: str = ""):
    cached = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    given = [f"--{f.name}={f.value}" for f in (_SIZE, _BATCH)]
    given.append(f"--volume={','.join(_VOLUME.value)}")
    given.append(f"--weights={pathlib.Path(cache, 'weights.pth')}")
    self._process = subprocess.Popen(
      [sys.executable, __file__, f"--worker={network}:{side}:{mode}", *given],
      env=os.environ | {"JAX_PLATFORMS": "cpu"} | kept_to(_ISA.value) | (cached if cache else {}),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.start = self._answer()

  def _answer(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"a worker ended: {self._process.args}")
    return json.loads(line)

  def ask(self, question: str) -> Any:
    """Answer to "time", "memory" or "operations"."""
    assert self._process.stdin is not None
    print(question, file=self._process.stdin, flush=True)
    return self._answer()

  def end(self) -> None:
    """Closes the worker."""
    self._process.communicate()


def measure(network: str, mode: str, rounds: int) -> dict[str, Any]:
  """Seconds, memory and starts of both sides."""
  with tempfile.TemporaryDirectory() as cache:
    both = {side: Process(network, side, mode, cache) for side in _SIDES}
    sizes = {side: process.start["parameters"] for side, process in both.items()}
    assert len(set(sizes.values())) == 1, f"{network}: not the same parameters: {sizes}"
    for process in both.values():
      process.ask("time")
    times = [{side: process.ask("time") for side, process in both.items()} for _ in range(rounds)]
    memory = {side: process.ask("memory") for side, process in both.items()}
    operations = both["pytorch"].ask("operations")
    for process in both.values():
      process.end()
    again = Process(network, "jseg", mode, cache)
    again.end()
  medians = {side: statistics.median(t[side] for t in times) for side in _SIDES}
  return {
    "parameters": sizes["jseg"],
    "operations": operations,
    "ratio": medians["pytorch"] / medians["jseg"],
    **{
      side: {
        "seconds": medians[side],
        "all_seconds": [t[side] for t in times],
        "peak_bytes": memory[side],
        "first_seconds": both[side].start["first"],
      }
      for side in _SIDES
    },
    "cached_first_seconds": again.start["first"],
  }


def machine() -> dict[str, Any]:
  """What the numbers depend on."""
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  info = dict(line.split("\t:" if "\t:" in line else ":", 1) for line in lines if ":" in line)
  info = {key.strip(): value.strip() for key, value in info.items()}
  words = set(info.get("flags", info.get("Features", "")).split())
  sets = ["avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve"]
  return {
    "cpu": info.get("model name", platform.processor()),
    "instructions": [name for name in sets if name in words],
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "torchvision")},
    "date": datetime.date.today().isoformat(),
  }


def earlier(path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any]:
  """What was measured before of the same file, if the machine and the settings are the same."""
  stored = json.loads(path.read_text())
  for kind in ("machine", "settings"):
    for key, value in record[kind].items():
      if key != "date" and stored[kind].get(key) != value:
        sys.exit(f"{path} has {key} {stored[kind].get(key)}, not {value}: choose another --name")
  return stored


def compare(network: str, steps: int = 20) -> float:
  """Largest relative difference of the losses of SGD from the same weights on the same batches."""
  import functools

  import jax
  import numpy as np
  import optax
  import torch
  import twins
  from jax import numpy as jnp

  from jseg import models

  rate, options = _CHECKED[network]
  model = models.create(network, 21, **NETWORKS[network] | options)
  image, label = example(network)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, a: a * 0.2 if {"norm3", "scale"} <= {k.key for k in path} else a,
    jax.jit(model.init)(jax.random.key(0), image),
  )
  known = {"dropout": options["dropout"]} if "dropout" in options else {}
  twin = twins.TWINS[network](**known).train()
  if "norm" in options:
    for norm in filter(lambda m: isinstance(m, torch.nn.BatchNorm2d), twin.modules()):
      norm.eval().requires_grad_(False)
  flat = jax.tree_util.tree_flatten_with_path(dict(variables))[0]
  twins.load(twin, {tuple(k.key for k in path[1:]): np.asarray(a) for path, a in flat})
  optimizer = torch.optim.SGD(twin.parameters(), rate, momentum=0.9)
  ours = optax.sgd(rate, momentum=0.9)
  of = pixel_loss(model)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, image: Any, label: Any) -> tuple[Any, Any]:
    params, stats, opt_state = state
    (loss, new), grads = jax.value_and_grad(
      lambda p: of({"params": p, "batch_stats": stats}, jax.random.key(0), image, label),
      has_aux=True,
    )(params)
    updates, opt_state = ours.update(grads, opt_state)
    return (optax.apply_updates(params, updates), new["batch_stats"], opt_state), loss

  state = (variables["params"], variables["batch_stats"], ours.init(variables["params"]))
  rng, worst = np.random.default_rng(1), 0.0
  for _ in range(steps):
    image = rng.normal(size=image.shape).astype(np.float32)
    # Labels that can be learned, so that the losses go somewhere.
    label = (image.mean(-1) > 0).astype(np.int64) * 3
    state, loss = step(state, jnp.asarray(image), jnp.asarray(label))
    optimizer.zero_grad()
    theirs = twin.loss(twin(torch.from_numpy(image).movedim(-1, 1)), torch.from_numpy(label))
    theirs.backward()
    optimizer.step()
    worst = max(worst, abs(float(loss) - theirs.item()) / theirs.item())
  print(f"{network}: loss {theirs.item():.6f} after {steps} steps, apart by {worst:.1e}")
  return worst


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  if _WORKER.value:
    work(*_WORKER.value.split(":"))
    return
  if _CHECK.value:
    if _ISA.value:
      sys.exit("--isa is for times; --check takes all instructions")
    names = [name for name in _NETWORKS.value if name in _CHECKED]
    if not names:
      sys.exit(f"--check is for {', '.join(_CHECKED)}")
    worst = max(map(compare, names))
    sys.exit(f"more than 1e-4: {worst:.1e}" if worst > 1e-4 else 0)
  peak = Process("peak", "", "").start
  record: dict[str, Any] = {
    "machine": machine(),
    "settings": {
      "size": _SIZE.value,
      "batch": _BATCH.value,
      "volume": _VOLUME.value,
      "isa": _ISA.value,
    },
    "matmul_gflops": peak,
    "networks": {},
  }
  path = _RESULTS / f"{_NAME.value}.json"
  if _NAME.value and path.exists():
    stored = earlier(path, record)
    record["networks"] = stored["networks"]
    record["matmul_gflops"] = peak = max(peak, stored["matmul_gflops"])  # of quiet moments
  print(f"{record['machine']}\nproduct of 2048 x 2048: {peak:.0f} GFLOP/s")
  head = f"{'':20}{'PyTorch':>9}{'jseg':>9}{'ratio':>7}{'of peak':>9}{'first':>8}{'cached':>8}"
  print(f"{head}{'PyTorch':>9}{'jseg':>9}")
  for network in _NETWORKS.value:
    for mode in _MODES.value:
      found = measure(network, mode, _ROUNDS.value)
      record["networks"].setdefault(network, {})[mode] = found
      theirs, ours = found["pytorch"], found["jseg"]
      share = found["operations"] / ours["seconds"] / 1e9 / peak
      print(
        f"{network:14}{mode:6}{theirs['seconds']:7.3f} s{ours['seconds']:7.3f} s"
        f"{found['ratio']:7.2f}{share:9.0%}{ours['first_seconds']:6.1f} s"
        f"{found['cached_first_seconds']:6.1f} s"
        f"{theirs['peak_bytes'] / 2**30:5.2f} GiB{ours['peak_bytes'] / 2**30:5.2f} GiB",
        flush=True,
      )
      if _NAME.value:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
