"""Runs and data in an object store, here one in memory: what is there at any time can be used."""

import atexit
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import threading

import fsspec
import jax
import numpy as np
import pytest
from PIL import Image

import jseg
import jseg.config
from jseg import remote
from jseg.outputs import is_remote, try_folder
from jseg.types import InputError

RUN = "memory://bucket/runs/a"


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
  files = fsspec.filesystem("memory")
  files.store.clear()
  files.pseudo_dirs[:] = [""]
  monkeypatch.setattr(remote, "SECONDS", 0.05)
  yield files
  files.store.clear()


def contents(files, place=RUN):
  root = place.removeprefix("memory:/")
  return {name.removeprefix(f"{root}/"): bytes(files.cat(name)) for name in files.find(root)}


def write(folder, **files):
  for name, text in files.items():
    path = folder / name.replace("__", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
  ("place", "expected"),
  [
    ("gs://bucket/run", True),
    (pathlib.Path("s3://bucket/run"), True),
    ("runs/a", False),
    ("/gs/b", False),
    ("C:/runs", False),
    ("torchvision:resnet50", False),
  ],
)
def test_places_in_a_store_are_known(place, expected):
  assert is_remote(place) == expected


def test_what_is_written_is_in_the_store_and_comes_back(bucket, tmp_path):
  with remote.working_copy(RUN) as folder:
    assert list(contents(bucket)) == ["lock"]
    write(folder, config__json="1", checkpoints__10__model="ten", lock="mine", samples__1="x")
    write(folder, **{"checkpoints__20.orbax-checkpoint-tmp-1__model": "half"})
  found = contents(bucket)
  assert found.pop("checkpoints/complete/10")
  assert found == {"config/json": b"1", "checkpoints/10/model": b"ten", "samples/1": b"x"}
  with remote.working_copy(pathlib.Path(RUN)) as folder:
    assert (folder / "checkpoints/10/model").read_text() == "ten"
    assert not (folder / "checkpoints/complete").exists()
    # An older checkpoint goes when the next is complete; a log grows.
    (folder / "checkpoints/10/model").unlink()
    write(folder, checkpoints__20__model="twenty", samples__1="xy")
  found = contents(bucket)
  assert found.pop("checkpoints/complete/20")
  assert found == {"config/json": b"1", "checkpoints/20/model": b"twenty", "samples/1": b"xy"}
  with remote.working_copy(tmp_path) as folder:
    assert folder == tmp_path


def test_local_copies_go_with_their_process(bucket, tmp_path, monkeypatch):
  """At its end, or, if it was killed, when the next one starts."""
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  with remote.working_copy(RUN) as folder:
    write(folder, config__json="1")
    killed = folder.parent.with_name(folder.parent.name.replace(f"-{os.getpid()}-", "-999999999-"))
    shutil.copytree(folder.parent, killed)
    assert len(list(tmp_path.iterdir())) == 2
  assert list(tmp_path.iterdir()) == [killed]
  elsewhere = killed.with_name(killed.name.replace("jseg-", "jseg-other"))
  shutil.copytree(killed, elsewhere)
  os.utime(elsewhere, (0, 0))
  monkeypatch.setattr(atexit, "register", lambda remove, root, **_: ended.append(root))
  ended = []
  kept = pathlib.Path(remote.downloaded(RUN)).parent
  assert ended == [kept]
  assert sorted(tmp_path.iterdir()) == sorted([kept, elsewhere])


def test_a_checkpoint_that_is_being_removed_is_no_longer_complete(bucket):
  with remote.working_copy(RUN) as folder:
    write(folder, **{f"checkpoints__{step}__{name}": "x" for step in (10, 20) for name in "ab"})
  copy = remote._Copy(remote.Store.open(RUN), pathlib.Path(remote.downloaded(RUN)), None)
  copy.pull()
  (copy._folder / "checkpoints/10/a").unlink()
  copy.push()
  left = ("10/b", "20/a", "20/b", "complete/20")
  assert sorted(contents(bucket)) == [f"checkpoints/{name}" for name in left]
  # What was only not seen for a moment is complete again.
  write(copy._folder, checkpoints__10__a="x")
  copy.push()
  assert contents(bucket)["checkpoints/complete/10"]


@pytest.mark.parametrize("read", [remote.downloaded, remote.cached])
def test_what_is_removed_while_it_is_read_is_told(bucket, monkeypatch, read):
  with remote.working_copy(RUN) as folder:
    write(folder, metrics__jsonl="{}")
  names = remote.Store.versions

  def before(store):
    found = names(store)
    store.remove("metrics/jsonl")
    return found

  monkeypatch.setattr(remote.Store, "versions", before)
  with pytest.raises(InputError, match=r"metrics/jsonl was removed while .*; start the same"):
    read(RUN)


