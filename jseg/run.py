"""A run directory: the one module that knows which files are in it.

config.json  classes.json        what the run was started with
checkpoints/                     latest and best (`jseg.checkpoint`)
damaged/                         checkpoints that turned out to be damaged
lock                             who trains in it now (`jseg.lock`)
run.json                         who trained it, session by session (`jseg.sessions`)
metrics.jsonl  tensorboard/      metrics by step
curves.png  samples/STEP.png     pictures
profile/                         traces of `jseg train --profile`
not_finite/STEP.npz  STEP.png    batches whose loss wasn't finite (`jseg.suspects`)
evaluation/SPLIT.json            metrics of a split, and plots beside them
evaluation/SPLIT_images.csv      numbers of each of its images
init.json  import.json           what became of each weight of `init_from`, of a foreign file
crf.json                         tuned parameters of a dense CRF
export/                          StableHLO
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import hosts, json_files, remote, tasks
from jseg.checkpoint import Checkpoints
from jseg.crf import load_params, params_from_dict, params_to_dict
from jseg.data import ClassInfo, Dataset
from jseg.lock import locked
from jseg.models import Network
from jseg.outputs import sweep, try_folder, unwritable, write_text
from jseg.tasks.inference import protocol_changes
from jseg.types import InputError, Variables


@dataclasses.dataclass(frozen=True)
class Files:
  """Paths in a run directory.

  Attributes:
    root: the directory.
  """

  root: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    """Configuration, JSON."""
    return self.root / "config.json"

  @property
  def classes(self) -> pathlib.Path:
    """Names and colors of the classes, JSON."""
    return self.root / "classes.json"

  @property
  def lock(self) -> pathlib.Path:
    """Lock that a training holds."""
    return self.root / "lock"

  @property
  def metrics(self) -> pathlib.Path:
    """Metrics by step, a JSON object per line."""
    return self.root / "metrics.jsonl"

  @property
  def sessions(self) -> pathlib.Path:
    """Versions, devices and durations of each session of the training, JSON."""
    return self.root / "run.json"

  @property
  def profile(self) -> pathlib.Path:
    """Folder of traces."""
    return self.root / "profile"

  @property
  def events(self) -> pathlib.Path:
    """Folder of TensorBoard events."""
    return self.root / "tensorboard"

  @property
  def curves(self) -> pathlib.Path:
    """Plot of the metrics by step."""
    return self.root / "curves.png"

  @property
  def init(self) -> pathlib.Path:
    """What became of every parameter that `init_from` had, JSON."""
    return self.root / "init.json"

  @property
  def imported(self) -> pathlib.Path:
    """Where imported weights came from and what became of each, JSON."""
    return self.root / "import.json"

  @property
  def crf(self) -> pathlib.Path:
    """Tuned parameters of a dense CRF, JSON."""
    return self.root / "crf.json"

  @property
  def evaluation(self) -> pathlib.Path:
    """Folder of evaluations."""
    return self.root / "evaluation"

  def scores(self, split: str) -> pathlib.Path:
    """Metrics of a split, JSON."""
    return self.evaluation / f"{split}.json"

  def image_scores(self, split: str) -> pathlib.Path:
    """Numbers of each image of a split, CSV."""
    return self.evaluation / f"{split}_images.csv"

  def worst(self, split: str) -> pathlib.Path:
    """Picture of the worst images of a split."""
    return self.evaluation / f"{split}_worst.png"

  def confusion(self, split: str) -> pathlib.Path:
    """Plot of the confusion matrix of a split, of networks of classes."""
    return self.evaluation / f"{split}_confusion.png"

  def suspect(self, step: int) -> pathlib.Path:
    """Batch of a step whose loss wasn't finite, NumPy's .npz."""
    return self.root / "not_finite" / f"{step:07d}.npz"

  def sample(self, step: int) -> pathlib.Path:
    """Sample picture of a step."""
    return self.root / "samples" / f"{step:07d}.png"

  def export(self, network: str) -> pathlib.Path:
    """Exported network of this name."""
    return self.root / "export" / f"{network.replace(':', '_')}.stablehlo"


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory with its configuration and classes, read once.

  Attributes:
    path: the directory.
    config: the run's configuration, changes included.
    classes: names and colors of the classes.
    given_model: network that was given in Python, or None where the configuration names it.
  """

  path: pathlib.Path
  config: ConfigDict
  classes: ClassInfo
  given_model: Network | None = None

  @property
  def files(self) -> Files:
    """Paths in the directory."""
    return Files(self.path)

  # Opening and making.

  @classmethod
  def open(
    cls,
    path: "str | pathlib.Path | Run",
    changes: Mapping[str, object] | None = None,
    *,
    protocol: str | None = None,
    model: Network | None = None,
  ) -> "Run":
    """Reads a run directory.

    Where the protocol has a CRF, the configuration then holds all its parameters: those that it
    doesn't give are as `jseg tune-crf` has found them for the run, else the defaults.

    Args:
      path: the directory, in an object store too, of which it reads what is there now; or a run
        that is open already.
      changes: values by dotted configuration key that are to differ (`jseg.config.change`).
      protocol: how the network looks at an image, a key of
        `jseg.tasks.inference.PROTOCOLS`; the configuration's if None. `changes` come after
        it.
      model: the network, where the run was started with `jseg.train(..., model=...)`.

    Raises:
      InputError: it is no run directory, a change is impossible, there is no such protocol, or the
        network is missing.
    """
    if protocol is not None:
      run = cls.open(path, model=model)
      return cls.open(run, {**protocol_changes(run.config, protocol), **(changes or {})})
    if isinstance(path, Run):
      run = dataclasses.replace(path, given_model=model or path.given_model)
    else:
      path = pathlib.Path(remote.downloaded(path)).expanduser()
      if not path.is_dir():
        raise InputError(f"there is no run directory {path}; give the --workdir of jseg train")
      files = Files(path)
      run = cls(path, configs.load(files.config, model), ClassInfo.load(files.classes), model)
    config = configs.change(run.config, changes) if changes else run.config
    return dataclasses.replace(run, config=_with_crf_params(config, run.files.crf))

  @classmethod
  def start(
    cls,
    path: str | pathlib.Path,
    config: ConfigDict,
    classes: ClassInfo,
    model: Network | None = None,
  ) -> "Run":
    """Makes the directory for a training, or checks that the run in it is this one.

    Args:
      path: the directory.
      config: configuration of the run.
      classes: names and colors of its classes.
      model: network that was given in Python, or None.

    Raises:
      InputError: another run is there, or it can't be written.
    """
    run = cls(pathlib.Path(path).expanduser(), config, classes, model)
    hosts.on_first(run._begin)
    if not hosts.everywhere(run.files.config.exists()):
      raise InputError(
        f"{run.path} isn't the same folder for all processes; name one that all of them share"
      )
    return run

  def _begin(self) -> None:
    """Checks that the directory is free or holds this run, and writes what describes it."""
    sweep(self.path)
    if self.files.imported.exists():
      raise InputError(
        f"{self.path} holds imported weights and no training; to train from them, name another "
        f"--workdir and add --config.init_from={self.path}"
      )
    if self.files.config.exists():
      before = Run.open(self.path, model=self.given_model)
      changed = configs.differences(before.config, self.config)
      if before.classes.names != self.classes.names:
        changed.append(f"classes: were {before.classes.names}, are {self.classes.names}")
      if changed:
        raise InputError(
          f"{self.path} holds a run with another configuration ({'; '.join(changed)}); "
          "name another --workdir, or start with the old values to resume it"
        )
    self.write()  # of keys that may differ, the new values

  def write(self) -> None:
    """Writes configuration and classes.

    Raises:
      InputError: the directory can't be written.
    """
    # A run is there as soon as its configuration is, which is written last.
    self.classes.save(self.files.classes)
    configs.save(self.config, self.files.config)

  # What is in it.

  @functools.cached_property
  def model(self) -> Network:
    """Network of the run, without variables.

    Raises:
      InputError: the network was given in Python when the run began, and isn't now.
    """
    if self.given_model is not None:
      return self.given_model
    return configs.make_model(self.config, len(self.classes.names))

  def _was_given(self, what: str) -> bool:
    """Whether something was given to `jseg.train` in Python."""
    return any(each.startswith(f"{what}=") for each in self.config.given)

  @property
  def task(self) -> tasks.Task:
    """Task of the run's network."""
    return tasks.create(self.config, self.model, self.classes)

  @property
  def best_metric(self) -> str:
    """Name of the metric that selects the best checkpoint."""
    return self.config.best_metric or self.task.metric

  def checkpoints(self, *, read_only: bool = True) -> Checkpoints:
    """Returns the run's checkpoints; close them after use.

    Raises:
      InputError: `read_only`, and there are none.
    """
    return Checkpoints(
      self.path,
      keep=self.config.keep,
      keep_every=self.config.keep_every,
      metric=self.best_metric,
      read_only=read_only,
    )

  def restore(self, checkpoint: str | int = "best") -> tuple[int, Variables]:
    """Returns (step, variables) of a checkpoint.

    Args:
      checkpoint: "best", "latest", a step, or "average:N" of the last N
        (`Checkpoints.restore_average`), whose step is that of the latest.

    Raises:
      InputError: there is no such checkpoint, it is of another network, or damaged.
    """
    image = jnp.zeros((1, *self.config.data.size, self.config.data.channels))
    template = jax.eval_shape(lambda: self.model.init(jax.random.key(0), image))
    with contextlib.closing(self.checkpoints()) as checkpoints:
      kind, _, count = str(checkpoint).partition(":")
      if kind == "average" and count.isdigit():
        return checkpoints.restore_average(int(count), template)
      step = checkpoints.pick(checkpoint)
      return step, checkpoints.restore_model(step, template)

  def dataset(self, root: str | None = None) -> Dataset:
    """Returns the run's data set.

    Args:
      root: where its files are, if they have moved.

    Raises:
      InputError: it can't be read, or has other classes than the run.
    """
    config = self.config
    if self._was_given("dataset"):
      raise InputError(
        f"{self.path} was trained on a data set made in Python; give it again: "
        "evaluate(run, dataset=...)"
      )
    if root is not None:
      config = configs.change(config, {"data.root": root})
    dataset = configs.load_dataset(config)
    self.check_classes(dataset)
    return dataset

  def check_classes(self, dataset: Dataset) -> None:
    """Raises InputError if a data set has other classes than the run."""
    if dataset.classes.names != self.classes.names:
      raise InputError(
        f"{self.path} was trained on the classes {', '.join(self.classes.names)}, but "
        f"{self.config.data.name} has {', '.join(dataset.classes.names)}; evaluate on a set with "
        "the same classes"
      )

  def save_evaluation(
    self,
    scores: tasks.Scores,
    dataset: Dataset,
    split: str,
    step: int,
    extra: Mapping[str, object] | None = None,
  ) -> None:
    """Writes `evaluation/SPLIT.json`, and beside it plots and a table of the images.

    Args:
      scores: metrics of the split.
      dataset: the data set, which knows the names of the images.
      split: name of the split.
      step: step of the checkpoint.
      extra: further plain values.
    """
    values = scores.to_dict(self.classes.names)
    about = {"split": split, "step": step, "resolution": "original"}
    json_files.write(self.files.scores(split), {**about, **values, **(extra or {})})
    self.task.save_plots(scores, self.files.evaluation / split)
    if scores.images is not None:
      names = dataset.source(split).names
      write_text(self.files.image_scores(split), scores.images.to_csv(names))

  def pretrained(self) -> Sequence[str]:
    """Returns the names of the parameters that `init_from` filled when the run began.

    Raises:
      InputError: the run's record of it can't be read.
    """
    path = self.files.init
    remedy = "it tells new parameters from others; start anew in another --workdir"
    taken = json_files.read(path, remedy).get("taken")
    if not isinstance(taken, list) or not all(isinstance(name, str) for name in taken):
      raise InputError(f"{path} is damaged ('taken' is no list of names); {remedy}")
    return taken


