"""Trains the PyTorch twin of a run: the same first weights, batches, loss, rates and measure.

  pip install -e ".[bench]"
  jseg train --config=benchmarks/small.py:camvid --config.data.root=camvid \
      --workdir=runs/camvid_0
  python benchmarks/keep.py runs/camvid_0         # results/camvid_0.json
  python benchmarks/train_twin.py runs/camvid_0      # results/camvid_0_pytorch.json
  python benchmarks/report.py                        # the table of docs/results.md

What the run has seen its twin (twins.py) sees too, draw for draw: the run's own input and
augmentation feed both. The network, its gradient and the optimizer are PyTorch's; pixels are
counted by the run's own metric, at the images' own size. A run that is more than the twin knows is
refused, and a twin whose first loss isn't the run's.
"""

import argparse
import dataclasses
import functools
import inspect
import pathlib
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import keep
import numpy as np
import optax
import torch
import twins
from ml_collections import ConfigDict
from torch import Tensor
from torch.nn import functional as F

from jseg import config as configs
from jseg import images, json_files, loop
from jseg.config_help import describe
from jseg.data import Dataset
from jseg.metrics import SemanticScores
from jseg.parameters import parameter_name
from jseg.preview import make_augmented
from jseg.run import Run
from jseg.scaling import statistics
from jseg.sessions import revision
from jseg.state import create_train_state, run_keys
from jseg.step import shard
from jseg.tasks.batches import make_results
from jseg.tasks.semantic.evaluation import count_batches
from jseg.tasks.semantic.forward import count_batch
from jseg.types import IGNORE, Batch, Variables

# Keys that may differ from their defaults; of `model`, those that the twin has as arguments.
_KNOWN = re.compile(
  r"seed|steps|init_from|log_every|eval_every|checkpoint_every|samples|compilation_cache"
  r"|data\..*|augment\..*|model\..*"
  r"|optim\.(optimizer|momentum|nesterov|weight_decay|lr|head_lr|schedule|power|warmup_steps"
  r"|milestones|decay)"
)
_SAME = 1e-3  # relative difference of the first losses, which rounding alone brings to 1e-5


def make_twin(config: ConfigDict, num_classes: int) -> twins.Twin:
  """The twin of a run's network. Exits where it can't do what the run does."""
  name = config.model.name
  arguments = {each: inspect.signature(make).parameters for each, make in twins.TWINS.items()}
  trained = [each for each, known in arguments.items() if "classes" in known]
  if name not in trained:
    sys.exit(f"model.name: {name} has no twin for any classes; there are {', '.join(trained)}")
  changed = {key.name: key.value for key in describe(config) if key.value != key.default}
  own = {key.removeprefix("model."): v for key, v in changed.items() if key.startswith("model.")}
  unknown = [key for key in changed if not _KNOWN.fullmatch(key)]
  unknown += [f"model.{key}" for key in own if key not in arguments[name]]
  if unknown:
    sys.exit(f"the twin doesn't know {', '.join(unknown)}; leave them as they are by default")
  if "channels" in arguments[name]:
    own["channels"] = config.data.channels
  return twins.TWINS[name](**own, classes=num_classes)


def first_variables(run: Run) -> tuple[Variables, set[str]]:
  """What the run began with, and the names of the parameters that it took from elsewhere."""
  config = run.config
  shape = (*config.data.size, config.data.channels)
  state = create_train_state(run.model, optax.identity(), run_keys(config.seed)[0], shape)
  if not config.init_from:
    return state.variables(), set()
  with tempfile.TemporaryDirectory() as folder:  # where it reports on the weights
    elsewhere = dataclasses.replace(run, path=pathlib.Path(folder))
    state, taken = loop.initialize(state, config.init_from, elsewhere)
  return state.variables(), set(taken)


def flat(variables: Variables) -> Mapping[tuple[str, ...], np.ndarray]:
  """Arrays by their paths, without the collection's name."""
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  return {tuple(key.key for key in path[1:]): np.asarray(array) for path, array in leaves}


def make_optimizer(
  twin: twins.Twin, variables: Variables, taken: set[str], keys: ConfigDict
) -> torch.optim.Optimizer:
  """The run's optimizer; each group has the factor of its rate under "factor".

  Args:
    twin: the network.
    variables: what the run began with, for the names of its parameters.
    taken: names of parameters that aren't new.
    keys: the section `optim` of the configuration.
  """
  parameters = dict(twin.named_parameters())
  groups: dict[tuple[float, float], list[Tensor]] = {}
  for path, value in jax.tree_util.tree_leaves_with_path(variables["params"]):
    factor = 1.0 if parameter_name(path) in taken else keys.head_lr
    decay = keys.weight_decay if value.ndim > 1 else 0.0  # kernels alone
    name = twins.place(twin, [key.key for key in path])
    groups.setdefault((factor, decay), []).append(parameters[name])
  rows = [{"params": p, "factor": f, "weight_decay": d} for (f, d), p in groups.items()]
  if keys.optimizer == "adamw":
    return torch.optim.AdamW(rows)
  if keys.optimizer == "sgd":
    return torch.optim.SGD(rows, momentum=keys.momentum, nesterov=keys.nesterov)
  sys.exit(f"optim.optimizer: the twin knows adamw and sgd, not {keys.optimizer}")


