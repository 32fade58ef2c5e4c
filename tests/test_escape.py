"""Names in tables, Markdown and pages: they come out as they went in, and nothing in them acts."""

import csv
import html
import io

import pytest
from markdown_it import MarkdownIt

from visionpipe.escape import csv_line, markdown, script_data, visible

NAMES = [
    "plain", "T-shirt/top", "no. 5", "my_model_2", "_x_", "__init__", "a__b", "*b*", "~~s~~", "`c`", "[a](b)",
    "![a](b)", "<script>alert(1)</script>", "&lt;", "R&D", "a|b", "\\|", "C #", "# a", "> a", "- a", "1. a", "{'a': 1}",
    "$a$", "été", "猫", 'q"q', "it's", "http://x.y", "www.x.y", "<http://x.y>", "a@b.c", ":cat:", "=1+1", "--- ",
    "a\\", "\\*a\\*",
]  # fmt: skip


def escaped(text):
    return html.escape(text).replace("&#x27;", "'")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_markdown_is_shown_as_it_is(name):
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
    shown = escaped(name.strip())
    cell = render(f"| head |\n| --- |\n| {markdown(name)} |\n")
    assert f"<td>{shown}</td>" in cell
    assert render(f"# {markdown(name)}\n") == f"<h1>{shown}</h1>\n"
    assert render(f"of 2 classes: {markdown(name)}, b\n") == f"<p>of 2 classes: {escaped(name)}, b</p>\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb\tc\r", "a\\nb\\tc\\r"), ("\x1b[31m", "\\x1b[31m"), ("\u202ea", "\\u202ea"), ("\u2028", "\\u2028"),
     ("می\u200cخواهم", "می\u200cخواهم"), ("👩\u200d🚀", "👩\u200d🚀"), ("\udcff", "\\udcff"), ("été", "été")],
)  # fmt: skip
def test_what_breaks_a_line_or_turns_the_writing_is_shown_by_its_number(name, shown):
    assert visible(name) == shown


def test_no_text_ends_the_script_that_it_lies_in():
    for text in ("</script>", "<!-- <script>", "<<"):
        assert "<" not in script_data(text)


@pytest.mark.parametrize("text", ["a,b", 'a"b', "a\nb", "a\rb", "a\r\nb", "", " a ", "é", "a;b", "'a"])
def test_a_cell_is_read_back(text):
    line = csv_line([text, 0.5, None, text, 3]).decode()
    assert next(csv.reader(io.StringIO(line, newline=""))) == [text, "0.5", "", text, "3"]


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠a", "'=1", "''=1"]
)
def test_a_cell_that_a_spreadsheet_would_execute_has_a_sign_before_it(text):
    line = csv_line([text, "b"]).decode()
    assert next(csv.reader(io.StringIO(line, newline=""))) == [f"'{text}", "b"]
