"""How docstrings of this package are read for the pages of the API: an extension of griffe, which mkdocs.yml names.

Griffe wants an empty line before every section, and types without marks; Hugging Face writes neither."""

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^(?:Args|Returns|Raises|Yields|Attributes|Source|Keys):")
ENTRY = re.compile(r"^(    [\w*][\w*, ]*) \((.+?)\):(?= |$)", re.MULTILINE)
DEFAULT = re.compile(r", defaults? to (.+)$", re.DOTALL)
REFERENCE = re.compile(r"\[(`)~?([^`\]]+`)\](?![\[(])")


class HouseDocstrings(Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called with every function, class and module."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """A docstring in the form that griffe reads."""
    lines: list[str] = []
    for line in text.splitlines():
        if SECTION.match(line) and lines and lines[-1].strip():
            lines.append("")
        lines.append(line)
    text = join_types(REFERENCE.sub(r"\1\2", "\n".join(lines)))
    return ENTRY.sub(lambda match: f"{match[1]} ({plain_type(match[2])}):", text)


def join_types(text: str) -> str:
    """Bring the type of an entry back onto its line, where it did not fit behind the names."""
    text = re.sub(r"^(    [\w*][\w*, ]*)\n {4,}(\(`)", r"\1 \2", text, flags=re.MULTILINE)
    return re.sub(r"^(    [\w*]+ \([^)\n]*)\n {4,}", r"\1 ", text, flags=re.MULTILINE)


def plain_type(text: str) -> str:
    """`` `int`, *optional*, defaults to 3`` as `int, optional, default 3`."""
    text = DEFAULT.sub(r", default \1", text)
    return text.replace("`", "").replace("*optional*", "optional")
