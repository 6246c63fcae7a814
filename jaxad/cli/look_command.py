"""``jaxad look``."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxad.cli.terminal import exit_on_mendable, plain_console

ROWS = 200_000


def look(
    data: Annotated[Path, tyro.conf.Positional],
    columns: str | None = None,
    missing: str | None = None,
    rows: int = ROWS,
) -> None:
    """What is in a table? The role of every column, what is missing, and what looks wrong, without learning anything.

    Args:
        data: a table that jaxad fit reads.
        columns: what columns are, if it is not found out: "age=number,zip=category,ref=leave-out".
        missing: words that mean that nothing is known, with commas between them.
        rows: of a longer file the first so many are looked at.
    """
    if rows < 1:
        raise ValueError(f"--rows is at least 1, got {rows}")
    if not data.exists():
        raise ValueError(f"{data}: expected a file of rows, found nothing; check the path")
    with exit_on_mendable():
        from jaxad.cli.kinds.table_kind import about_columns, columns_told, dialect_told
        from jaxad.data import FrameEncoder, read_frame, read_table, roles_of, table_columns
        from jaxad.data.doubts import doubts
        from jaxad.data.roles import ASKED_ABOUT, USED

        say = plain_console().print
        dialect = dialect_told(data, missing, say)
        if table_columns(data, dialect) is None:
            say(str(read_table(data)))
            return
        frame: Any = read_frame(data, dialect=dialect, rows=rows)
        roles = roles_of(frame, columns_told(columns), ask=False)
        more = ", the first of more" if len(frame) == rows else ""
        say(
            f"{len(frame):,} rows{more} of {len(roles)} columns, {frame.isna().mean(axis=None):.1%} of the cells are missing"
        )
        for line in about_columns(roles):
            say(line)
        if copies := int(frame.duplicated().sum()):
            say(f"{copies:,} rows are copies of an earlier one")
        asked = [column for column in roles if column.role in ASKED_ABOUT]
        for column in asked:
            say(f"to be answered: {column.note}")
        learned = [column.name for column in roles if column.role in USED]
        if learned:
            told = {column.name: "leave-out" for column in roles if column.name not in learned} | columns_told(columns)
            told = {name: role for name, role in told.items() if name not in [column.name for column in asked]}
            usable = frame[[name for name in frame.columns if str(name) not in [column.name for column in asked]]]
            encoder = FrameEncoder(told, categories="codes").fit(usable)
            numbers = [i for i, group in enumerate(encoder.groups_) if encoder.parts_[group].kind == "number"]
            x = encoder.transform(usable, dialect)[:, numbers]
            names = encoder.get_feature_names_out()[numbers].tolist()
            for doubt in doubts(x, names) if numbers else ():
                say(f"warning: {doubt}" + (" with --drop" if doubt.endswith("leave it out") else ""))
