"""Names of published weights, and where their publishers have the files."""

import dataclasses
import difflib
import json
import os
import pathlib
import re
import urllib.parse

from jseg import download
from jseg.types import InputError

TORCHVISION = "https://download.pytorch.org/models/"
# A name alone is the weights that torchvision's own segmentation networks began with; others bear
# torchvision's name of them. A file's name ends in the first digits of its SHA-256.
TORCHVISION_FILES = {
  "alexnet": "alexnet-owt-7be5be79.pth",
  "vgg16": "vgg16-397923af.pth",
  "vgg16.IMAGENET1K_FEATURES": "vgg16_features-amdegroot-88682ab5.pth",
  "vgg16_bn": "vgg16_bn-6c64b313.pth",
  "googlenet": "googlenet-1378be20.pth",
  "resnet18": "resnet18-f37072fd.pth",
  "resnet34": "resnet34-b627a593.pth",
  "resnet50": "resnet50-0676ba61.pth",
  "resnet50.IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
  "resnet101": "resnet101-63fe2227.pth",
  "resnet101.IMAGENET1K_V2": "resnet101-cd907fc2.pth",
  "resnet152": "resnet152-394f9c45.pth",
  "resnet152.IMAGENET1K_V2": "resnet152-f82ba261.pth",
  "fcn_resnet50": "fcn_resnet50_coco-1167a1af.pth",
  "fcn_resnet101": "fcn_resnet101_coco-7ecb50ca.pth",
  "deeplabv3_resnet50": "deeplabv3_resnet50_coco-cd0a2569.pth",
  "deeplabv3_resnet101": "deeplabv3_resnet101_coco-586e9e4e.pth",
  "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
  "maskrcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
  "keypointrcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
}
# What a repository on the Hugging Face Hub may call its weights, the first of these that is there.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[^@]+))?(@(?P<revision>[^@]+))?")
_PUBLISHERS = ("torchvision:", "hf:")


@dataclasses.dataclass(frozen=True)
class _HubName:
  """A file on the Hugging Face Hub; `file` is "" for the one the repository calls its weights."""

  repo: str
  file: str
  revision: str


def is_published(source: str | os.PathLike[str]) -> bool:
  """Returns whether `source` names published weights (torchvision:..., hf:...) and no path."""
  return os.fspath(source).startswith(_PUBLISHERS)


def check_name(source: str) -> None:
  """Refuses a name of published weights that can't be right, without asking the publisher.

  Args:
    source: "torchvision:NAME" or "hf:OWNER/NAME".

  Raises:
    InputError: naming what there is.
  """
  if source.startswith("torchvision:"):
    _torchvision_file(source)
  else:
    _hub_name(source)


def get_published(source: str) -> pathlib.Path:
  """Returns the local file of published weights, downloaded unless it was before.

  Args:
    source: "torchvision:NAME", a key of `TORCHVISION_FILES`; or "hf:OWNER/NAME", a repository on
      the Hugging Face Hub, with "/FILE" if it has several files, "@REVISION" for another one than
      main. Private ones need `HF_TOKEN`; `HF_ENDPOINT` names a mirror.

  Raises:
    InputError: there are no such weights, or they can't be downloaded; tells where to put the file
      on a machine without a network.
  """
  if source.startswith("torchvision:"):
    name = _torchvision_file(source)
    digits = pathlib.PurePath(name).stem.rpartition("-")[2]
    place = download.cache("weights", "torchvision", name)
    return download.fetch(TORCHVISION + name, place, sha256=digits)
  return _get_from_hub(_hub_name(source))


def _torchvision_file(source: str) -> str:
  name = source.removeprefix("torchvision:")
  if name in TORCHVISION_FILES:
    return TORCHVISION_FILES[name]
  close = difflib.get_close_matches(name, TORCHVISION_FILES, n=1)
  hint = f"did you mean torchvision:{close[0]}? There are" if close else "there are"
  raise InputError(f"{source}: no weights of that name fit; {hint} {', '.join(TORCHVISION_FILES)}")


def _hub_name(source: str) -> _HubName:
  name = source.removeprefix("hf:")
  match = _HUB_NAME.fullmatch(name)
  if not match or not {"", ".", ".."}.isdisjoint(name.split("/")):
    raise InputError(
      f"{source}: names on the Hugging Face Hub are hf:OWNER/NAME, hf:OWNER/NAME/FILE or "
      "hf:OWNER/NAME@REVISION, such as hf:timm/resnet50.a1_in1k"
    )
  return _HubName(match["repo"], match["file"] or "", match["revision"] or "main")


def _get_from_hub(name: _HubName) -> pathlib.Path:
  folder = download.cache("weights", "hf", *name.repo.split("/"), _folder_name(name.revision))
  wanted = [name.file] if name.file else list(_HUB_FILES)
  for file in wanted:
    if (folder / file).is_file():
      return folder / file
  headers = {"Authorization": f"Bearer {token}"} if (token := os.environ.get("HF_TOKEN")) else {}
  endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
  revision = urllib.parse.quote(name.revision, safe="")
  listing = f"{endpoint}/api/models/{name.repo}/tree/{revision}?recursive=true"
  remedy = f"elsewhere, and put it at {folder / wanted[0]}"
  entries = _entries(download.read(listing, headers, f"get {wanted[0]} of {name.repo} {remedy}"))
  file = _choose(name, entries)
  url = f"{endpoint}/{name.repo}/resolve/{revision}/{urllib.parse.quote(file)}"
  return download.fetch(url, folder / file, sha256=entries[file], headers=headers)


def _folder_name(revision: str) -> str:
  return urllib.parse.quote(revision, safe="")


def _entries(listing: bytes) -> dict[str, str]:
  """SHA-256 by path of a repository's files; "" of small ones, whose the Hub doesn't tell."""
  try:
    files = [entry for entry in json.loads(listing) if entry["type"] == "file"]
    return {entry["path"]: entry.get("lfs", {}).get("oid", "") for entry in files}
  except (ValueError, TypeError, KeyError, AttributeError):
    raise InputError(
      "what answered isn't the Hugging Face Hub (its list of files can't be read); look at "
      "HF_ENDPOINT and the network's proxy"
    ) from None


def _choose(name: _HubName, entries: dict[str, str]) -> str:
  """The file of a repository that holds its weights."""
  files = [path for path in entries if path.endswith(_SUFFIXES)]
  if name.file in entries:
    return name.file
  if not name.file:
    for file in (*_HUB_FILES, *(files if len(files) == 1 else ())):
      if file in entries:
        return file
  some = f"has {', '.join(files[:10])}" if files else "has no file of weights"
  remedy = f"; name one: hf:{name.repo}/{files[0]}" if files else ""
  raise InputError(
    f"hf:{name.repo} has no {name.file or ' or '.join(_HUB_FILES)}; it {some}{remedy}"
  )
