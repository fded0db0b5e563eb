"""PyTorch's checkpoints: what is in them, and that nothing in them is executed."""

import contextlib
import os
import pickle
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from helpers.golden import FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.types import InputError
from jseg.weights import read_tensors

ZIP, LEGACY = FOLDER / "checkpoint.pth", FOLDER / "checkpoint_legacy.pth"
BOTH = pytest.mark.parametrize("source", [ZIP, LEGACY], ids=["zip", "legacy"])
MAGIC = 0x1950A86A20F9469CFC6C


@BOTH
def test_what_torch_saved(source):
  """See `save_checkpoints` of tools/golden_pytorch.py."""
  kernel = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3) / 8
  expected = {
    "kernel": kernel,
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "part": kernel[1, :, ::2],
    "parameter": np.float32([1.5, -2]),
    "half": np.float16([0.1, 65504]),
    "bfloat16": np.array([0.1, 1e30], ml_dtypes.bfloat16),
    "steps": np.array(7),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
  }
  tensors = read_tensors(source)
  assert list(tensors) == list(expected)  # neither "module." nor what surrounds them
  for name, array in expected.items():
    assert tensors[name].dtype == array.dtype
    np.testing.assert_array_equal(tensors[name], array)


def global_(module, name):
  return f"c{module}\n{name}\n".encode()


def legacy(content):
  """A file in the format before PyTorch 1.6, around a pickle of the content."""
  return b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, {})) + content


def rewrapped(content):
  """A zip file of PyTorch around another pickle."""
  path_bytes = {}
  with zipfile.ZipFile(ZIP) as archive:
    path_bytes = {name: archive.read(name) for name in archive.namelist()}
  (name,) = (n for n in path_bytes if n.endswith("data.pkl"))
  return path_bytes | {name: content}


def write(path, format_, content):
  if format_ == "legacy":
    path.write_bytes(legacy(content))
  else:
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in rewrapped(content).items():
        archive.writestr(name, data)
  return path


class Evil:
  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


@pytest.mark.parametrize("format_", ["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"state_dict": {"w": 1}, "x": e}])
def test_code_is_refused_before_it_runs(tmp_path, format_, wrap):
  target = tmp_path / "executed"
  content = pickle.dumps(wrap(Evil(f"touch {target}")), 2)
  assert pickle.loads(content) is not None
  assert target.exists()  # so it would have run
  target.unlink()
  path = write(tmp_path / "evil.pth", format_, content)
  message = r"evil.pth asks for (posix|nt).system, which could run anything; only tensors are read"
  with pytest.raises(InputError, match=message):
    read_tensors(path)
  assert not target.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    *(("builtins", "eval"), ("builtins", "getattr"), ("__builtin__", "exec"), ("torch", "load")),
    *(("functools", "partial"), ("torch.hub", "load"), ("collections", "namedtuple")),
    *(("torch._utils", "__builtins__"), ("argparse", "Namespace.__init__"), ("numpy", "load")),
  ],
)
def test_nothing_else_can_be_named(tmp_path, module, name):
  path = write(tmp_path / "x.pth", "legacy", b"\x80\x02" + global_(module, name) + b".")
  with pytest.raises(InputError, match=re.escape(f"x.pth asks for {module}.{name}, which could")):
    read_tensors(path)
  # As a string from the stack, in protocol 4.
  packed = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
  path = write(tmp_path / "x.pth", "zip", b"\x80\x04" + packed + b"\x93.")
  with pytest.raises(InputError, match=re.escape(f"x.pth asks for {module}.{name}, which could")):
    read_tensors(path)


def test_a_whole_model_is_refused(tmp_path):
  path = write(tmp_path / "m.pth", "zip", b"\x80\x02" + global_("models.net", "Net") + b")\x81.")
  message = (
    r"m.pth asks for models.net.Net.*save the weights alone: torch.save\(model.state_dict\(\)"
  )
  with pytest.raises(InputError, match=message):
    read_tensors(path)


