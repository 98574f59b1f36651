"""`python -m tests.fuzz --minutes M --seed S`"""

import argparse
import os
import sys
from importlib import import_module

from tests.fuzz import campaign


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random networks of the ops against the oracles.")
    parser.add_argument("--minutes", type=float, help="how long; 2 unless --cases is given")
    parser.add_argument("--cases", type=int, help="how many, whatever time they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", metavar="SEED:INDEX", help="one case, in this process: what a failure prints")
    parser.add_argument("--plant", metavar="MODULE", default="", help="a module to import first: a bug that should be found")
    given = parser.parse_args(arguments)
    if "MALLOC_PERTURB_" not in os.environ and arguments is None:
        # glibc fills memory that it hands out: what a kernel forgets to write is 3e38 or NaN, not a zero that may be right.
        os.environ["MALLOC_PERTURB_"] = "128"
        os.execv(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]])
    if given.case:
        if given.plant:
            import_module(given.plant)
        return 0 if campaign.reproduce(given.case) else 1
    minutes = 2.0 if given.minutes is None and given.cases is None else given.minutes

    def say(words: str) -> None:
        print(words, flush=True)

    report = campaign.run(given.seed, say, given.first, given.cases, minutes, given.plant)
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
