"""Why a file takes the bytes it takes, and what would make it smaller: every figure is counted or measured.

All is told of one .tflite: the file itself, the int8 file in a .codes.npz, or the one that
:func:`lqconvert.convert.quantize` starts from, of a Keras model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lqconvert.bounds import LARGEST_TENSOR
from lqconvert.codes import Int8File
from lqconvert.errors import CannotRun, LqError
from lqconvert.explaining_bytes import ACTIVATIONS, GRAPH, KINDS, NAMES, PADDING, UNREAD, Account, account
from lqconvert.flatbuffer import OPERANDS, Needless, operator_name, read, strip, write
from lqconvert.inspecting_tflite import ConstantRow, Inspection, as_list, dimensions, name_of
from lqconvert.packing import DECODE, INT8, kernels, name_kernels
from lqconvert.proving import smallest
from lqconvert.removal import remove_dead_channels
from lqconvert.runtime import check_loads
from lqconvert.targets import TARGETS

#: Rows that are printed; the JSON has all.
PRINTED = 20
#: Savings below this share of the file are not printed.
NOTABLE = 0.005

#: Who makes a file smaller, and the title that says so.
LQCONVERT, QUANTIZE, MODEL = "lqconvert", "quantize", "model"
_TITLES = {
    LQCONVERT: "smaller by lqconvert alone: the same weights, the same outputs",
    QUANTIZE: "smaller by lqconvert quantize: new codes, learned from the Keras model and data",
    MODEL: "smaller by another architecture: yours to change and to train again, at an accuracy of its own "
    "(bytes of its weights at 8 bits)",
}


@dataclass(frozen=True)
class Part:
    """What a layer, or what is no layer's, takes of the file."""

    name: str
    bytes: int
    share: float  # of the file
    why: str
    kinds: dict[str, int]  # the bytes by what they are for: weights, biases, scales, ...
    weights: int = 0  # how many
    float32_bytes: int = 0  # of its weights and biases
    entropy_bytes: int | None = None  # of its codes; None for other than codes of 8 bits or less
    packed: dict[str, tuple[str, int]] = field(default_factory=dict)  # by target: packing, and bytes of codes


@dataclass(frozen=True)
class Saving:
    """What would make the file smaller, by itself, and by how much."""

    bytes: int
    share: float  # of the file
    by: str  # "lqconvert": no training; "quantize": fine-tuning; "model": another model, trained again
    what: str


@dataclass(frozen=True)
class Explanation(Inspection):
    """What :func:`explain` found: ``parts`` and ``savings`` with the largest first."""

    file: str
    subject: str  # which .tflite is explained
    bytes: int  # of it: the sum of the parts' bytes, and of the totals
    float32_bytes: int  # of all weights and biases
    totals: dict[str, int]  # bytes by what they are for: weights, biases, scales, graph, ...
    parts: list[Part]
    savings: list[Saving]
    smallest: dict[str, int]  # by target: bytes of the file that lqconvert makes of these codes
    notes: list[str]  # what was not measured, and why

    def print(self, console: Console) -> None:
        # float32 says something where the weights are not stored so.
        floats = self.totals.get("weights", 0) < self.float32_bytes // 2
        table = Table("part", "bytes", "share", *(["as float32"] if floats else []), "why")
        for column in table.columns:
            column.overflow = "fold"
        shown, rest = self.parts[:PRINTED], self.parts[PRINTED:]
        for part in shown:
            _add(table, part.name, part, floats, part.why)
        if rest:
            size, before = sum(part.bytes for part in rest), sum(part.float32_bytes for part in rest)
            more = Part(f"{len(rest)} more", size, size / self.bytes, "--json has them", {}, 0, before)
            _add(table, more.name, more, floats, more.why)
        console.print(f"{self.subject}: {self.bytes:,} bytes")
        console.print(table)
        sums = " + ".join(f"{size:,} {kind}" for kind, size in self.totals.items())
        console.print(f"{self.bytes:,} bytes = {sums}")
        if floats:
            console.print(f"the weights and biases as float32: {self.float32_bytes:,} bytes")
        for by, title in _TITLES.items():
            savings = [each for each in self.savings if each.by == by and each.share >= NOTABLE]
            if not savings:
                continue
            table = Table("saves", "share", "what", title=title, title_justify="left")
            for each in savings[:PRINTED]:
                table.add_row(f"{each.bytes:,}", f"{each.share:.1%}", each.what)
            console.print(table)
        if self.smallest:
            sizes = ", ".join(f"{size:,} for {target}" for target, size in self.smallest.items())
            console.print(f"bytes of the file that lqconvert makes of these codes: {sizes}")
        for note in self.notes:
            console.print(note)


