"""Reads PyTorch's checkpoints, .pth and .pt, without PyTorch and without running what is in them.

Both of `torch.save`'s formats hold a pickle, which may name any function to be called with any
arguments. Here it can name tensors, their storages and dictionaries; whatever else it asks for is
refused before it is called.
"""

import collections
import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from jseg.types import InputError

_DTYPES: dict[str, Any] = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
# Classes of metrics and settings that trainers save beside the weights; skipped, never made.
_PASSED_OVER = {
  ("_codecs", "encode"),
  ("argparse", "Namespace"),
  ("numpy", "dtype"),
  *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
  ("torch", "device"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)


class _Refused(Exception):
  """Names what a pickle wants to call."""


@dataclasses.dataclass
class _Storage:
  dtype: np.dtype
  size: int
  values: np.ndarray | None = None  # in the legacy format they come after the pickle


@dataclasses.dataclass
class _Tensor:
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    values = self.storage.values
    numbers = (self.offset, *self.shape, *self.strides)
    if values is None or len(self.shape) != len(self.strides) or min(numbers) < 0:
      raise ValueError("a tensor has no place in its storage")
    # NumPy doesn't check that a view stays within its memory.
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    count = int(np.prod(self.shape, dtype=object))
    if count and (last >= len(values) or count > len(values)):
      raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
    if not count:
      return np.zeros(self.shape, values.dtype)
    steps = tuple(s * values.itemsize for s in self.strides)
    view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps)
    view.flags.writeable = False
    return view


def read_pth(path: pathlib.Path) -> Any:
  """Reads what `torch.save` wrote: dictionaries and lists, with an array for each tensor.

  Args:
    path: path of the file, in the zip format or the one before PyTorch 1.6.

  Raises:
    InputError: the file is of another kind, damaged, or asks for more than tensors.
  """
  try:
    with path.open("rb") as file:
      start = file.read(len(_LEGACY_START))
      file.seek(0)
      if start.startswith(b"PK"):
        return _arrays(_read_zip(file))
      if start == _LEGACY_START:
        return _arrays(_read_legacy(file))
  except _Refused as error:
    raise InputError(
      f"{path} asks for {error}, which could run anything; only tensors are read. If the file is "
      "yours, save the weights alone: torch.save(model.state_dict(), PATH)"
    ) from None
  except (OSError, zipfile.BadZipFile, EOFError, MemoryError, RecursionError) as error:
    raise InputError(f"{path} is cut short or damaged ({error}); get it again") from None
  # A pickle that was made to mislead can fail in any way.
  except Exception as error:
    raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); get it again") from None
  what = "empty" if not start else "a web page" if start.lstrip()[:1] == b"<" else "something else"
  raise InputError(
    f"{path} is no PyTorch checkpoint but {what}; get it again, or save the weights with "
    "torch.save or as .safetensors"
  )


def _read_zip(file: IO[bytes]) -> Any:
  with zipfile.ZipFile(file) as archive:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
      raise zipfile.BadZipFile("no data.pkl in it")
    folder = names[0].removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
      raise zipfile.BadZipFile("PyTorch compresses nothing")
    order = f"{folder}byteorder"
    big = order in archive.namelist() and archive.read(order) == b"big"

    def fill(storage: _Storage, key: str) -> None:
      content = archive.read(f"{folder}data/{key}")
      dtype = storage.dtype.newbyteorder("big") if big else storage.dtype
      storage.values = np.frombuffer(content, dtype, storage.size)

    return _unpickle(io.BytesIO(archive.read(names[0])), fill)


def _read_legacy(file: IO[bytes]) -> Any:
  storages: dict[str, _Storage] = {}
  for _ in range(3):  # magic number, version, sizes of C's types
    _unpickle(file)
  content = _unpickle(file, lambda storage, key: storages.update({key: storage}))
  for key in _unpickle(file):
    storage = storages[key]
    size = int.from_bytes(file.read(8), "little")
    data = file.read(storage.size * storage.dtype.itemsize)
    if size != storage.size or len(data) != storage.size * storage.dtype.itemsize:
      raise EOFError(f"{len(data)} bytes where {storage.size} numbers should be")
    storage.values = np.frombuffer(data, storage.dtype)
  return content


def _unpickle(file: IO[bytes], fill: Callable[[_Storage, str], None] | None = None) -> Any:
  storages: dict[str, _Storage] = {}

  # Made anew for each file, as a pickle can set attributes of what it is given.
  def tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))

  def parameter(data: Any, *_: Any) -> Any:
    return data

  class PassedOver:
    def __new__(cls, *_: Any) -> "PassedOver":
      return object.__new__(cls)

    def __init__(self, *_: Any):
      pass

    def __setstate__(self, _: Any) -> None:
      pass

  known: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
    **dict.fromkeys(_PASSED_OVER, PassedOver),
  }

  class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
      if (module, name) not in known:
        raise _Refused(f"{module}.{name}")
      return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
      kind, dtype, key, _, size, *_ = pid
      if kind != "storage" or not isinstance(dtype, np.dtype) or fill is None:
        raise ValueError(f"unknown reference {kind!r}")
      if key not in storages:
        storages[key] = _Storage(dtype, size)
        fill(storages[key], key)
      return storages[key]

  return Unpickler(file, encoding="latin1").load()


def _arrays(value: Any) -> Any:
  if isinstance(value, _Tensor):
    return value.array()
  if isinstance(value, dict):
    return {key: _arrays(v) for key, v in value.items()}
  return [_arrays(v) for v in value] if isinstance(value, list | tuple) else value
