"""Finds a network's tensors in a file, whatever they are wrapped in."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jseg.types import InputError
from jseg.weights.files import read_file
from jseg.weights.source_model import SourceModel
from jseg.weights.sources import SOURCES

# Where several dictionaries fit, the first of these; averages of the weights come last.
_FIRST = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
_LAST = ("ema", "average", "teacher", "momentum", "optim")
# What DataParallel, torch.compile and Lightning put before all names.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
_DEPTH = 6  # of dictionaries in dictionaries, and of names before names
_MOST = 2000  # dictionaries, and prefixes, that are looked at in a file
_MOST_TENSORS = 50_000
_FEWEST = 5  # tensors of a network


@dataclasses.dataclass(frozen=True)
class Found:
  """A network in a file.

  Attributes:
    tensors: its tensors by the names that its source gives them.
    source: what network it is; the description tells where in the file it was.
    left: names of tensors beside it, which belong to something else.
  """

  tensors: dict[str, np.ndarray]
  source: SourceModel
  left: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Dictionary:
  """One dictionary of tensors, and the keys under which the file holds it."""

  keys: tuple[str, ...]
  tensors: dict[str, np.ndarray]


def find_network(path: str | pathlib.Path) -> Found:
  """Reads a .safetensors, .pth or .pt file and finds the network in it.

  Wrappers (dictionaries around the weights, prefixes of names) are taken off as far as a known
  network appears, a whole one rather than a backbone. Nothing in the file is executed.

  Raises:
    InputError: the file isn't there, is of another kind, is damaged, or holds no known network.
  """
  dictionaries = _read(path)
  if found := _find(dictionaries):
    return found
  tensors = _unwrapped(dictionaries)
  return Found(tensors, recognize(tensors, path))


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a .safetensors, .pth or .pt file by name, out of their wrappers.

  They are those of the known network in it (`find_network`), or else the most that are together.
  Nothing in the file is executed.

  Raises:
    InputError: the file isn't there, is of another kind, is damaged, or holds no tensors.
  """
  dictionaries = _read(path)
  found = _find(dictionaries)
  return found.tensors if found else _unwrapped(dictionaries)


def recognize(
  tensors: Mapping[str, np.ndarray], path: str | pathlib.Path = "the file"
) -> SourceModel:
  """Tells what network tensors are of, by their names and shapes.

  Args:
    tensors: tensors by the source's names.
    path: path of the file, for messages.

  Raises:
    InputError: no known network has such names.
  """
  if source := _known(tensors):
    return source
  some = ", ".join(sorted(tensors)[:4])
  raise InputError(
    f"{path}: no known network has these tensors ({some}, ...); known are {', '.join(SOURCES)}"
  )


def _known(tensors: Mapping[str, np.ndarray]) -> SourceModel | None:
  for recognize_source in SOURCES.values():
    # Names that fit may have shapes that no such network has, or lack some that belong to them.
    with contextlib.suppress(IndexError, KeyError, TypeError):
      if source := recognize_source(tensors):
        return source
  return None


def _read(path: str | pathlib.Path) -> list[_Dictionary]:
  content = read_file(path)
  if dictionaries := list(_dictionaries(content)):
    return dictionaries
  optimizer = isinstance(content, dict) and "param_groups" in content
  what = "the state of an optimizer" if optimizer else "no weights by name"
  raise InputError(f"{path} holds {what}; save the network's: torch.save(model.state_dict(), PATH)")


def _find(dictionaries: Sequence[_Dictionary]) -> Found | None:
  tries = iter(range(_MOST))
  found = (_fit(each, tries) for each in [*dictionaries, *_joined(dictionaries)])
  hits = [hit for hit in found if hit]
  if not hits:
    return None
  best = next((hit for hit in hits if hit[2].num_classes is not None), hits[0])
  dictionary, prefix, source = best
  others = [".".join(hit[0].keys) for hit in hits if hit is not best and hit[0].keys]
  where = _where(".".join(dictionary.keys), prefix, others)
  description = f"{source.description} ({where})" if where else source.description
  inside, left = {}, []
  for name, value in dictionary.tensors.items():
    if name.startswith(prefix):
      inside[name.removeprefix(prefix)] = value
    else:
      left.append(name)
  return Found(inside, dataclasses.replace(source, description=description), left)


