"""`python -m pipelines` is the command line `triptych`."""

from pipelines.cli.main import main

if __name__ == "__main__":
    main()
