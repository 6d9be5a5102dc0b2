"""A report as one HTML file: no script, no request, pictures inside; and the same pictures as files beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from reporting.pictures import Picture, png_size
from utils.files import atomic_path, write_text

STYLE_FILE = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        lead: One or two sentences on how to read it; plain text.
        blocks: In order, HTML or pictures that share a grid.
    """

    title: str
    lead: str
    blocks: Sequence[str | Sequence[Picture]]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")

    @property
    def pictures(self) -> list[Picture]:
        return [picture for block in self.blocks if not isinstance(block, str) for picture in block]

    def html(self) -> str:
        """Return the section as HTML."""
        parts = [block if isinstance(block, str) else _grid(block) for block in self.blocks]
        return (
            f"<section id='{self.anchor}'><h2>{escape(self.title)}</h2>"
            f"<p class='lead'>{escape(self.lead)}</p>{''.join(parts)}</section>"
        )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """Return a table.

    Args:
        head: Column titles; plain text.
        rows: Cells of HTML; the first of each row names it.
        marked: The 0-based row that stands out.
    """
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{escape(title)}</th>" for title in head)]
    lines.append("</tr></thead><tbody>")
    for index, (name, *cells) in enumerate(rows):
        lines.append("<tr class='marked'>" if index == marked else "<tr>")
        lines.append(f"<th scope='row'>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def definitions(rows: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values; names in plain text, values in HTML."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<dl class='facts'>{items}</dl>"


def _grid(found: Sequence[Picture]) -> str:
    """Return pictures side by side, one below the other in a narrow window."""
    return f"<div class='grid'>{''.join(map(_figure, found))}</div>"


def _figure(picture: Picture) -> str:
    width, height = png_size(picture.png)
    data = base64.b64encode(picture.png).decode()
    overlay = ""
    if picture.tooltips:
        circles = "".join(
            f"<circle cx='{place.x * width:.0f}' cy='{place.y * height:.0f}' r='9'>"
            f"<title>{escape(place.text)}</title></circle>"
            for place in picture.tooltips
        )
        overlay = f"<svg viewBox='0 0 {width} {height}' aria-hidden='true'>{circles}</svg>"
    return (
        f"<figure{' class=wide' if picture.wide else ''}><div class='image'>"
        f"<img src='data:image/png;base64,{data}' width='{width}' height='{height}' "
        f"alt='{escape(picture.title, quote=True)}'>{overlay}</div>"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def write_page(file: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page, and its pictures into a folder of their own beside it, in place of earlier ones.

    Args:
        file: <folder>/<name>.html; pictures go to <folder>/<name>_pictures/.
        title, subtitle: Plain text.
        sections: In order; a contents list links to them.
    """
    folder = file.with_name(f"{file.stem}_pictures")
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    for picture in (picture for section in sections for picture in section.pictures):
        with atomic_path(folder / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    links = "".join(f"<a href='#{section.anchor}'>{escape(section.title)}</a>" for section in sections)
    lines = [
        "<!doctype html>",
        "<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>",
        f"<title>{escape(title)}</title><style>{STYLE_FILE.read_text(encoding='utf-8')}</style></head><body>",
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header><nav>{links}</nav><main>",
        *(section.html() for section in sections),
        "</main></body></html>",
    ]
    write_text(file, "\n".join(lines) + "\n")