def _where(keys: str, prefix: str, others: Sequence[str]) -> str:
  parts = [f"under {keys!r}" if keys else "", f"names without {prefix!r}" if prefix else ""]
  parts.append(f"{', '.join(map(repr, others[:4]))} would fit too" if others else "")
  return ", ".join(filter(None, parts))


def _dictionaries(content: object) -> Iterator[_Dictionary]:
  """All dictionaries of tensors, the outer ones first."""
  level: list[tuple[tuple[str, ...], object]] = [((), content)]
  seen: set[int] = set()
  left = _MOST_TENSORS
  for _ in range(_DEPTH):
    inner: list[tuple[tuple[str, ...], object]] = []
    for keys, value in level:
      if id(value) in seen or len(seen) >= _MOST or left < 0:
        continue
      seen.add(id(value))
      children = _children(value)
      named = {key: child for key, child in children if isinstance(child, np.ndarray)}
      if named and isinstance(value, dict):
        left -= len(named)
        yield _Dictionary(keys, named)
      nested = [(key, child) for key, child in children if isinstance(child, dict | list)]
      inner += [((*keys, key), child) for key, child in sorted(nested, key=_rank)]
    level = inner


def _children(value: object) -> list[tuple[str, object]]:
  if isinstance(value, dict):
    return [(key, child) for key, child in value.items() if isinstance(key, str)]
  return [(str(i), child) for i, child in enumerate(value)] if isinstance(value, list) else []


def _rank(child: tuple[str, object]) -> int:
  key = child[0].lower()
  if key in _FIRST:
    return _FIRST.index(key)
  return len(_FIRST) + any(word in key for word in _LAST)


def _joined(dictionaries: Sequence[_Dictionary]) -> Iterator[_Dictionary]:
  """Parts of a network that each have a dictionary of their own, as one."""
  nested = [dictionary for dictionary in dictionaries if dictionary.keys]
  for parent, group in itertools.groupby(nested, key=lambda d: d.keys[:-1]):
    parts = list(group)
    if len(parts) > 1:
      tensors = {f"{p.keys[-1]}.{name}": v for p in parts for name, v in p.tensors.items()}
      yield _Dictionary(parent, tensors)


def _fit(
  dictionary: _Dictionary, tries: Iterator[int]
) -> tuple[_Dictionary, str, SourceModel] | None:
  """Returns what a dictionary holds and behind which prefix, a whole network if there is one."""
  backbone = None
  for _, (prefix, tensors) in zip(tries, _groups(dictionary.tensors), strict=False):
    source = _known(tensors)
    if source is not None and source.num_classes is not None:
      return dictionary, prefix, source
    if source is not None and backbone is None:
      backbone = dictionary, prefix, source
  return backbone


def _groups(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """Tensors that share a prefix, without it; the shorter prefixes first."""
  yield "", tensors
  for depth in range(1, _DEPTH):
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
      parts = name.split(".", depth)
      if len(parts) > depth:
        groups.setdefault(name[: -len(parts[-1])], {})[parts[-1]] = value
    yield from ((prefix, group) for prefix, group in groups.items() if len(group) >= _FEWEST)


def _unwrapped(dictionaries: Sequence[_Dictionary]) -> dict[str, np.ndarray]:
  """Tensors of an unknown network without what wrappers put before all names."""
  tensors = max(dictionaries, key=lambda dictionary: len(dictionary.tensors)).tensors
  while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in tensors)), ""):
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
  return tensors
