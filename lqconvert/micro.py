"""Runs a .tflite in TFLite Micro, as a process of its own: a model that crashes takes only this one down.

    python -m lqconvert.micro MODEL INPUTS.npy OUTPUTS.npy ARENA_BYTES

Writes int8 outputs [n, ...] for int8 inputs [n, ...], and the median seconds of an inference as the last line
of stdout. TFLite Micro writes its allocations to stderr.
"""

import sys
import time

import numpy as np


def main(model: str, inputs: str, outputs: str, arena: str) -> None:
    from tflite_micro import runtime

    with open(model, "rb") as file:
        interpreter = runtime.Interpreter.from_bytes(file.read(), arena_size=int(arena))
    shape = interpreter.get_input_details(0)["shape"]
    results, times = [], []
    for example in np.load(inputs):
        interpreter.set_input(example.reshape(shape), 0)
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
        results.append(interpreter.get_output(0)[0])
    interpreter.print_allocations()
    np.save(outputs, np.stack(results))
    print(sorted(times)[len(times) // 2])


if __name__ == "__main__":
    main(*sys.argv[1:])
