"""`python -m tests.fuzz_files --minutes M --seed S`"""

import argparse
import sys
from importlib import import_module

from tests.fuzz import campaign
from tests.fuzz_files import work


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_files", description="Damaged and hostile files of every kind.")
    parser.add_argument("--minutes", type=float, help="how long; 2 unless --cases is given")
    parser.add_argument("--cases", type=int, help="how many, whatever time they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", metavar="SEED:INDEX", help="one case, in this process: what a failure prints")
    parser.add_argument("--keep", metavar="FILE", help="with --case: where to write the file")
    parser.add_argument("--plant", metavar="MODULE", default="", help="a module to import first: a bug that should be found")
    given = parser.parse_args(arguments)
    if given.case:
        if given.plant:
            import_module(given.plant)
        return 0 if work.reproduce(given.case, given.keep) else 1
    minutes = 2.0 if given.minutes is None and given.cases is None else given.minutes

    def say(words: str) -> None:
        print(words, flush=True)

    report = run(given.seed, say, given.first, given.cases, minutes, given.plant)
    print(report)
    return 1 if report.failures else 0


def run(seed: int, say, first: int = 0, cases: int | None = None, minutes: float | None = None, plant: str = ""):
    """The report of a campaign, see `campaign.run`."""
    report = work.FileReport(command="tests.fuzz_files", known=work.vocabulary)
    return campaign.run(seed, say, first, cases, minutes, plant, work.PATIENCE, work.work_on_files, report)


if __name__ == "__main__":
    sys.exit(main())
