"""``python -I -m lqconvert``: the command line, with no module from the working folder or PYTHONPATH."""

from lqconvert.cli.main import main

if __name__ == "__main__":
    main(prog_name="lqconvert")
