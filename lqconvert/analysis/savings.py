"""Ways to make a .tflite smaller. Each saving is measured on a file that was made so."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from lqconvert.analysis.byte_account import Account
from lqconvert.errors import CannotRun
from lqconvert.keras_loader.limits import LARGEST_TENSOR
from lqconvert.runtime.litert import check_loads
from lqconvert.runtime.verify import smallest
from lqconvert.tflite.dead_channels import remove_dead_channels
from lqconvert.tflite.editing import Needless, strip
from lqconvert.tflite.flatbuffer import read, size_of, write
from lqconvert.tflite.graph import LSTM, OPERANDS, Model
from lqconvert.tflite.packing import INT8, Stored, kernels, name_kernels, only_for_micro
from lqconvert.tflite.targets import RUNTIMES

#: Who can save bytes: lqconvert with the same codes, quantize with new codes, or the model's author.
LQCONVERT, QUANTIZE, MODEL = "lqconvert", "quantize", "model"
#: Operators whose float weights quantize converts to int8.
INTEGER = {*OPERANDS, LSTM, "GATHER"}
#: The limit for kernels: each is tried in several packings, which takes minutes for this many.
MOST_KERNELS = 256
#: The storage of constants that are not packed.
PLAIN = {"int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"}


@dataclass(frozen=True)
class Saving:
    """One way to make the file smaller, and how much it alone saves."""

    bytes: int
    share: float  # of the file
    by: str  # "lqconvert": no training; "quantize": fine-tuning; "model": another model, trained again
    what: str


class Measured:
    """Measures savings by making smaller files.

    Args:
        book: the owners of the file's bytes.
    """

    def __init__(self, tflite: bytes, book: Account) -> None:
        self.tflite, self.book = tflite, book
        self.savings: list[Saving] = []
        self.packed: dict[str, dict[str, tuple[str, int]]] = {}  # by row and target
        self.smallest: dict[str, int] = {}
        self.notes: list[str] = []
        self.base = _stripped(tflite)
        self.lean = self.base

    def save(self, size: int, by: str, what: str) -> None:
        if size > 0:
            self.savings.append(Saving(size, size / len(self.tflite), by, what))

    def strip(self) -> None:
        what = "drops names of inner tensors and metadata, and writes equal zero points and constants once"
        self.save(len(self.tflite) - len(self.base), LQCONVERT, what)
        bare = _stripped(self.base, Needless(signature=True))
        what = "--strip-all: drops the names of inputs and outputs, by which programs may find them"
        self.save(len(self.base) - len(bare), LQCONVERT, what)

    def share_scales(self) -> None:
        model = read(self.base)
        for tensor in model.main.tensors:
            each = tensor.quantization
            if each is not None:
                scales = None if each.scales is None else each.scales[:1]
                zero_points = None if each.zero_points is None else each.zero_points[:1]
                tensor.quantization = replace(each, scales=scales, zero_points=zero_points)
        what = "--granularity scalar: one scale for a layer, in place of one for each channel"
        self.save(len(self.base) - size_of(model), QUANTIZE, what)

    def make_integer(self) -> None:
        """Only if lqconvert did not leave them in float itself."""
        floats = [
            each
            for constants in self.book.constants.values()
            for each in constants
            if each.packing.startswith("float") and each.reader.partition(" ")[2] in INTEGER
        ]
        before, after = (sum(getattr(each, of) for each in floats) for of in ("stored_bytes", "elements"))
        what = f"{after:,} float weights as int8: {before:,} -> {after:,} bytes, and 12 more for each scale"
        self.save(before - after, QUANTIZE, what)

    def vet(self) -> bool:
        """Whether the file has kernels to work on and is small enough. It may come from a stranger."""
        constants = [each for row in self.book.constants.values() for each in row]
        tensors = self.book.model.main.tensors
        why = ""
        if any(each.packing not in PLAIN for each in constants):
            why = "the file is packed (explain its .codes.npz)"
        elif only_for_micro(self.book.model):
            why = "only TFLite Micro loads the file (explain its .codes.npz)"
        elif not (count := len(kernels(self.book.model))):
            return False
        elif count > MOST_KERNELS:
            why = f"the file has more than {MOST_KERNELS} layers with weights"
        elif any(math.prod(tensor.shape) > LARGEST_TENSOR for tensor in tensors):
            why = f"a tensor has more than {LARGEST_TENSOR:,} values"
        else:
            try:
                check_loads(self.tflite)
            except CannotRun as error:
                why = str(error)
        if why:
            self.notes.append(f"dead channels and packings were not tried: {why}")
        return not why

    def _named(self) -> Model:
        """The file, with each kernel named after its row."""
        named, found = read(self.base), kernels(self.book.model)
        name_kernels(named, [self.book.kernels.get(each.tensor, "") for each in found])
        return named

    def remove(self) -> None:
        named = self._named()
        removed = remove_dead_channels(named)
        before, after = _sizes(named), _sizes(removed)
        gone = {name: size - after.get(name, 0) for name, size in before.items()}
        if any(gone.values()):
            self.lean = min(self.base, _stripped(write(removed)), key=len)
            order = sorted(gone, key=lambda name: -gone[name])
            where = ", ".join(f"{name} {gone[name]:,}" for name in order if gone[name])
            what = f"drops the weights of channels that are constant, or that nobody reads: {where}"
            self.save(len(self.base) - len(self.lean), LQCONVERT, what)

    def pack(self) -> None:
        named = self._named()
        before, tflite = _sizes(named), write(named)
        tensors = [tensor for graph in self.book.model.graphs for tensor in graph.tensors]
        floats = any(tensor.type == "FLOAT32" for tensor in tensors)
        for target in RUNTIMES.values():
            if floats and not target.for_phones:  # lqconvert makes no such files
                continue
            best = smallest(tflite, target)
            self.smallest[target.name] = best.size
            chosen: dict[str, list[Stored]] = {}  # an LSTM has several kernels
            for kernel, stored in zip(best.kernels, best.chosen, strict=True):
                chosen.setdefault(kernel.name, []).append(stored)
            for name, parts in chosen.items():
                size, ways = sum(each.size for each in parts), {each.packing: None for each in parts}
                if size < before[name]:
                    self.packed.setdefault(name, {})[target.name] = ", ".join(ways), size
            counts = Counter(name for name in best.packings if name != INT8.name)
            if counts:
                how = ", ".join(f"{name} for {count}" for name, count in counts.most_common())
                of = counted(len(best.kernels), "layer", "layers")
                what = f"--target {target.name} packs the weights: {how} of {of}"
                self.save(len(self.lean) - best.size, LQCONVERT, what)


def _sizes(model: Model) -> dict[str, int]:
    """The number of codes of all kernels of each name."""
    sizes: Counter[str] = Counter()
    for kernel in kernels(model):
        sizes[kernel.name] += kernel.codes.size
    return dict(sizes)


def counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _stripped(tflite: bytes, needless: Needless = Needless()) -> bytes:  # noqa: B008
    model = read(tflite)
    strip(model, needless)
    return write(model)
