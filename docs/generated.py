"""What the site's pages take from the code: keys of configurations, arguments of networks, recipes.

A page asks for it by a comment, which GitHub doesn't show: `<!-- keys: unet -->`.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from ml_collections import ConfigDict

import jseg.config
from jseg import recipes
from jseg.config import About
from jseg.config_help import SECTIONS, Key, describe

_MARK = re.compile(r"<!-- (\w+): ([\w/ ]+) -->")


def fill(text: str) -> str:
  """Returns a page's text with the tables that its comments ask for."""
  return _MARK.sub(
    lambda match: _TABLES[match[1]](match[2]) if match[1] in _TABLES else match[0], text
  )


def arguments(network: str) -> str:
  """A network's own arguments, the keys of the section `model`."""
  keys = describe(jseg.config.default(network))
  return _table(key for key in keys if key.section == "model" and key.name != "model.name")


def results(networks: str) -> str:
  """What the recipes of networks need, reached here, and were published to reach."""
  rows = [
    f"| `{name}` | {_plain(about.data)} | {_plain(_reached(about))} | {_plain(about.published)} |"
    for name, about, config in _variants()
    if config.model.name in networks.split()
  ]
  head = ["| recipe | data | measured here | published |", "|-|-|-|-|"]
  return "\n".join([*head, *rows])


def _variants() -> Iterator[tuple[str, About, ConfigDict]]:
  """Every variant of every recipe: what `--config=` takes, what it needs, its configuration."""
  for name in recipes.files():
    for variant, about in recipes.load(name).about.items():
      full = f"{name}:{variant}" if variant else name
      yield full, about, recipes.read(full)


def _reached(about: About) -> str:
  if about.minutes is None:
    return "not run here"
  return f"{about.reaches}; {about.minutes} min on two CPU cores"


def keys(network: str) -> str:
  """All other keys of a network's configuration, section by section."""
  found = describe(jseg.config.default(network))
  parts = []
  for section in SECTIONS:
    rows = [key for key in found if key.section == section]
    if rows and section != "model":
      title = f"`{section}`" if section else "The run"
      parts.append(f"### {title}\n\n{_table(rows)}")
  return "\n\n".join(parts)


def differences(network: str) -> str:
  """Keys outside of `model` whose default isn't U-Net's."""
  usual = dict(jseg.config.flatten(jseg.config.default("unet")))
  found = describe(jseg.config.default(network))
  return _table(k for k in found if k.section != "model" and usual.get(k.name) != k.value)


def every_recipe(kind: str) -> str:
  """The recipes that are "measured" here, or those of the "papers"."""
  names = [name for name in recipes.files() if ("/" in name) == (kind == "papers")]
  return "\n\n".join(_recipe(name) for name in names)


def _recipe(name: str) -> str:
  """What a recipe is, and what its variants need, reach and change."""
  loaded = recipes.load(name)
  parts = [f"### `{name}`", _plain(loaded.summary)]
  for variant, about in loaded.about.items():
    full = f"{name}:{variant}" if variant else name
    changed = [key for key in describe(recipes.read(full)) if key.value != key.default]
    needs = filter(None, (about.data, about.weights, *about.extras))
    parts += [
      f"**`--config={full}`**",
      f"Needs {_plain('; '.join(needs) or 'nothing')}. Here: {_plain(_reached(about))}.",
      f"Published: {_plain(about.published)}." if about.published else "",
      _table(changed, "value"),
    ]
  return "\n\n".join(filter(None, parts))


_TABLES: dict[str, Callable[[str], str]] = {
  "arguments": arguments,
  "differences": differences,
  "keys": keys,
  "recipes": every_recipe,
  "results": results,
}


def _table(keys: Iterable[Key], title: str = "default") -> str:
  rows = [f"| `{key.name}` | {_value(key.value)} | {_meaning(key)} |" for key in keys]
  return "\n".join([f"| key | {title} | meaning |", "|-|-|-|", *rows])


def _value(value: object) -> str:
  return f"`{value!r}`" if value != "" else '`""`'


def _meaning(key: Key) -> str:
  may_be = ", ".join(f"`{each}`" if each else '`""`' for each in key.choices) or key.kind
  return _plain(f"{key.meaning} ({may_be})")


def _plain(text: str) -> str:
  return text.replace("|", r"\|").replace("<", r"\<")