def _add(table: Table, name: str, part: Part, floats: bool, why: str) -> None:
    before = [f"{part.float32_bytes:,}" if part.float32_bytes else ""] if floats else []
    table.add_row(name, f"{part.bytes:,}", f"{part.share:.1%}", *before, why)


def explain(
    path: str | Path, *, input_shape: tuple[int, ...] | None = None, trust_model: bool = False
) -> Explanation:
    """Says why a file takes its bytes, and what would make it smaller, with all figures worked out.

    Args:
        path: a .tflite of any tool, the .codes.npz of a run, or a Keras model: of that it explains the int8
            file that quantize starts from, before codes are learned. No data, no training.
        input_shape, trust_model: see :func:`lqconvert.load_model`.

    Raises:
        LqError: if the file cannot be read, or is a model that quantize refuses.
    """
    path = Path(path)
    if not path.exists():
        raise LqError(f"{path}: no such file")
    if path.suffix == ".tflite":
        return _explained(path, path.read_bytes(), [], "the file", strange=True)
    if path.suffix == ".npz":
        file = Int8File.load(path)
        return _explained(path, file.tflite, file.layers, "the int8 file in it", strange=True)
    from lqconvert.explaining_model import changes
    from lqconvert.inspecting import int8_file
    from lqconvert.loading import load_model
    from lqconvert.rewriting import rewrite
    from lqconvert.schemes import Rate

    model = load_model(path, input_shape=input_shape, trust_model=trust_model)
    tflite, layers = int8_file(rewrite(model, Rate(), granularity="mixed"))
    others = [
        Saving(each.saved_bytes, each.saved_bytes / len(tflite), MODEL, each.text) for each in changes(model)
    ]
    what = "the int8 file that quantize starts from, before it learns codes that pack smaller"
    return _explained(path, tflite, layers, what, strange=False, more=others)


def _explained(
    path: Path,
    tflite: bytes,
    layers: Sequence[str],
    subject: str,
    *,
    strange: bool,
    more: Sequence[Saving] = (),
) -> Explanation:
    """
    Args:
        layers: names of the layers of the file's kernels, in its order; none where they are not known.
        strange: whether the file and its codes are as they were found, not made here with starting scales.
    """
    found = kernels(read(tflite))
    if layers and len(layers) != len(found):
        raise LqError(f"{path}: not the .codes.npz that lqconvert quantize writes")
    names = {kernel.tensor: layer for kernel, layer in zip(found, layers, strict=False)}
    book = account(tflite, names)
    measured = _Measured(tflite, [book.kernels.get(kernel.tensor, "") for kernel in found], strange)
    savings = [*_from_float(book, len(tflite)), *measured.savings, *more]
    parts = [_part(book, row, len(tflite), measured.packed.get(row, {})) for row in book.rows()]
    totals = {kind: sum(part.kinds.get(kind, 0) for part in parts) for kind in KINDS}
    return Explanation(
        str(path),
        subject,
        len(tflite),
        sum(part.float32_bytes for part in parts),
        {kind: size for kind, size in totals.items() if size},
        sorted(parts, key=lambda part: -part.bytes),
        sorted(savings, key=lambda saving: -saving.bytes),
        measured.smallest,
        measured.notes,
    )


