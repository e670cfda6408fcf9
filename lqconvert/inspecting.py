"""What is in a file, and what would become of it: answered without data and without training.

A model is rewritten as :func:`lqconvert.convert.quantize` rewrites it, and what is said of its layers is read
off the result. Neither .tflite files nor codes take TensorFlow: what does is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from rich.console import Console
from rich.table import Table

from lqconvert import coding
from lqconvert.codes import Int8File, TensorCodes
from lqconvert.deflating import deflated
from lqconvert.errors import LqError
from lqconvert.firmware import operators
from lqconvert.flatbuffer import operator_name, read
from lqconvert.packing import DECODE, INT8, Kernel, kernels
from lqconvert.proving import check_runs
from lqconvert.targets import TARGETS, TFLM, Target

_TYPES = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
_MODES = {coding.LUT: "lut", coding.HUFFMAN: "huffman", coding.PRUNING: "pruning"}


def inspect(path: str | Path) -> ModelInspection | TfliteInspection | CodesInspection:
    """Says what is in a Keras model, a .tflite or a .codes.npz, and of a model what quantize makes of it.

    A model that quantize would refuse is answered, too, as far as it is understood: its ``refused`` says why.

    Raises:
        LqError: if the file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise LqError(f"{path}: no such file")
    if path.suffix == ".tflite":
        return _inspect_tflite(path)
    return _inspect_codes(path) if path.suffix == ".npz" else _inspect_model(path)


class _Inspection:
    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)  # type: ignore[call-overload]


