"""From the scaling that a configuration declares to the numbers that a run keeps and uses."""

import numpy as np
from ml_collections import ConfigDict

from jseg.data import Dataset, find_ends, parse_scaling, scale
from jseg.images import Statistics
from jseg.types import InputError

_PER_CHANNEL = ("low", "high", "mean", "deviation")


def statistics(config: ConfigDict) -> Statistics | None:
  """Returns mean and deviation of a run's channels; None where those of ImageNet are taken."""
  keys = config.data
  return Statistics(tuple(keys.mean), tuple(keys.deviation)) if keys.mean else None


def check_scaling(keys: ConfigDict) -> None:
  """Refuses impossible values of the section `data` that concern scientific images.

  Raises:
    InputError: naming the key, its value and what it may be.
  """
  if keys.scaling:
    parse_scaling(keys.scaling)
  for name in _PER_CHANNEL:
    values = keys[name]
    if bool(values) != bool(keys.low):
      raise InputError(
        f"data.{name}: {tuple(values)}, but data.low is {tuple(keys.low)}; a training writes low, "
        "high, mean and deviation together, so leave all four at () and give data.scaling"
      )
    if values and (len(values) != keys.channels or not np.isfinite(_floats(name, values)).all()):
      raise InputError(
        f"data.{name}: {tuple(values)} must be one finite number for each of the "
        f"{keys.channels} channels (data.channels)"
      )
  if any(high <= low for low, high in zip(keys.low, keys.high, strict=True)):
    raise InputError(
      f"data.high: {tuple(keys.high)} must be above data.low, {tuple(keys.low)}, in every channel"
    )
  if any(value <= 0 for value in keys.deviation):
    raise InputError(f"data.deviation: {tuple(keys.deviation)} must be above 0 in every channel")
  shown = tuple(keys.shown)
  good = all(isinstance(i, int) and 0 <= i < keys.channels for i in shown)
  if len(shown) not in (0, 1, 3) or not good:
    raise InputError(
      f"data.shown: {shown} must be one or three channels, from 0 to {keys.channels - 1}"
    )


def _floats(name: str, values: tuple[float, ...]) -> np.ndarray:
  try:
    return np.asarray(values, np.float64)
  except (TypeError, ValueError):
    raise InputError(f"data.{name}: {tuple(values)} must be numbers") from None


def as_scaled(config: ConfigDict, dataset: Dataset) -> Dataset:
  """Returns a data set with its scientific images scaled as a configuration says, if it does.

  Raises:
    InputError: only one of the two is of scientific images, or they have other channels.
  """
  if dataset.scientific and config.data.low and dataset.ends is None:
    return dataset.scaled(config.data.low, config.data.high)
  if config.data.low and not dataset.scientific:
    raise InputError(
      f"data.scaling: the run is of scientific images, but {dataset.name} has colors of 8 bits; "
      'give data.name "scientific"'
    )
  return dataset


def fit_scaling(config: ConfigDict, dataset: Dataset) -> tuple[ConfigDict, Dataset]:
  """Finds the numbers that a configuration's scaling stands for, over the training split.

  Args:
    config: a valid configuration.
    dataset: its data set.

  Returns:
    (the configuration with `data.low`, `high`, `mean` and `deviation`, the data set scaled); both
    as they are where images aren't scientific.

  Raises:
    InputError: the scaling is missing, for no such data, or doesn't fit the channels.
  """
  keys = config.data
  if not dataset.scientific:
    if keys.scaling:
      raise InputError(
        f"data.scaling: {keys.scaling!r} is for scientific images, and {keys.name} has none; leave "
        'it out, or give data.name "scientific"'
      )
    return config, dataset
  if keys.channels != dataset.channels:
    raise InputError(
      f"data.channels: {keys.channels}, but the images have {dataset.channels}; set data.channels "
      f"to {dataset.channels}"
    )
  if keys.low and not keys.scaling:
    return config, as_scaled(config, dataset)
  sample = dataset.sample(keys.train_split)
  if not keys.scaling:
    raise InputError(
      f"data.scaling is missing: the images hold {dataset.dtype} from {sample.min():g} to "
      f'{sample.max():g}; give "16bit", a range such as "0:4095", or percentiles of the training '
      'split such as "1%:99%"'
    )
  low, high = find_ends(keys.scaling, sample)
  pixels = scale(sample, low.tolist(), high.tolist()).astype(np.float64) / 255
  deviation = pixels.std(0)
  found = (low, high, pixels.mean(0), np.where(deviation > 0, deviation, 1.0))
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, values in zip(_PER_CHANNEL, found, strict=True):
      # In fewer digits than machines may differ in, as the run is resumed by them.
      found_values = tuple(float(f"{value:.9g}") for value in values)
      given, config.data[name] = tuple(config.data[name]), found_values
      if given and given != config.data[name]:
        raise InputError(
          f"data.{name}: {given}, but data.scaling {keys.scaling!r} makes it "
          f"{config.data[name]} of this training split; leave low, high, mean and deviation at (), "
          "or leave out data.scaling"
        )
  check_scaling(config.data)
  return config, dataset.scaled(config.data.low, config.data.high)


def about_scaling(config: ConfigDict, dataset: Dataset) -> list[str]:
  """Returns what is to be known of a run's scientific images, a line each; nothing of others."""
  keys = config.data
  if not keys.low:
    return []
  sample = dataset.sample(keys.train_split)
  below, above = (sample < np.array(keys.low)).mean(), (sample > np.array(keys.high)).mean()
  shown = tuple(keys.shown) or ((0, 1, 2) if keys.channels >= 3 else (0,))
  ranges = [f"{low:g}:{high:g}" for low, high in zip(keys.low, keys.high, strict=True)]
  ranges = ranges[:1] if len(set(ranges)) == 1 else ranges
  used = (sample.max(0).clip(None, keys.high) - sample.min(0).clip(keys.low, None)) / (
    np.array(keys.high) - np.array(keys.low)
  )
  lines = [
    f"images: {dataset.dtype} of {keys.channels} channel(s), scaled from {', '.join(ranges)}; "
    f"{100 * below:.2g} % of the values lie below and {100 * above:.2g} % above",
    f"pictures show channel(s) {', '.join(map(str, shown))} (data.shown)",
  ]
  if used.min() < 0.1:
    lines.append(
      f"! channel {used.argmin()} uses {100 * used.min():.2g} % of its range: data.scaling may be "
      "meant for other images"
    )
  return lines
