"""`python main.py COMMAND ...` does the same as `setrec COMMAND ...`, without installing the package."""

from setrec.cli import main

if __name__ == "__main__":
    main()
