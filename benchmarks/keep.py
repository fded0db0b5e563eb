"""Keeps what runs have reached, for the tables that report.py makes of it.

  python benchmarks/keep.py runs/camvid_0 ...     # results/camvid_0.json

A result names its network, data, setting, machine, minutes, scores, command and commit; so a run of
uncommitted code is refused. All of it is read from the run directory, but for the machine, which
must be the one that trained.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from networks import machine

from jseg import comparison, json_files
from jseg.config_help import describe
from jseg.data import Dataset
from jseg.run import Run

FOLDER = pathlib.Path(__file__).parents[1] / "results"
# Keys that change no score, or are told in places of their own.
_ELSEWHERE = ("seed", "log_every", "eval_every", "checkpoint_every", "data.root", "data.data_dir")


def committed(git: Mapping[str, Any] | None) -> str:
  """The revision that `jseg.sessions.revision` tells. Exits where the code differs from it."""
  if not git or git["dirty"]:
    sys.exit("a result names its commit: train in a clone without changes that aren't committed")
  return git["revision"]


def write(
  run: Run,
  dataset: Dataset,
  scores: Mapping[str, Any],
  *,
  name: str,
  library: str,
  seconds: float,
  command: str,
  commit: str,
) -> None:
  """Writes a result.

  Args:
    run: the run, or the one that was trained again by another library.
    dataset: its data set.
    scores: what `evaluation/SPLIT.json` holds.
    name: name of the file, without its ending.
    library: what trained it, "jseg" or "pytorch".
    seconds: how long the training took, compiling included, evaluation not.
    command: the command that trained it.
    commit: commit that the code was of.
  """
  config, split = run.config, run.config.data.eval_split
  shape = (*config.data.size, config.data.channels)
  names = (*run.task.metric_names, "miou_interval", "per_class")
  changed = {key.name: key.value for key in describe(config) if key.value != key.default}
  path = FOLDER / f"{name}.json"
  result = {
    "library": library,
    "network": config.model.name,
    "parameters": comparison.count(run.model, shape)[0],
    "data": {
      "name": pathlib.Path(config.data.root).name or config.data.name,
      "fingerprint": dataset.fingerprint,
      "images": {key: len(dataset.source(key)) for key in (config.data.train_split, split)},
      "split": split,
    },
    "setting": {
      "steps": config.steps,
      "data.batch_size": config.data.batch_size,
      **{key: value for key, value in changed.items() if key not in _ELSEWHERE},
    },
    "seed": config.seed,
    "machine": machine(),
    "minutes": round(seconds / 60, 2),
    "scores": {key: scores[key] for key in names if key in scores},
    "command": command,
    "commit": commit,
  }
  json_files.write(path, result)
  print(path.relative_to(FOLDER.parent))


def keep(path: pathlib.Path) -> None:
  """Keeps the evaluation of a run of jseg, which was trained in one session."""
  run = Run.open(path)
  remedy = "train anew in another --workdir"
  *earlier, session = json_files.read(run.files.sessions, remedy)["sessions"]
  if earlier or session["outcome"] != "finished":
    sys.exit(f"{path}: it isn't one session from start to end; {remedy}")
  write(
    run,
    run.dataset(),
    json_files.read(run.files.scores(run.config.data.eval_split), remedy),
    name=path.name,
    library="jseg",
    seconds=session["seconds"]["train"] + session["seconds"]["compile"],
    command=session["command"],
    commit=committed(session.get("git")),
  )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
  for each in parser.parse_args().runs:
    keep(each)
