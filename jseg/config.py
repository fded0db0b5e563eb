"""The configuration of a run: every key there is, its default, and what values it can have.

A file in `configs/` starts from `default()` and changes what its recipe needs. Keys of `model`,
`augment`, `loss` and `optim` are the arguments of the network, of `make_augment`, `make_loss`,
`make_schedule` and `make_optimizer`: their defaults live there and nowhere else.
"""

import difflib
import inspect
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from jseg import data, losses, models, optim
from jseg.crf import DenseCRF
from jseg.crf.settings import make_params, to_dict
from jseg.models.with_crf import WithCRF
from jseg.types import InputError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

INSTANCE_LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box", "mask")

RESUMABLE = {
  "log_every",
  "eval_every",
  "checkpoint_every",
  "keep",
  "samples",
  "compilation_cache",
  "data.root",
  "data.data_dir",
  "data.threads",
  "data.eval_batch_size",
}
"""Keys that may change when a run is resumed: they change no parameter."""


def default(model: str = "unet", **knobs: Any) -> ml_collections.ConfigDict:
  """The configuration that every file in `configs/` starts from.

  Args:
    model: name of the network, one of `jseg.models.names()`.
    **knobs: arguments of the network that differ from its defaults.

  Raises:
    InputError: there is no such network, or it has no such argument.
  """
  known = models.knobs(model)
  for knob in knobs:
    if knob not in known:
      raise InputError(unknown_key(f"model.{knob}", [f"model.{k}" for k in known]))
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.steps = 1000
  config.dtype = "float32"  # of the computation; "bfloat16" is faster on TPU and recent GPUs
  config.model = {"name": model, **known, **knobs}
  config.data = {
    "name": "shapes",
    "root": "",  # where the raw files are, for sets that the user brings
    "data_dir": "",  # where prepared sets are kept; "" is TFDS's own place
    "options": {},  # of generated sets
    "fields": {},  # of other TFDS sets: which feature is the image, which the label
    "train_split": "train",
    "eval_split": "val",
    "size": (256, 256),  # larger images are shrunk to fit (height, width), smaller ones padded
    # volumes: (depth, height, width), at least that of the largest one
    "channels": 3,  # 1: grey; of volumes, as many as they have
    "batch_size": 8,  # over all devices
    "eval_batch_size": 8,
    "threads": 2,
  }
  if models.task(model) == "instance":
    config.data.max_objects = 100  # an image is trained on, the largest
    config.data.mask_size = 56  # cells along either side of a training mask
    config.data.short_side = 0  # pixels that images' shorter sides are brought to; 0: as they are
    config.augment = {"crop": (), **_arguments(data.make_instance_augment, "size")}
    config.loss = dict.fromkeys(INSTANCE_LOSSES, 1.0)  # what each of the losses weighs
  else:
    config.augment = {"crop": (), **_arguments(data.make_augment, "size")}  # () is data.size
    config.loss = {
      **_arguments(losses.make_loss),
      "balance": "none",  # or "median": classes weigh median frequency / frequency
      "class_weights": (),  # or one number a class
      "border_weight": 0.0,  # w0 of U-Net's weight map; 10 in the paper, 0 is off
      "border_sigma": 5.0,  # and its sigma, in pixels
    }
  config.aux_weights = models.aux_weights(model)  # of auxiliary outputs' losses, by name
  config.optim = {
    **_arguments(optim.make_schedule, "steps"),
    **_arguments(optim.make_optimizer, "schedule", "pretrained"),
  }
  if models.ndim(model) == 2 and models.task(model) == "semantic":
    config.crf = {
      "train": False,  # puts a dense CRF behind the network, trained with it
      "train_bandwidths": False,  # and not its weights and compatibility alone
      **_crf_defaults(),
    }
  config.init_from = ""  # a run directory, .safetensors or .pth file to take parameters from
  config.precise_bn_batches = 0  # over which norms' statistics are recomputed to evaluate; 0: off
  config.ema = 0.0  # decay of the moving average of the parameters; 0 is off
  config.log_every = 20
  config.eval_every = 200
  config.checkpoint_every = 200
  config.keep = 2  # latest checkpoints that are kept, besides the best
  config.samples = 6  # validation images in each sample picture
  config.compilation_cache = "~/.cache/jseg/xla"  # compiled programs, for the next start; "" is off
  return config.lock()