def _with_crf_params(config: ConfigDict, tuned: pathlib.Path) -> ConfigDict:
  """The configuration with all parameters of its protocol's CRF, where it has one.

  Args:
    config: a configuration.
    tuned: file of tuned parameters, which need not be there.
  """
  if "inference" not in config or not config.inference.get("crf"):
    return config
  base = load_params(tuned) if tuned.is_file() else None
  params = params_from_dict(config.inference.crf_params, base)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.inference.crf_params = params_to_dict(params)
  return config


@contextlib.contextmanager
def held(path: str | pathlib.Path) -> Iterator[None]:
  """Keeps a run directory, which is made if it isn't there, for one process that writes it.

  Whoever only reads it need not ask.

  Args:
    path: the directory.

  Raises:
    InputError: another process holds it, or it can't be written.
  """
  path = pathlib.Path(path).expanduser()
  try_folder(path, "name another --workdir")
  remedy = "wait for it, stop it, or name another --workdir"
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locked(Files(path).lock, str(path), remedy))
    except OSError as error:
      raise unwritable(Files(path).lock, error, "name another --workdir") from None
    yield


def load_model(
  run: str | pathlib.Path | Run,
  checkpoint: str | int = "best",
  changes: Mapping[str, object] | None = None,
) -> tuple[nn.Module, Variables]:
  """The network of a run and its trained variables.

  Args:
    run: the run directory.
    checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
    changes: configuration values by dotted key that are to differ, as {"model.output_stride": 8}:
      whatever leaves the weights what they are.

  Returns:
    (model, variables), for `model.apply(variables, image)` with an image that went through
    `jseg.images.normalize`.

  Raises:
    InputError: nothing was trained there, or the checkpoint is of another network.
  """
  opened = Run.open(run, changes)
  return opened.model, opened.restore(checkpoint)[1]
