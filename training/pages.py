"""Pages that people write, and in which a program keeps a part up to date."""

from pathlib import Path

from training.errors import BadResult


def put_between(page: Path, name: str, content: str) -> None:
    """Replace what stands between the lines `<!-- NAME:start -->` and `<!-- NAME:end -->` of a page.

    Raises BadResult where the page has no such lines.
    """
    first, last = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, start, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise BadResult(f"{page} has no lines {first} and {last}; put them where the part should stand")
    page.write_text(f"{before}{start}\n{content.strip()}\n{end}{after}", encoding="utf-8")
