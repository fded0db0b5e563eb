"""Published data sets: one file each, and one line each in the table below.

Each is downloaded from where it is published and becomes a folder that the trainer reads, with the
splits that this project's numbers are measured on.
"""

import contextlib
import importlib
import pathlib
import shutil
import tempfile

from jseg import download
from jseg.datasets.base import Archive, PublishedSet
from jseg.outputs import try_folder, unwritable
from jseg.types import InputError

DATASETS = {
  "camvid": "jseg.datasets.camvid:CAMVID",
  "isbi2012": "jseg.datasets.isbi2012:ISBI2012",
  "dsb2018": "jseg.datasets.dsb2018:DSB2018",
  "hippocampus3d": "jseg.datasets.hippocampus3d:HIPPOCAMPUS3D",
  "penn_fudan": "jseg.datasets.penn_fudan:PENN_FUDAN",
  "voc2012": "jseg.datasets.voc2012:VOC2012",
  "voc2012_subset": "jseg.datasets.voc2012:VOC2012_SUBSET",
}

__all__ = ["DATASETS", "PublishedSet", "find_dataset", "get_dataset"]


def find_dataset(name: str) -> PublishedSet:
  """Returns what is known of a published data set.

  Raises:
    InputError: there is none of that name.
  """
  if name not in DATASETS:
    raise InputError(f"published data set {name!r} is unknown; choose from {', '.join(DATASETS)}")
  module, _, attribute = DATASETS[name].partition(":")
  return getattr(importlib.import_module(module), attribute)


def get_dataset(name: str, out: pathlib.Path) -> PublishedSet:
  """Downloads a published data set and writes it as a folder, whole or not at all.

  The archive is kept where downloads are (`jseg.download.cache`).

  Args:
    name: a name in `DATASETS`.
    out: the folder to make.

  Returns:
    What is known of the data set.

  Raises:
    InputError: `out` is there already, or the data can't be downloaded, isn't what it was when its
      entry was written, or can't be written.
  """
  dataset = find_dataset(name)
  if out.is_file() or (out.is_dir() and any(out.iterdir())):
    raise InputError(f"{out} is there already; name another folder with --out, or remove it")
  try_folder(out.parent, "name another folder with --out")
  _check_room(dataset, out)
  path = download.fetch(dataset.url, archive_place(name), sha256=dataset.sha256)
  part = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
  try:
    with Archive(path, dataset.inside) as archive:
      dataset.convert(archive, part)
      archive.check(dataset.content)
    with contextlib.suppress(FileNotFoundError):
      out.rmdir()  # an empty one
    part.chmod(0o755)
    part.rename(out)
  except OSError as error:
    raise unwritable(out, error, "make room, or name another folder with --out") from None
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return dataset


def archive_place(name: str) -> pathlib.Path:
  """Returns where the archive of a published data set is kept."""
  url = find_dataset(name).url
  return download.cache("data", _folder(url), url.rpartition("/")[2])


def _folder(url: str) -> str:
  """Archives of GitHub are all called COMMIT.zip; their repository's name tells them apart."""
  return url.split("/")[-3] if "/archive/" in url else url.split("/")[2]


def _check_room(dataset: PublishedSet, out: pathlib.Path) -> None:
  needed, free = 2 * dataset.megabytes, shutil.disk_usage(out.parent).free >> 20
  if free < needed:
    raise InputError(
      f"{out.parent} has {free:,} MB left, and {dataset.title} needs about {needed:,}; make room, "
      "or name another folder with --out"
    )
