"""Files that are made, or damaged, to lead astray: an InputError, soon, within little memory."""

import json
import pickle
import re
import struct
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from helpers.fuzz import ROUNDS, damaged
from helpers.pth import Global, legacy, pickled, save_pth, zipped
from safetensors.numpy import save

from jseg.types import InputError
from jseg.weights import pth, read_tensors

SMALL = {
  "epoch": 3,
  "state_dict": {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3),
    "conv.bias": np.array([1.5, 2], np.float64),
    "steps": np.array(7),
  },
  "lrs": [0.1, 0.01],
}
MIB = 1 << 20


def refused(path, content):
  """The message about a file, which may not take more than 64 MiB beside what it holds."""
  path.write_bytes(content)
  tracemalloc.start()
  with pytest.raises(InputError, match=re.escape(path.name)) as error:
    read_tensors(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 64 * MIB + 2 * len(content)
  assert len(str(error.value)) < 1000
  return str(error.value)


def laughs(levels, opcodes):
  """A list (or tuple) of ten of a list of ten of a list ..., in a few bytes for each."""
  start, end = opcodes
  content = b"\x80\x02" + start + end
  for level in range(levels):
    content += b"q" + bytes([level]) + b"0" + start + (b"h" + bytes([level])) * 10 + end
  return content


@pytest.mark.parametrize("opcodes", [(b"(", b"l"), (b"(", b"t")])
def test_a_billion_laughs(tmp_path, opcodes):
  content = laughs(30, opcodes)
  assert len(content) < 900
  assert "no weights by name" in refused(tmp_path / "x.pth", zipped(content + b".", {}))
  # As a key it would be hashed, through all that it holds.
  as_key = b"\x80\x02}" + content[2:] + b"Ns."
  message = refused(tmp_path / "x.pth", zipped(as_key, {}))
  assert re.search("a (list|tuple) as a key", message)


@pytest.mark.parametrize("form", ["reference", "storages"])
def test_laughs_where_a_name_belongs(tmp_path, form):
  """What is compared, hashed or shown."""
  content = laughs(30, (b"(", b"t"))
  storage = b"(" + content[2:] + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000N"
  if form == "reference":
    data = zipped(b"\x80\x02" + storage + b"K\x01tQ.", {})
    assert "unknown reference tuple" in refused(tmp_path / "x.pth", data)
  else:
    parts = legacy({})
    end = len(pickle.dumps([], 2))
    message = refused(tmp_path / "x.pth", parts[:-end] + content[:2] + b"]" + content[2:] + b"a.")
    assert "a storage that is named by a tuple" in message


def test_calls_with_many_arguments(tmp_path):
  """Each would copy them."""
  start = b"\x80\x02(" + b"N" * 1000 + b"tq\x00ctorch\ndevice\nq\x01"
  message = refused(tmp_path / "x.pth", zipped(start + b"h\x01h\x00R0" * 100 + b".", {}))
  assert "a call with something else than a few arguments" in message


def test_a_search_through_many_dictionaries_ends(tmp_path):
  array = np.ones(1, np.float32)
  inner = {f"a{i // 50}.b{i // 5}.c{i}.d.e.weight": array for i in range(300)}
  content = {f"k{i}": {**inner, "x": array} for i in range(6)}
  path = save_pth({"log": [0.5] * 5000, "more": {"model": content}}, tmp_path / "x.pth")
  assert len(read_tensors(path)) == 301


def test_what_holds_itself(tmp_path):
  itself = b"\x80\x02]q\x00h\x00a."
  assert "no weights by name" in refused(tmp_path / "x.pth", zipped(itself, {}))
  deep = b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."
  assert "recursion" in refused(tmp_path / "x.pth", zipped(deep, {}))


@pytest.mark.parametrize(
  "content",
  [
    b"}r\xff\xff\xff\x7f.",  # LONG_BINPUT
    b"\x96" + (1 << 40).to_bytes(8, "little") + b".",  # BYTEARRAY8
    b"\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",  # BINBYTES8
    b"X\xff\xff\xff\x7fx.",  # BINUNICODE
    b"\x95" + (1 << 60).to_bytes(8, "little") + b"}.",  # FRAME
    b"\x8b\xff\xff\xff\x7fx.",  # LONG4
    b"}]2222222222.",  # DUP
    b"I" + b"9" * 5000 + b"\n.",
    b"ccollections\nOrderedDict\n" + b"x" * 1000,
    b"]" + b"c" + b"a" * 100_000 + b"\nb\n.",
    b"\x8f.",  # EMPTY_SET
  ],
)
@pytest.mark.parametrize("wrap", [lambda c: zipped(c, {}), lambda c: legacy({})[:-30] + c])
def test_instructions_that_reserve_or_mislead(tmp_path, content, wrap):
  refused(tmp_path / "x.pth", wrap(b"\x80\x02" + content))


def test_a_memo_of_any_number_is_a_number(tmp_path):
  content, storages = pickled(SMALL)
  place = content.index(b"q\x00")
  content = content[:place] + b"r\xff\xff\xff\x7f" + content[place + 2 :]
  content = content.replace(b"h\x00", b"j\xff\xff\xff\x7f")
  path = tmp_path / "x.pth"
  path.write_bytes(zipped(content, storages))
  assert read_tensors(path)["conv.weight"].shape == (2, 1, 2, 3)


@pytest.mark.parametrize(
  "name", ["BFloat16Storage", "FloatStorage", "Size", "bfloat16", "float32", "device"]
)
def test_nothing_that_is_named_can_be_changed(tmp_path, name):
  """A dtype takes its state from a pickle, and there is one bfloat16 for all."""
  state = {"__call__": 1, "dtype": 2, "str": "<f8"}
  for change in (state, (None, state), (3, "|", None, None, None, -1, -1, 0)):
    named = pickle.dumps(change, 2)[2:-1]
    content = b"\x80\x02}X\x01\x00\x00\x00wctorch\n" + name.encode() + b"\n" + named + b"bs."
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(content, {}))
    with pytest.raises(
      InputError, match=r"x.pth (is damaged \(ValueError: it changes|holds no we)"
    ):
      read_tensors(path)
  array = np.array([1.5, 2], ml_dtypes.bfloat16)
  assert array.astype(np.float32).tolist() == [1.5, 2]
  assert array.dtype.name == "bfloat16"
  assert array.dtype.byteorder == "="
  assert save_and_read(tmp_path)["conv.bias"].tolist() == [1.5, 2]


