"""The configuration of a run: every key there is, its default, and what values it can have.

A file in `configs/` starts from `default()` and changes what its recipe needs. Keys of `model`,
`augment`, `loss` and `optim` are the arguments of the network, of `make_augment`, `make_loss`,
`make_schedule` and `make_optimizer`: their defaults live there and nowhere else. A network's task
adds the sections that only it has.
"""

import ast
import contextlib
import dataclasses
import difflib
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import ml_collections
import optax

from jseg import data, json_files, models, optim, tasks
from jseg.config_values import at_least, build, defaults_of
from jseg.models import Network
from jseg.outputs import is_remote, refuse_remote
from jseg.remote import cached
from jseg.scaling import as_scaled, check_scaling, fit_scaling
from jseg.types import InputError
from jseg.weights.published import check_name, is_published

_Recipe = TypeVar("_Recipe")


@dataclasses.dataclass(frozen=True)
class About:
  """What a recipe needs and reaches: the `ABOUT` of a file in `configs/`, or each variant's.

  Attributes:
    data: what `data.root` must hold; "" where nothing is needed.
    weights: what `init_from` must hold; "" where it starts from random values.
    extras: the library's extras that must be installed.
    minutes: time that it took on two CPU cores; None where it wasn't run.
    reaches: what it measured there.
    published: what the paper or the authors report.
    protocol: how they show images to the network, a key of
      `jseg.tasks.inference.PROTOCOLS`.
  """

  data: str = ""
  weights: str = ""
  extras: tuple[str, ...] = ()
  minutes: int | None = None
  reaches: str = ""
  published: str = ""
  protocol: str = ""


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

_MEND = "mend it, or put back a copy of it"

FREE = (
  "data.options.",
  "data.fields.",
  "aux_weights.",
  "loss.options.",
  "optim.options.",
  "inference.crf_params.",
)
"""Sections whose keys are not known here: what reads them checks them."""


@dataclasses.dataclass(frozen=True)
class RunKeys:
  """Keys of a configuration that belong to no section, with their defaults.

  Attributes:
    seed: seed of the parameters, the order of the examples and their augmentation.
    steps: length of the training; each step is one batch.
    dtype: dtype of the computation; "bfloat16" is faster on TPU and recent GPUs, "float16", with a
      dynamic scale of the loss, on GPUs without bfloat16. Parameters, losses and logits stay
      float32.
    epochs: length of the training as passes over the training images, which then takes the place of
      `steps`; may be a fraction; 0 leaves it to `steps`.
    patience: evaluations without a new best after which training stops early; 0 is never.
    best_metric: metric of the evaluation that selects the best checkpoint, and that `patience`
      waits for; "" is the task's own, mIoU or mask AP.
    remat: what the backward pass computes again instead of keeping it in memory: "none", "stages"
      (a level of U-Net, a layer of ResNet, ...) or "all" (within a stage each part too); changes
      memory and time, not the result.
    accumulate: parts that each device works through its share of a batch in, for a batch that
      doesn't fit in memory; 1 is the whole at once.
    given: what `jseg.train` was given in Python, as "what=module:Name"; recorded, not to be set.
    init_from: a run directory, a .safetensors or .pth file, or a name of published weights
      (torchvision:NAME, hf:OWNER/NAME), to take parameters from.
    precise_bn_batches: batches over which norms' statistics are recomputed before each evaluation;
      0 is off.
    ema: decay of the moving average of the parameters, which is then evaluated; 0 is off.
    log_every: steps between two lines of the log.
    log_norms: whether the log holds the norms of the gradient and of the update of each part of the
      network.
    eval_every: steps between two evaluations.
    checkpoint_every: steps between two checkpoints.
    keep: latest checkpoints that are kept, besides the best.
    keep_every: steps between two checkpoints that are kept for good; 0 is none.
    samples: validation images in each sample picture.
    compilation_cache: folder of compiled programs, for the next start; "" is off.
  """

  seed: int = 0
  steps: int = 1000
  dtype: str = "float32"
  epochs: float = 0.0
  patience: int = 0
  best_metric: str = ""
  remat: str = "none"
  accumulate: int = 1
  given: tuple[str, ...] = ()
  init_from: str = ""
  precise_bn_batches: int = 0
  ema: float = 0.0
  log_every: int = 20
  log_norms: bool = True
  eval_every: int = 200
  checkpoint_every: int = 200
  keep: int = 2
  keep_every: int = 0
  samples: int = 6
  compilation_cache: str = "~/.cache/jseg/xla"


