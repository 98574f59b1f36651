"""`python -m tests.fuzz --minutes M --seed S`"""

import os
import sys
from importlib import import_module

from tests.fuzz import campaign


def main(arguments: list[str] | None = None) -> int:
    parser = campaign.options("tests.fuzz", "Random networks of the ops against the oracles.")
    given = parser.parse_args(arguments)
    if "MALLOC_PERTURB_" not in os.environ and arguments is None:
        # glibc fills memory that it hands out: what a kernel forgets to write is 3e38 or NaN, not a zero that may be right.
        os.environ["MALLOC_PERTURB_"] = "128"
        os.execv(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]])
    if given.case:
        if given.plant:
            import_module(given.plant)
        return 0 if campaign.reproduce(given.case) else 1
    return campaign.main(given, campaign.run)


if __name__ == "__main__":
    sys.exit(main())
