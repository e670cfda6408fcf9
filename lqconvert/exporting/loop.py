"""GRU and SimpleRNN as a WHILE operator in integers, which takes the place of a placeholder as an LSTM does.

The loop's body computes a step. Codes of kernels and of the inputs have 8 bits, and everything else has 16:
the state too, because a GRU changes it by small amounts. Shapes are static, so that both runtimes execute it:
instead of taking step number i of the inputs, the body takes the first one, and moves it to the end. The
outputs are collected in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.exporting.codes import LayerCodes
from lqconvert.tflite.editing import COMPUTED, new_operator, reshape
from lqconvert.tflite.graph import DTYPES, Graph, Model, Operator, Quantization, Tensor

#: Scales of int16 tensors: what is added to sums, sums, and values between -1 and 1.
ADDEND, SUM, UNIT = 16 / 2**15, 8 / 2**15, 1 / 2**15
#: The difference of two states.
DIFFERENCE = 2 / 2**15


@dataclass(frozen=True)
class Loop:
    """The layers of a loop, and its kind of cell."""

    inputs: str
    states: str
    cell: str  # GRU or SimpleRNN
    reset_after: bool = True
    only_last: bool = False  # no operator reads other states than the last

    @property
    def kernels(self) -> list[str]:
        """The layers of those of its kernels that can be packed: none."""
        return []

    @property
    def sums(self) -> int:
        return 3 if self.cell == "GRU" else 1


def is_loop(graph: Graph, operator: Operator) -> bool:
    """Whether an operator is a loop that :func:`put_loop` made. Loops in float have no int16 state."""
    types = {graph.tensors[index].type for index in operator.operands}
    return operator.name == "WHILE" and "INT16" in types


def put_loop(model: Model, placeholder: Operator, loop: Loop) -> None:
    """Replaces a placeholder by a WHILE operator whose weights are zeros."""
    tensors, operators = model.main.tensors, model.main.operators
    source, kernel, *_ = placeholder.inputs
    (output,) = placeholder.outputs
    units, features = tensors[kernel].shape
    steps = math.prod(tensors[source].shape) // features
    variables = _Variables(
        (1, steps, features),
        (1, 1 if loop.only_last else steps, units),
        tensors[source].quantization,
        tensors[output].quantization,
    )
    main = _Builder(model, Graph(tensors))
    # The converter may have made rows of sequences.
    x = main.shaped(source, variables.sequence)
    starts = [
        main.constant(np.zeros((), np.int32)),
        x,
        main.constant(np.zeros((1, units), np.int16), _one(UNIT)),
        main.zeros(variables.states, variables.leaving),
    ]
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = len(model.graphs), len(model.graphs) + 1
    ends = variables.tensors(main)
    main.operator("WHILE", starts, ends, options)
    if loop.only_last:
        _take_last(model, output, ends[-1])
    elif tensors[output].shape == variables.states:
        main.graph.operators[-1].outputs = (*ends[:-1], output)
    else:
        main.graph.operators.append(reshape(model, ends[-1], output))
    place = operators.index(placeholder)
    operators[place : place + 1] = main.graph.operators
    model.graphs += [_condition(model, variables), _body(model, variables, loop)]


def _take_last(model: Model, states: int, last: int) -> None:
    """Makes the operators that take the last step of some states take the tensor ``last`` as it is."""
    graph, shaped = model.main, {states}
    for operator in list(graph.operators):
        if not shaped & {*operator.inputs}:
            continue
        place = graph.operators.index(operator)
        if operator.name == "RESHAPE":
            shaped.add(operator.outputs[0])
            del graph.operators[place]
        else:
            graph.operators[place] = reshape(model, last, operator.outputs[0])


def fill_loop(model: Model, operator: Operator, inputs: LayerCodes, states: LayerCodes, loop: Loop) -> None:
    """Writes learned codes, scales and biases into a loop. Codes are [inputs, sums * units]."""
    body = model.graphs[operator.option("bodySubgraphIndex")]
    products = iter([each for each in body.operators if each.name == "FULLY_CONNECTED"])
    for layer in (inputs, states):
        codes = np.split(layer.kernel.codes.T.astype(np.int8), loop.sums)
        floats = np.zeros(layer.kernel.codes.shape[1]) if layer.bias is None else layer.bias
        scale = np.float32(layer.kernel.scale.item())
        for part, bias in zip(codes, np.split(floats.astype(np.float64), loop.sums), strict=True):
            source, kernel, offset = (body.tensors[index] for index in next(products).inputs)
            kernel.set_values(np.ascontiguousarray(part))
            kernel.quantization = _one(scale)
            step = np.float32(np.float32(source.scales[0]) * scale)
            offset.set_values(np.round(bias / step).astype(np.int64))
            offset.quantization = _one(step)


def _one(scale: float | np.floating) -> Quantization:
    return Quantization.one(scale)


@dataclass(frozen=True)
class _Variables:
    """The variables of a loop: the number of the step, the inputs, the state, and the outputs."""

    sequence: tuple[int, int, int]  # [1, steps, features]
    states: tuple[int, int, int]  # [1, steps, units]
    entering: Quantization | None
    leaving: Quantization | None

    def tensors(self, graph: _Builder) -> list[int]:
        """A tensor for each variable."""
        return [
            graph.tensor("INT32", ()),
            graph.tensor("INT8", self.sequence, self.entering),
            graph.tensor("INT16", (1, self.states[2]), _one(UNIT)),
            graph.tensor("INT8", self.states, self.leaving),
        ]


class _Builder:
    """Adds tensors and operators to a graph. Methods return the index of a tensor."""

    def __init__(self, model: Model, graph: Graph) -> None:
        self.model, self.graph = model, graph

    def tensor(self, kind: str, shape: tuple[int, ...], quantization: Quantization | None = None) -> int:
        self.graph.tensors.append(Tensor(kind, shape, COMPUTED, quantization))
        return len(self.graph.tensors) - 1

    def constant(self, array: np.ndarray, quantization: Quantization | None = None) -> int:
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
        index = self.tensor(kind, array.shape, quantization)
        self.graph.tensors[index].set_values(array)
        return index

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: object = None,
        version: int = 1,
    ) -> int:
        operator = new_operator(self.model, name, inputs, outputs, options, version=version)
        self.graph.operators.append(operator)
        return outputs[0]

    def shaped(self, index: int, shape: tuple[int, ...]) -> int:
        """The tensor, or a RESHAPE of it."""
        tensor = self.graph.tensors[index]
        if tensor.shape == shape:
            return index
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        return self.operator(
            "RESHAPE", [index], [self.tensor(tensor.type, shape, tensor.quantization)], options
        )

    def zeros(self, shape: tuple[int, ...], quantization: Quantization | None) -> int:
        """An int8 tensor of zeros, which the file does not store."""
        lengths = self.constant(np.array(shape, np.int32))
        zero = self.constant(np.zeros((), np.int8), quantization)
        result = self.tensor("INT8", shape, quantization)
        return self.operator("FILL", [lengths, zero], [result], schema.FillOptionsT())

    def wide(self, scale: float | np.floating, *shape: int) -> int:
        """A new int16 tensor."""
        return self.tensor("INT16", shape, _one(scale))

    def product(self, source: int, units: int) -> int:
        """FULLY_CONNECTED with zeros for a kernel and a bias."""
        options, tensor = schema.FullyConnectedOptionsT(), self.graph.tensors[source]
        kernel = self.constant(np.zeros((units, tensor.shape[-1]), np.int8), _one(1.0))
        bias = self.constant(np.zeros(units, np.int64), _one(tensor.scales[0]))
        operands, result = [source, kernel, bias], self.wide(ADDEND, 1, units)
        return self.operator("FULLY_CONNECTED", operands, [result], options, version=4)

    def elementwise(self, name: str, *operands: int, scale: float = UNIT) -> int:
        """A function or an operation of int16 tensors of one shape."""
        kinds = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}
        options: Any = kinds[name]() if name in kinds else None
        if name in ("ADD", "SUB"):
            options.potScaleInt16 = False
        result = self.wide(scale, *self.graph.tensors[operands[0]].shape)
        return self.operator(name, operands, [result], options, version=2)

    def steps(self, index: int, begin: int, end: int) -> int:
        """Some steps of a sequence [1, steps, n]."""
        tensor = self.graph.tensors[index]
        width = tensor.shape[2]
        limits = ([0, begin, 0], [1, end, width], [1, 1, 1])
        bounds = [self.constant(np.array(each, np.int32)) for each in limits]
        result = self.tensor(tensor.type, (1, end - begin, width), tensor.quantization)
        return self.operator("STRIDED_SLICE", [index, *bounds], [result], schema.StridedSliceOptionsT())

    def moved_up(self, index: int, last: int) -> int:
        """A sequence without its first step, and with another one at the end."""
        tensor = self.graph.tensors[index]
        length = tensor.shape[1]
        if length == 1:
            return last
        options = schema.ConcatenationOptionsT()
        options.axis = 1
        result = self.tensor(tensor.type, tensor.shape, tensor.quantization)
        return self.operator("CONCATENATION", [self.steps(index, 1, length), last], [result], options)


def _condition(model: Model, variables: _Variables) -> Graph:
    builder = _Builder(model, Graph())
    graph, tensors = builder.graph, variables.tensors(builder)
    count = builder.constant(np.array(variables.sequence[1], np.int32))
    graph.inputs = tuple(tensors)
    graph.outputs = (builder.operator("LESS", [tensors[0], count], [builder.tensor("BOOL", ())]),)
    return graph


def _body(model: Model, variables: _Variables, loop: Loop) -> Graph:
    builder = _Builder(model, Graph())
    graph, units = builder.graph, variables.states[2]
    number, x, state, y = tensors = variables.tensors(builder)
    first = builder.steps(x, 0, 1)
    scale = graph.tensors[x].scales[0]
    wide = builder.operator(
        "QUANTIZE", [first], [builder.wide(scale, 1, 1, variables.sequence[2])], schema.QuantizeOptionsT()
    )
    added = [builder.product(wide, units) for _ in range(loop.sums)]
    new = (_gru if loop.cell == "GRU" else _simple)(builder, added, state, loop)
    narrow = builder.tensor("INT8", (1, units), variables.leaving)
    result = builder.operator("QUANTIZE", [new], [narrow], schema.QuantizeOptionsT())
    result = builder.shaped(result, (1, 1, units))
    one = builder.constant(np.array(1, np.int32))
    following = builder.operator("ADD", [number, one], [builder.tensor("INT32", ())], schema.AddOptionsT())
    graph.inputs = tuple(tensors)
    graph.outputs = (following, builder.moved_up(x, first), new, builder.moved_up(y, result))
    return graph


def _gru(builder: _Builder, added: Sequence[int], state: int, loop: Loop) -> int:
    """The next state of a GRU; see :class:`.recurrent_layers.GRUStates`."""
    units, both = builder.graph.tensors[state].shape[1], builder.elementwise
    gates = [
        both("LOGISTIC", both("ADD", each, builder.product(state, units), scale=SUM)) for each in added[:2]
    ]
    update, reset = gates
    if loop.reset_after:
        recurrent = both("MUL", reset, builder.product(state, units), scale=ADDEND)
    else:
        recurrent = builder.product(both("MUL", reset, state), units)
    new = both("TANH", both("ADD", added[2], recurrent, scale=SUM))
    change = both("MUL", update, both("SUB", state, new, scale=DIFFERENCE), scale=DIFFERENCE)
    return both("ADD", new, change)


def _simple(builder: _Builder, added: Sequence[int], state: int, loop: Loop) -> int:
    """The next state of a SimpleRNN."""
    product = builder.product(state, builder.graph.tensors[state].shape[1])
    return builder.elementwise("TANH", builder.elementwise("ADD", added[0], product, scale=SUM))