def _part(book: Account, row: str, size: int, packed: Mapping[str, tuple[str, int]]) -> Part:
    kinds, constants = book.of(row), book.constants.get(row, [])
    entropies = [each.entropy_bytes for each in constants]
    weights = sum(each.elements for each in constants)
    total = sum(kinds.values())
    return Part(
        row,
        total,
        total / size,
        _why(book, row, kinds, constants, packed),
        kinds,
        weights,
        4 * (weights + book.biases[row]),
        None if None in entropies or not entropies else sum(map(int, entropies)),  # type: ignore[arg-type]
        {target: each for target, each in packed.items()},
    )


def _why(
    book: Account,
    row: str,
    kinds: Mapping[str, int],
    constants: Sequence[ConstantRow],
    packed: Mapping[str, tuple[str, int]],
) -> str:
    if row in _BESIDE:
        return _BESIDE[row](book.flat)
    reasons = [_weights(each) for each in constants]
    if len(reasons) > 2:
        count = sum(each.elements for each in constants)
        reasons = [f"{len(constants)} constants, {count:,} weights: {kinds.get('weights', 0):,} bytes"]
    if kinds.get("biases"):
        reasons.append(f"{book.biases[row]:,} biases: {kinds['biases']:,} bytes")
    if kinds.get("scales"):
        reasons.append(f"scales and zero points: {kinds['scales']:,} bytes")
    if packed:
        sizes = (f"{size:,} bytes for {target} ({packing})" for target, (packing, size) in packed.items())
        reasons.append(f"the weights packed: {', '.join(sizes)}")
    return "; ".join(reasons)


def _weights(constant: ConstantRow) -> str:
    count, size = constant.elements, constant.stored_bytes
    bits = f"{8 * size / max(count, 1):.3g} bits" if constant.packing != "int8" else "8 bits"
    text = f"{dimensions(constant.tensor.shape)} = {count:,} weights at {bits} ({constant.packing})"
    if constant.entropy_bytes is not None:
        best = 8 * constant.entropy_bytes / max(count, 1)
        text += f", {best:.2f} at best (entropy): {constant.entropy_bytes:,} bytes"
    return text


def _graph(flat: Any) -> str:
    operators, tensors = (
        sum(len(getattr(graph, of)) for graph in flat.subgraphs) for of in ("operators", "tensors")
    )
    return f"{operators:,} operators and {tensors:,} tensors: what to compute, with shapes and settings"


def _activations(flat: Any) -> str:
    return "a scale and a zero point for each tensor that is computed"


