"""Tables on the screen."""

from __future__ import annotations

from mergestream.display import tables


def test_names_fold_but_stay(capsys):
    columns = ["%", *(f"a wide heading {i}" for i in range(6))]
    tables.table("title", columns, [["a name of more than twenty letters", *["12.34 ± 5.67"] * 6]])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("a name", "more", "twenty", "letters"))


def test_a_name_with_brackets_is_shown(capsys):
    tables.table("a [title]", ["%", "n [heads]"], [["seq [tuned-alone]", "1 [pair]"]])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a [title]", "n [heads]", "seq [tuned-alone]", "1 [pair]"))