def _crf_defaults() -> dict[str, Any]:
  # As many iterations as Zheng et al. 2015 train with.
  values = to_dict(DenseCRF().params)
  del values["compatibility"]  # Potts at first
  return values


def _arguments(function: Callable, *without: str) -> dict[str, Any]:
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.name not in without}


def validate(config: ml_collections.ConfigDict) -> None:
  """Refuses unknown keys and impossible values, before anything is built.

  Raises:
    InputError: naming the key, its value and what it may be.
  """
  try:
    reference = default(config.model.name)
  except (AttributeError, KeyError):
    raise InputError("model.name is missing; start the config from jseg.config.default()") from None
  expected, given = dict(flatten(reference)), dict(flatten(config))
  for key, value in given.items():
    if key not in expected:
      if key.startswith(("data.options.", "data.fields.", "aux_weights.")):
        continue
      raise InputError(unknown_key(key, list(expected)))
    if not _same_kind(value, expected[key]):
      raise InputError(f"{key}: {value!r} must be of the kind of its default, {expected[key]!r}")
  for key in expected.keys() - given.keys():
    raise InputError(f"{key} is missing; start the config from jseg.config.default()")
  _at_least(given, 1, "steps", "log_every", "eval_every", "checkpoint_every", "keep")
  _at_least(given, 1, "data.batch_size", "data.eval_batch_size", "data.threads")
  _at_least(given, 0, "seed", "samples", "precise_bn_batches")
  ndim = models.ndim(config.model.name)
  axes = "(height, width)" if ndim == 2 else "(depth, height, width)"
  for key in ("data.size", "augment.crop"):
    size = given[key]
    if key == "augment.crop" and not size:
      continue
    if len(size) != ndim or not all(isinstance(n, int) and n > 0 for n in size):
      raise InputError(f"{key}: {size} must be {ndim} whole numbers above 0, {axes}")
  if config.dtype not in DTYPES:
    raise InputError(f"dtype: {config.dtype!r} is unknown; choose from {', '.join(DTYPES)}")
  if config.data.channels < 1 or (ndim == 2 and config.data.channels not in (1, 3)):
    raise InputError(f"data.channels: {config.data.channels} must be 3 (RGB) or 1 (grey)")
  if not 0 <= config.ema < 1:
    raise InputError(f"ema: {config.ema} must be at least 0 (off) and below 1")
  # The parts check their own values.
  make_model(config, num_classes=2)
  make_augment(config)
  if models.task(config.model.name) == "instance":
    _at_least(given, 1, "data.max_objects", "data.mask_size")
    _at_least(given, 0, "data.short_side")
    if config.data.short_side > min(config.data.size):
      raise InputError(
        f"data.short_side: {config.data.short_side} must fit data.size, {given['data.size']}"
      )
    _at_least(given, 0, *(f"loss.{name}" for name in INSTANCE_LOSSES))
  else:
    make_loss(config)
  make_optimizer(config)


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> Any:
  """The network of a configuration."""
  knobs = dict(config.model)
  name = knobs.pop("name")
  network = models.create(name, num_classes=num_classes, dtype=DTYPES[config.dtype], **knobs)
  if "crf" not in config:
    return network
  values = dict(config.crf)
  train, bandwidths = values.pop("train"), values.pop("train_bandwidths")
  layer = DenseCRF(make_params(values), train_bandwidths=bandwidths)
  return WithCRF(network, layer) if train else network


def make_augment(config: ml_collections.ConfigDict) -> Callable:
  """The augmentation of a configuration."""
  knobs = dict(config.augment)
  crop = tuple(knobs.pop("crop"))
  instance = models.task(config.model.name) == "instance"
  make: Callable = data.make_instance_augment if instance else data.make_augment
  return make(size=crop or tuple(config.data.size), **knobs)


