"""The page as a file: one HTML document whose policy lets nothing run but its own script, whatever the texts are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from memvec.page.contents import chart, table
from memvec.page.render import SCRIPTS, render_page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "<img src=x onerror=alert(1)>",
    "]]> &lt;b&gt; $data ${style} \\u003c",
    "\u2028\u202e'\"`\x00\x1b",
    "<svg/onload=alert(1)>",
]


class Outline(HTMLParser):
    """Collects the elements of a document, and the text of its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, str] = {}
        self._open = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open = f"{tag}#{dict(attributes).get('id')}"

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.contents[self._open] = self.contents.get(self._open, "") + data


def contents(texts: list[str]) -> dict[str, Any]:
    return {
        "title": texts[0],
        "subtitle": texts[1],
        "facts": [(text, text) for text in texts],
        "map": None,
        "charts": [chart(texts[2], kind="rows", labels=texts, series={texts[0]: [1.0] * len(texts)})],
        "tables": [table(texts[0], ("id", "text"), [((text, text), ()) for text in texts])],
    }


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(contents(HOSTILE))


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_texts_arrive_unchanged_and_make_no_element(outline: Outline) -> None:
    assert [tag for tag, _ in outline.elements].count("script") == 2
    assert not {"img", "svg", "b"} & {tag for tag, _ in outline.elements}
    received = json.loads(outline.contents["script#contents"])
    assert received == json.loads(json.dumps(contents(HOSTILE)))


def test_the_policy_names_the_pages_own_script_and_style(outline: Outline) -> None:
    policy = next(a["content"] for tag, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for rule, key in (("script-src", "script#None"), ("style-src", "style#None")):
        digest = base64.b64encode(hashlib.sha256(outline.contents[key].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert set(rules) == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"),
        *("require-trusted-types-for", "trusted-types"),
    }


def test_nothing_on_the_page_is_fetched(page: str, outline: Outline) -> None:
    for _, attributes in outline.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    script = outline.contents["script#None"]
    assert set(re.findall(r"https?://[^\s\"']+", script)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "url(" not in outline.contents["style#None"]
    assert "@import" not in outline.contents["style#None"]


@pytest.mark.parametrize("sink", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch("])
def test_no_script_makes_html_or_code_of_a_string(sink: str, outline: Outline) -> None:
    assert sink not in outline.contents["script#None"]
    assert len(SCRIPTS) == 4


def test_a_number_that_json_has_not_is_refused() -> None:
    bad = {**contents(HOSTILE), "charts": [chart("a", kind="bars", labels=["1"], series={"b": [float("nan")]})]}
    with pytest.raises(ValueError, match="JSON"):
        render_page(bad)