def test_folders_may_be_renamed_while_they_are_listed(bucket, monkeypatch, tmp_path):
  """As Orbax does when a checkpoint is complete."""
  scandir = os.scandir

  def late(place):
    if str(place).endswith(".orbax-checkpoint-tmp"):
      raise FileNotFoundError(place)
    return scandir(place)

  copy = remote._Copy(remote.Store.open(RUN), tmp_path, None)
  write(copy._folder, **{"checkpoints__20.orbax-checkpoint-tmp__a": "x", "metrics.jsonl": "{}"})
  monkeypatch.setattr(os, "scandir", late)
  copy.push()
  assert contents(bucket) == {"metrics.jsonl": b"{}"}


@pytest.mark.parametrize("writes", range(8))
def test_wherever_copying_ends_a_complete_checkpoint_is_left(bucket, monkeypatch, writes):
  with remote.working_copy(RUN) as folder:
    write(folder, **{"config.json": "1", "checkpoints__10__a": "old", "checkpoints__10__b": "old"})
  left = [writes]

  class Killed(BaseException):
    pass

  def dies(change):
    def wrapped(*arguments, **options):
      if not left[0]:
        raise Killed
      left[0] -= 1
      return change(*arguments, **options)

    return wrapped

  # The next session saves 20, keeps one checkpoint, and is killed after so many changes.
  store = remote.Store.open(RUN)
  copy = remote._Copy(store, pathlib.Path(remote.downloaded(RUN)), None)
  copy.pull()
  folder = copy._folder
  for name in "ab":
    (folder / "checkpoints/10" / name).unlink()
  write(folder, checkpoints__20__a="new", checkpoints__20__b="new")
  monkeypatch.setattr(remote.Store, "write", dies(remote.Store.write))
  monkeypatch.setattr(remote.Store, "remove", dies(remote.Store.remove))
  with contextlib.suppress(Killed):
    copy.push()
  found = pathlib.Path(remote.downloaded(RUN)) / "checkpoints"
  steps = {step.name: sorted(f.read_text() for f in step.iterdir()) for step in found.iterdir()}
  assert steps
  assert all(texts in (["old"] * 2, ["new"] * 2) for texts in steps.values()), steps


def test_one_process_at_a_time_and_a_dead_one_not_for_ever(bucket):
  lock = f"{RUN}/lock".removeprefix("memory:/")
  with (
    remote.working_copy(RUN),
    pytest.raises(InputError, match=r"a is in use by process \d+ on .*; wait for it, stop it"),
    remote.working_copy(RUN),
  ):
    pass
  assert contents(bucket) == {}
  here = json.loads(remote._Lock(remote.Store.open(RUN))._content())
  # Of this machine, with a number that no process has; then of another, silent.
  for holder in ({**here, "pid": 2**22 + 1}, {**here, "host": "elsewhere"}):
    bucket.pipe_file(lock, json.dumps(holder).encode())
    with remote.working_copy(RUN):
      assert json.loads(bucket.cat(lock))["token"] != here["token"]
  # One of another machine that gives signs of life.
  ended = threading.Event()

  def live():
    beats = 0
    while not ended.wait(0.01):
      beats += 1
      bucket.pipe_file(lock, json.dumps({**here, "host": "elsewhere", "beats": beats}).encode())

  bucket.pipe_file(lock, json.dumps({**here, "host": "elsewhere"}).encode())
  thread = threading.Thread(target=live)
  thread.start()
  try:
    with pytest.raises(InputError, match="in use by process"), remote.working_copy(RUN):
      pass
  finally:
    ended.set()
    thread.join()


def test_of_two_that_find_a_dead_lock_one_gets_it(bucket, monkeypatch):
  first, second = (remote._Lock(remote.Store.open(RUN)) for _ in range(2))
  dead = {**json.loads(first._content()), "token": "dead", "pid": 2**22 + 1}
  bucket.pipe_file(f"{RUN}/lock".removeprefix("memory:/"), json.dumps(dead).encode())
  judge = remote._Lock._is_gone

  def judge_slowly(lock, holder):
    gone = judge(lock, holder)
    if lock is second and holder["token"] == "dead":
      assert first.take() is None
    return gone

  monkeypatch.setattr(remote._Lock, "_is_gone", judge_slowly)
  assert second.take().pid == os.getpid()
  assert first._is_own()


