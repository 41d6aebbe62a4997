"""A small SVG writer: rectangles, text, arrows, on a white ground that is readable on dark pages too."""

from __future__ import annotations

from html import escape

INK, MUTED, LINE = "#1f2933", "#52606d", "#9aa5b1"
_FONT = 'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"'


class Drawing:
    """Elements in the order they are drawn; coordinates in pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._elements: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, *, dashed: bool = False) -> None:
        """A rectangle with round corners."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._add(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" '
            f'stroke="{LINE}"{dashes}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A rectangle without a border."""
        self._add(f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{fill}"/>')

    def text(
        self, x: float, y: float, text: str, *, size: int = 13, color: str = INK, bold: bool = False, at: str = "start"
    ) -> None:
        """One line; `at` says which point of it x is: start, middle or end."""
        weight = ' font-weight="bold"' if bold else ""
        self._add(
            f'<text x="{x:g}" y="{y:g}" {_FONT} font-size="{size}" fill="{color}" text-anchor="{at}"{weight}>'
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, arrow: bool = False, dashed: bool = False) -> None:
        """A line, with a head at its end if it is an arrow."""
        head = ' marker-end="url(#head)"' if arrow else ""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._add(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{MUTED}"{head}{dashes}/>')

    def svg(self) -> str:
        """The document."""
        width, height = self._size
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L10 5 L0 10 z" fill="{MUTED}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<defs>{head}</defs>",
                f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
                *self._elements,
                "</svg>\n",
            ]
        )

    def _add(self, element: str) -> None:
        self._elements.append(element)
