"""Small numbers: means that leave out what is absent, and plain values for JSON and tables."""

from collections.abc import Mapping

import numpy as np


def mean_of_present(values: np.ndarray) -> float:
  """Mean of the values that aren't NaN; NaN if all are."""
  present = values[~np.isnan(values)]
  return float(present.mean()) if present.size else float("nan")


def none_if_nan(value: float) -> float | None:
  """Returns a plain number; None for NaN, which JSON doesn't have."""
  return None if np.isnan(value) else float(value)


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
  """Returns plain numbers by name; None for NaN, which JSON doesn't have."""
  return {key: none_if_nan(value) for key, value in values.items()}


def percent(fraction: float) -> str:
  """Returns a fraction as a percentage; "absent" for NaN."""
  return "absent" if np.isnan(fraction) else f"{100 * fraction:.1f} %"
