"""How the documentation site is built: `python -m sphinx -W --keep-going docs docs/_build`.

The notebooks of `colab` are pages of it, with pictures and numbers where `tools/notebooks.py --run`
has run them before, and without where not.

The pages are written to be read on GitHub too. What only the site can have, the references that
come from the code, is put where a page has a comment such as `<!-- arguments: unet -->`
(`generated.py`).
"""

import dataclasses
import json
import pathlib
import re
import sys
import tomllib
from typing import Any

import flax.linen as nn
from sphinx.application import Sphinx

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import generated

import jseg

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_REPOSITORY = _PROJECT["urls"]["Repository"]

project = "jseg"
author = "the authors of jseg"
release = version = jseg.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"  # paths of the machine that ran them
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings are those of GitHub
highlight_language = "none"

default_role = "code"  # docstrings write `code` with one backtick
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Kinds", "params_style"), ("Keys", "params_style")]

html_theme = "furo"
html_title = f"jseg {release}"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_theme_options = {
  "source_repository": _REPOSITORY,
  "source_branch": "main",
  "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"


def _leave_the_folder(page: str, text: str) -> str:
  """Turns relative links to what isn't a page or picture of `docs` into links to the repository."""
  folder = (HERE / page).parent

  def replaced(match: re.Match[str]) -> str:
    path, hash_sign, anchor = match[1].partition("#")
    target = (folder / path).resolve()
    if ":" in path or not path or (target.is_relative_to(HERE) and target.is_file()):
      return match[0]
    kind = "tree" if target.is_dir() else "blob"
    return f"]({_REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{hash_sign}{anchor})"

  return re.sub(r"\]\(([^)\s]+)\)", replaced, text)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
  if pathlib.Path(app.env.doc2path(page)).suffix == ".md":
    source[0] = generated.fill(_leave_the_folder(page, source[0]))


def _cells(notebook: pathlib.Path) -> list[str]:
  return ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]


def _bring_notebooks(app: Sphinx) -> None:
  """Copies the notebooks that haven't been run, or were other ones then."""
  pages = HERE / "notebooks"
  pages.mkdir(exist_ok=True)
  for path in (ROOT / "colab").glob("*.ipynb"):
    page = pages / path.name
    if not page.is_file() or _cells(page) != _cells(path):
      page.write_text(path.read_text())


def _link_to_notebook(
  app: Sphinx, page: str, template: str, context: dict[str, Any], *_: Any
) -> None:
  """Leads from the page of a notebook to the notebook, not to the copy that the build made."""
  folder, _slash, name = page.partition("/")
  if folder == "notebooks":
    for kind, what in (("view", "blob"), ("edit", "edit")):
      context[f"theme_source_{kind}_link"] = f"{_REPOSITORY}/{what}/main/colab/{name}.ipynb"


def _sign(app: Sphinx, what: str, name: str, code: Any, *_: Any) -> tuple[str, str] | None:
  """Writes a module's signature without what Flax adds; types are told with the attributes."""
  if what != "class" or not issubclass(code, nn.Module):
    return None
  fields = [f for f in dataclasses.fields(code) if f.init and f.name not in ("parent", "name")]
  positional = [_argument(field) for field in fields if not field.kw_only]
  by_name = [_argument(field) for field in fields if field.kw_only]
  return f"({', '.join([*positional, *(['*', *by_name] if by_name else [])])})", ""


def _argument(field: dataclasses.Field[Any]) -> str:
  if field.default is dataclasses.MISSING:
    return field.name
  return f"{field.name}={'...' if callable(field.default) else repr(field.default)}"


def setup(app: Sphinx) -> None:
  """Connects what changes pages and signatures before they are parsed."""
  app.connect("builder-inited", _bring_notebooks)
  app.connect("source-read", _read)
  app.connect("html-page-context", _link_to_notebook)
  app.connect("autodoc-process-signature", _sign)