def to_torch(image: Any) -> Tensor:
  """Images [b h w c], or volumes, as PyTorch's, which lie in memory as they did."""
  return torch.tensor(np.asarray(image)).movedim(-1, 1)


def batches(run: Run, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
  """Images and labels of the run's steps, augmented."""
  config, task = run.config, run.task
  augmented, key = make_augmented(task), run_keys(config.seed)[1]
  read = task.batches(dataset, config.seed)
  for step in range(config.steps):
    batch = shard(next(read), jax.local_device_count())
    image, targets = augmented(batch, jax.random.fold_in(key, step))
    yield to_torch(image), torch.tensor(targets.label).long()


def train(run: Run, dataset: Dataset, twin: twins.Twin, optimizer: torch.optim.Optimizer) -> float:
  """Takes the run's steps. Returns how many seconds they took."""
  schedule = configs.make_optimizer(run.config)[1]
  weights = (1.0, *twin.aux)
  start = time.perf_counter()
  for step, (image, label) in enumerate(batches(run, dataset)):
    for group in optimizer.param_groups:
      group["lr"] = group["factor"] * float(schedule(step))
    outputs = twin(image)
    losses = [F.cross_entropy(each, label, ignore_index=IGNORE) for each in outputs]
    loss = sum(w * each for w, each in zip(weights, losses, strict=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 0:
      compare_first(run, loss.item())
    if step % 20 == 0:
      print(f"step {step + 1}/{run.config.steps}  loss {loss.item():.4f}", flush=True)
  return time.perf_counter() - start


def compare_first(run: Run, loss: float) -> None:
  """Exits where the run's first loss isn't the twin's, which then is another network."""
  lines = json_files.read_metrics(run.files.metrics)
  ours = next((line["loss"] for line in lines if line["step"] == 1 and "loss" in line), None)
  if ours is None:
    sys.exit(f"{run.path} logged no loss of the first step; train with --config.log_every=1")
  print(f"first loss {loss:.6f}, the run's {ours:.6f}")
  if abs(loss - ours) > _SAME * ours:
    sys.exit("the twin isn't the run's network, or sees other batches")


def evaluate(run: Run, dataset: Dataset, twin: twins.Twin) -> SemanticScores:
  """Measures the twin as the run is measured: each image whole, at its own size."""
  config, split = run.config, run.config.data.eval_split
  canvas = dataset.max_size(split)
  if dataset.ndim == 3 and any(n > m for n, m in zip(canvas, config.data.size, strict=True)):
    sys.exit(
      f"data.size: volumes of {canvas} don't fit {tuple(config.data.size)}, as the twin needs"
    )
  prepare = jax.jit(functools.partial(images.prepare, statistics=statistics(config)))
  count = jax.jit(count_batch)
  twin.eval()

  def step(_: Variables, batch: Batch) -> tuple[Any, ...]:
    batch = {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
    with torch.inference_mode():
      logits = twin(to_torch(prepare(batch["image"], batch["size"])))[0].movedim(1, -1)
    return batch["index"], *count(logits.numpy(), batch)

  counted = make_results(config, dataset, split, step, label_size=canvas)
  return count_batches(counted({}), len(dataset.source(split)), len(run.classes.names))


def main() -> None:
  """Trains, measures and writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=pathlib.Path, help="a finished run of jseg train")
  options = parser.parse_args()
  commit = keep.committed(revision(pathlib.Path.cwd()))
  run = Run.open(options.run)
  twin = make_twin(run.config, len(run.classes.names))
  variables, taken = first_variables(run)
  twins.load(twin, flat(variables))
  twin.to(memory_format=torch.channels_last if run.model.ndim == 2 else torch.channels_last_3d)
  dataset = run.dataset()
  seconds = train(run, dataset, twin, make_optimizer(twin, variables, taken, run.config.optim))
  scores = evaluate(run, dataset, twin)
  print(f"mIoU {scores.miou:.4f} after {seconds:.0f} s")
  keep.write(
    run,
    dataset,
    scores.to_dict(run.classes.names),
    name=f"{options.run.name}_pytorch",
    library="pytorch",
    seconds=seconds,
    command=shlex.join(["python", *sys.argv]),
    commit=commit,
  )


if __name__ == "__main__":
  main()