def _names(flat: Any) -> str:
    tensors = sum(bool(tensor.name) for graph in flat.subgraphs for tensor in graph.tensors)
    counts = {
        "names of tensors": tensors,
        "signatures": len(as_list(flat.signatureDefs)),
        "entries of metadata": len(as_list(flat.metadata)),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


_BESIDE: dict[str, Callable[[Any], str]] = {
    GRAPH: _graph,
    ACTIVATIONS: _activations,
    NAMES: _names,
    UNREAD: lambda _: "constants that no operator reads",
    PADDING: lambda _: "for what begins at a multiple of 4, 8 or 16 bytes, or belongs to nothing",
}


def _from_float(book: Account, size: int) -> list[Saving]:
    """What float weights would be smaller as int8."""
    floats = [
        each
        for constants in book.constants.values()
        for each in constants
        if each.packing in ("float32", "float16", "float64", "bfloat16")
    ]
    before, after = (sum(getattr(each, of) for each in floats) for of in ("stored_bytes", "elements"))
    if before <= after:
        return []
    what = f"{after:,} float weights as int8: {before:,} -> {after:,} bytes, and 12 more for each scale"
    return [Saving(before - after, (before - after) / size, QUANTIZE, what)]


class _Measured:
    """What lqconvert would make of a file's codes, by making it.

    Args:
        rows: of the file's kernels.
        strange: of an unknown origin: it is run in a process of its own first. Files with starting scales
            are not packed: the codes that are learned pack in another way.
    """

    def __init__(self, tflite: bytes, rows: Sequence[str], strange: bool) -> None:
        self.size, self.rows = len(tflite), rows
        self.savings: list[Saving] = []
        self.packed: dict[str, dict[str, tuple[str, int]]] = {}
        self.smallest: dict[str, int] = {}
        self.notes: list[str] = []
        base = _stripped(tflite)
        self._save(
            len(tflite) - len(base),
            LQCONVERT,
            "inner names, notes, padding and doubles: no runtime reads them",
        )
        signature = "--strip-all: the signature, and the names of inputs and outputs, which programs may find these by"
        self._save(len(base) - len(_stripped(base, Needless(signature=True))), LQCONVERT, signature)
        self._one_scale(base)
        if rows and (not strange or self._runs(tflite)):
            self._smaller(base, pack=strange)

    def _save(self, size: int, by: str, what: str) -> None:
        if size > 0:
            self.savings.append(Saving(size, size / self.size, by, what))

    def _runs(self, tflite: bytes) -> bool:
        """Whether a stranger's file can be worked on."""
        graph, why = read(tflite).subgraphs[0], ""
        if (
            max((int(np.prod(np.float64(tensor.shape))) for tensor in graph.tensors), default=0)
            > LARGEST_TENSOR
        ):
            why = f"a tensor has more than {LARGEST_TENSOR:,} values"
        else:
            try:
                check_loads(tflite)
            except CannotRun as error:
                why = str(error)
        if why:
            self.notes.append(f"dead channels and packings were not tried: {why}")
        return not why

    def _one_scale(self, base: bytes) -> None:
        flat = read(base)
        graph = flat.subgraphs[0]
        several = {kernel.tensor for kernel in kernels(flat) if kernel.scales > 1}
        for operator in graph.operators:
            _, kernel, bias = OPERANDS.get(operator_name(flat, operator), (0, len(operator.inputs), 0))
            if kernel < len(operator.inputs) and operator.inputs[kernel] in several:
                for index in operator.inputs[kernel : bias + 1]:
                    _first_scale(graph.tensors[index])
        what = f"--granularity scalar: one scale in place of one for each channel, in {len(several)} kernels"
        self._save(len(base) - len(write(flat)), QUANTIZE, what)

    def _smaller(self, base: bytes, pack: bool) -> None:
        named = name_kernels(base, self.rows)
        before = {kernel.name: kernel.codes.size for kernel in kernels(read(named))}
        removed = remove_dead_channels(named)
        left = {kernel.name: kernel.codes.size for kernel in kernels(read(removed))}
        gone = {name: size - left.get(name, 0) for name, size in before.items() if size > left.get(name, 0)}
        lean = min(len(base), len(_stripped(removed)))
        if gone:
            where = ", ".join(
                f"{name} {count:,}" for name, count in sorted(gone.items(), key=lambda each: -each[1])
            )
            what = f"channels that are constant or that nobody reads leave, with their weights: {where}"
            self._save(len(base) - lean, LQCONVERT, what)
        for target in TARGETS.values() if pack else ():
            best = smallest(named, target)
            self.smallest[target.name] = len(best.tflite)
            for kernel, (packing, encoded) in zip(best.kernels, best.chosen, strict=True):
                stored = packing.stored_bytes(encoded)
                if stored < before[kernel.name]:
                    self.packed.setdefault(kernel.name, {})[target.name] = packing.name, stored
            counts = Counter(name for name in best.packings if name != INT8.name)
            if counts:
                how = ", ".join(f"{name} for {count}" for name, count in counts.most_common())
                what = f"packed as quantize and export do for {target.name}: {how} of {len(best.kernels)} kernels"
                self._save(lean - len(best.tflite), LQCONVERT, what)


def _stripped(tflite: bytes, needless: Needless = Needless()) -> bytes:  # noqa: B008
    flat = read(tflite)
    strip(flat, needless)
    return write(flat)


def _first_scale(tensor: Any) -> None:
    quantization = tensor.quantization
    if quantization is not None:
        for name in ("scale", "zeroPoint"):
            numbers = getattr(quantization, name)
            setattr(quantization, name, None if numbers is None else numbers[:1])
