"""HTML pages that need nothing beside them: reports of runs, layouts, figures."""

from collections.abc import Sequence
from html import escape
from pathlib import Path


def write_page(path: str | Path, title: str, style: str, parts: Sequence[str]) -> Path:
    """Writes one self-contained page to ``path``, replacing an older one whole, and returns where it is.

    Args:
        style: CSS of the page.
        parts: HTML of its body, from top to bottom; what is not markup in it must be escaped already.
    """
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(page, encoding="utf-8")
    new.replace(path)
    return path
