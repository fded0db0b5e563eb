"""What the notebooks of colab/ share is written into them, and they are run for the site.

  python tools/notebooks.py                      # writes install cell and badge into all
  python tools/notebooks.py --run                # runs all, for the pages of docs/notebooks
  python tools/notebooks.py --run crf volumes    # runs some

The install cell is colab/install.py; the repository's address is the one in pyproject.toml.
"""

import argparse
import pathlib
import tempfile
import time
import tomllib

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"  # written by `--run`, or without results by docs/conf.py


def repository() -> str:
  """Address of the repository."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  return project["urls"]["Repository"]


def shared_cells(name: str) -> dict[str, str]:
  """Source of the cells that notebooks share, by tag.

  Args:
    name: file name of the notebook.
  """
  owner = repository().removeprefix("https://github.com/")
  link = f"https://colab.research.google.com/github/{owner}/blob/main/colab/{name}"
  image = "https://colab.research.google.com/assets/colab-badge.svg"
  return {
    "badge": f"[![Open in Colab]({image})]({link})",
    "install": (ROOT / "colab" / "install.py").read_text().rstrip("\n"),
  }


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
  """The one cell with a tag."""
  (cell,) = (c for c in notebook.cells if tag in c.metadata.get("tags", ()))
  return cell


def set_values(notebook: nbformat.NotebookNode, tag: str, **values: object) -> None:
  """Changes values of a form: what a person would type into its fields.

  Args:
    notebook: the notebook.
    tag: tag of the form's cell.
    **values: values by the name that the form gives them.
  """
  cell = tagged(notebook, tag)
  lines = cell.source.splitlines()
  for name, value in values.items():
    (at,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    lines[at] = f"{name} = {value!r}"
  cell.source = "\n".join(lines)


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> None:
  """Runs a notebook from top to bottom; a cell that fails raises.

  Args:
    notebook: the notebook, which gets the outputs.
    folder: the working directory.
  """
  resources = {"metadata": {"path": str(folder)}}
  NotebookClient(notebook, timeout=1200, resources=resources).execute()


def run_for_the_site(path: pathlib.Path) -> None:
  """Runs a notebook as it is committed, and writes it with its results into `PAGES`.

  Args:
    path: the notebook.
  """
  notebook = nbformat.read(path, as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    execute(notebook, pathlib.Path(folder))
  PAGES.mkdir(exist_ok=True)
  (PAGES / path.name).write_text(nbformat.writes(notebook, indent=1) + "\n")


def main() -> None:
  """Does what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  names = [path.stem for path in NOTEBOOKS]
  parser.add_argument("--run", nargs="*", choices=names, metavar="NAME", help=", ".join(names))
  arguments = parser.parse_args()
  if arguments.run is None:
    write_shared_cells()
    return
  for path in NOTEBOOKS:
    if path.stem in (arguments.run or names):
      start = time.monotonic()
      run_for_the_site(path)
      print(f"{path.stem}: {time.monotonic() - start:.0f} s", flush=True)


def write_shared_cells() -> None:
  """Writes the install cell and the badge into every notebook."""
  for path in NOTEBOOKS:
    notebook = nbformat.read(path, as_version=4)
    for tag, source in shared_cells(path.name).items():
      tagged(notebook, tag).source = source
    tagged(notebook, "install").metadata.tags = ["install", "hide-input"]  # folded on the site
    path.write_text(nbformat.writes(notebook, indent=1) + "\n")


if __name__ == "__main__":
  main()
