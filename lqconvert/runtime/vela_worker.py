"""Runs Arm's compiler Vela as its own process.

    python -m lqconvert.runtime.vela_worker MODEL.tflite FOLDER ACCELERATOR

Writes MODEL_vela.tflite and a table of figures (.csv) to the folder.
"""

import sys

#: Bytes of data.
MEMORY = 8 << 30


def main(model: str, folder: str, accelerator: str) -> None:
    from lqconvert.utils.worker import confine

    confine(MEMORY)
    from ethosu.vela import vela

    vela.main(["--accelerator-config", accelerator, "--output-dir", folder, model])


if __name__ == "__main__":
    main(*sys.argv[1:])
