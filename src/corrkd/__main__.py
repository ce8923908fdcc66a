"""`python -m corrkd` is the command `corrkd`."""

from corrkd.cli import main

if __name__ == "__main__":
    main()
