"""`make mutants`: one change at a time in the modules that match, and whether their tests notice it.

Stands in a copy of the repository, where mutmut leaves its files; what it mutates and which tests it runs
says `[tool.mutmut]` in pyproject.toml.
"""

import argparse
import contextlib
import random
import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

MUTMUT = Path(sys.executable).with_name("mutmut")
AT_ONCE = 2
NO_NAME = "(none)"


def judge(names: list[str]) -> None:
    """Run the tests against these mutants."""
    # Stopped by hand it tells what was judged until then.
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run([MUTMUT, "run", "--max-children", str(AT_ONCE), *names], check=True)


def verdicts() -> dict[str, str]:
    """Return what is said of each mutant: `killed`, `timeout`, `survived`, `no tests`, `not checked`."""
    told = subprocess.run([MUTMUT, "results", "--all", "true"], capture_output=True, text=True, check=True)
    return dict(re.findall(r"^ *(\S+): (.+)$", told.stdout, re.MULTILINE))


def main() -> int:
    """Mutate, judge, and say by module what the tests noticed, and then what they did not."""
    parser = argparse.ArgumentParser(prog="make mutants", description=main.__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="such as 'exchange.matching.*'")
    parser.add_argument("--budget", type=int, help="how many mutants to judge; all by default")
    parser.add_argument("--seed", type=int, default=3, help="that draws those of the budget")
    arguments = parser.parse_args()
    # Mutants are made before their names are looked at: at one that is none it stops, and all are there.
    made = subprocess.run([MUTMUT, "run", NO_NAME], capture_output=True, text=True, check=False)
    names = sorted(name for name in verdicts() if any(fnmatch(name, wanted) for wanted in arguments.names))
    if not names:
        sys.stderr.write(f"{made.stdout}{made.stderr}no mutant is named {' '.join(arguments.names)}\n")
        return 1
    if arguments.budget is not None and arguments.budget < len(names):
        names = random.Random(arguments.seed).sample(names, arguments.budget)
    judge(names)
    found = verdicts()
    counts: dict[str, Counter[str]] = {}
    for name in sorted(found):
        counts.setdefault(".".join(name.split(".")[:2]), Counter())[found[name]] += 1
    sys.stdout.write("| module | mutants | judged | killed | of them out of time | of those judged |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for module, of in {**counts, "together": sum(counts.values(), Counter())}.items():
        judged, late = of.total() - of["not checked"], of["timeout"]
        killed = of["killed"] + late
        share = f"{killed / judged:.1%}" if judged else ""
        sys.stdout.write(f"| {module} | {of.total()} | {judged} | {killed} | {late} | {share} |\n")
    for name in sorted(names):
        if found[name] not in {"killed", "timeout", "not checked"}:
            shown = subprocess.run([MUTMUT, "show", name], capture_output=True, text=True, check=True).stdout
            sys.stdout.write(f"\n{shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
