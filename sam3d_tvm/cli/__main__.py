"""`python -m sam3d_tvm.cli`."""

import sys

from sam3d_tvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
