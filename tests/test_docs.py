"""README and docs: links lead somewhere, and commands are those that there are."""

import pathlib
import re
import shlex
import tomllib

import pytest

import jseg
import jseg.config
from jseg import cli, recipes
from jseg.commands.common import split_overrides
from jseg.install import DISTRIBUTION

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URL = PROJECT["urls"]["Repository"]


def links(page):
  """Targets of a page's relative links and pictures."""
  targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
  return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_to_files(page):
  missing = [link for link in links(page) if not (page.parent / link.partition("#")[0]).exists()]
  assert missing == []


def test_the_readme_is_short_and_leads_to_every_page():
  readme = PAGES[0]
  assert len(readme.read_text().splitlines()) < 150
  pages = {path.relative_to(ROOT).as_posix() for path in PAGES[1:]}
  assert pages <= set(links(readme))


def commands(path):
  """Words of every jseg command in a file's blocks of code, continuation lines joined."""
  text = path.read_text().replace("\\\n", " ")
  if path.suffix == ".md":
    text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
  for line in text.splitlines():
    words = re.sub(r"^\s*(jseg|python train\.py)(?= )", "", line)
    # What follows "...", and the shell's variables, are the reader's.
    if words != line and "..." not in line:
      yield [word for word in shlex.split(words, comments=True) if not word.startswith("$")]


@pytest.mark.parametrize(
  "words",
  [words for path in [*PAGES, *recipes.files().values()] for words in commands(path)],
  ids=" ".join,
)
def test_commands_are_those_that_there_are(words):
  rest, overrides = split_overrides(words)
  if rest == ["--version"]:
    return
  arguments = cli.make_parser().parse_args(rest)
  if words[0] == "train" and arguments.config != "my_recipe.py":
    config = recipes.read(arguments.config)
    jseg.config.change(config, jseg.config.parse_changes(overrides, "--config.", config))


def test_one_repository():
  texts = {path.name: path.read_text() for path in [*PAGES, ROOT / "CITATION.cff"]}
  name = URL.rpartition("/")[2]
  found = {
    (where, url)
    for where, text in texts.items()
    for url in re.findall(rf"github\.com/[\w-]+/{name}\b", text)
  }
  assert {where for where, _ in found} >= {"README.md", "CITATION.cff"}
  assert {url for _, url in found} == {URL.removeprefix("https://")}
  assert all(url.startswith(URL) for url in PROJECT["urls"].values())


def test_no_name_in_an_index_is_promised():
  for page in PAGES:
    for line in page.read_text().splitlines():
      if "pip install" in line and DISTRIBUTION in line:
        assert f" @ git+{URL}" in line, (page.name, line)


def test_the_citation_is_of_this_version():
  assert f"\nversion: {jseg.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_extras_that_the_readme_names_are_there():
  named = set(re.findall(rf"{DISTRIBUTION}\[(\w+)\]", PAGES[0].read_text()))
  assert named >= {"cuda", "tpu"}
  assert named <= set(PROJECT["optional-dependencies"])
