"""Write the table of modules in docs/architecture.md from the files: floor, lines, and the first sentence of each.

.venv/bin/python docs/layout.py
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
sys.path.insert(0, str(ROOT / "tests"))


def table() -> str:
    from test_floors import FILES, floor_of

    rows = []
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        first = re.split(r"(?<=[.?])\s|: \*|\n\n", ast.get_docstring(ast.parse(text)) or "")[0]
        if path.name != "__init__.py" or name == "":
            rows.append(
                (
                    floor_of(name),
                    path.relative_to(ROOT).as_posix(),
                    text.count("\n"),
                    " ".join(first.split()).replace("|", r"\|"),
                )
            )
    lines = [
        f"| {floor:g} | `{path}` | {count} | {first} |"
        for floor, path, count, first in sorted(rows, key=lambda row: (-row[0], row[1]))
    ]
    tests = sum(path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").glob("*.py"))
    total = sum(count for _, _, count, _ in rows)
    head = ["| floor | file | lines | what it is |", "|---:|---|---:|---|"]
    return "\n".join([*head, *lines, "", f"{total:,} lines in {len(rows)} files, {tests:,} lines of tests."])


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    between = re.compile(r"(<!-- layout -->\n).*?(<!-- /layout -->)", re.S)
    PAGE.write_text(between.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page), encoding="utf-8")
