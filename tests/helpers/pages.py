"""The pages of the documentation."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
# What the site's build writes there isn't among them.
SITE = [p for p in sorted(DOCS.rglob("*.md")) if not {"_build", "api"} & set(p.parts)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]


def prose(page: pathlib.Path) -> str:
  """Returns a page's text without its blocks of code."""
  return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