def save_and_read(tmp_path):
  return read_tensors(save_pth(SMALL, tmp_path / "small.pth"))


def test_a_dictionary_keeps_its_methods(tmp_path):
  ordered = Global("collections", "OrderedDict", ([["w", np.ones(2, np.float32)]],))
  data, storages = pickled(ordered)
  state = pickle.dumps({"items": 3, "keys": 4, "_metadata": {}}, 2)[2:-1]
  (tmp_path / "x.pth").write_bytes(zipped(data[:-1] + state + b"b.", storages))
  np.testing.assert_array_equal(read_tensors(tmp_path / "x.pth")["w"], [1, 1])


def test_a_pickle_is_no_place_for_weights(tmp_path, monkeypatch):
  assert pth._MOST_PICKLE == 4 << 20
  monkeypatch.setattr(pth, "_MOST_PICKLE", 1 << 18)  # Python takes a second for a million steps
  content = b"\x80\x02" + b"]0" * (1 << 18) + b"}."
  message = refused(tmp_path / "x.pth", zipped(content, {}))
  assert "pickle is longer than 256 KiB" in message


def overlapping(entries, last):
  """A zip file in which each entry holds all that follow."""
  local, central = b"", b""
  names = [name.encode() for name in entries]
  for name in reversed(names):
    content = last + local if name == names[-1] else local
    fields = (20, 0, 0, 0, 0, zlib.crc32(content), len(content), len(content), len(name), 0)
    local = b"PK\3\4" + struct.pack("<HHHHHIIIHH", *fields) + name + content
  for i, name in enumerate(names):
    offset = sum(30 + len(n) for n in names[:i])
    content = local[offset + 30 + len(name) :]
    fields = (20, 20, 0, 0, 0, 0, zlib.crc32(content), len(content), len(content), len(name))
    central += b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", *fields, 0, 0, 0, 0, 0, offset) + name
  end = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(central), len(local), 0)
  return local + central + b"PK\5\6" + end


