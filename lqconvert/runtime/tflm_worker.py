"""Runs a .tflite in TFLite Micro, as its own process: if the model crashes, only this process ends.

    python -m lqconvert.runtime.tflm_worker MODEL INPUTS.npy OUTPUTS.npy ARENA_BYTES INPUTS OUTPUTS

Writes outputs [n, ...] for inputs [n, ...], both in the file's own types, and the median seconds of an
inference as the last line of stdout. TFLite Micro writes its allocations to stderr. The last two arguments
are the numbers of inputs and outputs of the model. Several of them are flattened and concatenated in an
example.
"""

import os
import sys
import time

import numpy as np

#: Bytes of data in addition to the arena, the model and the examples.
BASE_BYTES = 1 << 29
#: Processor seconds for the first inference. TFLite Micro's portable kernels are slow.
FIRST_SECONDS = 12


def main(model: str, inputs: str, outputs: str, arena: str, input_count: str, output_count: str) -> None:
    from lqconvert.utils.worker import Stopwatch, confine

    confine(BASE_BYTES + int(arena) + 4 * os.path.getsize(inputs) + 4 * os.path.getsize(model))
    from tflite_micro import runtime

    watch = Stopwatch(FIRST_SECONDS)
    with open(model, "rb") as file:
        interpreter = runtime.Interpreter.from_bytes(file.read(), arena_size=int(arena))
    details = [interpreter.get_input_details(number) for number in range(int(input_count))]
    ends = np.cumsum([np.prod(detail["shape"]) for detail in details])
    results, times = [], []
    for example in np.load(inputs):
        interpreter.reset()  # an LSTM starts each example with a state of zeros
        parts = np.split(example.ravel(), ends[:-1])
        for number, (part, detail) in enumerate(zip(parts, details, strict=True)):
            interpreter.set_input(part.reshape(detail["shape"]).astype(detail["dtype"], copy=False), number)
        with watch():
            start = time.perf_counter()
            interpreter.invoke()
            times.append(time.perf_counter() - start)
        made = [interpreter.get_output(number)[0] for number in range(int(output_count))]
        results.append(made[0] if len(made) == 1 else np.concatenate([y.ravel() for y in made]))
    interpreter.print_allocations()
    np.save(outputs, np.stack(results))
    print(sorted(times)[len(times) // 2])


if __name__ == "__main__":
    main(*sys.argv[1:])
