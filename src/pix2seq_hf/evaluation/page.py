"""How a report's page looks: one HTML file with its style, tables, charts and pictures, that needs nothing else."""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from pix2seq_hf.evaluation.charts import PALETTE, Chart, to_svg

JPEG_QUALITY = 82
LONG_TEXT = 24  # letters; cells with more are kept wide on a phone
DASH = "\N{EN DASH}"

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,sans-serif'
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 var(--font)}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:.5rem 0 .25rem}
h2{font-size:1.25rem;margin:2.75rem 0 .75rem}
p{margin:.5rem 0;max-width:46rem}
.facts{display:flex;flex-wrap:wrap;gap:.1rem 1.25rem;margin:.5rem 0 1.25rem;color:var(--pale);font-size:.9rem}
.facts dt{display:inline}.facts dd{display:inline;margin:0;color:var(--ink);overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1rem 0}
.tile,.card{background:var(--paper);border:1px solid var(--grid);border-radius:.6rem}
.tile{padding:.7rem .9rem}.tile b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--pale);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1rem;align-items:start}
figure{margin:0}.card{padding:.9rem 1rem}
svg{display:block;width:100%;height:auto;font:13px var(--font)}
figcaption{color:var(--pale);font-size:.9rem;margin-top:.5rem}
figcaption b{color:var(--ink);font-weight:600}
.scroll{margin:1rem 0;overflow-x:auto;background:var(--paper);border:1px solid var(--grid);border-radius:.6rem}
.tall{max-height:34rem;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.4rem .8rem;text-align:left;border-top:1px solid var(--grid);vertical-align:top}
thead th{position:sticky;top:0;background:var(--paper);color:var(--pale);font-weight:600;
border-top:0;box-shadow:0 1px var(--grid);white-space:nowrap}
.long{min-width:15rem}
tbody th{font-weight:500;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid var(--blue);outline-offset:3px}
th button::after{content:"\\2195";opacity:.35;padding-left:.3em}
th[aria-sort] button{color:var(--ink)}
th[aria-sort] button::after{opacity:1}
th[aria-sort=descending] button::after{content:"\\2193"}
th[aria-sort=ascending] button::after{content:"\\2191"}
.pictures{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,40rem),1fr))}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:.6rem;align-items:start}
.pair img{display:block;width:100%;height:auto;border-radius:.3rem}
.pair small{color:var(--pale);display:block;margin-bottom:.2rem}
footer{margin-top:3rem;color:var(--pale);font-size:.85rem}
@media print{.tall{max-height:none}.card,.tile{break-inside:avoid}}
"""

SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const isNumber = head.classList.contains("number");
    const last = head.getAttribute("aria-sort");
    const down = last ? last === "ascending" : isNumber;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      return (down ? -1 : 1) * (isNumber ? key(a) - key(b) : key(a).localeCompare(key(b)));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
"""


class Number(NamedTuple):
    r"""A number in a table.

    Args:
        value (`float`): It is sorted by this; one that is not finite comes last.
        text (`str`): How it is shown."""

    value: float
    text: str


def percent(value: float, digits: int = 1) -> Number:
    """A share in per cent; a dash for one that is unknown: -1, as pycocotools writes, or not finite."""
    if not math.isfinite(value) or value == -1:
        return Number(math.nan, DASH)
    return Number(value, f"{100 * value:.{digits}f}")


def count(value: int) -> Number:
    """A whole number, with thin blanks between thousands."""
    return Number(value, f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"))


def table(heads: Sequence[str], rows: Iterable[Sequence[str | Number]], is_sortable: bool = False) -> str:
    """A table: the first cell of each row names it, columns of numbers are flush right."""
    rows = list(rows)
    is_number = [any(isinstance(row[column], Number) for row in rows) for column in range(len(heads))]
    classes = [' class="number"' if each else "" for each in is_number]
    wrap = "<button>{}</button>" if is_sortable else "{}"
    frame, kind = (' class="scroll tall"', ' class="sortable"') if is_sortable else (' class="scroll"', "")
    lines = [f"<div{frame}><table{kind}><thead><tr>"]
    lines += [
        f'<th scope="col"{style}>{wrap.format(html.escape(head))}</th>'
        for head, style in zip(heads, classes, strict=True)
    ]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = []
        for place, (cell, style) in enumerate(zip(row, classes, strict=True)):
            text = cell.text if isinstance(cell, Number) else cell
            key = cell if isinstance(cell, str) else f"{cell.value:.9g}" if math.isfinite(cell.value) else ""
            data = f' data-value="{html.escape(key)}"' if is_sortable else ""
            tag = 'th scope="row"' if place == 0 else "td"
            style = ' class="long"' if len(text) > LONG_TEXT else style
            cells.append(f"<{tag}{style}{data}>{html.escape(text)}</{tag.split()[0]}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """The numbers that are looked at first: large, each with its name."""
    cells = (
        f'<div class="tile"><b>{html.escape(text)}</b><span>{html.escape(name)}</span></div>' for name, text in values
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def chart_figure(chart: Chart, caption: str) -> str:
    """A chart with a sentence below it."""
    return f'<figure class="card">{to_svg(chart)}<figcaption>{html.escape(caption)}</figcaption></figure>'


def picture_figure(title: str, caption: str, pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """Pictures that belong together, each with its name, and what is to be seen below them."""
    cells = []
    for name, picture in pictures:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        text = html.escape(f"{title}, {name}")
        cells.append(
            f'<div><small>{html.escape(name)}</small><img src="{source}" alt="{text}" loading="lazy"'
            f' width="{picture.width}" height="{picture.height}"></div>'
        )
    words = f"<figcaption><b>{html.escape(title)}</b> {html.escape(caption)}</figcaption>"
    return f'<figure class="card"><div class="pair">{"".join(cells)}</div>{words}</figure>'


def grid(kind: str, figures: Iterable[str]) -> str:
    """Figures beside each other where there is room: `"charts"` or `"pictures"`."""
    return f'<div class="{kind}">{"".join(figures)}</div>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """A part of the page."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def build_page(title: str, facts: Iterable[tuple[str, str]], parts: Iterable[str], foot: str) -> str:
    r"""Put a page together.

    Args:
        title (`str`): Of the page.
        facts (`Iterable[tuple[str, str]]`): Name and value, in a line under the title.
        parts (`Iterable[str]`): HTML.
        foot (`str`): Plain text at the end.
    Returns:
        `str`: A whole document."""
    light, dark = (
        "".join(f"--{name}:{colors[place]};" for name, colors in PALETTE.items()) + f"--ground:{ground}"
        for place, ground in ((0, "#f6f6f7"), (1, "#111113"))
    )
    items = "".join(f"<div><dt>{html.escape(name)} </dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title><style>'
        f":root{{color-scheme:light dark;--font:{FONT};{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}</style></head>"
        f'\n<body><main><h1>{html.escape(title)}</h1><dl class="facts">{items}</dl>\n'
        + "\n".join(parts)
        + f"\n<footer>{html.escape(foot)}</footer></main><script>{SORT}</script></body></html>\n"
    )
