"""Pages that people write, and in which a program keeps a part up to date."""

from pathlib import Path

from training.errors import BadResult


def put_between(page: Path, name: str, content: str) -> None:
    """Replace what stands between the lines `<!-- NAME:start -->` and `<!-- NAME:end -->` of a page.

    Raises BadResult where the page has no such lines.
    """
    first, last = _marks(name)
    check_page(page, name)
    before, start, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    page.write_text(f"{before}{start}\n{content.strip()}\n{end}{after}", encoding="utf-8")


def check_page(page: Path, name: str) -> None:
    """Raise BadResult where a page is not there, or has no place for the part."""
    first, last = _marks(name)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not 0 <= text.find(first) < text.find(last):
        raise BadResult(f"{page} has no lines {first} and {last}; put them where the part should stand")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"