@dataclasses.dataclass(frozen=True)
class DataKeys:
  """Keys of the section `data` that every task has, with their defaults.

  Attributes:
    name: the data set: a source of the library, a TFDS set with `fields`, or your own source as
      "package.module:Name".
    root: folder of the raw files, for sets that you bring; "gs://BUCKET/NAME" and the like are
      copied to this machine.
    data_dir: folder in which prepared sets are kept; "" is TFDS's own, ~/tensorflow_datasets.
    options: other arguments of the source, as `data.options.size=64` of "shapes".
    fields: of a TFDS set, which feature is the image and which the mask.
    train_split: split that is trained on; "train+val" joins two.
    eval_split: split that is evaluated during training.
    size: canvas (height, width) in pixels: larger images are shrunk to fit, smaller ones padded. Of
      volumes (depth, height, width) in voxels, at least that of the largest one.
    channels: 3 for RGB, 1 for gray images; of volumes and scientific images, as many as they have.
    scaling: of scientific images, what becomes 0..255: "16bit", a range "0:4095", or percentiles of
      the training split "1%:99%"; for each channel another with commas between.
    low: the number of each channel that becomes 0; a training writes it down, by `scaling`.
    high: the number of each channel that becomes 255; a training writes it down, by `scaling`.
    mean: mean of each channel over the training split, 1 being `high`; a training writes it down.
    deviation: standard deviation of each channel over the training split, as `mean`.
    shown: of scientific images, the three channels (or one) that pictures show; () is the first
      three, of fewer the first.
    batch_size: examples in a step, over all devices.
    eval_batch_size: examples in a batch of the evaluation, over all devices.
    threads: threads that read and decode examples.
    max_pixels: pixels of an image up to which it is read, fewer where its format takes more memory;
      2.5 times as many values of a volume or a scientific image.
  """

  name: str = "shapes"
  root: str = ""
  data_dir: str = ""
  options: dict[str, object] = dataclasses.field(default_factory=dict)
  fields: dict[str, object] = dataclasses.field(default_factory=dict)
  train_split: str = "train"
  eval_split: str = "val"
  size: tuple[int, ...] = (256, 256)
  channels: int = 3
  scaling: str = ""
  low: tuple[float, ...] = ()
  high: tuple[float, ...] = ()
  mean: tuple[float, ...] = ()
  deviation: tuple[float, ...] = ()
  shown: tuple[int, ...] = ()
  batch_size: int = 8
  eval_batch_size: int = 8
  threads: int = 2
  max_pixels: int = data.MAX_PIXELS


RESUMABLE = {
  "steps",
  "epochs",
  "patience",
  "remat",
  "keep_every",
  "log_every",
  "log_norms",
  "eval_every",
  "checkpoint_every",
  "keep",
  "samples",
  "compilation_cache",
  "data.root",
  "data.data_dir",
  "data.threads",
  "data.shown",
  "data.max_pixels",
  "data.eval_batch_size",
}
"""Keys that may change when a run is resumed, as all of `inference` may: they change no parameter,
but for a length that is told (`jseg.length`)."""


def default(model: str | Network = "unet", **arguments: object) -> ml_collections.ConfigDict:
  """The configuration that every file in `configs/` starts from.

  Args:
    model: name of the network, one of `jseg.models.names()` or "package.module:Name" of your own;
      or a network made in Python, for `jseg.train(config, workdir, model=model)`.
    **arguments: arguments of the network that differ from its defaults.

  Raises:
    InputError: there is no such network, or it has no such argument.
  """
  network = models.get(model) if isinstance(model, str) else type(model)
  known = models.arguments(network)
  for name in arguments:
    if name not in known:
      raise InputError(unknown_key(f"model.{name}", [f"model.{k}" for k in known]))
  named = {"name": model} if isinstance(model, str) else describe(model)
  config = ml_collections.ConfigDict(dataclasses.asdict(RunKeys()))
  config.model = {**known, **arguments, **named}
  config.data = dataclasses.asdict(DataKeys())
  if network.ndim == 3:
    config.data.size = (64, 128, 128)
  config.aux_weights = dict(network.AUX_WEIGHTS)  # of auxiliary outputs' losses, by name
  config.optim = {
    **defaults_of(optim.make_schedule, "steps"),
    **defaults_of(optim.make_optimizer, "schedule", "pretrained", "order"),
    "options": {},
  }
  for section, values in tasks.get(network.task).defaults(network).items():
    config[section] = {**config.get(section, {}), **values}
  return config.lock()