def test_who_has_lost_the_lock_writes_nothing_more(bucket):
  lock = f"{RUN}/lock".removeprefix("memory:/")
  message = "was taken over by another process: nothing more"
  with contextlib.ExitStack() as stack:
    stack.enter_context(pytest.raises(InputError, match=message))
    folder = stack.enter_context(remote.working_copy(RUN))
    bucket.pipe_file(lock, b'{"token": "other"}')
    write(folder, config__json="mine")
  assert contents(bucket) == {"lock": b'{"token": "other"}'}


def test_what_fails_is_told_with_its_place(bucket, monkeypatch):
  def fails(*_, **__):
    raise ConnectionError("no route to host")

  monkeypatch.setattr(bucket, "find", fails)
  with pytest.raises(InputError, match=r"memory://bucket/runs/a/ can't be listed \(no route"):
    remote.downloaded(RUN)
  with pytest.raises(InputError, match=r"nothing://a/b: .*; gs:// needs the package gcsfs, s3://"):
    remote.downloaded("nothing://a/b")


def test_only_runs_and_data_can_be_in_a_store(bucket, tmp_path):
  with pytest.raises(InputError, match="there is no run directory memory://bucket/runs/a"):
    jseg.Run.open(RUN)
  with pytest.raises(InputError, match="gs:/b/out is in an object store, where only a run's"):
    try_folder(pathlib.Path("gs://b/out"), "")
  config = jseg.config.default("unet", widths=(2, 4))
  config.data.data_dir = "gs://b/prepared"
  with pytest.raises(InputError, match=r"gs://b/prepared .*keep data\.data_dir on a disk"):
    jseg.config.load_dataset(config)


def test_data_are_copied_once_and_brought_up_to_date(bucket, tmp_path, monkeypatch):
  monkeypatch.setenv("JSEG_CACHE", str(tmp_path / "cache"))
  place = "memory://bucket/data"
  write(tmp_path / "data", **{"classes.json": json.dumps({"classes": ["a", "b"]})})
  for kind in ("images", "masks"):
    (tmp_path / "data" / kind).mkdir()
    for i in range(5):
      pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
      Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{i}.png")
  bucket.put(str(tmp_path / "data"), "/bucket/data", recursive=True)
  config = jseg.config.default("unet", widths=(2, 4))
  config.data.name, config.data.root = "folder", place
  config.data.data_dir = str(tmp_path / "prepared")
  dataset = jseg.config.load_dataset(config)
  assert dataset.splits == {"train": 4, "val": 1}
  read = []
  cat = bucket.cat_file
  monkeypatch.setattr(bucket, "cat_file", lambda path, **o: read.append(path) or cat(path, **o))
  bucket.pipe_file("/bucket/data/classes.json", b'{"classes": ["a", "bird"]}')
  for kind in ("images", "masks"):
    bucket.rm_file(f"/bucket/data/{kind}/4.png")
  dataset = jseg.config.load_dataset(config)
  assert read == ["/bucket/data/classes.json"]
  assert dataset.classes.names == ("a", "bird")
  assert sum(dataset.splits.values()) == 4
  with pytest.raises(InputError, match="memory://bucket/none holds no files"):
    remote.cached("memory://bucket/none")


def test_a_run_in_a_store_is_the_run_of_a_folder(bucket, tmp_path):
  config = jseg.config.default("unet", widths=(2, 4))
  config.data.options = {"size": 32, "train": 4, "val": 2, "test": 0}
  config.data.size, config.data.batch_size = (32, 32), 4
  config.data.data_dir = str(tmp_path / "prepared")
  config.steps, config.eval_every, config.checkpoint_every, config.samples = 4, 2, 2, 1
  config.compilation_cache = ""
  jseg.train(config, tmp_path / "run")

  class Stopped(Exception):
    pass

  def stop(step, _):
    if step == 4:
      raise Stopped

  with pytest.raises(Stopped):
    jseg.train(config, RUN, on_evaluate=stop)
  assert "checkpoints/complete/2" in contents(bucket)
  assert "lock" not in contents(bucket)
  jseg.train(config, RUN)  # goes on from step 2
  ours, local = (jseg.Run.open(place) for place in (RUN, tmp_path / "run"))
  (step, found), (_, expected) = ours.restore("latest"), local.restore("latest")
  assert step == 4
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  result = jseg.evaluate(RUN)
  assert json.loads(contents(bucket)["evaluation/val.json"])["miou"] == result.scores.primary
  image = np.zeros((20, 30, 3), np.uint8)
  first, second = (jseg.Segmenter.from_run(place)(image) for place in (RUN, tmp_path / "run"))
  np.testing.assert_array_equal(first.probabilities, second.probabilities)
