"""Writes checkpoints as `torch.save` does, without PyTorch."""

import collections
import io
import pickle
import zipfile

import numpy as np

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "i4": "IntStorage"}


class Global:
  """A name that the pickle asks for; called with `arguments` unless they are None."""

  def __init__(self, module, name, arguments=None):
    self.module, self.name, self.arguments = module, name, arguments


class Storage:
  """The memory of an array."""

  def __init__(self, array, key):
    self.array, self.key = array, key


# In Python, as the one in C has to import what it names.
class Pickler(pickle._Pickler):
  """Keeps the arrays that it meets, by the keys of their storages."""

  def __init__(self, file):
    super().__init__(file, 2)
    self.storages = {}

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Global):
      self.write(f"c{obj.module}\n{obj.name}\n".encode())
      if obj.arguments is not None:
        self.save(obj.arguments)
        self.write(pickle.REDUCE)
    elif isinstance(obj, np.ndarray):
      key = next((k for k, a in self.storages.items() if a is obj), str(len(self.storages)))
      self.storages[key] = obj
      strides = tuple(np.cumprod((1, *obj.shape[:0:-1]))[::-1].tolist()) if obj.ndim else ()
      arguments = (Storage(obj, key), 0, obj.shape, strides, False, collections.OrderedDict())
      self.save(Global("torch._utils", "_rebuild_tensor_v2", arguments))
    elif isinstance(obj, Storage):
      kind = Global("torch", STORAGES[obj.array.dtype.str[1:]])
      self.save(("storage", kind, obj.key, "cpu", obj.array.size))
      self.write(pickle.BINPERSID)
    else:
      super().save(obj, save_persistent_id)


def pickled(content):
  """(the pickle, the arrays by the keys of their storages)."""
  file = io.BytesIO()
  pickler = Pickler(file)
  pickler.dump(content)
  return file.getvalue(), pickler.storages


def zipped(pickle_bytes, storages, folder="archive"):
  """The bytes of a file in the present format."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr(f"{folder}/data.pkl", pickle_bytes)
    for key, array in storages.items():
      archive.writestr(f"{folder}/data/{key}", np.ascontiguousarray(array).tobytes())
  return file.getvalue()


def legacy(content):
  """The bytes of a file in the format before PyTorch 1.6."""
  data, storages = pickled(content)
  parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
  parts += [data, pickle.dumps(list(storages), 2)]
  for array in storages.values():
    parts += [array.size.to_bytes(8, "little"), np.ascontiguousarray(array).tobytes()]
  return b"".join(parts)


def save_pth(content, path):
  """Writes a file in the present format."""
  path.write_bytes(zipped(*pickled(content)))
  return path
