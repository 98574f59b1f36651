"""`python -m tests.fuzz_files --minutes M --seed S`"""

import sys
from importlib import import_module

from tests.fuzz import campaign
from tests.fuzz_files import work


def main(arguments: list[str] | None = None) -> int:
    parser = campaign.options("tests.fuzz_files", "Damaged and hostile files of every kind.")
    parser.add_argument("--keep", metavar="FILE", help="with --case: where to write the file")
    given = parser.parse_args(arguments)
    if given.case:
        if given.plant:
            import_module(given.plant)
        return 0 if work.reproduce(given.case, given.keep) else 1
    return campaign.main(given, run)


def run(seed: int, say, first: int = 0, cases: int | None = None, minutes: float | None = None, plant: str = ""):
    """The report of a campaign, see `campaign.run`."""
    report = work.FileReport(command="tests.fuzz_files", known=work.vocabulary)
    return campaign.run(seed, say, first, cases, minutes, plant, work.PATIENCE, work.work_on_files, report)


if __name__ == "__main__":
    sys.exit(main())
