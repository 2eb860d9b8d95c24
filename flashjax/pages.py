"""HTML pages that need nothing beside them: reports of runs, layouts, figures."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any


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


def png_source(image: Any) -> str:
    """What an `img` takes as its `src`: the pixels themselves, uint8 [H W 1 or 3]. Needs Pillow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
