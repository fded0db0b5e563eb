"""Half an entry is removed, once it can't be growing any more; whole ones stay."""

import os
import time
import zlib

from jseg import compilation_cache


def test_half_an_entry_is_removed(tmp_path):
  whole = zlib.compress(os.urandom(5000))
  long_ago = time.time() - 100
  entries = {"whole": whole, "half": whole[:3000], "empty": b"", "growing": whole[:2000]}
  for name, content in entries.items():
    path = tmp_path / f"{name}-cache"
    path.write_bytes(content)
    if name != "growing":
      os.utime(path, (long_ago, long_ago))
  (tmp_path / "notes.txt").write_text("mine")

  compilation_cache.sweep(tmp_path)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == [".jseg-checked", "growing-cache", "notes.txt", "whole-cache"]

  # What was whole isn't read again; what was growing is looked at when it had its time.
  (tmp_path / "whole-cache").write_bytes(b"")
  os.utime(tmp_path / "whole-cache", (long_ago, long_ago))
  os.utime(tmp_path / "growing-cache", (time.time() - 60.5,) * 2)
  os.utime(tmp_path / ".jseg-checked", (time.time() - 90,) * 2)
  compilation_cache.sweep(tmp_path)
  assert (tmp_path / "whole-cache").exists()
  assert not (tmp_path / "growing-cache").exists()


def test_a_folder_that_is_not_there(tmp_path):
  compilation_cache.sweep(tmp_path / "nowhere")
