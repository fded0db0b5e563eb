"""Writes into the notebooks of colab/ what they share: the install cell and the badge.

python tools/notebooks.py

The install cell is colab/install.py; the repository's address is the one in pyproject.toml.
"""

import pathlib
import tomllib

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


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


def main() -> None:
  """Writes the shared cells."""
  for path in NOTEBOOKS:
    notebook = nbformat.read(path, as_version=4)
    for tag, source in shared_cells(path.name).items():
      tagged(notebook, tag).source = source
    path.write_text(nbformat.writes(notebook, indent=1) + "\n")


if __name__ == "__main__":
  main()
