"""Contents of a page to one HTML file that asks the network for nothing.

In: the contents (`memvec.page.contents`). Out: HTML.

How: texts are private and come from strangers, so they never become HTML: they travel as JSON inside a script element
of a type that no browser runs, every `<` of them escaped, and page.js puts them on the page as text nodes only. The
page's content policy lets run the two scripts and styles whose hashes it names, nothing else, and no request leave it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from string import Template

from memvec.errors import json_on_one_line
from memvec.page.contents import Json

SCRIPTS = ("elements.js", "charts.js", "map.js", "page.js")


def render_page(contents: Json) -> str:
    """Returns the HTML of a page."""
    style = _asset("page.css")
    script = '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    # A `<` could end the script element, or open a comment in it; JSON has it in strings only, which have an escape.
    data = json_on_one_line(contents).replace("<", "\\u003c")
    return Template(_asset("page.html")).substitute(policy=policy, style=style, script=script, data=data)


def _asset(name: str) -> str:
    return (resources.files("memvec.page") / "assets" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
