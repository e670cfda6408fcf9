"""TFLite's integer LSTM operator, which takes the place of a FULLY_CONNECTED operator in the converted file.

With fake quantization, TFLite's converter makes no LSTM operator. So it gets a placeholder: a Dense layer
with the LSTM's input and output. Its operator becomes the LSTM here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.exporting.codes import LayerCodes
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator, reshape
from lqconvert.tflite.graph import (
    LSTM,
    LSTM_BIASES,
    LSTM_INPUT_KERNELS,
    LSTM_STATE_KERNELS,
    Graph,
    Model,
    Operator,
    Quantization,
)

#: The gates, in the order of Keras's kernels and of TFLite's operands.
GATES = "ifco"


@dataclass(frozen=True)
class FusedLSTM:
    """The layers of an LSTM operator, and the limit of its cells: a power of two."""

    inputs: str
    states: str
    cell_limit: float

    @property
    def kernels(self) -> list[str]:
        """The layer of each of the operator's kernels."""
        return [self.inputs] * len(GATES) + [self.states] * len(GATES)


def put_lstm(model: Model, placeholder: Operator, fused: FusedLSTM) -> None:
    """Replaces a placeholder by an LSTM operator whose weights are zeros."""
    graph = model.main
    source, kernel, *_ = placeholder.inputs
    (output,) = placeholder.outputs
    units, features = graph.tensors[kernel].shape
    steps = math.prod(graph.tensors[source].shape) // features
    # The converter may have made rows of sequences.
    sequence = _shaped(model, source, (1, steps, features))
    states = _shaped(model, output, (1, steps, units))
    operators = [] if sequence == source else [reshape(model, source, sequence)]
    inputs, recurrent, biases = (
        [add_constant(model, np.zeros(shape, dtype), Quantization.one(1.0)) for _ in GATES]
        for shape, dtype in (((units, features), np.int8), ((units, units), np.int8), ((units,), np.int32))
    )
    hidden = graph.tensors[output].quantization
    state = add_tensor(model, "INT8", (1, units), hidden)
    cell = add_tensor(model, "INT16", (1, units), Quantization.one(fused.cell_limit / 2**15))
    for index in (state, cell):
        graph.tensors[index].variable = True
    missing = [-1]
    operands = [sequence, *inputs, *recurrent, *(3 * missing), *biases, *(2 * missing), state, cell]
    options = schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    operator = new_operator(model, LSTM, [*operands, *(4 * missing)], [states], options)
    # The operator reads the scale of the last one; the others belong to layer normalization.
    unused = [add_tensor(model, "FLOAT32", (0,)) for _ in GATES]
    operator.intermediates = (*unused, add_tensor(model, "INT8", (0,), hidden))
    operators += [operator] if states == output else [operator, reshape(model, states, output)]
    place = graph.operators.index(placeholder)
    graph.operators[place : place + 1] = operators


def _shaped(model: Model, index: int, shape: tuple[int, ...]) -> int:
    """The tensor, or a new one of this shape if it has another."""
    tensor = model.main.tensors[index]
    return index if tensor.shape == shape else add_tensor(model, "INT8", shape, tensor.quantization)


def fill_lstm(graph: Graph, operator: Operator, inputs: LayerCodes, states: LayerCodes) -> None:
    """Writes learned codes, scales and biases into an LSTM operator. Codes are [inputs, 4 * units]."""
    scale = np.float32(graph.tensors[operator.inputs[0]].scales[0])
    kernels = zip((inputs, states), (LSTM_INPUT_KERNELS, LSTM_STATE_KERNELS), strict=True)
    for layer, places in kernels:
        parts = np.split(layer.kernel.codes.T.astype(np.int8), len(GATES))
        for index, part in zip(operator.inputs[places], parts, strict=True):
            graph.tensors[index].set_values(np.ascontiguousarray(part))
            graph.tensors[index].quantization = Quantization.one(layer.kernel.scale.item())
    step = np.float32(scale * np.float32(inputs.kernel.scale.item()))
    floats = np.zeros(inputs.kernel.codes.shape[1]) if inputs.bias is None else inputs.bias
    integers = np.round(floats.astype(np.float64) / step)
    if np.abs(integers).max() >= 2**31:
        raise LqError(f"layer '{inputs.name}': its bias does not fit int32 on the grid of its scales")
    biases = np.split(integers.astype(np.int32), len(GATES))
    for index, bias in zip(operator.inputs[LSTM_BIASES], biases, strict=True):
        graph.tensors[index].set_values(bias)
        graph.tensors[index].quantization = Quantization.one(step)
