"""README and docs: links lead somewhere, and commands are those that there are."""

import pathlib
import re
import shlex
import tomllib

import pytest
from helpers.pages import DOCS, PAGES, ROOT, SITE, prose

import jseg
import jseg.config
from jseg import cli, models, recipes
from jseg.commands.common import split_overrides
from jseg.install import DISTRIBUTION

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URL = PROJECT["urls"]["Repository"]


def links(page):
  """Targets of a page's relative links and pictures."""
  targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
  return [target for target in targets if "://" not in target]


def anchors(page):
  """Anchors that GitHub and the site give a page's headings."""
  headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE)
  plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
  return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_to_files_and_headings(page):
  missing = []
  for link in links(page):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists() or (anchor and anchor not in anchors(target)):
      missing.append(link)
  assert missing == []


def listed(page):
  """Pages in the tables of contents of a page, in their order."""
  blocks = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL)
  found: list[pathlib.Path] = []
  for block in blocks:
    here: list[pathlib.Path] = []
    for line in filter(None, block.splitlines()):
      if not line.startswith(":"):
        here += [p for p in sorted(page.parent.glob(f"{line}.md")) if p not in here]
    found += here
  return found


def test_every_notebook_is_a_page():
  listing = re.findall(r"^notebooks/(\w+)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
  assert sorted(listing) == sorted(path.stem for path in (ROOT / "colab").glob("*.ipynb"))


def test_every_page_is_listed_once():
  assert "docs/index.md" in links(PAGES[0])
  found = listed(DOCS / "index.md")
  assert sorted(found) == sorted(page for page in SITE if page != DOCS / "index.md"), (
    "each page of docs is in one table of contents of docs/index.md"
  )


def test_the_readme_is_short():
  assert len(PAGES[0].read_text().splitlines()) < 150


def test_every_network_has_a_page_with_its_drawing_and_its_arguments():
  pages = sorted((DOCS / "networks").glob("*.md"))
  found = [
    name for page in pages for name in re.findall(r"<!-- arguments: (\w+) -->", page.read_text())
  ]
  assert sorted(found) == sorted(models.names())
  for page in pages:
    assert page.with_suffix(".svg").name in links(page), page.name


def test_what_the_site_takes_from_the_code_is_there(monkeypatch):
  monkeypatch.syspath_prepend(DOCS)
  import generated

  for page in (DOCS / "networks/unet.md", DOCS / "reference/configuration.md"):
    text = generated.fill(page.read_text())
    assert not re.search(r"<!-- (arguments|keys|differences|results): ", text), page.name
    for key in ("`model.norm`",) if page.name == "unet.md" else ("`optim.lr`", "`crf.train`"):
      assert f"| {key} | " in text
  assert "| `unet_isbi2012` | " in generated.fill("<!-- results: unet -->")
  assert "| `unet_isbi2012` | " not in generated.fill("<!-- results: unet3d -->")


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


def test_every_pip_finds_the_extras():
  # Metadata has them with hyphens. pip 23.2 doesn't find "a_b" there, warns, and leaves it out.
  extras = PROJECT["optional-dependencies"]
  assert [name for name in extras if not re.fullmatch("[a-z0-9-]+", name)] == []


def test_ci_names_tests_that_there_are():
  workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
  named = re.findall(r"(tests/\w+\.py)(?:::(\w+))?", workflow)
  assert named
  for file, test in named:
    assert f"def {test or 'test_'}" in (ROOT / file).read_text(), f"{file}::{test}"
