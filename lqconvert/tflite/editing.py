"""Edits a :class:`lqconvert.tflite.graph.Model`: adds tensors and operators, and drops unused parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.tflite.graph import DTYPES, Buffer, Graph, Model, Operator, OperatorCode, Quantization, Tensor

#: The buffer of computed tensors, which have no bytes in the file.
COMPUTED = Buffer.of(np.zeros(0, np.uint8))


def add_tensor(
    model: Model, kind: str, shape: tuple[int, ...], quantization: Quantization | None = None
) -> int:
    """Adds a tensor to the main graph that an operator computes, and returns its index.

    Args:
        kind: its type, by the schema's name, such as INT8.
    """
    model.main.tensors.append(Tensor(kind, shape, COMPUTED, quantization))
    return len(model.main.tensors) - 1


def add_constant(model: Model, array: np.ndarray, quantization: Quantization | None = None) -> int:
    """Adds a constant tensor to the main graph, and returns its index."""
    kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
    index = add_tensor(model, kind, array.shape, quantization)
    model.main.tensors[index].set_values(array)
    return index


def new_operator(
    model: Model,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    options: object = None,
    *,
    version: int = 1,
    custom: str | None = None,
) -> Operator:
    """A new operator, not yet in the graph. Its operator code is found or added.

    Args:
        name: the schema's, such as CONV_2D.
        options: the schema's object, such as ``Conv2DOptionsT``.
        custom: the name of a custom one.
    """
    builtin = getattr(schema.BuiltinOperator, name)
    wanted = OperatorCode(builtin, min(builtin, 127), version, None if custom is None else custom.encode())
    same = [
        code
        for code in model.codes
        if (code.builtin, code.version, code.custom) == (wanted.builtin, wanted.version, wanted.custom)
    ]
    if not same:
        model.codes.append(wanted)
    return Operator((same or [wanted])[-1], tuple(inputs), tuple(outputs), options)


def reshape(model: Model, source: int, target: int) -> Operator:
    """A RESHAPE of one tensor into another. The shape is in the options, which are smaller than a tensor."""
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(model.main.tensors[target].shape, np.int32)
    return new_operator(model, "RESHAPE", [source], [target], options)


def repeat_by_adding(model: Model) -> None:
    """Replaces each TILE of an axis of length 1 by an ADD of zeros, which repeats it, too.

    TensorFlow Lite Micro's interpreter has no TILE.
    """
    graph = model.main
    for place, operator in enumerate(graph.operators):
        if operator.name != "TILE":
            continue
        source, output = (graph.tensors[index] for index in (operator.inputs[0], operator.outputs[0]))
        pairs = list(zip(source.shape, output.shape, strict=True))
        if source.type not in ("INT8", "INT16") or any(before not in (1, after) for before, after in pairs):
            continue
        shape = [after if before == 1 else 1 for before, after in pairs]
        codes = np.full(shape, source.zero_point, DTYPES[source.type])
        zeros, options = add_constant(model, codes, source.quantization), schema.AddOptionsT()
        options.potScaleInt16 = False
        graph.operators[place] = new_operator(
            model, "ADD", [operator.inputs[0], zeros], operator.outputs, options, version=2
        )


def merge_reshapes(model: Model) -> None:
    """Drops RESHAPEs that are followed by another RESHAPE, and those that change nothing."""
    graph = model.main
    makers = {operator.outputs[0]: operator for operator in graph.operators if operator.name == "RESHAPE"}
    for operator in makers.values():
        maker = makers.get(operator.inputs[0])
        if maker is not None:
            operator.inputs = (maker.inputs[0], *operator.inputs[1:])
    for index, operator in makers.items():
        source = operator.inputs[0]
        if index not in graph.outputs and _alike(graph.tensors[source], graph.tensors[index]):
            for other in graph.operators:
                other.inputs = tuple(source if each == index else each for each in other.inputs)
    read = {index for operator in graph.operators for index in operator.inputs} | {*graph.outputs}
    graph.operators = [each for each in graph.operators if each.name != "RESHAPE" or each.outputs[0] in read]


def drop_flattening(model: Model) -> None:
    """Drops RESHAPEs in front of FULLY_CONNECTED operators that read all of the input for one result."""
    graph = model.main
    sources = {
        operator.outputs[0]: operator.inputs[0] for operator in graph.operators if operator.name == "RESHAPE"
    }
    for operator in graph.operators:
        if operator.name != "FULLY_CONNECTED" or operator.inputs[0] not in sources:
            continue
        source = sources[operator.inputs[0]]
        before, after, kernel = (graph.tensors[index] for index in (source, *operator.inputs[:2]))
        whole = math.prod(before.shape) == kernel.shape[-1] and not operator.option("keepNumDims")
        if whole and before.type == after.type and _same_scale(before, after):
            operator.inputs = (source, *operator.inputs[1:])
    read = {index for operator in graph.operators for index in operator.inputs} | {*graph.outputs}
    graph.operators = [each for each in graph.operators if each.name != "RESHAPE" or each.outputs[0] in read]


def _alike(before: Tensor, after: Tensor) -> bool:
    """Whether a RESHAPE between these tensors changes nothing.

    The result of a lookup may have no scale yet: a RESHAPE gives it the kernel's scale.
    """
    return before.shape == after.shape and np.array_equal(before.scales, after.scales)


def _same_scale(a: Tensor, b: Tensor) -> bool:
    return np.array_equal(a.scales, b.scales) and np.array_equal(a.zero_points, b.zero_points)


@dataclass(frozen=True)
class Needless:
    """Parts of a file that it can do without, besides inner names and the converter's notes.

    Args:
        signature: the signature with the names of inputs and outputs, by which programs may find them.
        lone_names: the same if there is one input and one output.
        bias_scales: scales of the biases of convolutions. No kernel computes with them, but XNNPACK compares
            them.
        zero_points: of a kernel, which are 0, all but the first. LiteRT wants as many as scales. TFLite Micro
            has taken one for all since December 2021.
        versions: of operators. LiteRT compares them with those that it knows.
        flattening: RESHAPEs in front of FULLY_CONNECTED, which takes its input in any shape.
    """

    signature: bool = False
    lone_names: bool = False
    bias_scales: bool = False
    zero_points: bool = False
    versions: bool = False
    flattening: bool = False


def strip(model: Model, needless: Needless = Needless()) -> None:
    """Drops what no runtime reads: inner names, the converter's notes, and the parts in ``needless``."""
    graph = model.main
    lone = len(graph.inputs) == len(graph.outputs) == 1
    nameless = needless.signature or (needless.lone_names and lone)
    kept = set() if nameless else {*graph.inputs, *graph.outputs}
    if nameless:
        model.signatures = None
    if needless.zero_points:
        for each in (tensor for part in model.graphs for tensor in part.tensors):
            points = each.zero_points
            if each.quantization is not None and len(points) > 1 and not points.any():
                each.quantization = replace(each.quantization, zero_points=points[:1])
    if needless.versions:
        _drop_versions(model)
    for operator in graph.operators if needless.bias_scales else ():
        if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            for index in operator.inputs[2:3]:
                if index >= 0:
                    graph.tensors[index].quantization = None
    for index, tensor in enumerate(graph.tensors):
        if index not in kept:
            tensor.name = None
        if tensor.quantization is not None:
            tensor.quantization = replace(tensor.quantization, low=None, high=None)
    model.metadata = None
    model.description = None


