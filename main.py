"""python main.py {fit,validate,test,predict,...}: the same as the command `setrec`."""

from setrec.cli import main

if __name__ == "__main__":
    main()
