"""`python -m setrec`."""

from setrec.cli import main

if __name__ == "__main__":
    main()
