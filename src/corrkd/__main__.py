"""Entry point of `python -m corrkd`, which is the same as the command `corrkd`."""

from corrkd.cli import main

if __name__ == "__main__":
    main()