def describe(model: Network) -> dict[str, object]:
  """Returns what a configuration records of a network that was made in Python.

  Returns:
    `name`, "module:Class", and the arguments that are plain values.
  """
  values = {name: getattr(model, name) for name in models.arguments(type(model))}
  plain = {name: value for name, value in values.items() if _is_plain(value)}
  return {"name": f"{type(model).__module__}:{type(model).__qualname__}", **plain}


def record(
  config: ml_collections.ConfigDict, *, model: Network | None = None, **objects: object
) -> ml_collections.ConfigDict:
  """Returns a configuration that says what was given in Python.

  Args:
    config: a configuration.
    model: the network, or None; the section `model` describes its arguments.
    **objects: other objects by what they are, None where not given.
  """
  every = {"model": model, **objects}
  given = {what: value for what, value in every.items() if value is not None}
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.given = tuple(f"{what}={_source(value)}" for what, value in sorted(given.items()))
    if model is not None:
      config.model = default(model).model
      if config.remat == "none":
        config.remat = getattr(model, "remat", "none")
  return config


def _source(value: object) -> str:
  """Where the code of an object is: "module:Name" of a function, or of the object's class."""
  code = value if hasattr(value, "__qualname__") else type(value)
  return f"{code.__module__}:{code.__qualname__}"


def _is_plain(value: object) -> bool:
  if isinstance(value, tuple | list):
    return all(map(_is_plain, value))
  return value is None or isinstance(value, bool | int | float | str)


def validate(config: ml_collections.ConfigDict, model: Network | None = None) -> None:
  """Refuses unknown keys and impossible values, before anything is built.

  Args:
    config: a configuration.
    model: the network, where it was made in Python.

  Raises:
    InputError: naming the key, its value and what it may be.
  """
  try:
    reference = default(model or config.model.name)
  except (AttributeError, KeyError):
    raise InputError("model.name is missing; start the config from jseg.config.default()") from None
  network = models.get(config.model.name) if model is None else type(model)
  expected, given = dict(flatten(reference)), dict(flatten(config))
  for key, value in given.items():
    if key not in expected:
      if key.startswith(FREE):
        continue
      raise InputError(unknown_key(key, list(expected)))
    if not _same_kind(value, expected[key]):
      raise InputError(f"{key}: {value!r} must be of the kind of its default, {expected[key]!r}")
  for key in expected.keys() - given.keys():
    raise InputError(f"{key} is missing; start the config from jseg.config.default()")
  positive = ("steps", "accumulate", "log_every", "eval_every", "checkpoint_every", "keep")
  of_data = ("batch_size", "eval_batch_size", "threads", "max_pixels")
  at_least({key: given[key] for key in (*positive, *(f"data.{key}" for key in of_data))}, 1)
  build("data", data.check_pixel_limit, max_pixels=given["data.max_pixels"])
  at_least({key: given[key] for key in ("seed", "samples", "precise_bn_batches")}, 0)
  at_least({key: given[key] for key in ("epochs", "patience", "keep_every")}, 0)
  if config.keep_every % config.checkpoint_every:
    raise InputError(
      f"keep_every: {config.keep_every} must be a multiple of checkpoint_every, "
      f"{config.checkpoint_every}, as only what is saved can be kept"
    )
  metrics = tasks.get(network.task).metric_names
  if config.best_metric and config.best_metric not in metrics:
    raise InputError(
      f"best_metric: {config.best_metric!r} is unknown; choose from {', '.join(metrics)}"
    )
  if config.dtype not in DTYPES:
    raise InputError(f"dtype: {config.dtype!r} is unknown; choose from {', '.join(DTYPES)}")
  models.check_remat(network, config.remat)
  if model is not None and getattr(model, "remat", "none") != config.remat:
    raise InputError(
      f"remat: {config.remat!r} isn't that of the network made in Python; make it with "
      f"remat={config.remat!r}"
    )
  if not 0 <= config.ema < 1:
    raise InputError(f"ema: {config.ema} must be at least 0 (off) and below 1")
  if is_published(config.init_from):
    check_name(config.init_from)
  check_scaling(config.data)
  # The parts check their own values.
  if model is None:
    make_model(config, num_classes=2)
  tasks.get(network.task).check_config(config, network)
  make_optimizer(config)


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """The network of a configuration."""
  arguments = dict(config.model)
  name = arguments.pop("name")
  network = build(
    "model",
    models.create,
    name,
    num_classes=num_classes,
    remat=config.remat,
    dtype=DTYPES[config.dtype],
    **arguments,
  )
  return tasks.get(network.task).wrap(network, config)