def _dimensions(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else "x".join(str(n or "?") for n in shape) or "scalar"


# --- Keras models


@dataclass(frozen=True)
class LayerRow:
    """A layer of the model file or of the graph that is made of it, and what becomes of it."""

    name: str
    kind: str  # "A -> B" where the graph has another class in its place
    shape: tuple[int | None, ...] | None  # of its output, without the batch; None where it was not built
    parameters: int
    becomes: str = ""
    codes: int = 0  # how many int8 codes its kernel has
    scales: int = 0  # and how many scales these


@dataclass(frozen=True)
class ModelInspection(_Inspection):
    """A Keras model. All that is said of the int8 file is empty where ``refused`` says why there is none."""

    file: str
    layers: list[LayerRow]
    parameters: int
    float32_bytes: int
    weight_bytes: int  # of its int8 codes and int32 biases
    int8_bytes: int  # of the whole int8 file, to some bytes
    operators: list[str]
    targets: dict[str, str]  # "runs", or the reason of the runtime that does not
    refused: str = ""

    def print(self, console: Console) -> None:
        table = Table("layer", "kind", "output", "parameters", "becomes")
        for column in table.columns:  # names are to be found in the model: they wrap, but are not cut short
            column.overflow = "fold"
        for row in self.layers:
            count = f"{row.parameters:,}" if row.parameters else ""
            table.add_row(row.name, row.kind, _dimensions(row.shape), count, row.becomes)
        console.print(table)
        if self.parameters:
            console.print(f"{self.parameters:,} parameters: {self.float32_bytes:,} bytes as float32")
        if self.refused:
            return
        console.print(f"int8 codes and int32 biases: {self.weight_bytes:,} bytes")
        console.print(f"int8 file, before it is packed: about {self.int8_bytes:,} bytes")
        console.print(f"operators: {', '.join(self.operators)}")
        for target, answer in self.targets.items():
            console.print(f"{target}: {answer}")


def _inspect_model(path: Path) -> ModelInspection:
    from lqconvert.loading import load_model
    from lqconvert.rewriting import rewrite
    from lqconvert.schemes import Rate
    from lqconvert.vetting import read_config

    config = read_config(path)[0]
    rows, parameters = _config_rows(config), 0
    try:
        model = load_model(path)
        rows, parameters = _float_rows(model), model.count_params()
        quantized = rewrite(model, Rate(), granularity="mixed")
        rows = _with_vanished(_quantized_rows(quantized, model), model, config)
        tflite = _int8_file(quantized)
    except LqError as error:
        return ModelInspection(
            str(path), _marked(rows, str(error)), parameters, 4 * parameters, 0, 0, [], {}, str(error)
        )
    biases = sum(row.parameters - row.codes for row in rows if row.codes)
    return ModelInspection(
        str(path),
        rows,
        parameters,
        4 * parameters,
        sum(row.codes for row in rows) + 4 * biases,
        len(tflite),
        operators(tflite),
        {target.name: _answer(tflite, target, rows) for target in TARGETS.values()},
    )


def _config_layers(config: dict[str, Any] | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, class, config) of the layers of a model's config, those of nested models in their place."""
    from lqconvert.vetting import MODELS

    inner = (config or {}).get("config")
    for layer in (inner.get("layers") if isinstance(inner, dict) else inner) or []:
        kind = str(layer.get("class_name")).split(">")[-1]
        if kind in MODELS:
            yield from _config_layers(layer)
        else:
            name = (layer.get("config") or {}).get("name") or layer.get("name", "?")
            yield str(name).replace("/", "_"), kind, layer


def _config_rows(config: dict[str, Any] | None) -> list[LayerRow]:
    """The layers of a model that may not load: every one that is refused, not the first one only."""
    from lqconvert.vetting import refuse_unknown

    rows = []
    for name, kind, layer in _config_layers(config):
        why = ""
        try:
            refuse_unknown({"class_name": "Functional", "config": {"layers": [layer]}})
        except LqError as error:
            why = f"refused: {error}"
        rows.append(LayerRow(name, kind, None, 0, why))
    return rows


def _marked(rows: list[LayerRow], refusal: str) -> list[LayerRow]:
    """The rows with the refusal at the layer that it names."""
    return [
        replace(row, becomes=row.becomes or f"refused: {refusal}") if f"'{row.name}'" in refusal else row
        for row in rows
    ]


def _float_rows(model: Any) -> list[LayerRow]:
    from lqconvert.granularity import class_name

    return [
        LayerRow(layer.name, class_name(layer), _output_shape(layer), layer.count_params())
        for layer in model.layers
    ]


def _output_shape(layer: Any) -> tuple[int | None, ...]:
    shape = layer.output_shape
    return tuple((shape[0] if isinstance(shape, list) else shape)[1:])


def _quantized_rows(quantized: Any, model: Any) -> list[LayerRow]:
    """The layers of the folded graph, and what the rewritten one has in their place and behind them."""
    from lqconvert.granularity import class_name, kernel_name
    from lqconvert.quantizers import ActivationQuantizer, FollowingQuantizer, QuantizedLayer
    from lqconvert.rewriting import float_layers

    before = {layer.name: class_name(layer) for layer in model.layers}
    floats = float_layers(quantized)
    rows = []
    for layer in quantized.layers:
        if isinstance(layer, (ActivationQuantizer, FollowingQuantizer)):
            continue
        inner, codes, scales = layer, 0, 0
        if isinstance(layer, QuantizedLayer):
            inner = layer.layer
            name = kernel_name(inner)
            codes = int(getattr(inner, name).shape.num_elements())
            scales = int(layer.quantizers[name].scale_weight.shape.num_elements())
        kind = class_name(inner)
        if before.get(layer.name, kind) != kind:
            kind = f"{before[layer.name]} -> {kind}"
        becomes = f"float: {floats[layer.name]}" if layer.name in floats else _becomes(layer, scales)
        rows.append(
            LayerRow(layer.name, kind, _output_shape(layer), inner.count_params(), becomes, codes, scales)
        )
    return rows


def _becomes(layer: Any, scales: int) -> str:
    """What a layer of the rewritten graph becomes in the int8 file, in words."""
    from lqconvert.granularity import class_name
    from lqconvert.quantizers import ActivationQuantizer, FollowingQuantizer

    parts = []
    if scales:
        each = f" per output channel ({scales})" if scales > 1 else ""
        parts.append(f"int8 codes, one scale{each}")
    fused = _fused_into(layer)
    if fused:
        parts.append(f"fused into {fused}")
    behind = [node.outbound_layer for node in layer.outbound_nodes]
    quantizer = next((x for x in behind if isinstance(x, (ActivationQuantizer, FollowingQuantizer))), None)
    if isinstance(quantizer, ActivationQuantizer):
        if class_name(layer) == "InputLayer":
            parts.append("the range of the data, or that of pixels")
        elif quantizer.fixed is None:
            parts.append("learned range")
        else:
            parts.append("fixed range {:.4g}..{:.4g}".format(*quantizer.fixed))
    elif quantizer is None and behind and _fused_into(behind[0]):
        parts.append(f"range of {behind[0].name}")
    else:
        parts.append("scale of its input")
    return "; ".join(parts)


def _fused_into(layer: Any) -> str:
    """The layer in front that a ReLU becomes part of: it would have a quantizer behind it otherwise."""
    from lqconvert.granularity import class_name
    from lqconvert.quantizers import QuantizedLayer
    from lqconvert.rewriting import FUSES_RELU

    if class_name(layer) != "ReLU":
        return ""
    source = layer.input._keras_history.layer
    return source.name if isinstance(source, QuantizedLayer) or class_name(source) in FUSES_RELU else ""


def _with_vanished(rows: list[LayerRow], model: Any, config: dict[str, Any] | None) -> list[LayerRow]:
    """The rows with those layers of the file that the graph is without, each behind the one before it."""
    from lqconvert.twins import DROPPED

    kept = {row.name for row in rows}
    behind: dict[str, list[LayerRow]] = {}
    place = ""
    for row in _float_rows(model):
        if row.name not in kept:
            place = _absorber(model.get_layer(row.name), kept)
            behind.setdefault(place, []).append(replace(row, becomes=f"folded into {place}"))
    for name, kind, _ in _config_layers(config):
        if name in kept:
            place = name
        elif kind in DROPPED:
            behind.setdefault(place, []).append(LayerRow(name, kind, None, 0, "left out: for training only"))
    return [each for row in rows for each in (row, *behind.get(row.name, []))]


def _absorber(batch_norm: Any, kept: set[str]) -> str:
    """The layer that a BatchNormalization was folded into: in front where that is linear, else behind."""
    from lqconvert.granularity import LINEAR, class_name

    source = batch_norm.input._keras_history.layer
    while source.name not in kept:
        source = source.input._keras_history.layer
    linear = (*LINEAR, "SeparableConv2D")
    if class_name(source) in linear and source.activation.__name__ == "linear":
        return source.name
    layer = batch_norm
    while class_name(layer) not in linear:
        layer = layer.outbound_nodes[0].outbound_layer
    return layer.name


def _int8_file(quantized: Any) -> bytes:
    """The int8 file of a rewritten model with starting scales: of random inputs, for want of data.

    Its size and operators hang on the ranges only where these are equal by chance.
    """
    from lqconvert.calibration import calibrate
    from lqconvert.exporting import Template, learned_codes
    from lqconvert.loading import random_inputs

    inputs = random_inputs(quantized, batch=4)
    # As large as pixels, too: with too small a range a bias of such a model would not fit int32.
    large = [x if x.dtype == np.int32 else 255 * x for x in inputs]
    batches: list[Any] = [x if len(x) > 1 else x[0] for x in (inputs, large)]
    calibrate(quantized, batches)
    codes = learned_codes(quantized)
    return Template.of(quantized, codes).fill(codes)


def _answer(tflite: bytes, target: Target, rows: list[LayerRow]) -> str:
    """Whether quantize makes a file for the target, or why not."""
    kept = [f"'{row.name}'" for row in rows if row.becomes.startswith("float: ")]
    if kept and target.name == TFLM.name:
        return f"refused: {', '.join(kept)} would stay float"
    try:
        target.check_installed()
        check_runs(tflite, target)
    except LqError as error:
        return str(error)
    return "runs"


# --- .tflite files


@dataclass(frozen=True)
class Tensor:
    """A tensor of a .tflite."""

    index: int
    name: str  # empty where the file has none
    shape: tuple[int, ...]
    type: str
    scales: int
    smallest_scale: float | None
    largest_scale: float | None
    zero_point: int | None

    @property
    def text(self) -> str:
        return f"{_dimensions(self.shape)} {self.type.lower()}"

    @property
    def quantization(self) -> str:
        if not self.scales:
            return ""
        scale = f"{self.smallest_scale:.4g}"
        if self.scales > 1:
            scale = f"{self.scales}: {scale}..{self.largest_scale:.4g}"
        return f"{scale}, zero {self.zero_point}" if self.zero_point else scale


@dataclass(frozen=True)
class OperatorRow:
    index: int
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True)
class ConstantRow:
    """A constant that an operator computes with: of what the file stores, and of all that unpacks it."""

    tensor: Tensor
    reader: str  # the operator
    packing: str
    elements: int
    stored_bytes: int
    entropy_bytes: int | None  # of its codes; None for other than codes of 8 bits or less


