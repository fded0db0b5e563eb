"""What each key of a configuration means, from the docstrings of what it is an argument of."""

import dataclasses
import inspect
from collections.abc import Mapping

from ml_collections import ConfigDict

from jseg import augment, backbones, losses, models, optim, tasks
from jseg import config as configs
from jseg.augment.base import settings_of
from jseg.augment.image import IMAGE_AUGMENTATIONS
from jseg.augment.volume import VOLUME_AUGMENTATIONS
from jseg.crf import CrfParams, DenseCRF
from jseg.crf.params import METHODS, NORMALIZATIONS, SPATIAL_FILTERS
from jseg.data.sources import SOURCES
from jseg.lookup import lookup
from jseg.losses.regions import CLASSES
from jseg.models import Network
from jseg.models.deeplab_v3 import FORMS, HEADS
from jseg.models.refinenet import CHAINS
from jseg.nn.norm import KINDS
from jseg.nn.remat import KINDS as REMAT_KINDS
from jseg.tasks.inference import AVERAGES, BLENDS, FLIPS, MODES, Inference
from jseg.types import InputError

SECTIONS = ("", "data", "model", "augment", "loss", "aux_weights", "optim", "inference", "crf")
"""The order of the sections."""

_CHOICES = {
  "dtype": tuple(configs.DTYPES),
  "remat": REMAT_KINDS,
  "model.name": tuple(models.names()),
  "data.name": tuple(SOURCES),
  "loss.name": (*losses.PIXEL_LOSSES, *losses.REGION_LOSSES),
  "loss.balance": ("none", "median"),
  "loss.classes": CLASSES,
  "optim.optimizer": tuple(optim.OPTIMIZERS),
  "optim.schedule": tuple(optim.SCHEDULES),
  "inference.mode": MODES,
  "inference.blend": BLENDS,
  "inference.average": AVERAGES,
  "inference.flip": FLIPS,
  "crf.normalization": NORMALIZATIONS,
  "crf.method": METHODS,
  "crf.spatial_filter": SPATIAL_FILTERS,
}
# Of a network's arguments; those that it refuses are left out.
_CANDIDATES = {
  "backbone": ("", *backbones.names()),
  "form": FORMS,
  "head": HEADS,
  "head_norm": KINDS,
  "norm": KINDS,
  "order": CHAINS,
  "padding": ("SAME", "VALID", "published", "same"),
  "roi": ("align", "pool"),
  "stride_on": ("1x1", "3x3"),
}


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a configuration.

  Attributes:
    name: the key, as "optim.lr".
    value: its value.
    default: its value if the configuration didn't say otherwise.
    kind: kind of its values, as "number".
    choices: words that it may be; empty where any value of its kind may be.
    meaning: what it does; "" where nobody wrote that down.
  """

  name: str
  value: object
  default: object
  kind: str
  choices: tuple[str, ...]
  meaning: str

  @property
  def section(self) -> str:
    """Name of the section that the key is in; "" for the keys of the run."""
    return self.name.partition(".")[0] if "." in self.name else ""


def describe(config: ConfigDict) -> list[Key]:
  """Returns all keys of a configuration, section by section, in the order of the docstrings.

  Args:
    config: a valid configuration.
  """
  network = models.get(config.model.name)
  meanings = _meanings(network)
  defaults = dict(configs.flatten(configs.default(config.model.name)))
  keys = [
    Key(
      name=name,
      value=value,
      default=defaults.get(name, value),
      kind=_kind(value),
      choices=_choices(config, name),
      meaning=_meaning(name, meanings),
    )
    for name, value in configs.flatten(config)
  ]
  place = {name: i for i, name in enumerate(meanings)}
  sections = {name: i for i, name in enumerate(SECTIONS)}
  return sorted(
    keys,
    key=lambda k: (sections.get(k.section, len(sections)), place.get(k.name, len(place))),
  )


def _meaning(name: str, meanings: Mapping[str, str]) -> str:
  if name.startswith("aux_weights."):
    return f"weight of the loss of the auxiliary output {name.partition('.')[2]!r}"
  # What a key with keys of its own means is said of it.
  section = name.rpartition(".")[0]
  return meanings.get(name) or meanings.get(section, "")


def _meanings(network: type[Network]) -> dict[str, str]:
  """Returns the meaning of each key by its dotted name, for the configurations of a network."""
  task = tasks.get(network.task)
  found = _documented(configs.RunKeys)
  found["model.name"] = 'the network, or your own as "package.module:Name"'
  for kind in reversed(network.__mro__):
    found |= _prefixed("model", _documented(kind))
  found |= _prefixed("data", _documented(configs.DataKeys))
  found |= _prefixed("optim", _documented(optim.make_optimizer) | _documented(optim.make_schedule))
  found |= _prefixed("augment", _documented(augment.make_augment) | _strengths(network))
  found |= _prefixed("loss", _losses() | _documented(losses.make_loss))
  found |= _prefixed("inference", _documented(Inference))
  found |= _prefixed("crf", _documented(CrfParams) | _documented(DenseCRF))
  return found | _documented(task.defaults)


def _strengths(network: type[Network]) -> dict[str, str]:
  """Returns the meaning of each augmentation's settings."""
  known = settings_of(*(VOLUME_AUGMENTATIONS if network.ndim == 3 else IMAGE_AUGMENTATIONS))
  every = settings_of(*IMAGE_AUGMENTATIONS, *VOLUME_AUGMENTATIONS)
  return {
    name: f"{known[name].meaning}; 0 is off" if name in known else "0, as volumes have none"
    for name in every
  }


