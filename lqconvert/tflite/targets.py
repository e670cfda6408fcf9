"""The runtimes that files are made for, and the packings that each was measured to execute."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lqconvert.errors import LqError
from lqconvert.tflite.editing import Needless
from lqconvert.tflite.graph import LSTM, OPERANDS
from lqconvert.tflite.packing import Huffman, HuffmanBlocks, Lut, Narrow, Packing, Pruning, Sparse


@dataclass(frozen=True)
class Target:
    """A runtime.

    Args:
        packings: the ways in which it can store a kernel, in addition to int8.
        package: the Python package with its interpreter.
        needless: parts that its files can do without.
        exact: the set of kernels in which files have to give int8's outputs exactly.
    """

    name: str
    package: str
    packings: tuple[Packing, ...]
    needless: Needless = Needless()  # noqa: RUF009
    exact: str = "XNNPACK"

    @property
    def runtime(self) -> str:
        """The interpreter's package and version."""
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def check_installed(self) -> None:
        """Raises an LqError if the runtime's interpreter is not installed."""
        try:
            importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            what = f"target {self.name} needs {self.package} to verify its files"
            raise LqError(f"{what}: pip install {self.package} (x86-64 Linux)") from error


#: DECODE unpacks these kernels. DENSIFY cannot unpack an LSTM's: LiteRT reads them before it runs.
DECODED = (*OPERANDS, LSTM)
#: INT4 convolutions are not included, because XNNPACK takes four to seven times as long for them as for int8.
#: XNNPACK takes INT2 only with a scale for each channel.
INT2 = Narrow(bits=2, per_tensor=False)
LITERT = Target("litert", "ai-edge-litert", (Sparse(), Narrow(bits=4), INT2))
TFLM = Target(
    "tflm",
    "tflite-micro",
    (
        # FULLY_CONNECTED kernels only with one scale.
        Narrow(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 4, ("CONV_2D", "DEPTHWISE_CONV_2D")),
        *(packing(DECODED) for packing in (Lut, Huffman, Pruning, HuffmanBlocks)),
    ),
    Needless(bias_scales=True),
    exact="TFLite Micro",
)
TARGETS = {target.name: target for target in (LITERT, TFLM)}


def target(name: str, *, int4_convolutions: bool = False, strip_all: bool = False) -> Target:
    """A target by name.

    Args:
        int4_convolutions: for LiteRT, if size is more important than time, and outputs of XNNPACK may differ
            from int8's by one step.
        strip_all: also drop the signature and the names of inputs and outputs.

    Raises:
        LqError: if there is no such target.
    """
    chosen = _named(name)
    chosen = replace(chosen, needless=replace(chosen.needless, signature=strip_all))
    if int4_convolutions and name == LITERT.name:
        narrow = Narrow(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 4)
        chosen = replace(chosen, packings=(Sparse(), narrow, INT2), exact="built-in")
    return chosen


def find_targets(targets: str | Target | Sequence[str | Target]) -> tuple[Target, ...]:
    """The targets for one or several names or objects from :func:`target`.

    >>> [target.name for target in find_targets(["tflm", LITERT])]
    ['tflm', 'litert']
    """
    given = [targets] if isinstance(targets, (str, Target)) else targets
    found = tuple(_named(each) if isinstance(each, str) else each for each in given)
    if not found:
        raise LqError(f"no target is given; there are {', '.join(TARGETS)}")
    return found


def _named(name: str) -> Target:
    if name not in TARGETS:
        raise LqError(f"target '{name}': not one of {', '.join(TARGETS)}")
    return TARGETS[name]
