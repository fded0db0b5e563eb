"""Parameters of the dense CRF: the fields, every check of them, and their text form."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import numpy as np

from jseg.types import Array, InputError

NORMALIZATIONS = ("symmetric", "before", "after", "none")
METHODS = ("auto", "lattice", "landmarks", "exact")
SPATIAL_FILTERS = ("half", "exact", "lattice")
EXACT_PIXELS = {"tpu": 2**19, "gpu": 2**12}
"""Sizes of images up to which `method="auto"` is the exact filter, by platform; by estimates of
time (docs/crf.md). Elsewhere it is the lattice."""
MAX_LATTICES = 6
"""Number of distinct orders of the features of a gray image; color images have more."""

Numbers: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Array
"""A number, a vector or a matrix; it may be traced."""

SIGMAS = ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb")
WEIGHTS = ("spatial_weight", "bilateral_weight")


@flax.struct.dataclass
class CrfParams:
  """Hyperparameters of the dense CRF. The defaults are DeepLab V2's (arXiv:1606.00915, 4.1).

  Fields that are not marked "static" may be arrays, traced and differentiated.

  Attributes:
    iterations: static; number of mean-field iterations.
    spatial_weight: weight of the spatial kernel (smoothness): a number, one per class [k], or a
      matrix [k k] that mixes the classes' messages. A concrete zero switches the kernel off.
    spatial_sigma: bandwidth of the spatial kernel in pixels; a number or one per spatial axis in
      array order, (y, x) or (z, y, x).
    bilateral_weight: weight of the bilateral kernel (appearance), of the same forms as
      `spatial_weight`.
    bilateral_sigma_xy: spatial bandwidth of the bilateral kernel in pixels; a number or one per
      spatial axis in array order.
    bilateral_sigma_rgb: color bandwidth of the bilateral kernel in the units of the image; a number
      or one per channel.
    compatibility: label compatibility mu[l, l'], the cost of label l next to l': None for Potts (-1
      for equal labels), [k] for a diagonal matrix, [k k] for a full one.
    normalization: static; normalization of each kernel K with row sums D: "symmetric"
      D^-1/2 K D^-1/2, "before" K D^-1, "after" D^-1 K, "none" K.
    method: static; filter of the bilateral kernel: "lattice", "landmarks", "exact", or "auto": the
      lattice, but on TPUs and GPUs the exact filter for images that `EXACT_PIXELS` allows there.
    spatial_filter: static; filter of the spatial kernel: "half", which filters at half the
      resolution where sigma is at least 2.5 pixels (within 2 % of the exact kernel); "exact"; or
      "lattice", as in pydensecrf.
    lattices: static; number of lattices of different orientation whose kernels are averaged. Two
      are closer to the exact kernel and take twice the time.
    landmarks: static; number of colors that `method="landmarks"` interpolates between.
    tolerance: static; what `method="exact"` may leave out of each row of the kernel's matrix, as a
      share of the row's sum. 0 leaves out nothing that float32 doesn't round to 0.
    capacity: static; number of vertices that the lattice can hold under jit. None allocates the
      largest number possible, which takes memory; `lattice_size` counts those of an image.
  """

  iterations: int = flax.struct.field(pytree_node=False, default=10)
  spatial_weight: Numbers = 3.0
  spatial_sigma: Numbers = 1.0
  bilateral_weight: Numbers = 4.0
  bilateral_sigma_xy: Numbers = 67.0
  bilateral_sigma_rgb: Numbers = 3.0
  compatibility: Numbers | None = None
  normalization: str = flax.struct.field(pytree_node=False, default="symmetric")
  method: str = flax.struct.field(pytree_node=False, default="auto")
  spatial_filter: str = flax.struct.field(pytree_node=False, default="half")
  lattices: int = flax.struct.field(pytree_node=False, default=1)
  landmarks: int = flax.struct.field(pytree_node=False, default=128)
  tolerance: float = flax.struct.field(pytree_node=False, default=1e-5)
  capacity: int | None = flax.struct.field(pytree_node=False, default=None)


def is_traced(x: object) -> bool:
  """Whether the value of `x` is hidden by jit, grad or vmap."""
  return isinstance(x, jax.core.Tracer)


def check_params(params: CrfParams) -> None:
  """Checks static settings, and the values of all fields that are not traced.

  Raises:
    InputError: an unknown name, a number out of range, a bandwidth that is not positive, or a
      weight or compatibility that is not finite.
  """
  for name, choices in (
    ("normalization", NORMALIZATIONS),
    ("method", METHODS),
    ("spatial_filter", SPATIAL_FILTERS),
  ):
    value = getattr(params, name)
    if value not in choices:
      raise InputError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")
  if params.iterations < 0:
    raise InputError(f"iterations: {params.iterations} must be at least 0; 10 is usual")
  if not 1 <= params.lattices <= MAX_LATTICES:
    raise InputError(
      f"lattices: {params.lattices} must be 1 to {MAX_LATTICES}; 2 are more accurate than 1"
    )
  if params.landmarks < 1:
    raise InputError(f"landmarks: {params.landmarks} must be at least 1; 128 is usual")
  if not (isinstance(params.tolerance, int | float) and 0 <= params.tolerance < 1):
    raise InputError(
      f"tolerance: {params.tolerance!r} must be a number from 0 to below 1; 1e-5 is usual, and 0 "
      "leaves out nothing"
    )
  if params.capacity is not None and params.capacity < 1:
    raise InputError(
      f"capacity: {params.capacity} must be at least 1; None is always enough, and "
      "jseg.crf.lattice_size counts the vertices of an image"
    )
  for name in SIGMAS:
    value = getattr(params, name)
    if not is_traced(value) and not (np.all(np.asarray(value) > 0) and np.all(np.isfinite(value))):
      raise InputError(
        f"{name}: {value} must be above 0 and finite; to switch a kernel off set its weight to 0"
      )
  for name in (*WEIGHTS, "compatibility"):
    value = getattr(params, name)
    if value is not None and not is_traced(value) and not np.all(np.isfinite(value)):
      raise InputError(f"{name}: {value} must be finite; a weight of 0 switches a kernel off")


def check_shapes(params: CrfParams, *, classes: int, channels: int, ndim: int) -> None:
  """Checks the shapes of weights, compatibility and bandwidths.

  Args:
    params: the parameters; they may be traced.
    classes: number of classes k of the logits.
    channels: number of channels of the image.
    ndim: number of spatial axes.

  Raises:
    InputError: a shape that fits none of these.
  """
  for name in (*WEIGHTS, "compatibility"):
    value = getattr(params, name)
    allowed = [(classes,), (classes, classes)] + [()] * (name != "compatibility")
    if value is not None and np.shape(value) not in allowed:
      raise InputError(
        f"{name}: the shape {np.shape(value)} must be one of {allowed} for {classes} classes"
      )
  for name, length, unit in (
    ("spatial_sigma", ndim, "spatial axis"),
    ("bilateral_sigma_xy", ndim, "spatial axis"),
    ("bilateral_sigma_rgb", channels, "channel"),
  ):
    shape = np.shape(getattr(params, name))
    if shape not in ((), (length,)):
      raise InputError(
        f"{name}: the shape {shape} does not fit; give one number, or one per {unit}: {length}"
      )


def params_from_dict(values: Mapping[str, Any], base: CrfParams | None = None) -> CrfParams:
  """Makes parameters from plain values: numbers, lists of numbers, and names.

  Args:
    values: value of each field of `CrfParams` to set, by the name of the field.
    base: values of the other fields; the defaults if None.

  Raises:
    InputError: an unknown field, a value of the wrong type, or one that `check_params` refuses.
  """
  base = CrfParams() if base is None else base
  fields = [field.name for field in dataclasses.fields(CrfParams)]
  for name, value in values.items():
    if name not in fields:
      raise InputError(f"{name}: there is no such parameter; choose from {', '.join(fields)}")
    _check_type(name, value)
  params = dataclasses.replace(base, **values)
  check_params(params)
  return params


def _check_type(name: str, value: Any) -> None:
  default = getattr(CrfParams(), name)
  if isinstance(default, str):
    fits, kind = isinstance(value, str), "a name"
  elif isinstance(default, int) or name == "capacity":
    fits, kind = type(value) is int or value is default, "a whole number"
  else:
    fits, kind = _is_numeric(value) or value is default, "a number or a list of numbers"
  if not fits:
    raise InputError(f"{name}: {value!r} must be {kind}, such as {default!r}")


def _is_numeric(value: Any, levels: int = 2) -> bool:
  """Whether `value` is a number, or a rectangle of numbers in lists of up to so many levels."""
  if isinstance(value, list | tuple):
    numeric = levels > 0 and all(_is_numeric(row, levels - 1) for row in value)
    return numeric and len({np.shape(row) for row in value}) == 1
  whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
  return whole or isinstance(value, float)


def parse_params(text: str, base: CrfParams | None = None) -> CrfParams:
  """Reads parameters from "KEY=VALUE,KEY=VALUE", or from the JSON file of that name.

  Args:
    text: assignments, or the path of a file for `load_params`.
    base: values of the fields that `text` does not set; the defaults if None.

  Raises:
    InputError: `text` is neither, or `params_from_dict` refuses a value.
  """
  return params_from_dict(parse_values(text), base)


def parse_values(text: str) -> dict[str, Any]:
  """Returns the fields that a text for `parse_params` sets, by name.

  Raises:
    InputError: `text` is neither assignments nor a file with an object.
  """
  if text.strip() and "=" not in text:
    return _load_values(text)
  values: dict[str, Any] = {}
  for part in text.split(","):
    name, equals, value = (word.strip() for word in part.partition("="))
    if not equals or not value:
      raise InputError(
        f"CRF parameters: {part!r} is not KEY=VALUE; write bilateral_weight=4,iterations=5, or put "
        "lists into a JSON file and give its name"
      )
    try:
      values[name] = json.loads(value)
    except json.JSONDecodeError:
      values[name] = value
  return values


def load_params(path: str | pathlib.Path, base: CrfParams | None = None) -> CrfParams:
  """Reads parameters from a JSON file.

  Args:
    path: file with an object of fields of `CrfParams`, or with such an object under "params".
    base: values of the fields that the file does not set; the defaults if None.

  Raises:
    InputError: the file is missing or not such an object, or `params_from_dict` refuses a value.
  """
  return params_from_dict(_load_values(path), base)


def _load_values(path: str | pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise InputError(
      f"CRF parameters: {path} cannot be read ({error.strerror}); give KEY=VALUE,... or the name "
      "of a JSON file"
    ) from None
  except (ValueError, RecursionError) as error:
    raise InputError(f"CRF parameters: {path} is not valid JSON ({error})") from None
  values = values.get("params", values) if isinstance(values, dict) else values
  if not isinstance(values, dict):
    raise InputError(
      f'CRF parameters: {path} must hold an object, such as {{"bilateral_weight": 4}}'
    )
  return values


def params_to_dict(params: CrfParams) -> dict[str, Any]:
  """Returns the fields by name, for JSON; `params_from_dict` is the inverse."""
  return dataclasses.asdict(params)