@dataclass(frozen=True)
class TfliteInspection(_Inspection):
    file: str
    bytes: int
    deflated_bytes: int
    constant_bytes: int
    overhead_bytes: int  # all beside constants
    inputs: list[Tensor]
    outputs: list[Tensor]
    integer_only: bool
    float_operators: list[str]
    operators: list[OperatorRow]
    constants: list[ConstantRow]

    def print(self, console: Console) -> None:
        table = Table("", "operator", "inputs", "outputs")
        for operator in self.operators:
            sides = (", ".join(each.text for each in side) for side in (operator.inputs, operator.outputs))
            table.add_row(str(operator.index), operator.name, *sides)
        console.print(table)
        table = Table("constant of", "shape", "type", "scales", "packing", "elements", "stored", "entropy")
        for row in self.constants:
            table.add_row(
                row.reader,
                _dimensions(row.tensor.shape),
                row.tensor.type.lower(),
                row.tensor.quantization,
                row.packing,
                f"{row.elements:,}",
                f"{row.stored_bytes:,}",
                "-" if row.entropy_bytes is None else f"{row.entropy_bytes:,}",
            )
        console.print(table)
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                scale = f", scale {tensor.smallest_scale:.6g}" if tensor.scales else ""
                point = f", zero point {tensor.zero_point}" if tensor.scales else ""
                console.print(f"{side}: {tensor.text}{scale}{point}")
        floats = ", ".join(self.float_operators)
        console.print(f"integer only: {'yes' if self.integer_only else f'no ({floats})'}")
        console.print(
            f"{self.bytes:,} bytes ({self.deflated_bytes:,} deflated): {self.constant_bytes:,} of constants, "
            f"{self.overhead_bytes:,} beside them"
        )


