"""`python -m tests.golden FILE...`"""

import sys

from tests.golden.runner import main

sys.exit(main())
