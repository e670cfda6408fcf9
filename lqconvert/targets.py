"""The runtimes that files are made for: what each executes, measured, and how it is asked whether it does."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace

from lqconvert.errors import LqError
from lqconvert.packing import Huffman, HuffmanBlocks, Lut, Narrow, Packing, Pruning, Sparse


@dataclass(frozen=True)
class Target:
    """A runtime.

    Args:
        packings: how it can store a kernel besides int8.
        package: the Python package whose interpreter stands for it.
        strip_all: whether files for it are to have no signature and no names.
    """

    name: str
    package: str
    packings: tuple[Packing, ...]
    strip_all: bool = False

    @property
    def runtime(self) -> str:
        """The interpreter's package and version."""
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def check_installed(self) -> None:
        """Raises an LqError where the interpreter that stands for the runtime is missing."""
        try:
            importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            what = f"target {self.name} needs {self.package} to prove its files in"
            raise LqError(f"{what}: pip install 'lqconvert[{self.name}]'") from error


#: INT4 convolutions are not among them: XNNPACK takes four to seven times as long for them as for int8.
LITERT = Target("litert", "ai-edge-litert", (Sparse(), Narrow(bits=4), Narrow(bits=2)))
TFLM = Target(
    "tflm",
    "tflite-micro",
    (
        # Of FULLY_CONNECTED kernels only those with one scale.
        Narrow(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 4, ("CONV_2D", "DEPTHWISE_CONV_2D")),
        *(Lut(), Huffman(), Pruning(), HuffmanBlocks()),
    ),
)
TARGETS = {target.name: target for target in (LITERT, TFLM)}


def target(name: str, *, int4_convolutions: bool = False, strip_all: bool = False) -> Target:
    """A target by name.

    Args:
        int4_convolutions: for LiteRT, where size counts more than time.
        strip_all: see :class:`Target`.
    """
    chosen = replace(TARGETS[name], strip_all=strip_all)
    if int4_convolutions and name == LITERT.name:
        narrow = Narrow(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 4)
        chosen = replace(chosen, packings=(Sparse(), narrow, Narrow(bits=2)))
    return chosen
