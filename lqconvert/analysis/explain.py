"""Where a file's bytes go, and what would make it smaller. Every figure is counted or measured.

It explains one .tflite: the file itself, the int8 file in a .codes.npz, or, for a Keras model, the int8 file
that :func:`lqconvert.pipeline.quantize.quantize` starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lqconvert.analysis.byte_account import (
    ACTIVATIONS,
    GRAPH,
    KINDS,
    NAMES,
    PADDING,
    UNREAD,
    Account,
    account,
)
from lqconvert.analysis.inspect_tflite import ConstantRow, dimensions
from lqconvert.analysis.savings import LQCONVERT, MODEL, QUANTIZE, Measured, Saving, counted
from lqconvert.errors import LqError
from lqconvert.exporting.codes import Int8File
from lqconvert.keras_loader.in_memory import ModelLike, model_name
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import Model
from lqconvert.tflite.packing import kernels
from lqconvert.utils.input_files import read_bytes
from lqconvert.utils.terminal import Shown, Table

#: The number of rows that are printed. The JSON has all rows.
PRINTED = 20
#: Smaller savings, as a share of the file, are not printed.
NOTABLE = 0.005
_TITLES = {
    LQCONVERT: "smaller by lqconvert alone, with the same weights and the same outputs:",
    QUANTIZE: "smaller by lqconvert quantize, which learns new codes from the Keras model and data:",
    MODEL: "smaller by another architecture, which you train again, at an accuracy of its own:",
}


@dataclass(frozen=True)
class Part:
    """The bytes of the file that belong to a layer, or to no layer."""

    name: str
    bytes: int
    share: float  # of the file
    why: str
    kinds: dict[str, int]  # the bytes by use: weights, biases, scales, ...
    weights: int  # the number of weights
    float32_bytes: int  # of its weights and biases
    packed: dict[str, tuple[str, int]]  # by target: how lqconvert packs the weights, and their packed bytes


@dataclass(frozen=True)
class Explanation(Shown):
    """The result of :func:`explain`. The largest ``parts`` and ``savings`` come first."""

    file: str
    of_model: bool  # whether it is a Keras model
    subject: str  # the .tflite that is explained
    bytes: int  # its size: the sum of the parts' bytes, and of the totals
    float32_bytes: int  # the size of all weights and biases in float32
    totals: dict[str, int]  # bytes by use: weights, biases, scales, graph, ...
    parts: list[Part]
    savings: list[Saving]
    smallest: dict[str, int]  # by target: the size of lqconvert's file with these codes
    notes: list[str]  # what was not measured, and why

    def shown(self) -> Iterator[str | Table]:
        floats = self.of_model
        table = Table("part", "bytes", "share", *(["float32"] if floats else []), "why")
        table.columns[0].overflow = "fold"  # so that names can be found in the model
        rows = [(part.name, part.bytes, part.float32_bytes, part.why) for part in self.parts[:PRINTED]]
        rest = self.parts[PRINTED:]
        if rest:
            size, before = (sum(getattr(part, of) for part in rest) for of in ("bytes", "float32_bytes"))
            rows.append((f"{len(rest)} more", size, before, "only in the JSON"))
        for name, size, before, why in rows:
            as_float = [f"{before:,}" if before else ""] if floats else []
            table.add_row(name, f"{size:,}", f"{size / self.bytes:.1%}", *as_float, why)
        yield f"{self.subject}:"
        yield table
        sums = " + ".join(f"{size:,} {kind}" for kind, size in self.totals.items())
        yield f"{self.bytes:,} bytes = {sums}"
        if floats:
            yield f"weights and biases as float32: {self.float32_bytes:,} bytes"
        for by, title in _TITLES.items():
            savings = [each for each in self.savings if each.by == by and each.share >= NOTABLE]
            if savings:
                table = Table("saves", "share", "what")
                for each in savings[:PRINTED]:
                    table.add_row(f"{each.bytes:,}", f"{each.share:.1%}", each.what)
                yield ""
                yield title
                yield table
        if self.smallest:
            sizes = ", ".join(f"{size:,} bytes for {target}" for target, size in self.smallest.items())
            yield f"lqconvert's own files of these codes: {sizes}"
        yield from self.notes


def explain(
    file: ModelLike, *, input_shape: tuple[int, ...] | None = None, trust_model: bool = False
) -> Explanation:
    """Explains where a file's bytes go, and what would make it smaller, with all figures.

    Args:
        file: a .tflite of any tool, the .codes.npz of a run, or a Keras model (a file, or in memory). For a
            model, it explains the int8 file that quantize starts from, before codes are learned. No data, no
            training.
        input_shape, trust_model: see :func:`lqconvert.load_model`.

    Raises:
        LqError: if the file cannot be read, or is a model that quantize refuses.
    """
    if isinstance(file, (str, Path)):
        path = Path(file)
        if not path.exists():
            raise LqError(f"{path}: no such file")
        if path.suffix == ".tflite":
            return _explain_tflite(path)
        if path.suffix == ".npz":
            return _explain_codes(path)
    return _explain_model(file, input_shape, trust_model)


def _explain_tflite(path: Path) -> Explanation:
    tflite = read_bytes(path)
    try:
        measured = Measured(tflite, account(tflite))
    except LqError as error:
        raise LqError(f"{path}: {error}") from error
    measured.strip()
    measured.share_scales()
    measured.make_integer()
    if measured.vet():
        measured.remove()
        measured.pack()
    if any(saving.by == LQCONVERT for saving in measured.savings):
        measured.notes.append("(of the Keras model or its .codes.npz: lqconvert does not rewrite a .tflite)")
    return _explained(str(path), str(path), measured)


def _explain_codes(path: Path) -> Explanation:
    file = Int8File.load(path)
    names = _names_of_kernels(file.tflite, file.layers)
    if names is None:
        raise LqError(f"{path}: not the .codes.npz that lqconvert quantize writes")
    measured = Measured(file.tflite, account(file.tflite, names))
    measured.strip()
    measured.share_scales()
    if measured.vet():
        measured.remove()
        measured.pack()
    return _explained(str(path), f"the int8 file in {path}", measured)


def _explain_model(model: ModelLike, input_shape: tuple[int, ...] | None, trust_model: bool) -> Explanation:
    from lqconvert.analysis.architecture_hints import changes
    from lqconvert.analysis.inspect import int8_file
    from lqconvert.keras_loader.load import load_model
    from lqconvert.quantization.rewrite import float_layers, rewrite
    from lqconvert.quantization.schemes import Rate

    loaded = load_model(model, input_shape=input_shape, trust_model=trust_model)
    quantized = rewrite(loaded, Rate(), granularity="mixed")
    tflite, layers = int8_file(quantized)
    measured = Measured(tflite, account(tflite, _names_of_kernels(tflite, layers) or {}))
    measured.strip()
    measured.share_scales()
    measured.remove()  # without packing: the codes that quantize learns pack differently
    operators = len(measured.book.model.main.operators)
    for change in changes(loaded):
        measured.save(change.saved_bytes(measured.book.of(GRAPH)["graph"] // operators), MODEL, change.text)
    measured.notes.append("quantize learns codes that pack smaller; only a run can show how much")
    for name, reason in float_layers(quantized).items():
        measured.notes.append(f"computes in float: '{name}' ({reason})")
    name = model_name(model)
    return _explained(name, f"the int8 file that quantize starts from, of {name}", measured, of_model=True)


def _names_of_kernels(tflite: bytes, layers: Sequence[str]) -> dict[int, str] | None:
    """The layers by their kernels' tensors; None if they do not match the file."""
    found = kernels(read(tflite))
    if len(found) != len(layers):
        return None
    return {kernel.tensor: layer for kernel, layer in zip(found, layers, strict=True)}


