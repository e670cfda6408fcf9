"""Runs a .tflite once in LiteRT, as a process of its own: a file that crashes takes only this one down.

python -m lqconvert.trial MODEL BYTES

Ends with 0 if the file loads and runs on zeros in at most so many bytes of memory.
"""

import sys

import numpy as np


def main(model: str, limit: str) -> None:
    from lqconvert.runtime import Runner

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    except ImportError:  # not on Windows
        pass
    with open(model, "rb") as file:
        runner = Runner(file.read())
    runner.invoke([np.zeros(runner.example_shape, np.int8)])


if __name__ == "__main__":
    main(*sys.argv[1:])