def make_optimizer(
  config: ml_collections.ConfigDict,
  pretrained: Collection[str] = (),
  order: Sequence[str] = (),
  given: optax.GradientTransformation | None = None,
  schedule: optax.Schedule | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer of a configuration, and its learning rate by step.

  Args:
    config: the configuration.
    pretrained: names of the parameters that `init_from` has filled.
    order: names of all parameters, as for `jseg.optim.make_optimizer`.
    given: transformation that was given in Python, in the place of `optim.optimizer`.
    schedule: learning rate by step in the place of the configuration's.
  """
  arguments = dict(config.optim)
  names = defaults_of(optim.make_schedule, "steps")
  values = {name: arguments.pop(name) for name in names}
  if schedule is None:
    schedule = build("optim", optim.make_schedule, steps=config.steps, **values)
  arguments["options"] = dict(arguments["options"])
  if given is not None:
    arguments["optimizer"] = given
  return build("optim", optim.make_optimizer, schedule, pretrained, order, **arguments), schedule


def load_dataset(
  config: ml_collections.ConfigDict, source: data.Source | None = None
) -> data.Dataset:
  """The data set of a configuration, or of a source instead, prepared if it wasn't.

  Scientific images are scaled if the configuration says how.
  """
  keys = config.data
  refuse_remote(keys.data_dir, "keep data.data_dir on a disk, as examples are read at random")
  root = cached(keys.root) if is_remote(keys.root) else keys.root
  with data.pixel_limit(keys.max_pixels):
    if source is not None:
      return as_scaled(config, data.load(source))
    dataset = data.load(
      keys.name,
      root=root or None,
      data_dir=keys.data_dir or None,
      options=keys.options.to_dict(),
      fields=keys.fields.to_dict(),
    )
  return as_scaled(config, dataset)


def make_task(config: ml_collections.ConfigDict) -> tuple[tasks.Task, data.Dataset]:
  """The task of a valid configuration and its data set, each checked against the other.

  Raises:
    InputError: the data can't be read, or don't go with the network.
  """
  config, dataset = fit_scaling(config, load_dataset(config))
  network = make_model(config, len(dataset.classes.names))
  task = tasks.create(config, network, dataset.classes)
  task.check_data(dataset)
  return task, dataset


def flatten(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) for every leaf."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict | dict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def save(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
  """Writes a configuration as JSON, as a whole or not at all. Raises `jseg.outputs.WriteError`."""
  json_files.write(path, config.to_dict())


def load(path: pathlib.Path, model: Network | None = None) -> ml_collections.ConfigDict:
  """Reads what `save` wrote, with this version or an earlier one.

  Args:
    path: the file.
    model: the network, where it was made in Python.

  Raises:
    InputError: it isn't there, is damaged, or isn't a configuration of this version.
  """
  if not path.exists():
    raise InputError(
      f"{path.parent} is no run directory: it has no {path.name}; give the --workdir of jseg train"
    )
  values = _tuples(json_files.read(path, _MEND))
  try:
    return _complete(values, path, model)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None
  # What isn't a configuration fails in one of the ways of values of another kind.
  except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
    raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {_MEND}") from error


def _complete(
  values: dict[str, Any], path: pathlib.Path, model: Network | None
) -> ml_collections.ConfigDict:
  """The configuration of a file's values, with the defaults of keys that it is older than."""
  config = ml_collections.ConfigDict(values)
  section = values.get("model", {})
  if isinstance(section, dict) and (name := section.get("name")):
    if model is None:
      given = any(str(each).startswith("model=") for each in values.get("given", ()))
      if given and ("<locals>" in name or name.startswith("__main__:")):
        raise InputError(
          f"{path.parent} was trained with a network made in Python, {name}, which can't be "
          "imported; give it again as model=..., to Run.open, evaluate or Segmenter.from_run"
        )
      values["model"] = {"name": name, **models.upgrade(name, section)}
    # A run that is older than a key did what the key's default says.
    reference = default(model or name)
    with reference.unlocked(), reference.ignore_type():
      reference.update(ml_collections.ConfigDict(values))
    config = reference
  config.lock()
  validate(config, model)
  return config


def change(
  config: ml_collections.ConfigDict, changes: Mapping[str, object], known: Iterable[str] = ()
) -> ml_collections.ConfigDict:
  """A copy with other values: what `--set KEY=VALUE` and `--config.KEY=VALUE` do.

  Args:
    config: the configuration.
    changes: values by dotted key.
    known: keys that may be added, besides those that there are.

  Raises:
    InputError: there is no such key, or the value is impossible.
  """
  config = config.copy_and_resolve_references()
  keys = [key for key, _ in flatten(config) if key != "model.name"]
  for key, value in changes.items():
    if key not in (*keys, *known) and not f"{key}.".startswith(FREE):
      raise InputError(unknown_key(key, keys))
    *sections, name = key.split(".")
    section = config
    for part in sections:
      section = section[part]
    with config.unlocked(), config.ignore_type():  # `validate` says it more kindly
      section[name] = value
  validate(config)
  return config


def parse_changes(
  texts: Iterable[str], flag: str, config: Mapping[str, object] | None = None
) -> dict[str, object]:
  """Reads "KEY=VALUE" texts; values are Python's literals, or else words.

  Args:
    texts: the texts.
    flag: what the user writes before each of them, for the message.
    config: configuration that is to be changed, if it is known: its words stay words, as the name
      of a folder "2012" does.

  Raises:
    InputError: one isn't KEY=VALUE.
  """
  changes: dict[str, object] = {}
  words = {key for key, value in flatten(config or {}) if isinstance(value, str)}
  for text in texts:
    key, equals, value = text.partition("=")
    if not (key and equals):
      raise InputError(f"{flag}{text}: give KEY=VALUE, as {flag}optim.lr=0.1")
    changes[key] = value
    if key in words:
      continue
    with contextlib.suppress(ValueError, SyntaxError):  # a word
      changes[key] = ast.literal_eval(value)
  return changes


def variant(variants: Mapping[str, _Recipe], name: str) -> _Recipe:
  """Returns one of a config file's variants.

  Raises:
    InputError: there is no such variant.
  """
  if name not in variants:
    raise InputError(f"recipe {name!r} is unknown; choose from {', '.join(variants)}")
  return variants[name]


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
  """The keys that keep a run from being resumed with `new`, each with both values."""
  before, after = dict(flatten(old)), dict(flatten(new))
  return [
    f"{key}: was {before.get(key)!r}, is {after.get(key)!r}"
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
    and key not in RESUMABLE
    and not key.startswith("inference.")
  ]


def unknown_key(key: str, known: list[str]) -> str:
  """Error text for an unknown key, with close matches or its siblings."""
  if f"{key}." in FREE or any(name.startswith(f"{key}.") for name in known):
    return f"{key}: a section takes no value; give one of its keys, as {key}.NAME=VALUE"
  close = difflib.get_close_matches(key, known, n=3)
  section = key.rpartition(".")[0]
  siblings = [k for k in known if k.rpartition(".")[0] == section] or known
  hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(siblings)}"
  return f"unknown config key {key}; {hint}"


def _same_kind(value: object, reference: object) -> bool:
  if isinstance(reference, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(reference, bool)
  if isinstance(reference, float):
    return isinstance(value, int | float)
  if isinstance(reference, tuple | list):
    return isinstance(value, tuple | list)
  return reference is None or isinstance(value, type(reference))