def _explained(file: str, subject: str, measured: Measured, of_model: bool = False) -> Explanation:
    book, size = measured.book, len(measured.tflite)
    parts = [_part(book, row, size, measured.packed.get(row, {})) for row in book.rows()]
    totals = {kind: sum(part.kinds.get(kind, 0) for part in parts) for kind in KINDS}
    return Explanation(
        file=file,
        of_model=of_model,
        subject=subject,
        bytes=size,
        float32_bytes=sum(part.float32_bytes for part in parts),
        totals={kind: count for kind, count in totals.items() if count},
        parts=sorted(parts, key=lambda part: -part.bytes),
        savings=sorted(measured.savings, key=lambda saving: -saving.bytes),
        smallest=measured.smallest,
        notes=measured.notes,
    )


def _part(book: Account, row: str, size: int, packed: dict[str, tuple[str, int]]) -> Part:
    kinds = book.of(row)
    weights, total = sum(each.elements for each in book.constants.get(row, [])), sum(kinds.values())
    return Part(
        name=row,
        bytes=total,
        share=total / size,
        why=_why(book, row, kinds, packed),
        kinds=kinds,
        weights=weights,
        float32_bytes=4 * (weights + book.biases[row]),
        packed=packed,
    )


def _why(book: Account, row: str, kinds: Mapping[str, int], packed: Mapping[str, tuple[str, int]]) -> str:
    if row in _BESIDE:
        return _BESIDE[row](book.model)
    constants = book.constants.get(row, [])
    reasons = [_weights(each) for each in constants]
    if len(reasons) > 2:
        count = sum(each.elements for each in constants)
        reasons = [f"{len(constants)} constants, {count:,} weights: {kinds.get('weights', 0):,} bytes"]
    if constants and not kinds.get("weights"):
        reasons.append("which the file has only once, shared with equal ones")
    if packed:
        sizes = (f"{target} {size:,} ({packing})" for target, (packing, size) in packed.items())
        reasons.append(f"packed: {', '.join(sizes)}")
    reasons += [f"{kind} {kinds[kind]:,}" for kind in ("biases", "scales") if kind in kinds]
    return "; ".join(reasons)


