"""Reads PyTorch's checkpoints, .pth and .pt, without PyTorch and without running what is in them.

Both of `torch.save`'s formats hold a pickle, which may name any function to be called with any
arguments. Here it can name tensors, their storages and dictionaries; whatever else it asks for is
refused before it is called. A pickle can also change what it names, reserve memory that it doesn't
fill, and say in a few bytes what takes forever to read out. So it gets stand-ins that nothing else
uses, its instructions are those that `torch.save` writes, and all that they make is bounded.
"""

import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Hashable
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from jseg.types import InputError

_STORAGES: dict[str, npt.DTypeLike] = {
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
_DTYPES: dict[str, npt.DTypeLike] = {
  **{name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
  **{name: np.dtype(name) for name in ("bool", "float16", "float32", "float64")},
  **{f"{kind}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16)},
  **{f"{kind}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (32, 64)},
}
_BUILTINS = ("bool", "complex", "dict", "float", "frozenset", "int", "list", "set", "slice", "str")
_LIGHTNING = (
  *("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
  *("pytorch_lightning.utilities.data", "pytorch_lightning.utilities.parsing"),
)
# Classes of metrics and settings that trainers save beside the weights; skipped, never made.
_PASSED_OVER = {
  ("_codecs", "encode"),
  ("argparse", "Namespace"),
  *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
  *(("collections", name) for name in ("Counter", "defaultdict")),
  *(("numpy", name) for name in ("dtype", "ndarray")),
  *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
  *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
  *(("pathlib", f"{pure}{kind}Path") for pure in ("", "Pure") for kind in ("Posix", "Windows")),
  *((module, "AttributeDict") for module in _LIGHTNING),
  ("torch", "device"),
  ("torch.torch_version", "TorchVersion"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)
# A pickle holds no weights but their names and shapes, about 250 bytes per tensor. Reading it takes
# seconds for each MiB.
_MOST_PICKLE = 4 << 20
# Tensors may share a storage, but not by the thousand.
_MOST_SHARED = 16
_MOST_ARGUMENTS = 32  # of what a pickle calls
# What `torch.save` writes in any protocol. The others make objects in further ways, reserve memory,
# or compare what they are given.
_INSTRUCTIONS = (
  b"(.01])}NIJKMLFGTUSVXBC\x8a\x88\x89\x8c\x8d\x8eghjpqr\x94"  # marks, plain values, the memo
  b"tldaesu\x85\x86\x87cQRb\x81\x93\x80\x95"  # containers, what is named, frames
)


class _Refused(Exception):
  """Names what a pickle wants to call."""


@dataclasses.dataclass(frozen=True)
class _Dtype:
  """Stands for a dtype or a kind of storage: a dtype itself is everybody's, and can be changed."""

  dtype: np.dtype


class _Dict(dict[Hashable, object]):
  """Stands for an OrderedDict."""


class _PassedOver:
  """Stands for what is skipped; takes whatever it is given."""

  def __init__(self, *_: object):
    pass

  def extend(self, _: object) -> None:
    """Takes the items of a list."""

  append = extend

  def __setitem__(self, key: object, value: object) -> None:
    pass


@dataclasses.dataclass
class _Storage:
  dtype: np.dtype
  size: int
  values: np.ndarray | None = None  # in the legacy format they come after the pickle


@dataclasses.dataclass(eq=False)
class _Tensor:
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype | None = None  # where the storage is one of bytes

  @property
  def nbytes(self) -> int:
    """How much it holds, be it the same again and again."""
    return int(np.prod(self.shape, dtype=object)) * (self.dtype or self.storage.dtype).itemsize

  def array(self) -> np.ndarray:
    values = self.storage.values
    if values is None or len(self.shape) != len(self.strides):
      raise ValueError("a tensor has no place in its storage")
    if self.dtype is not None and values.dtype == np.uint8:
      values = values.view(self.dtype)
    if not self.nbytes:
      return np.zeros(self.shape, values.dtype)
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    if last >= len(values):
      raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
    size = values.itemsize
    steps = tuple(s * size for s in self.strides)
    return np.ndarray(self.shape, values.dtype, values.view(np.uint8), self.offset * size, steps)


def read_pth(path: pathlib.Path) -> object:
  """Reads what `torch.save` wrote: dictionaries and lists, with an array for each tensor.

  Args:
    path: path of the file, in the zip format or the one before PyTorch 1.6.

  Raises:
    InputError: the file is of another kind, damaged, or asks for more than tensors.
  """
  try:
    with path.open("rb") as file:
      start = file.read(len(_LEGACY_START))
      size = file.seek(0, io.SEEK_END)
      file.seek(0)
      if start.startswith(b"PK"):
        return _Arrays(size).read(_read_zip(file, size))
      if start == _LEGACY_START:
        return _Arrays(size).read(_read_legacy(file, size))
  except _Refused as error:
    raise InputError(
      f"{path} asks for {error}, which could run anything; only tensors are read. If the file is "
      "yours, save the weights alone: torch.save(model.state_dict(), PATH)"
    ) from None
  except (OSError, zipfile.BadZipFile, EOFError, MemoryError, RecursionError) as error:
    raise InputError(f"{path} is cut short or damaged ({_short(error)}); get it again") from None
  # A pickle that was made to mislead can fail in any way.
  except Exception as error:
    raise InputError(
      f"{path} is damaged ({type(error).__name__}: {_short(error)}); get it again"
    ) from None
  what = "empty" if not start else "a web page" if start.lstrip()[:1] == b"<" else "something else"
  raise InputError(
    f"{path} is no PyTorch checkpoint but {what}; get it again, or save the weights with "
    "torch.save or as .safetensors"
  )


def _short(value: object) -> str:
  """A text of the file, or what an error says, for messages."""
  # What else there may be can take forever to read out.
  known = isinstance(value, str | Exception)
  text = ascii(str(value))[1:-1] if known else type(value).__name__
  return text if len(text) <= 200 else f"{text[:200]}..."


def _read_zip(file: IO[bytes], size: int) -> object:
  with zipfile.ZipFile(file) as archive:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
      raise zipfile.BadZipFile("no data.pkl in it")
    folder = names[0].removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
      raise zipfile.BadZipFile("PyTorch compresses nothing")
    left = size

    def read(name: str) -> bytes:
      # Entries may overlap, and their sizes say anything.
      nonlocal left
      left -= archive.getinfo(name).file_size
      if left < 0:
        raise zipfile.BadZipFile(f"{name} reaches beyond the file")
      return archive.read(name)

    order = f"{folder}byteorder"
    big = order in archive.namelist() and read(order) == b"big"

    def fill(storage: _Storage, key: str) -> None:
      dtype = storage.dtype.newbyteorder("big") if big else storage.dtype
      storage.values = np.frombuffer(read(f"{folder}data/{key}"), dtype, storage.size)

    return _unpickle(io.BytesIO(read(names[0])), fill)


def _read_legacy(file: IO[bytes], end: int) -> object:
  storages: dict[str, _Storage] = {}
  for _ in range(3):  # magic number, version, sizes of C's types
    _unpickle(file)
  content = _unpickle(file, lambda storage, key: storages.update({key: storage}))
  for key in _unpickle(file):
    storage = storages[_name(key)]
    size = int.from_bytes(file.read(8), "little")
    count = storage.size * storage.dtype.itemsize
    if size != storage.size or count > end - file.tell():
      raise EOFError(f"{end - file.tell()} bytes where {storage.size} numbers should be")
    storage.values = np.frombuffer(file.read(count), storage.dtype)
  return content


def _unpickle(file: IO[bytes], fill: Callable[[_Storage, str], None] | None = None) -> Any:
  return _Unpickler(_Limited(file), fill).load()


class _Limited:
  """A file of which no more than a pickle of names and shapes is read."""

  def __init__(self, file: IO[bytes]):
    self._file, self._left = file, _MOST_PICKLE

  def read(self, count: int) -> bytes:
    """Reads up to `count` bytes."""
    self._take(count)
    return self._file.read(count)

  def readline(self) -> bytes:
    """Reads up to the end of a line."""
    line = self._file.readline(self._left + 1)
    self._take(len(line))
    return line

  def _take(self, count: int) -> None:
    self._left -= count
    if self._left < 0:
      raise EOFError(f"its pickle is longer than {_MOST_PICKLE >> 10} KiB, more than weights need")


# In Python, as the quicker one in C reserves a place in an array for any number that a memo is
# given, and hashes any key.
_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):
  dispatch: ClassVar[dict[int, Any]] = {op: _InPython.dispatch[op] for op in _INSTRUCTIONS}

  def __init__(self, file: _Limited, fill: Callable[[_Storage, str], None] | None):
    super().__init__(file, encoding="latin1")
    self._fill = fill
    self._storages: dict[str, _Storage] = {}
    self._left = _MOST_PICKLE
    self._known: dict[tuple[str, str], object] = {
      ("collections", "OrderedDict"): self._dict,
      ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
      ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_bytes,
      ("torch._utils", "_rebuild_parameter"): self._parameter,
      ("torch", "Size"): self._shape,
      ("torch.storage", "UntypedStorage"): _Dtype(np.dtype(np.uint8)),
      **{("torch", name): _Dtype(np.dtype(dtype)) for name, dtype in _DTYPES.items()},
      **{("torch", name): _Dtype(np.dtype(dtype)) for name, dtype in _STORAGES.items()},
      **dict.fromkeys(_PASSED_OVER, _PassedOver),
    }

  def find_class(self, module: str, name: str) -> object:
    if (module, name) not in self._known:
      raise _Refused(_short(f"{module}.{name}"))
    return self._known[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, size, *_ = pid
    if kind != "storage" or not isinstance(dtype, _Dtype) or self._fill is None:
      raise ValueError(f"unknown reference {_short(kind)}")
    if _name(key) not in self._storages:
      (size,) = self._shape((size,))
      self._storages[key] = _Storage(dtype.dtype, size)
      self._fill(self._storages[key], key)
    return self._storages[key]

  def _dict(self, pairs: Any = ()) -> _Dict:
    self._left -= len(pairs)
    if self._left < 0:
      raise ValueError("dictionaries longer than the file")
    return _Dict((_key(key), value) for key, value in pairs)

  def _tensor(
    self, storage: object, offset: object, shape: object, strides: object, *_: object
  ) -> _Tensor:
    if not isinstance(storage, _Storage):
      raise ValueError("a tensor without a storage")
    (offset,) = self._shape((offset,))
    return _Tensor(storage, offset, self._shape(shape), self._shape(strides))

  def _tensor_of_bytes(self, storage: object, *place: object) -> _Tensor:
    *_, dtype = (each.dtype for each in place if isinstance(each, _Dtype))
    return dataclasses.replace(self._tensor(storage, *place), dtype=dtype)

  def _parameter(self, data: object, *_: object) -> object:
    return data

  def _shape(self, numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, tuple | list) or len(numbers) > 32:
      raise ValueError("a tensor of more than 32 dimensions")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
      raise ValueError("a tensor whose place isn't given by whole numbers from 0 on")
    return tuple(numbers)

  def load_reduce(self) -> None:
    arguments = self.stack.pop()
    if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
      raise ValueError("a call with something else than a few arguments")
    self.stack[-1] = self.stack[-1](*arguments)

  def load_build(self) -> None:
    self.stack.pop()
    if not isinstance(self.stack[-1], _Dict | _PassedOver):
      raise ValueError(f"it changes a {type(self.stack[-1]).__name__}")

  def load_setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self.stack[-1][_key(key)] = value

  def load_setitems(self) -> None:
    items = self.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
      self.stack[-1][_key(key)] = value

  def load_dict(self) -> None:
    items = self.pop_mark()
    self.append({_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

  dispatch |= {ord("b"): load_build, ord("s"): load_setitem}
  dispatch |= {ord("u"): load_setitems, ord("d"): load_dict}
  dispatch |= {ord("R"): load_reduce, 0x81: load_reduce}  # NEWOBJ too is to call


def _name(key: object) -> str:
  """The name of a storage."""
  if not isinstance(key, str):
    raise ValueError(f"a storage that is named by a {type(key).__name__}")
  return key


def _key(key: Hashable) -> Hashable:
  """A key of a dictionary, which takes no time to hash. Tuples of tuples may take forever."""
  parts = key if isinstance(key, tuple) and len(key) < 16 else (key,)
  if not all(isinstance(part, str | int | float | bytes | None) for part in parts):
    raise ValueError(f"a {type(key).__name__} as a key")
  return key


class _Arrays:
  """Makes arrays of tensors, all in all not much more than the file is large."""

  def __init__(self, size: int):
    self._left = _MOST_SHARED * size
    self._made: dict[int, object] = {}

  def read(self, value: object) -> object:
    """The same with arrays, tuples as lists; what occurs twice is made once."""
    if isinstance(value, dict | list | tuple | _Tensor) and id(value) not in self._made:
      if isinstance(value, _Tensor):
        self._left -= value.nbytes
        if self._left < 0:
          raise ValueError(f"its tensors are over {_MOST_SHARED} times as large as the file")
        self._made[id(value)] = value.array()
      elif isinstance(value, dict):
        new: dict[Hashable, object] = {}
        self._made[id(value)] = new
        new.update((key, self.read(v)) for key, v in value.items())
      else:
        items: list[object] = []
        self._made[id(value)] = items
        items.extend(map(self.read, value))
    return self._made.get(id(value), value)
