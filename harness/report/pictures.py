"""SVG documents made fit to stand inside an HTML page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from trtforge.bindings.errors import ForgeError

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_LINK = re.compile(r"url\(#([^)]+)\)")
#: What a picture of a report has no use for: metadata, and whatever would run or fetch something.
_LEFT_OUT = {"metadata", "script", "foreignObject", "image", "a", "style"}
_STYLE = "style"


def inline(svg: str, prefix: str, label: str) -> str:
    """The picture as an ``<svg>`` element: no prolog, scripts, links or event handlers, ids prefixed, with a label.

    Two pictures of one plotting library share ids, and a page may have each once. Size and place are the page's: the
    element keeps its ``viewBox`` and loses width and height. Raises ForgeError for what is no SVG.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ForgeError(f"the picture {label!r} is no SVG: {error}") from error
    if root.tag != f"{{{_SVG}}}svg":
        raise ForgeError(f"the picture {label!r} is no SVG: its root is {root.tag!r}")
    _clean(root, prefix)
    if "viewBox" not in root.attrib:
        width, height = (re.match(r"[\d.]*", root.get(name, "")) for name in ("width", "height"))
        if width and height and width[0] and height[0]:
            root.set("viewBox", f"0 0 {width[0]} {height[0]}")
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, prefix: str) -> None:
    for child in list(element):
        name = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else ""
        if not name or (name in _LEFT_OUT and not _is_plain_style(child)):
            element.remove(child)
        else:
            _clean(child, prefix)
    for name, value in list(element.attrib.items()):
        local = name.rpartition("}")[2]
        if local == "id":
            element.set(name, prefix + value)
        elif local == "href":
            if value.startswith("#"):
                element.set(name, f"#{prefix}{value[1:]}")
            else:
                del element.attrib[name]
        elif local.startswith("on"):
            del element.attrib[name]
        elif "url(" in value:
            element.set(name, _LINK.sub(lambda found: f"url(#{prefix}{found[1]})", value))


def _is_plain_style(element: ElementTree.Element) -> bool:
    """A style sheet that fetches nothing; it may set how lines join."""
    return element.tag.rpartition("}")[2] == _STYLE and not re.search(r"url|import", element.text or "", re.I)