def _inspect_tflite(path: Path) -> TfliteInspection:
    tflite = path.read_bytes()
    flat = read(tflite)
    graph = flat.subgraphs[0]
    rows = [row for each in flat.subgraphs for row in _operator_rows(flat, each)]
    floats = [
        f"{row.index} {row.name}"
        for row in rows
        if any("FLOAT" in tensor.type for tensor in (*row.inputs, *row.outputs))
    ]
    stored = [tensor for each in flat.subgraphs for tensor in each.tensors if _data(flat, tensor) is not None]
    constant_bytes = _stored_bytes(flat, stored)
    return TfliteInspection(
        str(path),
        len(tflite),
        deflated(tflite),
        constant_bytes,
        len(tflite) - constant_bytes,
        [_tensor(graph, index) for index in graph.inputs],
        [_tensor(graph, index) for index in graph.outputs],
        not floats,
        floats,
        rows,
        [row for each in flat.subgraphs for row in _Constants(flat, each).rows()],
    )


def _name(flat: Any, operator: Any) -> str:
    """An operator's name in the schema; a custom one's own."""
    name = operator_name(flat, operator)
    custom = flat.operatorCodes[operator.opcodeIndex].customCode
    return _text(custom) if name == "CUSTOM" else name


def _text(text: Any) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")


def _operator_rows(flat: Any, graph: Any) -> list[OperatorRow]:
    return [
        OperatorRow(
            place,
            _name(flat, operator),
            [_tensor(graph, index) for index in _present(operator.inputs)],
            [_tensor(graph, index) for index in _present(operator.outputs)],
        )
        for place, operator in enumerate(_list(graph.operators))
    ]


def _list(vector: Any) -> list[Any]:
    """A vector of the schema, which is None where the file has none."""
    return [] if vector is None else list(vector)


def _present(indices: Any) -> list[int]:
    """The operands that are there: -1 stands for one that is left out."""
    return [int(index) for index in _list(indices) if index >= 0]


def _tensor(graph: Any, index: int) -> Tensor:
    tensor = graph.tensors[index]
    scales = [] if tensor.quantization is None else _list(tensor.quantization.scale)
    points = [] if tensor.quantization is None else _list(tensor.quantization.zeroPoint)
    return Tensor(
        int(index),
        _text(tensor.name),
        _shape(tensor),
        _TYPES[tensor.type],
        len(scales),
        float(min(scales)) if scales else None,
        float(max(scales)) if scales else None,
        int(points[0]) if scales and points else None,
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in _list(tensor.shape))


def _data(flat: Any, tensor: Any) -> np.ndarray | None:
    """The bytes of a constant; None for what is computed."""
    data = flat.buffers[tensor.buffer].data
    return None if data is None or not len(data) else np.asarray(data, np.uint8)


