"""How long a run trains: epochs, stopping early, and other lengths on resuming."""

import dataclasses
import math

from ml_collections import ConfigDict

from jseg import config as configs
from jseg.arithmetic import cdiv
from jseg.types import Arguments


@dataclasses.dataclass(frozen=True)
class Progress:
  """How the metric has risen that selects the best checkpoint; saved with each checkpoint.

  Attributes:
    best: its highest value; None before the first evaluation.
    since: evaluations since then.
  """

  best: float | None = None
  since: int = 0

  @classmethod
  def read(cls, position: Arguments) -> "Progress":
    """Reads what was saved with a checkpoint, a new one if that is older than this."""
    return cls(**position.get("progress", {}))

  def after(self, score: float) -> "Progress":
    """Returns the progress after one more evaluation; NaN is no improvement."""
    if not math.isnan(score) and (self.best is None or score > self.best):
      return Progress(score, 0)
    return Progress(self.best, self.since + 1)

  def is_over(self, patience: int) -> bool:
    """Whether there were as many evaluations without a new best as `patience`; 0 is never."""
    return 0 < patience <= self.since


def in_steps(config: ConfigDict, images: int) -> ConfigDict:
  """Returns the configuration with the steps that its epochs are; itself where it has none.

  Args:
    config: a valid configuration.
    images: images of the training split.

  Raises:
    InputError: the schedule doesn't fit in so few steps.
  """
  if not config.epochs:
    return config
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.steps = max(cdiv(math.ceil(config.epochs * images), config.data.batch_size), 1)
  configs.make_optimizer(config)
  return config


def about_other_length(config: ConfigDict, before: int, step: int) -> str:
  """Says what another number of steps does to a run that is resumed.

  Args:
    config: configuration of the run, with the new number.
    before: steps that it was to have when it was last started.
    step: steps that are finished.
  """
  old = config.copy_and_resolve_references()
  with old.unlocked():
    old.steps = max(before, config.optim.warmup_steps + 1)
  rates = [float(configs.make_optimizer(each)[1](step)) for each in (old, config)]
  return (
    f"steps: were {before}, are {config.steps}. The schedule {config.optim.schedule!r} now ends at "
    f"step {config.steps}: the next rate is {rates[1]:.4g}, and would have been {rates[0]:.4g}"
  )