def make_loss(config: ml_collections.ConfigDict) -> losses.Loss:
  """The loss of a configuration, before weights."""
  knobs = {k: config.loss[k] for k in _arguments(losses.make_loss)}
  balance, weights = config.loss.balance, config.loss.class_weights
  if balance not in ("none", "median"):
    raise InputError(f"loss.balance: {balance!r} is unknown; choose none or median")
  if balance != "none" and weights:
    raise InputError("loss.balance and loss.class_weights both give weights; leave one out")
  if not all(isinstance(w, int | float) and w >= 0 for w in weights):
    raise InputError(f"loss.class_weights: {weights} must be numbers of at least 0, one a class")
  if config.loss.border_weight < 0 or config.loss.border_sigma <= 0:
    raise InputError("loss.border_weight must be at least 0 (off), loss.border_sigma above 0")
  if config.loss.border_weight and models.ndim(config.model.name) == 3:
    raise InputError("loss.border_weight: the weight map is for images; set it to 0 for volumes")
  if config.loss.name in losses.SET_LOSSES and (
    weights or balance != "none" or config.loss.border_weight
  ):
    raise InputError(f"loss.name: {config.loss.name} takes no weights; use cross_entropy+dice")
  return losses.make_loss(**knobs)


def make_optimizer(
  config: ml_collections.ConfigDict, pretrained: Collection[str] = ()
) -> tuple[Any, Callable]:
  """The optimizer of a configuration, and its learning rate by step.

  Args:
    config: the configuration.
    pretrained: names of the parameters that `init_from` has filled.
  """
  knobs = dict(config.optim)
  names = _arguments(optim.make_schedule, "steps")
  schedule = optim.make_schedule(steps=config.steps, **{k: knobs.pop(k) for k in names})
  return optim.make_optimizer(schedule, pretrained, **knobs), schedule


def load_dataset(config: ml_collections.ConfigDict) -> data.Dataset:
  """The data set of a configuration, prepared if it wasn't."""
  return data.load(
    config.data.name,
    root=config.data.root or None,
    data_dir=config.data.data_dir or None,
    options=config.data.options.to_dict(),
    fields=config.data.fields.to_dict(),
  )


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) for every leaf."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict | dict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def save(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
  """Writes a configuration as JSON."""
  path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load(path: pathlib.Path) -> ml_collections.ConfigDict:
  """Reads what `save` wrote.

  Raises:
    InputError: it isn't there, isn't JSON, or isn't a configuration of this version.
  """
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(
      f"{path.parent} is no run directory: it has no {path.name}; "
      "give the --workdir that train.py was started with"
    ) from None
  except json.JSONDecodeError as error:
    raise InputError(f"{path} is not valid JSON ({error})") from None
  config = ml_collections.ConfigDict(_tuples(raw))
  if name := config.get("model", {}).get("name"):
    # A run that is older than a key did what the key's default says.
    reference = default(name)
    with reference.unlocked(), reference.ignore_type():
      reference.update(config)
    config = reference
  config.lock()
  validate(config)
  return config


def change(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A copy with other values: what `--set KEY=VALUE` does to a run that is used again.

  Args:
    config: the configuration.
    changes: values by dotted key.

  Raises:
    InputError: there is no such key, or the value is impossible.
  """
  config = config.copy_and_resolve_references()
  known = [key for key, _ in flatten(config)]
  for key, value in changes.items():
    if key not in known or key == "model.name":
      raise InputError(unknown_key(key, [k for k in known if k != "model.name"]))
    *sections, name = key.split(".")
    section = config
    for part in sections:
      section = section[part]
    with config.ignore_type():  # `validate` says it more kindly
      section[name] = value
  validate(config)
  return config


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
    if before.get(key) != after.get(key) and key not in RESUMABLE
  ]


def unknown_key(key: str, known: list[str]) -> str:
  """Says that there is no such key, with those that are like it or stand beside it."""
  close = difflib.get_close_matches(key, known, n=3)
  section = key.rpartition(".")[0]
  siblings = [k for k in known if k.rpartition(".")[0] == section] or known
  hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(siblings)}"
  return f"unknown config key {key}; {hint}"


def _same_kind(value: Any, reference: Any) -> bool:
  if isinstance(reference, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(reference, bool)
  if isinstance(reference, float):
    return isinstance(value, int | float)
  if isinstance(reference, tuple | list):
    return isinstance(value, tuple | list)
  return reference is None or isinstance(value, type(reference))


def _at_least(values: dict[str, Any], least: int, *keys: str) -> None:
  for key in keys:
    if values[key] < least:
      raise InputError(f"{key}: {values[key]} must be at least {least}")
