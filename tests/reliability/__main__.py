"""`python -m tests.reliability --quick | --full [--only R3,R5] [--seed N] [--no-clock] [--out FILE] [--readme]`: run the lines, print the table,
write the counts: with --full, --only or --readme into the report that the README tells, else into a file beside it, or where --out says.

--no-clock judges no seconds, for machines that do other work too; a line that would have judged some is then not green. --readme also puts the
counts into the README. Exit code 0 if every case that was asked went right, else 1.
"""

import argparse
import json
import logging
import os
import platform
import random
import re
import sys
import time
import traceback
from pathlib import Path

from . import ROOT
from .lines import LINES
from .shared import clock, closed

SHOWN = 3  # problems of a line that are kept
REPORT, README = ROOT / "reports" / "reliability.json", ROOT / "README.md"
TABLE = re.compile("(<!-- reliability -->\n).*?(<!-- end -->)", re.DOTALL)


def measured(line, n, seed):
    """One line as a row of the report: green if it asked as often as it should, all of it went right, and nothing was left out."""
    done, asked, problems, figures, began, clock["asked"] = 0, 0, [], {}, time.monotonic(), 0
    try:
        for problem in line.run(n, random.Random(f"{seed} {line.id}"), figures):
            asked, done = asked + 1, done + (not problem)
            problems += [problem] if problem else []
    except Exception as error:
        asked += 1
        problems.append(f"stopped: {type(error).__name__}: {error}")
        traceback.print_exc()
    if asked < max(n, 1) and not problems:
        asked, problems = asked + 1, [f"{asked} cases of {n}"]
    only = line.only or ("seconds were not judged" if clock["asked"] and not clock["on"] else "")
    row = {"what": line.what, "done": done, "asked": asked, "green": done == asked and not only, "n": n, "figures": figures}
    return row | {"only": only, "seconds": round(time.monotonic() - began, 1), "problems": problems[:SHOWN]}


def shown(id, row):
    state = "green" if row["green"] else "RED" if row["problems"] else row["only"]
    return f"{id:4} {row['what']:48} {row['done']:>7}/{row['asked']:<7} {row['seconds']:>7.1f} s  {state}"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__, allow_abbrev=False)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes (the default)")
    size.add_argument("--full", action="store_true", help="up to an hour")
    parser.add_argument("--only", help="ids with commas; the rest of the report stays as it was")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-clock", action="store_true", help="judge no seconds: this machine does other work too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true", help="write the report's figures into the README")
    args = parser.parse_args(argv)
    args.out = args.out or (REPORT if args.full or args.only or args.readme else REPORT.with_name("quick.json"))
    clock["on"] = not args.no_clock
    counts = {id: line.full if args.full else line.quick for id, line in LINES.items()}
    asked = args.only.upper().split(",") if args.only else [id for id in LINES if counts[id]]
    if unknown := set(asked) - set(LINES):
        parser.error(f"no line {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    if left := [id for id in asked if not counts[id]]:
        parser.error(f"{', '.join(left)}: only with --full")
    kept = json.loads(args.out.read_text())["lines"] if args.only and args.out.exists() else {}
    for id in (id for id in LINES if id in asked):
        kept[id] = measured(LINES[id], counts[id], args.seed)
        kept[id] |= {"size": "full" if args.full else "quick", "seed": args.seed}
        print(shown(id, kept[id]), flush=True)
        for problem in kept[id]["problems"]:
            print(f"       {problem[:300]}", flush=True)
        write(args.out, kept)
    green = [id for id in LINES if kept.get(id, {}).get("green")]
    print(f"R = {len(green)}/{len(LINES)} in {sum(kept[id]['seconds'] for id in asked) / 60:.1f} minutes")
    if args.readme:
        README.write_text(TABLE.sub(lambda found: found[1] + table(json.loads(args.out.read_text())) + found[2], README.read_text()))
    return 1 if any(kept[id]["problems"] for id in asked) else 0


def table(report):
    """What the README says: a row for each line, and how many are green."""
    rows = ["| | what | right / asked | run | |", "|---|---|---|---|---|"]
    for id, row in report["lines"].items():
        problems = row.get("problems")
        state = "green" if row["green"] else f"**red**: {problems[0][:80]}" if problems else row["only"]
        counts = f"{row['done']:,} / {row['asked']:,} | {row['size']}, seed {row['seed']}" if row["asked"] else "- | -"
        rows.append(f"| {id} | {row['what']} | {counts} | {state} |")
    return "\n".join([*rows, "", f"**{report['green']} of {report['of']} lines are green.**", ""])


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    rows = {id: lines.get(id) or {"what": LINES[id].what, "done": 0, "asked": 0, "green": False, "only": "not measured"} for id in LINES}
    green = sum(row["green"] for row in rows.values())
    machine = {"python": platform.python_version(), "system": platform.system(), "processors": len(os.sched_getaffinity(0))}
    path.write_text(json.dumps({"green": green, "of": len(rows), "machine": machine, "lines": rows}, indent=1) + "\n")


if __name__ == "__main__":
    logging.getLogger("videolcm").setLevel(logging.CRITICAL)  # what it says of damage that is made here
    with closed():
        code = main()
    sys.exit(code)