def _stored_bytes(flat: Any, tensors: list[Any]) -> int:
    """What the file holds of constants: a buffer counts once, and the places in sparse ones with it."""
    buffers = {tensor.buffer for tensor in tensors}
    places = [
        vector.values
        for tensor in tensors
        for dimension in (_list(tensor.sparsity.dimMetadata) if tensor.sparsity is not None else [])
        for vector in (dimension.arraySegments, dimension.arrayIndices)
        if vector is not None
    ]
    return sum(len(flat.buffers[buffer].data) for buffer in buffers) + sum(
        np.asarray(values).nbytes for values in places
    )


class _Constants:
    """The constants of a graph, and what its operators make of constants alone: packed ones, unpacked."""

    def __init__(self, flat: Any, graph: Any) -> None:
        self.flat, self.graph = flat, graph
        #: For each constant tensor the stored ones that it is made of, and the operators that make it.
        self.sources: dict[int, list[int]] = {}
        self.makers: dict[int, list[Any]] = {}
        for index, tensor in enumerate(graph.tensors):
            if _data(flat, tensor) is not None:
                self.sources[index], self.makers[index] = [index], []
        self.readers = []
        for place, operator in enumerate(_list(graph.operators)):
            inputs = _present(operator.inputs)
            if not inputs or not all(index in self.sources for index in inputs):
                self.readers.append((place, operator))
                continue
            for number, output in enumerate(_present(operator.outputs)):
                # A DECODE may make several tensors, each of two inputs.
                own = inputs[2 * number :][:2] if _name(flat, operator) == DECODE else inputs
                self.sources[output] = [source for index in own for source in self.sources[index]]
                self.makers[output] = [*(maker for index in own for maker in self.makers[index]), operator]

    def rows(self) -> list[ConstantRow]:
        rows: dict[int, ConstantRow] = {}
        for place, operator in self.readers:
            for index in _present(operator.inputs):
                if index in self.sources and index not in rows:
                    rows[index] = self._row(index, f"{place} {_name(self.flat, operator)}")
        return list(rows.values())

    def _row(self, index: int, reader: str) -> ConstantRow:
        tensor = self.graph.tensors[index]
        elements = math.prod(_shape(tensor))
        codes = self._codes(index, elements)
        return ConstantRow(
            _tensor(self.graph, index),
            reader,
            self._packing(index),
            elements,
            _stored_bytes(self.flat, [self.graph.tensors[source] for source in self.sources[index]]),
            None if codes is None else round(coding.entropy_bits(codes) / 8),
        )

    def _packing(self, index: int) -> str:
        """How a constant is packed, by the name that quantize has for it."""
        tensor = self.graph.tensors[index]
        names = [_name(self.flat, maker) for maker in self.makers[index]]
        if tensor.sparsity is not None or "DENSIFY" in names:
            return "sparse"
        if DECODE in names and "GATHER" in names:
            return "huffman-blocks"
        if DECODE in names:
            return _MODES.get(self._stored(self.sources[index][1])[0], DECODE)
        return " ".join(names) or _TYPES[tensor.type].lower()

    def _stored(self, index: int) -> np.ndarray:
        return np.asarray(self.flat.buffers[self.graph.tensors[index].buffer].data, np.uint8)

    def _codes(self, index: int, elements: int) -> np.ndarray | None:
        """The codes of a constant, in any order; None where they are wider than a byte or not understood."""
        sources = [self.graph.tensors[source] for source in self.sources[index]]
        packing, stored = self._packing(index), self._stored(self.sources[index][0])
        kind = _TYPES[sources[0].type]
        if packing == "sparse" and kind == "INT8":
            return np.pad(stored.view(np.int8), (0, max(0, elements - stored.size)))
        if packing in ("int4", "int2"):
            return coding.unpack_bits(stored, int(packing[3:]))[:elements]
        if packing in ("int8", "uint8"):
            return stored.view(packing)
        if packing in _MODES.values():
            return coding.decode(coding.Encoded(stored.tobytes(), self._ancillary(index)), elements)
        if packing == "huffman-blocks":
            return self._blocks(index)
        return None

    def _ancillary(self, index: int) -> bytes:
        return self._stored(self.sources[index][1]).tobytes()

    def _blocks(self, index: int) -> np.ndarray | None:
        """What GATHER looks up: the rows of a codebook whose numbers DECODE makes."""
        named = {_name(self.flat, maker): maker for maker in self.makers[index]}
        (book,) = set(self.sources[index]) & set(_present(named["GATHER"].inputs))
        count = math.prod(_shape(self.graph.tensors[named[DECODE].outputs[0]]))
        stream, ancillary = (self._stored(int(source)).tobytes() for source in named[DECODE].inputs[:2])
        numbers = coding.decode(coding.Encoded(stream, ancillary), count)
        rows = self._stored(book).view(np.int8).reshape(_shape(self.graph.tensors[book]))
        return None if numbers is None else rows[numbers]


