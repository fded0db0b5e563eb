"""What a published data set is, and how the archive that it comes in is read."""

import contextlib
import dataclasses
import hashlib
import io
import pathlib
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from jseg.console import ERRORS, progress
from jseg.data import ClassInfo
from jseg.types import InputError


class Archive:
  """A .zip or .tar file that is read by name; nothing is unpacked.

  Args:
    path: the file.
    inside: folder of the archive that names are relative to, "" for all of it.

  Raises:
    InputError: it is neither, or damaged.
  """

  def __init__(self, path: pathlib.Path, inside: str = ""):
    self._path, self._inside = path, inside
    self._seen: dict[str, str] = {}
    self._file: zipfile.ZipFile | tarfile.TarFile
    with contextlib.ExitStack() as closing:
      try:
        if zipfile.is_zipfile(path):
          self._file = closing.enter_context(zipfile.ZipFile(path))
          names = self._file.namelist()
        else:
          self._file = closing.enter_context(tarfile.open(path, "r:"))
          names = [member.name for member in self._file.getmembers() if member.isfile()]
      except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise self._damaged(error) from None
      self._closing = closing.pop_all()
    self._names = sorted(n.removeprefix(inside) for n in names if n.startswith(inside))

  def __enter__(self) -> "Archive":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self._closing.close()

  def names(self, start: str, suffix: str) -> list[str]:
    """Returns the sorted names of files that start and end so."""
    return [name for name in self._names if name.startswith(start) and name.endswith(suffix)]

  def read(self, name: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
      InputError: it isn't there, or damaged.
    """
    try:
      if isinstance(self._file, zipfile.ZipFile):
        data = self._file.read(self._inside + name)
      else:
        file = self._file.extractfile(self._inside + name)
        data = file.read() if file else b""
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
      raise self._damaged(error) from None
    self._seen[name] = hashlib.sha256(data).hexdigest()
    return data

  def image(self, name: str) -> np.ndarray:
    """Returns the samples of a picture as they are stored.

    Raises:
      InputError: it isn't there, or damaged.
    """
    try:
      return np.asarray(Image.open(io.BytesIO(self.read(name))))
    except OSError as error:
      raise self._damaged(error) from None

  def check(self, content: str) -> None:
    """Compares all that was read with what it was when the data set's entry was written.

    Args:
      content: SHA-256 over names and checksums of the files; "" if it isn't known.

    Raises:
      InputError: it is something else.
    """
    if content and content != (digest := self.digest()):
      raise InputError(
        f"{self._path}: its {len(self._seen)} files aren't those that were published when this "
        f"version was written (SHA-256 {digest[:12]}, not {content[:12]}); remove the file to "
        "download it anew; if that doesn't help, its publisher has changed it"
      )

  def digest(self) -> str:
    """Returns the SHA-256 over names and checksums of all files that were read."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self._seen.items()))
    return hashlib.sha256(lines.encode()).hexdigest()

  def _damaged(self, error: Exception) -> InputError:
    return InputError(
      f"{self._path} can't be read ({error}); remove it to download it anew, or put the whole file "
      "there"
    )


@dataclasses.dataclass(frozen=True)
class PublishedSet:
  """A data set that others publish.

  Attributes:
    title: what is in it.
    url: where the archive is.
    megabytes: size of the archive.
    license: what its publisher allows.
    cite: what to cite.
    recipe: configuration that trains on it, and data set that it is read as if the recipe's isn't.
    convert: writes it into a folder.
    inside: folder of the archive that has it, "" for all.
    sha256: SHA-256 of the archive, "" for one that is packed anew for each who asks.
    content: SHA-256 over the files that are used, "" where it isn't known (`Archive.check`).
    note: what else is to be known of it.
  """

  title: str
  url: str
  megabytes: int
  license: str
  cite: str
  recipe: str
  convert: Callable[[Archive, pathlib.Path], None]
  inside: str = ""
  sha256: str = ""
  content: str = ""
  note: str = ""


def github(owner: str, name: str, commit: str) -> dict[str, str]:
  """The archive of a repository at a commit: arguments `url` and `inside` of `PublishedSet`."""
  url = f"https://github.com/{owner}/{name}/archive/{commit}.zip"
  return {"url": url, "inside": f"{name}-{commit}/"}


def make_folders(out: pathlib.Path, splits: Iterable[str], classes: ClassInfo) -> None:
  """Makes the folders of a data set, and its classes.json."""
  for split in splits:
    for kind in ("images", "masks"):
      (out / split / kind).mkdir(parents=True)
  classes.save(out / "classes.json")


def save_pair(
  folder: pathlib.Path, image_name: str, image: bytes, mask: bytes, mask_name: str = ""
) -> None:
  """Writes an image and its mask.

  Args:
    folder: folder of the split.
    image_name: name of the image's file.
    image: the image's file.
    mask: the mask's file.
    mask_name: name of the mask's file; "" is that of the image.
  """
  (folder / "images" / image_name).write_bytes(image)
  (folder / "masks" / (mask_name or image_name)).write_bytes(mask)


def png(array: np.ndarray) -> bytes:
  """Returns an image, or labels or ids below 256, as a PNG of 8 bits."""
  file = io.BytesIO()
  Image.fromarray(array.astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


def told(items: Sequence[str]) -> Iterator[str]:
  """Yields items behind a progress bar."""
  yield from progress(items, "writing", len(items), ERRORS)


def by_md5(names: Iterable[str]) -> list[str]:
  """Sorts names by their MD5: an order that anyone can repeat, and that means nothing."""
  return sorted(names, key=lambda n: hashlib.md5(n.encode(), usedforsecurity=False).hexdigest())
