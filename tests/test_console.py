"""What is printed is what names are, on any terminal."""

import io
import sys
import threading
from types import SimpleNamespace as Fields

import pytest
from rich.table import Table
from rich.text import Text

from jseg import console
from jseg.console import PlainConsole, part_progress, printable, progress
from jseg.loop import Validation
from jseg.metrics import ConfusionState


def printed(*things, encoding="utf-8", width=80):
  raw = io.BytesIO()
  shown = PlainConsole()
  shown.file = io.TextIOWrapper(raw, encoding, errors="strict", write_through=True)
  shown.width = width
  shown.print(*things)
  shown.file.flush()
  return raw.getvalue().decode(encoding)


def table(name):
  result = Table("class", name, title=name, caption=name)
  result.add_row(name, "1")
  result.add_row(Text.assemble((name, "bold")), "2")
  return result


@pytest.mark.parametrize("name", ["[/b]", "[red]x", "a [v2]", "[link=x]", ":car:", "[[", "\\[x]"])
def test_names_are_no_markup(name):
  assert printed(name) == f"{name}\n"
  assert printed(table(name)).count(name) == 5


@pytest.mark.parametrize("name", ["[/b]", "[link=x]", "\x1b[2Ja"])
def test_the_table_that_ends_a_training_shows_any_name(name, capsys):
  run = Fields(classes=Fields(names=(name, "other")))
  scores = ConfusionState.empty(2).compute()
  Validation.show(Fields(_pictures=[], scores=scores, _split=name, _step=3, _run=run))
  assert capsys.readouterr().out.count(printable(name)) == 2


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a\x1b[31mb", "a\\x1b[31mb"),
    ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
    ("a\x9b2Jb\x7f", "a\\x9b2Jb\\x7f"),
    ("gnp\u202e.exe", "gnp\\u202e.exe"),
    ("tab\tand\nline", "tab\tand\nline"),
    ("bad\udcff name", "bad? name"),
    ("Größe 猫 [/b]", "Größe 猫 [/b]"),
  ],
)
def test_nothing_commands_the_terminal(text, shown):
  assert printable(text) == shown
  if "\x1b" in text:
    assert "\x1b" not in printed(text)
    assert "\x1b" not in printed(table(text), width=200)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_what_a_terminal_lacks_is_replaced(encoding):
  shown = printed(table("ä猫✗"), encoding=encoding)
  assert ("?" if encoding == "ascii" else "ä") + "??" in shown
  assert "┃" not in shown
  assert printed("■ ✗ → done", encoding=encoding) == "? ? ? done\n"


def test_colors_of_our_own_stay():
  shown = PlainConsole()
  shown._force_terminal, shown._color_system = True, 1
  with shown.capture() as capture:
    shown.print(Text("red", "red"))
  assert "\x1b[" in capture.get()


def test_a_bar_shows_its_description_as_it_is(capsys):
  assert list(progress([1, 2], "a [/b]", 2, console.ERRORS, transient=False)) == [1, 2]
  assert "a [/b]" in capsys.readouterr().err


@pytest.mark.parametrize("patience", [0, 1000])
def test_parts_that_take_long_have_a_bar_of_their_own(monkeypatch, patience):
  monkeypatch.setattr("jseg.console._PATIENCE", patience)
  shown, left = PlainConsole(), []
  shown._force_terminal = shown.is_interactive = True

  def predict(image):
    for _ in part_progress(range(8), "windows [/b]", 8):
      console._shown[-1].refresh()
    left.append([task.description for task in console._shown[-1].tasks])
    return image

  with shown.capture() as capture:
    assert list(progress(map(predict, "ab"), "predicting", 2, shown)) == ["a", "b"]
  assert "predicting" in capture.get()
  assert ("windows [/b]" in capture.get()) == (patience == 0)
  assert left == [["predicting"]] * 2
  assert not console._shown
  assert list(part_progress("ab", "windows", 2)) == ["a", "b"]  # in a call from Python


def test_bars_are_drawn_as_they_move_and_by_no_thread(monkeypatch):
  monkeypatch.setattr("jseg.console._MOMENT", 0)
  shown, threads = PlainConsole(), threading.active_count()
  shown._force_terminal = shown.is_interactive = True
  with shown.capture() as capture:
    for _ in progress("abcd", "reading", 4, shown):
      assert threading.active_count() == threads
  assert all(f" {share}%" in capture.get() for share in (25, 50, 75))


def test_an_error_ends_the_program_in_one_printable_message():
  with pytest.raises(SystemExit) as info:
    console.end("a \x1b[2Jfile [/b]")
  assert info.value.code == "error: a \\x1b[2Jfile [/b]"


def test_a_notebook_without_widgets_is_spared_a_warning(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ipywidgets", None)
  shown = PlainConsole()
  shown.is_jupyter = True
  assert list(progress(range(3), "reading", 3, shown)) == [0, 1, 2]
  assert capsys.readouterr().out == ""