def tensor_pickle(offset, shape, strides, size=54):
  """A state_dict of one tensor in the storage "0", by opcodes."""

  def integers(numbers):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"

  storage = b"(X\x07\x00\x00\x00storage" + global_("torch", "FloatStorage")
  storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ" + struct.pack("<i", size) + b"tQ"
  call = global_("torch._utils", "_rebuild_tensor_v2") + b"(" + storage
  call += b"J" + struct.pack("<i", offset) + integers(shape) + integers(strides) + b"\x89}tR"
  return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."


def test_a_tensor_made_by_hand(tmp_path):
  path = write(tmp_path / "w.pth", "zip", tensor_pickle(1, (2, 2), (27, 9)))
  np.testing.assert_array_equal(read_tensors(path)["w"], np.float32([[1, 10], [28, 37]]) / 8)


@pytest.mark.parametrize(
  ("offset", "shape", "strides", "size"),
  [
    (0, (55,), (1,), 54),
    (53, (2,), (1,), 54),
    (54, (1,), (1,), 54),
    (0, (2, 2), (1, 53), 54),
    (0, (3,), (-1,), 54),
    (-1, (3,), (1,), 54),
    (0, (1 << 30, 1 << 30), (0, 0), 54),
    (0, (2, 2), (1,), 54),
    (0, (54,), (1,), 5400),
  ],
)
def test_no_tensor_reaches_beyond_its_storage(tmp_path, offset, shape, strides, size):
  path = write(tmp_path / "w.pth", "zip", tensor_pickle(offset, shape, strides, size))
  with pytest.raises(
    InputError, match=r"w.pth is (damaged|cut short or damaged) \(.*; get it again"
  ):
    read_tensors(path)


@BOTH
def test_cut_short_anywhere(source, tmp_path):
  data = source.read_bytes()
  path = tmp_path / "half.pth"
  for size in (9, 20, 100, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:size])
    with pytest.raises(InputError, match=r"half.pth is (cut short|damaged|no PyTorch)"):
      read_tensors(path)


@BOTH
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_wrong_byte_never_crashes(source, tmp_path_factory, place, byte):
  data = bytearray(source.read_bytes())
  data[int(place * len(data))] = byte
  path = tmp_path_factory.mktemp("byte") / "x.pth"
  path.write_bytes(data)
  with contextlib.suppress(InputError):
    assert all(isinstance(t, np.ndarray) for t in read_tensors(path).values())


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("empty.pth", b"", r"empty.pth is no PyTorch checkpoint but empty; get it again"),
    ("page.pth", b"\n<!DOCTYPE html><html>", r"page.pth is no PyTorch checkpoint but a web page"),
    ("noise.pt", b"\x00\xff" * 99, r"noise.pt is no PyTorch checkpoint but something else"),
    ("pickle.pth", pickle.dumps({"a": 1}), r"pickle.pth is no PyTorch checkpoint"),
    ("folder.pth", None, r"folder.pth is a folder; give a file of weights"),
    (
      "optimizer.pth",
      legacy(pickle.dumps({"state": {}, "param_groups": []}, 2) + pickle.dumps([], 2)),
      r"optimizer.pth holds the state of an optimizer; save the network's",
    ),
    (
      "number.pth",
      legacy(pickle.dumps(3, 2) + pickle.dumps([], 2)),
      r"number.pth holds no weights by name; save the network's: torch.save\(model.state_dict\(\)",
    ),
  ],
)
def test_other_files(tmp_path, name, content, message):
  if content is None:
    (tmp_path / name).mkdir()
  else:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    read_tensors(tmp_path / name)


def test_a_zip_of_something_else(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
    archive.writestr("photo.txt", "x")
  with pytest.raises(InputError, match=r"a.pth is cut short or damaged \(no data.pkl in it\)"):
    read_tensors(tmp_path / "a.pth")
  with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("b/data.pkl", b"\x00" * 1000)
  with pytest.raises(
    InputError, match=r"b.pth is cut short or damaged \(PyTorch compresses nothing"
  ):
    read_tensors(tmp_path / "b.pth")
