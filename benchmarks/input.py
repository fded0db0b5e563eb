"""Whether input keeps up: images a second that the host makes, and the time that a run waits.

  python benchmarks/input.py camvid --size=180,240
  python benchmarks/input.py photos --size=512,512 --network=pspnet --threads=1,2,4

For each number of threads the batches of `jseg train` are read without training on them; then a run
trains on them, and says for what share of its time its devices waited (`waiting_for_input` of its
metrics.jsonl; the window with the compilation is left out). Folders are as `--config=folder` reads
them. Read again, files come from the system's memory, not from a disk.
"""

import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict

from jseg import config as configs
from jseg.loop import train

_SIZE = flags.DEFINE_list("size", ["512", "512"], "height and width of the canvas")
_NETWORK = flags.DEFINE_string("network", "unet", "network that the run trains")
_BATCH = flags.DEFINE_integer("batch", 8, "images in a batch")
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "numbers of threads that decode")
_BATCHES = flags.DEFINE_integer("batches", 40, "batches that are read for each number of threads")
_STEPS = flags.DEFINE_integer("steps", 12, "steps of the run, 8 or more; 0 trains none")
_WARM_UP = 4  # batches, and steps of a run, that aren't counted
flags.register_validator("steps", lambda n: n == 0 or n >= 2 * _WARM_UP, "must be 0, or 8 or more")


def configuration(root: str, folder: pathlib.Path, threads: int) -> ConfigDict:
  """The run's configuration."""
  config = configs.default(_NETWORK.value)
  config.steps = config.eval_every = config.checkpoint_every = _STEPS.value
  config.log_every = _WARM_UP
  config.data.name, config.data.root, config.data.data_dir = "folder", root, str(folder / "data")
  config.data.size = tuple(map(int, _SIZE.value))
  config.data.batch_size, config.data.threads = _BATCH.value, threads
  return config


def images_a_second(config: ConfigDict) -> float:
  """Speed of reading, decoding and shrinking alone."""
  task, dataset = configs.make_task(config)
  batches = task.batches(dataset, 0)
  for _ in itertools.islice(batches, _WARM_UP):
    pass
  start = time.perf_counter()
  for _ in itertools.islice(batches, _BATCHES.value):
    pass
  return _BATCHES.value * _BATCH.value / (time.perf_counter() - start)


def waiting(config: ConfigDict, workdir: pathlib.Path) -> tuple[float, float]:
  """Share of its time that a run waits for input, and its images a second."""
  train(config, workdir)
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  windows = [line for line in lines if "waiting_for_input" in line][1:]
  return tuple(
    statistics.mean(line[key] for line in windows)
    for key in ("waiting_for_input", "images_per_second")
  )


def main(argv: Sequence[str]) -> None:
  """Prints a line for each number of threads, and one for the run."""
  if len(argv) != 2:
    sys.exit(__doc__)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for threads in map(int, _THREADS.value):
      speed = images_a_second(configuration(argv[1], folder, threads))
      print(f"{threads} threads: {speed:.0f} images/s of {'x'.join(_SIZE.value)}", flush=True)
    if _STEPS.value:
      share, speed = waiting(
        configuration(argv[1], folder, max(map(int, _THREADS.value))), folder / "run"
      )
      print(f"{_NETWORK.value}: {speed:.2f} images/s, {100 * share:.1f} % of the time waiting")


if __name__ == "__main__":
  app.run(main)