def _weights(constant: ConstantRow) -> str:
    count, size = constant.elements, constant.stored_bytes
    text = f"{dimensions(constant.tensor.shape)} = {counted(count, 'weight', 'weights')} at "
    text += f"{8 * size / max(count, 1):.3g} bits ({constant.packing}): {size:,} bytes"
    if constant.entropy_bytes is not None:
        best = 8 * constant.entropy_bytes / max(count, 1)
        text += f"; at their entropy of {best:.2f} bits: {constant.entropy_bytes:,}"
    return text


def _graph(model: Model) -> str:
    operators = sum(len(graph.operators) for graph in model.graphs)
    tensors = sum(len(graph.tensors) for graph in model.graphs)
    both = counted(operators, "operator", "operators"), counted(tensors, "tensor", "tensors")
    return f"{' and '.join(both)}, with shapes and settings"


def _names(model: Model) -> str:
    tensors = [tensor for graph in model.graphs for tensor in graph.tensors]
    counts = [
        (sum(bool(tensor.name) for tensor in tensors), "named tensor", "named tensors"),
        (len(model.signatures or []), "signature", "signatures"),
        (len(model.metadata or []), "entry of metadata", "entries of metadata"),
    ]
    return ", ".join(counted(*each) for each in counts if each[0])


_BESIDE: dict[str, Callable[[Model], str]] = {
    GRAPH: _graph,
    ACTIVATIONS: lambda _: "a scale and a zero point for each tensor that is computed",
    NAMES: _names,
    UNREAD: lambda _: "constants that no operator reads",
    PADDING: lambda _: "alignment to 4, 8 and 16 bytes, and unused bytes",
}