def _drop_versions(model: Model) -> None:
    """Drops the versions of operators, and the second number of those that have a number below 127."""
    short: dict[tuple[int, bytes | None], OperatorCode] = {}
    for operator in (each for graph in model.graphs for each in graph.operators):
        number, custom = max(operator.code.builtin, operator.code.deprecated), operator.code.custom
        lean = OperatorCode(0 if number < 127 else number, min(number, 127), 1, custom)
        operator.code = short.setdefault((number, custom), lean)
    model.codes = [*short.values()]


def drop_unused(model: Model) -> None:
    """Drops unused tensors, buffers and operator codes, merges equal buffers, and renumbers the rest."""
    known = {b"": COMPUTED}
    for number, graph in enumerate(model.graphs):
        signatures = [each for each in model.signatures or [] if each.graph == number]
        used = {*graph.inputs, *graph.outputs}
        used |= {
            index for each in graph.operators for index in (*each.inputs, *each.outputs, *each.intermediates)
        }
        used |= {port.tensor for each in signatures for port in (*each.inputs, *each.outputs)}
        kept = sorted(used - {-1})
        places = {old: new for new, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[old] for old in kept]
        groups: list[Graph | Operator] = [graph, *graph.operators]
        for group in groups:
            group.inputs = tuple(places[index] for index in group.inputs)
            group.outputs = tuple(places[index] for index in group.outputs)
        for operator in graph.operators:
            operator.intermediates = tuple(places[index] for index in operator.intermediates)
        for each in signatures:
            each.inputs = [replace(port, tensor=places[port.tensor]) for port in each.inputs]
            each.outputs = [replace(port, tensor=places[port.tensor]) for port in each.outputs]
        for tensor in graph.tensors:
            tensor.buffer = known.setdefault(tensor.buffer.content, tensor.buffer)
    model.buffers = [*known.values()]
    counts = Counter(operator.code for graph in model.graphs for operator in graph.operators)
    model.codes = [code for code, _ in counts.most_common()]  # a reference to the first one takes no bytes
