"""The targets of files: the runtimes and chips, and the packings that each was measured to execute."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lqconvert.errors import LqError
from lqconvert.tflite.editing import Needless
from lqconvert.tflite.graph import LSTM, OPERANDS
from lqconvert.tflite.packing import Huffman, HuffmanBlocks, Lut, Narrow, Packing, Pruning, Sparse

#: The Python packages with the interpreters, and with Arm's compiler for Ethos-U.
LITERT_PACKAGE, MICRO_PACKAGE, VELA_PACKAGE = "ai-edge-litert", "tflite-micro", "ethos-u-vela"
#: The share of the file that a packing has to save if it takes RAM and time to unpack.
LEAST_GAIN = 0.02
#: What files can be chosen by.
PREFERENCES = ("flash", "ram", "latency")


@dataclass(frozen=True)
class Target:
    """What executes a file.

    Args:
        executes: what that is, in words.
        package: the Python package with the interpreter in which files are verified.
        packings: the ways in which it can store a kernel, in addition to int8.
        needless: parts that its files can do without.
        exact: the set of kernels in which files have to give int8's outputs exactly.
        gathers: whether files may gather the inputs that are used, with an operator that the int8 file has
            not.
        for_phones: programs load the .tflite itself, layers may stay float, and RAM has no fixed size.
        accelerator: the Ethos-U for which files are compiled, by Vela's name.
        prefer: "flash": every packing that saves a byte is used; "ram" or "latency": none that takes more of
            it than the int8 file. By default, a packing that takes RAM and time has to make the file 2%
            smaller.
        room: the bytes of RAM for unpacking a kernel, if they are limited.
        blocks: the channels of a block of inputs and of outputs, which kernels compute together.
    """

    name: str
    executes: str
    package: str
    packings: tuple[Packing, ...] = ()
    needless: Needless = Needless()  # noqa: RUF009
    exact: str = "XNNPACK"
    gathers: bool = True
    for_phones: bool = False
    accelerator: str = ""
    prefer: str | None = None
    room: int | None = None
    blocks: tuple[int, int] = (8, 16)  # XNNPACK's on x86-64 with AVX-512, measured

    @property
    def least_gain(self) -> float:
        """The share of the file that a packing has to save to be worth the RAM and time of unpacking."""
        return 0.0 if self.for_phones or self.prefer == "flash" else LEAST_GAIN

    def within(self, max_ram: int | None) -> Target:
        """The target if it has so much RAM."""
        rooms = [each for each in (self.room, max_ram) if each is not None]
        return replace(self, room=min(rooms, default=None))

    @property
    def packages(self) -> tuple[str, ...]:
        """The Python packages that verify its files, and the compiler's."""
        return (self.package, VELA_PACKAGE) if self.accelerator else (self.package,)

    @property
    def runtime(self) -> str:
        """The packages with their versions."""
        return ", ".join(f"{package} {_version(package)}" for package in self.packages)

    @property
    def is_micro(self) -> bool:
        """Whether files are executed by TFLite Micro's own interpreter."""
        return self.package == MICRO_PACKAGE

    @property
    def has_decode(self) -> bool:
        """Whether files may have TFLite Micro's DECODE."""
        return any(isinstance(packing, (Lut, Huffman, Pruning, HuffmanBlocks)) for packing in self.packings)

    @property
    def has_arena(self) -> bool:
        """Whether the RAM that a file takes is known."""
        return self.is_micro or bool(self.accelerator)

    @property
    def is_installed(self) -> bool:
        """Whether this machine has its packages, so that files can be verified."""
        return all(map(_version, self.packages))

    def check_installed(self) -> None:
        """Raises an LqError if a package is not installed."""
        for package in self.packages:
            if not _version(package):
                does = "compile" if package == VELA_PACKAGE else "run"
                where = " (x86-64 Linux)" if package == MICRO_PACKAGE else ""
                what = f"target {self.name} needs {package} to {does} files"
                raise LqError(f"{what}: pip install {package}{where}")


def _version(package: str) -> str:
    """The version of a Python package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


#: DECODE unpacks these kernels. DENSIFY cannot unpack an LSTM's: LiteRT reads them before it runs.
DECODED = (*OPERANDS, LSTM)
#: INT4 convolutions are not included, because XNNPACK takes four to seven times as long for them as for int8.
#: XNNPACK takes INT2 only with a scale for each channel.
INT2 = Narrow(bits=2, per_tensor=False)
LITERT = Target(
    "litert", "LiteRT on phones", LITERT_PACKAGE, (Sparse(), Narrow(bits=4), INT2), for_phones=True
)
#: TFLite Micro takes FULLY_CONNECTED kernels of 4 bits only with one scale.
MICRO_INT4 = Narrow(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 4, ("CONV_2D", "DEPTHWISE_CONV_2D"))
MICRO_NEEDLESS = Needless(lone_names=True, bias_scales=True, zero_points=True, versions=True, flattening=True)
TFLM = Target(
    "tflm",
    "TFLite Micro of 2026 or later",
    MICRO_PACKAGE,
    (MICRO_INT4, *(packing(DECODED) for packing in (Lut, Huffman, Pruning, HuffmanBlocks))),
    MICRO_NEEDLESS,
    exact="TFLite Micro",
    blocks=(1, 1),
)
TFLM_NO_DECODE = replace(
    TFLM,
    name="tflm-no-decode",
    executes="older TFLite Micro, without DECODE",
    packings=(MICRO_INT4,),
    needless=Needless(),
)
PLAIN_INT8 = Target("int8", "any runtime or vendor's compiler that takes int8", LITERT_PACKAGE, gathers=False)
#: Their weight decoder unpacks an entropy code, so a plain int8 file takes few bytes in flash.
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
ETHOS_U = tuple(
    replace(PLAIN_INT8, name=name, executes="an NPU of Arm", accelerator=name) for name in ACCELERATORS
)
#: The runtimes in which any file can be run, with all their packings.
RUNTIMES = {target.name: target for target in (LITERT, TFLM)}
TARGETS = RUNTIMES | {target.name: target for target in (TFLM_NO_DECODE, PLAIN_INT8, *ETHOS_U)}


def target(
    name: str, *, prefer: str | None = None, int4_convolutions: bool = False, strip_all: bool = False
) -> Target:
    """A target by name.

    Args:
        prefer: "flash", "ram" or "latency", see :class:`Target`.
        int4_convolutions: for LiteRT, if size is more important than time, and outputs of XNNPACK may differ
            from int8's by one step.
        strip_all: also drop the signature and the names of inputs and outputs.

    Raises:
        LqError: if there is no such target or preference.
    """
    if prefer not in (None, *PREFERENCES):
        raise LqError(f"prefer '{prefer}': not one of {', '.join(PREFERENCES)}")
    chosen = _named(name)
    chosen = replace(chosen, prefer=prefer, needless=replace(chosen.needless, signature=strip_all))
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
