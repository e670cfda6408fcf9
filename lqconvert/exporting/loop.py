"""Recurrent layers as a WHILE operator in integers, which takes the place of a placeholder as an LSTM does.

The loop's body computes a step. Codes of kernels and of the inputs have 8 bits, and everything else has 16:
the state too, because a GRU changes it by small amounts. Shapes are static, so that both runtimes execute it:
instead of taking step number i of the inputs, the body takes the first one, and moves it to the end. The
outputs are collected in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.exporting.codes import LayerCodes
from lqconvert.keras_loader.recurrent_layers import (
    BOUNDED,
    GRUStates,
    LSTMLoopStates,
    RecurrentStates,
    SimpleRNNStates,
)
from lqconvert.tflite.builder import Builder
from lqconvert.tflite.editing import reshape
from lqconvert.tflite.graph import Graph, Model, Operator, Quantization

#: The number of int16 codes from 0.
CODES = 2**15
#: The scale of values between -1 and 1.
UNIT = 1 / CODES
#: The operators of functions, and the slopes of the others: relu6(slope * x + 3) / 6.
OPERATORS = {"tanh": "TANH", "sigmoid": "LOGISTIC", "relu": "RELU"}
HARD_SIGMOIDS = {"hard_sigmoid": 1.2, "hard_sigmoid_3": 1.0}


@dataclass(frozen=True)
class Loop:
    """The layers of a loop, and what its steps compute.

    Attributes:
        inputs, states: the layers' names.
        cell: the class of the layer of states.
        activation, gates: names of functions, see :data:`.recurrent_layers.FUNCTIONS`.
        addend_limit, sum_limit: where addends of sums and sums saturate.
        state_limit: where the hidden state saturates.
        cell_limit: where an LSTM's cell saturates.
        reset_after: as of :class:`.recurrent_layers.GRUStates`.
        zeroes_masked: as of :class:`.recurrent_layers.RecurrentStates`.
        only_last: no operator reads other states than the last.
    """

    inputs: str
    states: str
    cell: type[RecurrentStates]
    activation: str
    gates: str
    addend_limit: float
    sum_limit: float
    state_limit: float
    cell_limit: float
    reset_after: bool = True
    zeroes_masked: bool = False
    only_last: bool = False

    @classmethod
    def of(cls, inputs: str, states: Any, *, only_last: bool) -> Loop:
        """The loop of a :class:`.quantization.layers.QuantizedLayer` with states."""
        layer = states.layer
        addend, total = (float(limit) for limit in layer.limits)
        limit = float(layer.limit) if layer.has_limit else 1.0
        return cls(
            inputs,
            states.name,
            type(layer),
            layer.activation,
            layer.gates,
            addend,
            total,
            state_limit=1.0 if layer.activation in BOUNDED else limit,
            cell_limit=limit,
            reset_after=getattr(layer, "reset_after", True),
            zeroes_masked=layer.zeroes_masked,
            only_last=only_last,
        )

    @property
    def kernels(self) -> list[str]:
        """The layers of those of its kernels that can be packed: none."""
        return []

    @property
    def sums(self) -> int:
        return self.cell.sums

    @property
    def state_limits(self) -> list[float]:
        """The limit of each state."""
        return [self.state_limit, self.cell_limit][: self.cell.states]


def is_loop(graph: Graph, operator: Operator) -> bool:
    """Whether an operator is a loop that :func:`put_loop` made. Loops in float have no int16 state."""
    types = {graph.tensors[index].type for index in operator.operands}
    return operator.name == "WHILE" and "INT16" in types


def put_loop(model: Model, placeholder: Operator, loop: Loop, mask: int | None = None) -> None:
    """Replaces a placeholder by a WHILE operator whose weights are zeros.

    Args:
        mask: a tensor that :func:`lqconvert.exporting.step_masks.put_mask` made. A step does not change the
            states where it has its zero point.
    """
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
        None if mask is None else tensors[mask].quantization,
        loop.state_limits,
    )
    main = _Builder(model, Graph(tensors))
    # The converter may have made rows of sequences.
    x = main.shaped(source, variables.sequence)
    starts = [
        main.constant(np.zeros((), np.int32)),
        x,
        *([] if mask is None else [mask]),
        *(
            main.constant(np.zeros((1, units), np.int16), Quantization.one(limit / CODES))
            for limit in loop.state_limits
        ),
        main.zeros(variables.outputs, variables.leaving),
    ]
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = len(model.graphs), len(model.graphs) + 1
    ends = variables.tensors(main)
    main.operator("WHILE", starts, ends, options)
    if loop.only_last:
        _take_last(model, output, ends[-1])
    elif tensors[output].shape == variables.outputs:
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
            kernel.quantization = Quantization.one(scale)
            step = np.float32(np.float32(source.scales[0]) * scale)
            offset.set_values(np.round(bias / step).astype(np.int64))
            offset.quantization = Quantization.one(step)


@dataclass(frozen=True)
class _Variables:
    """The variables of a loop: the number of the step, the inputs, a mask, the states, and the outputs."""

    sequence: tuple[int, int, int]  # [1, steps, features]
    outputs: tuple[int, int, int]  # [1, steps, units]
    entering: Quantization | None
    leaving: Quantization | None
    masking: Quantization | None
    limits: Sequence[float]  # of the states

    def tensors(self, graph: _Builder) -> list[int]:
        """A tensor for each variable."""
        units = self.outputs[2]
        masked = self.masking is not None
        return [
            graph.tensor("INT32", ()),
            graph.tensor("INT8", self.sequence, self.entering),
            *([graph.tensor("INT8", (1, self.sequence[1], 1), self.masking)] if masked else []),
            *(graph.wide(limit / CODES, 1, units) for limit in self.limits),
            graph.tensor("INT8", self.outputs, self.leaving),
        ]


class _Builder(Builder):
    """Adds the parts of loops to a graph."""

    def zeros(self, shape: tuple[int, ...], quantization: Quantization | None) -> int:
        """An int8 tensor of zeros, which the file does not store."""
        lengths = self.constant(np.array(shape, np.int32))
        zero = self.constant(np.zeros((), np.int8), quantization)
        result = self.tensor("INT8", shape, quantization)
        return self.operator("FILL", [lengths, zero], [result], schema.FillOptionsT())

    def product(self, source: int, units: int, limit: float) -> int:
        """FULLY_CONNECTED with zeros for a kernel and a bias."""
        options, tensor = schema.FullyConnectedOptionsT(), self.graph.tensors[source]
        kernel = self.constant(np.zeros((units, tensor.shape[-1]), np.int8), Quantization.one(1.0))
        bias = self.constant(np.zeros(units, np.int64), Quantization.one(tensor.scales[0]))
        operands, result = [source, kernel, bias], self.wide(limit / CODES, 1, units)
        return self.operator("FULLY_CONNECTED", operands, [result], options, version=4)

    def applied(self, function: str, x: int, limit: float) -> int:
        """A function of :data:`.recurrent_layers.FUNCTIONS`."""
        if function == "linear":
            return x
        if function in OPERATORS:
            scale = UNIT if function in BOUNDED else limit / CODES
            return self.elementwise(OPERATORS[function], x, scale=scale)
        # relu6(slope * x + 3) / 6
        slope, scale = HARD_SIGMOIDS[function], float(self.graph.tensors[x].scales[0])
        x = self.elementwise("MUL", x, self.number(slope), scale=slope * scale)
        x = self.elementwise("ADD", x, self.number(3), scale=6 / CODES, activation="RELU6")
        return self.elementwise("MUL", x, self.number(1 / 6), scale=UNIT)

    def number(self, value: float) -> int:
        """A constant."""
        return self.constant(np.array([CODES - 1], np.int16), Quantization.one(value / (CODES - 1)))

    def counts(self, mask: int) -> int:
        """Whether a step is not masked."""
        tensor = self.graph.tensors[mask]
        masked = self.constant(np.array([tensor.zero_point], np.int8), tensor.quantization)
        operands, result = [self.shaped(mask, (1, 1)), masked], self.tensor("BOOL", (1, 1))
        return self.operator("NOT_EQUAL", operands, [result], schema.NotEqualOptionsT(), version=2)

    def chosen(self, counts: int, new: int, old: int) -> int:
        """The new values of a step that counts, or else the old ones."""
        tensor = self.graph.tensors[new]
        result = self.tensor(tensor.type, tensor.shape, tensor.quantization)
        return self.operator("SELECT_V2", [counts, new, old], [result], schema.SelectV2OptionsT())

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
    graph, units = builder.graph, variables.outputs[2]
    number, x, *others, y = tensors = variables.tensors(builder)
    mask, states = (others[:1], others[1:]) if variables.masking is not None else ([], others)
    first = builder.steps(x, 0, 1)
    scale = graph.tensors[x].scales[0]
    wide = builder.operator(
        "QUANTIZE", [first], [builder.wide(scale, 1, 1, variables.sequence[2])], schema.QuantizeOptionsT()
    )
    added = [builder.product(wide, units, loop.addend_limit) for _ in range(loop.sums)]
    new = CELLS[loop.cell](builder, added, states, loop)
    moved, counts = [], -1
    for each in mask:
        step = builder.steps(each, 0, 1)
        moved, counts = [builder.moved_up(each, step)], builder.counts(step)
        new = [builder.chosen(counts, *pair) for pair in zip(new, states, strict=True)]
    narrow = builder.tensor("INT8", (1, units), variables.leaving)
    result = builder.operator("QUANTIZE", [new[0]], [narrow], schema.QuantizeOptionsT())
    if loop.zeroes_masked:
        zero = np.full((1, units), graph.tensors[narrow].zero_point, np.int8)
        result = builder.chosen(counts, result, builder.constant(zero, variables.leaving))
    result = builder.shaped(result, (1, 1, units))
    one = builder.constant(np.array(1, np.int32))
    following = builder.operator("ADD", [number, one], [builder.tensor("INT32", ())], schema.AddOptionsT())
    graph.inputs = tuple(tensors)
    graph.outputs = (following, builder.moved_up(x, first), *moved, *new, builder.moved_up(y, result))
    return graph


def _sum(builder: _Builder, added: int, product: int, loop: Loop) -> int:
    return builder.elementwise("ADD", added, product, scale=loop.sum_limit / CODES)


def _lstm(builder: _Builder, added: Sequence[int], states: Sequence[int], loop: Loop) -> list[int]:
    """The next states of an LSTM; see :class:`.recurrent_layers.LSTMLoopStates`."""
    (state, cell), units = states, builder.graph.tensors[states[0]].shape[1]
    taken, kept, new, output = (
        _sum(builder, each, builder.product(state, units, loop.addend_limit), loop) for each in added
    )
    taken, kept, output = (builder.applied(loop.gates, x, 1.0) for x in (taken, kept, output))
    new = builder.applied(loop.activation, new, loop.sum_limit)
    old = builder.elementwise("MUL", kept, cell, scale=loop.cell_limit / CODES)
    new = builder.elementwise("MUL", taken, new, scale=loop.cell_limit / CODES)
    cell = builder.elementwise("ADD", old, new, scale=loop.cell_limit / CODES)
    shown = builder.applied(loop.activation, cell, loop.cell_limit)
    return [builder.elementwise("MUL", output, shown, scale=loop.state_limit / CODES), cell]


def _gru(builder: _Builder, added: Sequence[int], states: Sequence[int], loop: Loop) -> list[int]:
    """The next state of a GRU; see :class:`.recurrent_layers.GRUStates`."""
    (state,), units = states, builder.graph.tensors[states[0]].shape[1]

    def product(source: int) -> int:
        return builder.product(source, units, loop.addend_limit)

    sums = [_sum(builder, each, product(state), loop) for each in added[:2]]
    update, reset = (builder.applied(loop.gates, each, 1.0) for each in sums)
    if loop.reset_after:
        recurrent = builder.elementwise("MUL", reset, product(state), scale=loop.addend_limit / CODES)
    else:
        recurrent = product(builder.elementwise("MUL", reset, state, scale=loop.state_limit / CODES))
    new = builder.applied(loop.activation, _sum(builder, added[2], recurrent, loop), loop.sum_limit)
    # The difference of two states is at most twice as large.
    limit = loop.state_limit + (loop.state_limit if loop.activation in BOUNDED else loop.sum_limit)
    difference = builder.elementwise("SUB", state, new, scale=limit / CODES)
    change = builder.elementwise("MUL", update, difference, scale=limit / CODES)
    return [builder.elementwise("ADD", new, change, scale=loop.state_limit / CODES)]


def _simple(builder: _Builder, added: Sequence[int], states: Sequence[int], loop: Loop) -> list[int]:
    """The next state of a SimpleRNN."""
    product = builder.product(states[0], builder.graph.tensors[states[0]].shape[1], loop.addend_limit)
    limit = loop.state_limit if loop.activation == "linear" else loop.sum_limit
    total = builder.elementwise("ADD", added[0], product, scale=limit / CODES)
    return [builder.applied(loop.activation, total, loop.state_limit)]


#: (graph, what the inputs add to the sums, states, loop) -> the next states.
CELLS: dict[type[RecurrentStates], Callable[[_Builder, Sequence[int], Sequence[int], Loop], list[int]]] = {
    LSTMLoopStates: _lstm,
    GRUStates: _gru,
    SimpleRNNStates: _simple,
}
