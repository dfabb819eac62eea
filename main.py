"""python main.py {fit,validate,test,predict} --config configs/NAME.yaml"""

from setrec.cli import main

if __name__ == "__main__":
    main()