def test_entries_that_overlap_are_refused(tmp_path):
  """A hundred storages that are all most of the file."""
  arrays = {f"w{i}": np.zeros(50_000, np.float32) for i in range(100)}
  data, _ = pickled(arrays)
  names = [f"archive/data/{i}" for i in range(100)]
  content = overlapping([*names, "archive/data.pkl"], data + bytes(300_000))
  assert len(content) < 400_000
  message = refused(tmp_path / "x.pth", content)
  assert re.search("reaches beyond the file|Overlapped entries", message)


def test_tensors_that_share_a_storage_a_thousand_times(tmp_path):
  array = np.ones(10_000, np.float32)
  path = save_pth({f"w{i}": array for i in range(5)}, tmp_path / "tied.pth")
  assert len(read_tensors(path)) == 5
  path = save_pth({f"w{i}": array for i in range(1000)}, tmp_path / "x.pth")
  assert "over 16 times as large as the file" in refused(path, path.read_bytes())


@pytest.mark.parametrize(
  ("size", "message"),
  [
    (13, "buffer is smaller"),
    (1 << 40, "buffer is smaller"),
    (-1, "place isn't given by whole numbers"),
    (10**30, "place isn't given by whole numbers"),
    (3.0, "place isn't given by whole numbers"),
  ],
)
def test_a_storage_that_reaches_beyond_the_file(tmp_path, size, message):
  storage = ("storage", Global("torch", "FloatStorage"), "0", "cpu", size)
  data, _ = pickled([storage])
  data = data.replace(b"]", b"}X\x01\x00\x00\x00w").replace(b"a.", b"")
  call = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
  inner = pickled(storage)[0]
  inner = inner[2:-1] + b"Q"
  content = call + inner + b"K\x00(K\x02t(K\x01t\x89}tRs."
  assert message in refused(tmp_path / "x.pth", zipped(content, {"0": np.ones(12, np.float32)}))


def test_tensors_of_8_bit_floats(tmp_path):
  header = {"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
  data = json.dumps(header).encode()
  content = len(data).to_bytes(8, "little") + data + bytes(4)
  message = refused(tmp_path / "x.safetensors", content)
  assert "tensors of a type that isn't read" in message
  assert "save them as 32-bit floats" in message


@pytest.mark.parametrize(
  "header",
  [
    b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1600]}}',
    b'{"w":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,16]}}',
    b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
    b'{"w":' + b"[" * 100_000,
    b'{"w":{"dtype":"F3","shape":[4],"data_offsets":[0,16]}}',
    b"{}" + b" " * 100,
  ],
)
def test_headers_that_mislead(tmp_path, header):
  content = len(header).to_bytes(8, "little") + header + bytes(16)
  refused(tmp_path / "x.safetensors", content)
  refused(tmp_path / "x.safetensors", (1 << 60).to_bytes(8, "little") + content[8:])


FORMS = {
  "zip.pth": lambda rng: damaged(zipped(*pickled(SMALL)), rng),
  # Damaged within, so that no checksum tells.
  "pickle.pth": lambda rng: zipped(damaged(pickled(SMALL)[0], rng), pickled(SMALL)[1]),
  "legacy.pth": lambda rng: damaged(legacy(SMALL), rng),
  "x.safetensors": lambda rng: damaged(save(SMALL["state_dict"]), rng),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_damaged_is_read_or_refused(tmp_path, form):
  rng = np.random.default_rng(0)
  outcomes = [0, 0]
  for _ in range(ROUNDS):
    (tmp_path / form).write_bytes(FORMS[form](rng))
    try:
      tensors = read_tensors(tmp_path / form)
      with np.errstate(all="ignore"):  # numbers may be any
        outcomes[0] += all(isinstance(t.sum(), np.generic) for t in tensors.values())
    except InputError:
      outcomes[1] += 1
  assert sum(outcomes) == ROUNDS
  assert outcomes[1] > ROUNDS / 4
