"""`python -m serve RUN` is `triptych serve RUN`."""

import sys

from cluster.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
