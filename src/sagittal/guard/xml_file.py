"""XML from outside: no document type, no entities, nothing fetched; capped in size, depth and number of elements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from sagittal.errors import ReadError
from sagittal.guard.limits import check_file

#: Bytes of one XML file; an annotation of one picture has a few thousand.
MAX_XML_BYTES = 2**24
MAX_XML_DEPTH = 32
MAX_XML_ELEMENTS = 500_000


@dataclass
class Element:
    """One element: its name, its text and the elements in it. Attributes are left out."""

    name: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, name: str) -> Element | None:
        """The first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def all(self, name: str) -> list[Element]:
        """The children of that name."""
        return [child for child in self.children if child.name == name]

    def value(self, *path: str) -> str:
        """The text below a path of names, without blanks around it; empty where there is none."""
        found: Element | None = self
        for name in path:
            found = found.find(name) if found is not None else None
        return found.text.strip() if found is not None else ""


def read_xml(path: Path) -> Element:
    """The root element of an XML file.

    Raises
    ------
    ReadError
        If the file is damaged or too large, is nested too deep, or declares a document type or entities, which could
        make it grow without end or read other files.
    """
    size = check_file(path)
    if size > MAX_XML_BYTES:
        raise ReadError(f"XML: has {size:,} bytes; at most {MAX_XML_BYTES:,} are read")
    reader = _Reader()
    try:
        reader.parser.Parse(path.read_bytes(), True)
    except ReadError:
        raise
    except expat.ExpatError as error:
        raise ReadError(f"XML: damaged or cut off in line {error.lineno}") from error
    except (ValueError, LookupError) as error:  # an encoding that is not known
        raise ReadError(f"XML: cannot be read ({type(error).__name__})") from error
    if reader.root is None:
        raise ReadError("XML: holds no element")
    return reader.root


class _Reader:
    """Builds the elements while expat goes through the text."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self.open: list[Element] = []
        self.count = 0
        self.parser: Any = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse
        self.parser.ExternalEntityRefHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _refuse(self, *_: Any) -> int:
        raise ReadError("XML: declares a document type or entities, which are not read: they could fetch other files")

    def _start(self, name: str, _: Any) -> None:
        self.count += 1
        if len(self.open) >= MAX_XML_DEPTH:
            raise ReadError(f"XML: is nested more than {MAX_XML_DEPTH} deep")
        if self.count > MAX_XML_ELEMENTS:
            raise ReadError(f"XML: holds more than {MAX_XML_ELEMENTS:,} elements")
        element = Element(name, self.parser.CurrentLineNumber)
        if self.open:
            self.open[-1].children.append(element)
        else:
            self.root = element
        self.open.append(element)

    def _end(self, _: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        if self.open and (self.open[-1].text or text.strip()):
            self.open[-1].text += text
