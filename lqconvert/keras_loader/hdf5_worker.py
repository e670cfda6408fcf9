"""Reads all attributes of an HDF5 file once, as its own process.

python -m lqconvert.keras_loader.hdf5_worker FILE BYTES

A damaged attribute may claim gigabytes, and HDF5 allocates them first. This process has a memory limit.
"""

import sys
from typing import Any

import h5py

from lqconvert.utils.worker import confine


def _read(item: Any) -> None:
    list(item.attrs.items())


def main(name: str, limit: str) -> None:
    confine(int(limit))
    with h5py.File(name, "r") as file:
        _read(file)
        file.visititems(lambda _, item: _read(item))  # the function returns None, or the visit would end


if __name__ == "__main__":
    main(*sys.argv[1:])
