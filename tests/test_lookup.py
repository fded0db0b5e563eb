"""Names that stand for code: ours, and a user's own."""

import sys

import pytest

from jseg.lookup import lookup
from jseg.types import InputError

TABLE = {"square": "math:sqrt", "five": 5}


def test_names_are_ours_or_the_users(tmp_path, monkeypatch):
  assert lookup("thing", "five", TABLE) == 5
  assert lookup("thing", "square", TABLE)(9) == 3
  (tmp_path / "my_own_things.py").write_text("class Box:\n  inner = 7\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  assert lookup("thing", "my_own_things:Box.inner", TABLE) == 7
  sys.modules.pop("my_own_things")


@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("fife", r"thing 'fife' is unknown; did you mean five\? There are square, five, or name"),
    ("other", r"thing 'other' is unknown; choose from square, five, or name your own as package"),
    ("no_such_module:Thing", r"there is no module no_such_module; install it, or start where"),
    ("math:no_such_thing", r"thing 'math:no_such_thing': math has no no_such_thing"),
    (7, r"thing: 7 must be a name"),
  ],
)
def test_names_that_stand_for_nothing(name, match):
  with pytest.raises(InputError, match=match):
    lookup("thing", name, TABLE)


def test_an_import_that_is_missing_inside_of_a_module_is_not_hidden(tmp_path, monkeypatch):
  (tmp_path / "needs_more.py").write_text("import no_such_module_either\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
    lookup("thing", "needs_more:Thing", TABLE)
