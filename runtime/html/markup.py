"""A very small HTML writer: every text is escaped, every attribute is quoted, nothing else gets through.

Names of models, nodes and inputs come from files of strangers. Text becomes :class:`Markup` only through
:func:`tag` and :func:`escape`, so a page that is put together here cannot carry somebody else's markup.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

__all__ = ["Markup", "breakable", "escape", "join", "tag"]

_VOID: Final = frozenset({"meta", "link", "br", "circle", "line", "rect", "path"})
#: Where a long name may be broken: behind a slash, a dot or the colons of a domain, before an underscore.
_PARTS: Final = re.compile(r"(?<=\w)(?:/|\.|::|_)(?=\w)")
#: Invisible characters that are harmless and carry meaning: joiners of scripts and emoji.
_HARMLESS: Final = frozenset("\t\n\u200c\u200d\u00ad")


class Markup(str):
    """Text that is HTML already. Made by this module only."""

    __slots__ = ()


Content = str | int | None


def escape(text: object) -> Markup:
    """``text`` as HTML. Control, bidirectional-override and lone surrogate characters are shown as their code.

    Such characters can hide or reorder what a reader sees, and surrogates cannot be encoded.
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape("".join(map(_visible, str(text))), quote=True))


def breakable(name: object) -> Markup:
    """A path or the name of an operator, which may go on in the next line at its parts and nowhere else."""
    return Markup(_PARTS.sub(lambda at: f"<wbr>{at[0]}" if at[0] == "_" else f"{at[0]}<wbr>", escape(name)))


def _visible(char: str) -> str:
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in _HARMLESS
    return f"\\u{{{ord(char):x}}}" if hidden else char


def join(*parts: Content) -> Markup:
    """The parts one after the other; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: Content, **attributes: str | int | float | bool | None) -> Markup:
    """An element. ``class_`` becomes class, ``_`` in other names "-"; None and False leave an attribute out."""
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID and not children:
        return Markup(f"<{name}{given}>" if name in ("meta", "link", "br") else f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
