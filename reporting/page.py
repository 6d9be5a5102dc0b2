"""A report as one HTML file: no script, no request, pictures inside; and the same pictures as files beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from reporting.pictures import WORDS, Picture
from utils.files import atomic_path, write_text

TEMPLATE = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("page.html")
PIECES = TEMPLATE.make_module({"sections": ()})  # heading, table, ...: blocks of a section


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    lead: str  # one or two sentences on how to read it
    blocks: Sequence[str | Sequence[Picture]]  # texts, which are paragraphs, PIECES, and pictures that share a grid

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")

    @property
    def pictures(self) -> list[Picture]:
        return [picture for block in self.blocks if not isinstance(block, str) for picture in block]


def section(title: str, blocks: Sequence[str | Sequence[Picture]], **values: object) -> Section:
    """Return a section with its lead from words.yaml, the values in their places."""
    return Section(title, WORDS["sections"][title].format(**values), blocks)


def write_page(file: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page <folder>/<name>.html, and its pictures into <folder>/<name>_pictures/ in place of earlier ones."""
    folder = file.with_name(f"{file.stem}_pictures")
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    for picture in (picture for part in sections for picture in part.pictures):
        with atomic_path(folder / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    write_text(file, TEMPLATE.render(title=title, subtitle=subtitle, sections=sections) + "\n")
