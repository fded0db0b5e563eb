"""Downloads: checked, whole or not at all, and kept for the next time."""

import contextlib
import hashlib
import http.client
import os
import pathlib
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jseg.console import ERRORS, printable
from jseg.outputs import try_folder
from jseg.types import InputError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_LEFT_BEHIND = 86400  # seconds after which a part of a file has no one who still writes it
_ANSWERS = {
  401: "it wants a login; set HF_TOKEN if it is on the Hugging Face Hub",
  403: "it isn't for everyone; accept its terms in a browser, and set HF_TOKEN to your token",
  404: "there is no such file",
  429: "too many requests; try again later",
}


def cache(*parts: str) -> pathlib.Path:
  """Returns the place of a downloaded file, below `$JSEG_CACHE` or ~/.cache/jseg.

  Raises:
    InputError: there is no home folder.
  """
  try:
    root = os.environ.get("JSEG_CACHE") or "~/.cache/jseg"
    return pathlib.Path(root).expanduser().joinpath(*parts)
  except RuntimeError:
    raise InputError("there is no home folder to keep downloads in; set JSEG_CACHE") from None


def read(url: str, headers: Mapping[str, str], otherwise: str) -> bytes:
  """Returns what is at a URL, at most 16 MiB.

  Args:
    url: the URL.
    headers: headers of the request.
    otherwise: what the user can do where it can't be had: "get the file elsewhere, ...".

  Raises:
    InputError: it can't be had.
  """
  with _kind(url, otherwise), _open(url, headers) as response:
    return response.read(1 << 24)


def fetch(
  url: str, path: pathlib.Path, sha256: str = "", headers: Mapping[str, str] | None = None
) -> pathlib.Path:
  """Downloads a file unless it is there; it appears whole and checked, or not at all.

  Args:
    url: where it is published.
    path: where it is to be.
    sha256: first digits of its SHA-256, in hexadecimal; "" if the publisher doesn't tell.
    headers: headers of the request.

  Returns:
    `path`.

  Raises:
    InputError: it can't be had or written, or isn't what it should be; tells where to put it.
  """
  otherwise = f"on a machine without a network, get {url} elsewhere and put it at {path}"
  if path.is_file():
    _check(path, _digest(path), sha256, f"remove {path} to download it anew")
    return path
  try_folder(path.parent, "set JSEG_CACHE to a folder for downloads")
  _sweep(path)
  descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
  part = pathlib.Path(name)
  try:
    with os.fdopen(descriptor, "wb") as file, _kind(url, otherwise):
      digest = _download(url, headers or {}, file, path.name)
    _check(path, digest, sha256, f"what {url} sent isn't the published file; try again later")
    part.chmod(0o644)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
  return path


def _open(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
  request = urllib.request.Request(
    url, headers={"User-Agent": "jseg"}
  )  # Python's is refused by some
  for name, value in headers.items():
    request.add_unredirected_header(name, value)  # a token isn't for whom the answer points to
  return urllib.request.urlopen(request, timeout=_TIMEOUT)


def _download(url: str, headers: Mapping[str, str], file: BinaryIO, name: str) -> str:
  """Writes what is at a URL to an open file. Returns its SHA-256."""
  digest = hashlib.sha256()
  with _open(url, headers) as response, _bar() as bar:
    length = response.headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    task = bar.add_task(printable(name), total=total)
    done = 0
    while chunk := response.read(_CHUNK):
      file.write(chunk)
      digest.update(chunk)
      done += len(chunk)
      bar.advance(task, len(chunk))
    file.flush()
    os.fsync(file.fileno())
  if total is not None and done != total:
    raise http.client.IncompleteRead(b"", total - done)
  return digest.hexdigest()


def _bar() -> Progress:
  columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
  return Progress(*columns, console=ERRORS, transient=True, disable=not ERRORS.is_interactive)


@contextlib.contextmanager
def _kind(url: str, otherwise: str) -> Iterator[None]:
  """Turns whatever a network does into one message."""
  try:
    yield
  except urllib.error.HTTPError as error:
    reason = _ANSWERS.get(error.code, error.reason)
    raise InputError(f"{url}: the server answered {error.code}: {reason}") from None
  except http.client.IncompleteRead as error:
    raise InputError(
      f"{url}: the connection ended {error.expected or '?'} bytes early; nothing of it was kept; "
      f"try again, or {otherwise}"
    ) from None
  except urllib.error.URLError as error:
    raise InputError(f"{url} can't be reached ({error.reason}); {otherwise}") from None
  except TimeoutError:
    raise InputError(f"{url}: no answer for {_TIMEOUT} s; try again, or {otherwise}") from None
  except ValueError as error:
    raise InputError(f"{url} is no address ({error}); look at HF_ENDPOINT") from None
  except (http.client.HTTPException, ConnectionError) as error:
    raise InputError(
      f"{url}: the connection broke ({error!r}); try again, or {otherwise}"
    ) from None
  except OSError as error:
    raise InputError(
      f"{url} can't be written ({error.strerror or error}); make room, or set JSEG_CACHE to a "
      "folder for downloads"
    ) from None


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: pathlib.Path, digest: str, sha256: str, remedy: str) -> None:
  if not digest.startswith(sha256.lower()):
    raise InputError(
      f"{path.name}: its SHA-256 begins with {digest[: len(sha256)]}, that of the published file "
      f"with {sha256}; {remedy}"
    )


def _sweep(path: pathlib.Path) -> None:
  """Removes parts of the file that a killed download left."""
  for part in path.parent.glob(f"{path.name}.*.part"):
    with contextlib.suppress(OSError):
      if time.time() - part.stat().st_mtime > _LEFT_BEHIND:
        part.unlink()
