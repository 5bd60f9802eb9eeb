"""Runs the zoo and writes docs/zoo.md.

python benchmarks/zoo_table.py               every model (an hour on two cores)
python benchmarks/zoo_table.py llama t5:sdpa these alone; the other rows stay as they are
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from zoo import driver, table
from zoo.hf import Unavailable
from zoo.models import ZOO, pairs


def main(wanted: list[str]) -> int:
    """Run the models named (all without a name) and bring their rows up to date. Returns the exit status."""
    chosen = [pair for pair in pairs() if not wanted or pair[0] in wanted or ":".join(pair) in wanted]
    known = {name for name, _ in chosen} | {":".join(pair) for pair in chosen}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"there is no model {', '.join(unknown)} in tests/zoo", file=sys.stderr)
        return 2
    rows = table.parse(table.PAGE.read_text(encoding="utf-8")) if table.PAGE.exists() else {}
    failed = []
    for name, impl in chosen:
        entry = ZOO[name]
        if entry.refused is not None:
            continue
        try:
            rows[name, impl] = table.row_of(entry, impl, driver.run(entry, impl))
        except Unavailable as missing:
            print(f"not run: {missing}", file=sys.stderr)
        except Exception as error:  # one model must not keep the others from the table
            failed.append(f"{name}:{impl}")
            print(f"{name}:{impl} failed: {error}", file=sys.stderr)
        else:
            print(f"{name}:{impl} {rows[name, impl].sites}", file=sys.stderr)
        ordered = [rows[pair] for pair in pairs() if pair in rows]
        table.PAGE.write_text(table.render(ordered), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
