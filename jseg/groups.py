"""Groups of a network's parameters, by regular expression and by depth.

Names are paths with "/" between, "backbone/conv1/kernel".
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

import jax

from jseg.parameters import parameter_name
from jseg.types import InputError, Params

_BACKBONE = "backbone"


@dataclasses.dataclass(frozen=True)
class Group:
  """Parameters that are trained in a way of their own.

  Attributes:
    match: regular expression that is found anywhere in their names (`re.search`).
    lr: factor of their learning rate, above 0.
    weight_decay: weight decay of their kernels; None is that of the others.
    freeze: whether they get no update.
  """

  match: str
  lr: float = 1.0
  weight_decay: float | None = None
  freeze: bool = False


def read_groups(values: Sequence[object]) -> tuple[Group, ...]:
  """Reads the groups of a configuration.

  Args:
    values: a dict for each group, with the attributes of `Group` as keys.

  Raises:
    InputError: one is no such dict, or has an impossible value.
  """
  return tuple(_read(f"groups[{i}]", value) for i, value in enumerate(values))


def _read(where: str, value: object) -> Group:
  fields = [f.name for f in dataclasses.fields(Group)]
  if not isinstance(value, Mapping) or not isinstance(value.get("match"), str):
    raise InputError(
      f"{where}: {value!r} must be a dict with a regular expression, as "
      '{"match": "^backbone/", "lr": 0.1}'
    )
  for key in value:
    if key not in fields:
      raise InputError(f"{where}: {key!r} is unknown; there are {', '.join(fields)}")
  group = Group(**value)
  try:
    re.compile(group.match)
  except re.error as error:
    raise InputError(f"{where}: {group.match!r} is no regular expression ({error})") from None
  if not (_is_number(group.lr) and group.lr > 0):
    raise InputError(f"{where}: lr {group.lr!r} must be a number above 0; freeze=True stops them")
  decay = group.weight_decay
  if decay is not None and not (_is_number(decay) and decay >= 0):
    raise InputError(f"{where}: weight_decay {decay!r} must be a number of at least 0")
  if not isinstance(group.freeze, bool):
    raise InputError(f"{where}: freeze {group.freeze!r} must be True or False")
  if group.freeze and (group.lr != 1 or decay):
    raise InputError(f"{where}: frozen parameters have no lr or weight_decay; leave these out")
  return group


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def find(name: str, groups: Sequence[Group]) -> Group | None:
  """Returns the first group that a parameter of this name belongs to, or None."""
  return next((group for group in groups if re.search(group.match, name)), None)


def members(params: Params, groups: Sequence[Group]) -> list[tuple[int, int]]:
  """Counts what each group holds: (parameters, numbers in them).

  Args:
    params: parameters of the network.
    groups: the groups; a parameter belongs to the first that matches.

  Raises:
    InputError: a group holds none.
  """
  sizes = {parameter_name(p): a.size for p, a in jax.tree_util.tree_leaves_with_path(params)}
  owners = {name: find(name, groups) for name in sizes}
  counts = []
  for index, group in enumerate(groups):
    held = [sizes[name] for name, owner in owners.items() if owner is group]
    if not held:
      raise InputError(f"groups[{index}]: {_why_empty(group, owners)}")
    counts.append((len(held), sum(held)))
  return counts


def _why_empty(group: Group, owners: Mapping[str, Group | None]) -> str:
  earlier = [owner for name, owner in owners.items() if owner and re.search(group.match, name)]
  if earlier:
    return (
      f"all parameters that {group.match!r} matches belong to the earlier {earlier[0].match!r}; "
      "put the narrower expression first"
    )
  parts = {name.rsplit("/", n)[0] for name in owners for n in range(name.count("/") + 1)}
  near = difflib.get_close_matches(group.match, sorted(parts), n=3, cutoff=0.4)
  near = near or sorted({name.partition("/")[0] for name in owners})
  return f"no parameter's name matches {group.match!r}; there are {', '.join(near)}"


def describe_groups(params: Params, groups: Sequence[Group]) -> list[str]:
  """Returns a line for each group and one for the rest: what it holds, how it is trained.

  Raises:
    InputError: a group holds no parameter.
  """
  counts = members(params, groups)
  leaves = jax.tree.leaves(params)
  rest = (
    len(leaves) - sum(n for n, _ in counts),
    sum(a.size for a in leaves) - sum(n for _, n in counts),
  )
  ways = [f"{group.match!r}: {_way(group)}" for group in groups]
  return [
    f"{way}, {parameters} parameters of {size:,} numbers"
    for way, (parameters, size) in zip([*ways, "all others"], [*counts, rest], strict=True)
  ]


def _way(group: Group) -> str:
  if group.freeze:
    return "frozen"
  decay = "" if group.weight_decay is None else f", weight decay {group.weight_decay:g}"
  return f"learning rate x {group.lr:g}{decay}"


def depth_factors(order: Sequence[str], decay: float) -> dict[str, float]:
  """The factor of each parameter's learning rate by its depth, `decay` ^ (blocks behind it).

  Blocks are the parts of the backbone, in the order in which the network calls them; what is
  outside of the backbone has the factor 1. Of a network without a backbone, its own parts are the
  blocks, and the last one has the factor 1. Parts without a kernel, as norms, belong to the block
  before. Clark et al. 2020, arXiv:2003.10555, section 3.1; BEiT, arXiv:2106.08254, appendix.

  Args:
    order: names of all parameters, in the order in which the network makes them.
    decay: factor between two blocks, in (0, 1].
  """
  inside = {name for name in order if _BACKBONE in name.split("/")[:-1]}
  blocks: dict[str, int] = {}
  for name in order:
    if name.endswith("kernel") and (name in inside or not inside):
      blocks.setdefault(_block(name), len(blocks))
  factors, current = {}, 0
  behind = len(blocks) if inside else len(blocks) - 1
  for name in order:
    if inside and name not in inside:
      factors[name] = 1.0
      continue
    current = blocks.get(_block(name), current)
    factors[name] = decay ** (behind - current)
  return factors


def _block(name: str) -> str:
  """The part of the backbone, or else of the network, that a parameter is in."""
  parts = name.split("/")
  depth = parts.index(_BACKBONE) + 2 if _BACKBONE in parts[:-1] else 1
  return "/".join(parts[:depth])