def _losses() -> dict[str, str]:
  """Returns the meaning of the losses' hyperparameters, and of the detection losses' weights."""
  found: dict[str, str] = {}
  for table in (losses.PIXEL_LOSSES, losses.REGION_LOSSES):
    for name in table:
      for key, meaning in _documented(lookup("loss", name, table)).items():
        found.setdefault(key, f'of "{name}": {meaning}')
  for name, loss in losses.DETECTION_LOSSES.items():
    summary = inspect.cleandoc(loss.__doc__ or "").partition(", and ")[0]  # their number
    found[name] = f"weight of this loss: {summary[:1].lower()}{summary[1:]}"
  return found


def _choices(config: ConfigDict, key: str) -> tuple[str, ...]:
  if key == "best_metric":
    return ("", *tasks.get(models.get(config.model.name).task).metric_names)
  section, _, name = key.rpartition(".")
  if section != "model" or name not in _CANDIDATES:
    return _CHOICES.get(key, ())
  return tuple(each for each in _CANDIDATES[name] if _is_accepted(config, name, each))


def _is_accepted(config: ConfigDict, argument: str, value: str) -> bool:
  arguments = {**config.model, argument: value}
  try:
    models.create(arguments.pop("name"), num_classes=2, **arguments)
  except InputError:
    return False
  return True


def _kind(value: object) -> str:
  if isinstance(value, tuple | list):
    kinds = {_kind(each) for each in value}
    return f"list of {kinds.pop()}s" if len(kinds) == 1 else "list"
  names = {bool: "True or False", int: "whole number", float: "number", str: "text", dict: "dict"}
  return names.get(type(value), "whole number or None")


def _prefixed(section: str, meanings: Mapping[str, str]) -> dict[str, str]:
  return {f"{section}.{name}": meaning for name, meaning in meanings.items()}


def _documented(code: object) -> dict[str, str]:
  """Returns what a docstring says of each argument, attribute or key, by its name."""
  lines = inspect.cleandoc(code.__doc__ or "").splitlines()
  found: dict[str, list[str]] = {}
  inside, name = False, ""
  for line in lines:
    text = line.strip()
    indent = len(line) - len(line.lstrip())
    if text and indent == 0:
      inside = text in ("Args:", "Attributes:", "Keys:")
    elif inside and indent == 2 and ": " in text:
      name, _, meaning = text.partition(": ")
      found[name] = [meaning]
    elif inside and text:
      found[name].append(text)
  return {
    name: " ".join(words).removeprefix("static; ").rstrip(".") for name, words in found.items()
  }