# --- codes


@dataclass(frozen=True)
class CodesRow:
    """The learned codes of a layer's kernel."""

    layer: str
    shape: tuple[int, ...]  # in Keras's layout
    scales: int
    axes: tuple[int, ...]  # that have a scale each
    integers: int  # how many different ones
    smallest: int
    largest: int
    entropy: float  # bits a weight
    zeros: float  # the share of them
    packed: dict[str, tuple[str, int]]  # by target: the packing that stores the fewest bytes, and these


@dataclass(frozen=True)
class CodesInspection(_Inspection):
    file: str
    layers: list[CodesRow]
    weights: int
    entropy_bytes: int
    packed_bytes: dict[str, int]  # by target: of all kernels, before dead channels leave
    int8_bytes: int | None  # of the int8 file in it; None where there is none

    def print(self, console: Console) -> None:
        columns = ["layer", "shape", "scales", "codes", "range", "zeros", "bits/w", *self.packed_bytes]
        table = Table(*columns)
        for row in self.layers:
            packed = (f"{row.packed[target][1]:,} {row.packed[target][0]}" for target in self.packed_bytes)
            table.add_row(
                row.layer,
                _dimensions(row.shape),
                str(row.scales),
                str(row.integers),
                f"{row.smallest}..{row.largest}",
                f"{row.zeros:.1%}",
                f"{row.entropy:.2f}",
                *packed,
            )
        console.print(table)
        stored = "".join(
            f", about {size:,} packed for {target}" for target, size in self.packed_bytes.items()
        )
        console.print(f"{self.weights:,} weights: {self.entropy_bytes:,} bytes at their entropy{stored}")
        if self.int8_bytes is None:
            console.print("no int8 file in it: lqconvert export makes no files of it")
        else:
            console.print(f"int8 file in it: {self.int8_bytes:,} bytes")


def _inspect_codes(path: Path) -> CodesInspection:
    foreign = LqError(f"{path}: not the .codes.npz that lqconvert quantize writes")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file if name.endswith(("/codes", "/scale"))}
            int8_file = Int8File.load(path) if "int8.tflite" in file else None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise foreign from error
    layers = [name.removesuffix("/codes") for name in arrays if name.endswith("/codes")]
    for layer in layers:
        codes = arrays[f"{layer}/codes"]
        if f"{layer}/scale" not in arrays or codes.dtype.kind != "i" or not codes.size:
            raise foreign
    found = [] if int8_file is None else kernels(read(int8_file.tflite))
    order = [] if int8_file is None else int8_file.layers
    if not layers or len(order) != len(found):
        raise foreign
    by_layer = dict(zip(order, found, strict=True))
    rows = [
        _codes_row(layer, arrays[f"{layer}/codes"], arrays[f"{layer}/scale"], by_layer.get(layer))
        for layer in layers
    ]
    targets = [name for name in TARGETS if all(name in row.packed for row in rows)]
    return CodesInspection(
        str(path),
        rows,
        sum(math.prod(row.shape) for row in rows),
        round(sum(math.prod(row.shape) * row.entropy for row in rows) / 8),
        {name: sum(row.packed[name][1] for row in rows) for name in targets},
        None if int8_file is None else len(int8_file.tflite),
    )


def _codes_row(layer: str, integers: np.ndarray, scale: np.ndarray, kernel: Kernel | None) -> CodesRow:
    codes = TensorCodes(integers, scale)
    return CodesRow(
        layer,
        integers.shape,
        scale.size,
        tuple(axis for axis, length in enumerate(scale.shape) if length > 1),
        codes.code_count,
        int(integers.min()),
        int(integers.max()),
        codes.entropy,
        float(np.mean(integers == 0)),
        {} if kernel is None else {target.name: _packed(kernel, target) for target in TARGETS.values()},
    )


def _packed(kernel: Kernel, target: Target) -> tuple[str, int]:
    """The packing for a target that stores the fewest bytes of a kernel, and these."""
    fitting = [(packing, packing.encode(kernel)) for packing in target.packings if packing.fits(kernel)]
    sizes = [(packing.name, packing.stored_bytes(data)) for packing, data in fitting if data is not None]
    return min([(INT8.name, kernel.codes.size), *sizes], key=lambda each: each[1])
