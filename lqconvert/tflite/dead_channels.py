"""Removes what an int8 .tflite computes for nothing: channels that are constant or that nobody reads.

Every tensor has a mask over its channels (its last axis): those that the file has to keep. The masks are the
smallest that fulfil what the operators ask: a linear operator needs the input channels that its kept
outputs have weights for, operators that work channel by channel need the same channels in and out, all others
need everything. A channel that is constant is not needed where its part of the sum can go into the bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.tflite.flatbuffer import (
    OPERANDS,
    add_constant,
    add_tensor,
    new_operator,
    operator_name,
    read,
    set_values,
    values,
    write,
)

#: Give every channel of their output from the same channel of their inputs, and 0 for 0.
CHANNELWISE = {
    *(
        "MAX_POOL_2D",
        "AVERAGE_POOL_2D",
        "MEAN",
        "PAD",
        "RESIZE_NEAREST_NEIGHBOR",
        "RESIZE_BILINEAR",
        "RESHAPE",
    ),
    *("RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "TANH", "QUANTIZE", "ADD", "SUB", "MUL"),
}
#: Of these, those whose output is constant where the input is, and the same.
CONSTANT_KEEPING = {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR"}
#: The output channel's axis of a kernel, and its input channel's.
KERNEL_AXES = {"CONV_2D": (0, 3), "FULLY_CONNECTED": (0, 1), "TRANSPOSE_CONV": (0, 3)}
UNKNOWN = 1 << 20  # no int8: a channel that is not known to be constant


class _Graph:
    """What the passes ask of a file."""

    def __init__(self, flat: Any) -> None:
        self.flat, self.graph = flat, flat.subgraphs[0]
        self.operators = list(self.graph.operators)

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.graph.tensors[index].shape)

    def channels(self, index: int) -> int:
        return self.shape(index)[-1] if self.shape(index) else 1

    def zero(self, index: int) -> int:
        """The code that means 0."""
        quantization = self.graph.tensors[index].quantization
        points = None if quantization is None else quantization.zeroPoint
        return int(points[0]) if points is not None and len(points) else 0

    def scales(self, index: int) -> np.ndarray:
        return np.asarray(self.graph.tensors[index].quantization.scale, np.float64)

    def kind(self, operator: Any) -> str:
        """The name of an operator that this module can take channels from, else ``opaque``."""
        name = operator_name(self.flat, operator)
        computed = self.computed(operator)
        types = {self.graph.tensors[i].type for i in (*computed, *operator.outputs)}
        if types != {schema.TensorType.INT8} or len(operator.outputs) != 1:
            return "opaque"
        if name in OPERANDS:
            return name if self._plain(name, operator) else "opaque"
        if name not in CHANNELWISE and name != "CONCATENATION":
            return "opaque"
        counts = {self.channels(i) for i in (*computed, *operator.outputs)}
        if len(computed) != (2 if name in ("ADD", "SUB", "MUL") else 1) and name != "CONCATENATION":
            return "opaque"  # a constant operand
        if name == "RESHAPE":
            (source,), target = computed, self.shape(operator.outputs[0])
            flat = len(target) == 2 and target[0] == 1 and self.shape(source)[0] == 1
            return name if flat or len(counts) == 1 else "opaque"
        if name == "CONCATENATION":
            axis = operator.builtinOptions.axis % len(self.shape(operator.outputs[0]))
            last = axis == len(self.shape(operator.outputs[0])) - 1
            plain = not operator.builtinOptions.fusedActivationFunction
            return name if last and plain and len(computed) == len(operator.inputs) else "opaque"
        if len(counts) != 1:
            return "opaque"
        if len({self.shape(i) for i in computed}) > 1:
            return "opaque"  # a broadcast operand
        if name in ("MEAN", "PAD"):
            settings = values(self.flat, int(operator.inputs[1]))
            rank = len(self.shape(computed[0]))
            if settings is None:
                return "opaque"
            touched = rank - 1 in np.atleast_1d(settings) % rank if name == "MEAN" else settings[-1].any()
            return "opaque" if touched else name
        return name

    def _plain(self, name: str, operator: Any) -> bool:
        """Whether a linear operator has a constant int8 kernel that covers all channels."""
        source, kernel = (int(operator.inputs[place]) for place in OPERANDS[name][:2])
        codes = values(self.flat, kernel)
        if codes is None or codes.dtype != np.int8:
            return False
        own = [
            int(index)
            for index in operator.inputs[OPERANDS[name][1] :]
            if index >= 0 and self.constant(int(index))
        ]
        if any(sum(index in other.inputs for other in self.operators) != 1 for index in own):
            return False
        if name == "DEPTHWISE_CONV_2D":
            return codes.shape[-1] == self.channels(source) * operator.builtinOptions.depthMultiplier
        return codes.shape[KERNEL_AXES[name][1]] == self.channels(source)

    def computed(self, operator: Any) -> list[int]:
        """The inputs that are no constants."""
        return [int(i) for i in operator.inputs if i >= 0 and not self.constant(int(i))]

    def constant(self, index: int) -> bool:
        data = self.flat.buffers[self.graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def kernel(self, name: str, operator: Any) -> np.ndarray:
        """Codes as [output channel, tap, input channel]; of a depthwise kernel [output channel, tap, 1]."""
        codes = values(self.flat, int(operator.inputs[OPERANDS[name][1]]))
        assert codes is not None
        if name == "DEPTHWISE_CONV_2D":
            return codes.reshape(-1, codes.shape[-1]).T[:, :, np.newaxis]
        return codes.reshape(codes.shape[0], -1, codes.shape[-1])

    def used(self, name: str, operator: Any) -> np.ndarray:
        """Whether an output channel has a code that is not 0 for an input channel: bool [out, in]."""
        return np.asarray(self.kernel(name, operator).any(axis=1))

    def bias(self, name: str, operator: Any) -> np.ndarray | None:
        place = OPERANDS[name][2]
        if len(operator.inputs) <= place or operator.inputs[place] < 0:
            return None
        return values(self.flat, int(operator.inputs[place]))


def remove_dead_channels(tflite: bytes) -> bytes:
    """The file without channels that are constant or unread; its outputs are the same, code by code.

    The file as it is where that makes it no smaller: layers of equal widths share their zero points.

    Left as they are: inputs and outputs of the file, and everything around operators that are not known here.
    """
    flat = read(tflite)
    graph = _Graph(flat)
    known = _constants(graph)
    masks = _needed(graph, known)
    for operator in graph.operators:
        _slice(graph, operator, known, masks)
    _drop_constant_branches(graph, known, masks)
    for index in masks:
        tensor = graph.graph.tensors[index]
        if not graph.constant(index) and len(tensor.shape):
            tensor.shape = _sliced_shape(graph, index, masks)
    return min(write(flat), tflite, key=len)


def _linear(graph: _Graph, operator: Any) -> tuple[str, int, int]:
    name = graph.kind(operator)
    return name, int(operator.inputs[OPERANDS[name][0]]), int(operator.outputs[0])


def _constants(graph: _Graph) -> dict[int, np.ndarray]:
    """For each computed tensor, by channel: the code it has everywhere, or UNKNOWN."""
    known: dict[int, np.ndarray] = {}

    def of(index: int) -> np.ndarray:
        return known.get(index, np.full(graph.channels(index), UNKNOWN))

    for operator in graph.operators:
        kind, output = graph.kind(operator), int(operator.outputs[0])
        inputs = graph.computed(operator)
        if kind in OPERANDS:
            _, source, _ = _linear(graph, operator)
            known[output] = _linear_constants(graph, operator, of(source))
        elif kind in CONSTANT_KEEPING and graph.zero(inputs[0]) == graph.zero(output):
            codes = np.tile(of(inputs[0]), graph.channels(output) // graph.channels(inputs[0]))
            if kind.endswith("POOL_2D"):
                codes = np.where(
                    codes == UNKNOWN, UNKNOWN, np.clip(codes, *_activation_range(graph, operator, output))
                )
            known[output] = codes
        elif kind == "CONCATENATION":
            zeros = [np.where(of(i) == graph.zero(i), graph.zero(output), UNKNOWN) for i in inputs]
            known[output] = np.concatenate(zeros)
        elif kind in CHANNELWISE:
            zero = [of(i) == graph.zero(i) for i in inputs]
            all_zero = np.any(zero, axis=0) if kind == "MUL" else np.all(zero, axis=0)
            known[output] = np.where(all_zero, graph.zero(output), UNKNOWN)
    return known


def _foldable(graph: _Graph, operator: Any, known: np.ndarray) -> np.ndarray:
    """Input channels whose part of a linear operator's sums is the same everywhere."""
    name, source, _ = _linear(graph, operator)
    zero: np.ndarray = np.equal(known, graph.zero(source))
    padded = name == "TRANSPOSE_CONV" or (
        name != "FULLY_CONNECTED"
        and operator.builtinOptions.padding == schema.Padding.SAME
        and graph.kernel(name, operator).shape[1] > 1
    )
    return zero if padded or graph.bias(name, operator) is None else np.not_equal(known, UNKNOWN)


def _folded(graph: _Graph, operator: Any, known: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """What these constant input channels add to each output channel's sum (int64)."""
    name, source, _ = _linear(graph, operator)
    taps = graph.kernel(name, operator).astype(np.int64).sum(axis=1)
    steps = np.where(channels & (known != UNKNOWN), known - graph.zero(source), 0)
    if name == "DEPTHWISE_CONV_2D":
        return taps[:, 0] * np.repeat(steps, len(taps) // len(steps))
    return taps @ steps


def _linear_constants(graph: _Graph, operator: Any, known: np.ndarray) -> np.ndarray:
    name, source, output = _linear(graph, operator)
    foldable = _foldable(graph, operator, known)
    used = graph.used(name, operator)
    if name == "DEPTHWISE_CONV_2D":
        constant = ~used[:, 0] | np.repeat(foldable, len(used) // len(foldable))
    else:
        constant = ~used[:, ~foldable].any(axis=1)
    bias = graph.bias(name, operator)
    sums = _folded(graph, operator, known, foldable) + (0 if bias is None else bias)
    kernel = int(operator.inputs[OPERANDS[name][1]])
    factor = graph.scales(source)[0] * graph.scales(kernel) / graph.scales(output)[0]
    exact = sums * factor
    low, high = (limit - graph.zero(output) for limit in _activation_range(graph, operator, output))
    # Runtimes round halves, and what is a rounded half already, each in its own way.
    margin = factor + 1e-6 * (1 + np.abs(exact))
    sure = (np.abs(exact - np.floor(exact) - 0.5) > margin) | (exact < low - 1) | (exact > high + 1)
    codes = np.clip(np.round(exact), low, high) + graph.zero(output)
    return np.where(constant & sure, codes, UNKNOWN).astype(np.int64)


def _activation_range(graph: _Graph, operator: Any, output: int) -> tuple[int, int]:
    """The codes that a fused activation leaves."""
    kinds, kind = schema.ActivationFunctionType, operator.builtinOptions.fusedActivationFunction
    limits = {kinds.RELU: (0.0, np.inf), kinds.RELU6: (0.0, 6.0), kinds.RELU_N1_TO_1: (-1.0, 1.0)}
    low, high = (
        limit / graph.scales(output)[0] + graph.zero(output) for limit in limits.get(kind, (-np.inf, np.inf))
    )
    return max(-128, round(max(low, -128))), min(127, round(min(high, 127)))


def _needed(graph: _Graph, known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The least masks that fulfil what every operator asks of its inputs and outputs."""
    masks: dict[int, np.ndarray] = {}

    def mask(index: int) -> np.ndarray:
        return masks.setdefault(index, np.zeros(graph.channels(index), bool))

    def need(index: int, channels: np.ndarray | bool) -> None:
        masks[index] = mask(index) | channels

    for index in (*graph.graph.inputs, *graph.graph.outputs):
        need(int(index), True)
    while True:
        before = {index: channels.copy() for index, channels in masks.items()}
        for operator in reversed(graph.operators):
            kind, inputs = graph.kind(operator), graph.computed(operator)
            outputs = [int(index) for index in operator.outputs]
            if kind == "opaque":
                for index in (*inputs, *outputs):
                    need(index, True)
            elif kind in OPERANDS:
                _need_linear(graph, operator, known, mask, need)
            elif kind == "CONCATENATION":
                ends = np.cumsum([graph.channels(index) for index in inputs])[:-1]
                for index, part in zip(inputs, np.split(mask(outputs[0]), ends), strict=True):
                    need(index, part)
                need(outputs[0], np.concatenate([mask(index) for index in inputs]))
            else:
                # A flattened tensor repeats its channels: all of a channel stays or goes.
                sources = {index: graph.channels(index) for index in inputs}
                for index, count in sources.items():
                    need(index, np.asarray(mask(outputs[0]).reshape(-1, count).any(axis=0)))
                for index, count in sources.items():
                    need(outputs[0], np.tile(mask(index), graph.channels(outputs[0]) // count))
        if all(index in before and np.array_equal(before[index], now) for index, now in masks.items()):
            return masks
        for channels in masks.values():
            if not channels.any():
                channels[0] = True  # a tensor of no channels is none


def _need_linear(graph: _Graph, operator: Any, known: Any, mask: Any, need: Any) -> None:
    name, source, output = _linear(graph, operator)
    used = graph.used(name, operator)
    constants = known.get(source, np.full(graph.channels(source), UNKNOWN))
    foldable = _foldable(graph, operator, constants)
    if name == "DEPTHWISE_CONV_2D":
        times = len(used) // len(foldable)
        # The kernel has the same number of outputs for each input, and none without.
        need(source, mask(output).reshape(-1, times).any(axis=1))
        need(output, np.repeat(mask(source), times))
    else:
        need(source, used[mask(output)].any(axis=0) & ~foldable)


def _slice(graph: _Graph, operator: Any, known: dict[int, np.ndarray], masks: dict[int, np.ndarray]) -> None:
    """Takes the channels that are not kept from an operator's constants."""
    kind = graph.kind(operator)
    if kind == "RESHAPE":
        _slice_reshape(graph, operator, masks)
    if kind == "TRANSPOSE_CONV":  # whose first input is the shape of its output
        shape = add_constant(graph.flat, _sliced_shape(graph, int(operator.outputs[0]), masks))
        operator.inputs = np.array([shape, *operator.inputs[1:]], np.int32)
    if kind not in OPERANDS:
        return
    name, source, output = _linear(graph, operator)
    inputs, outputs = masks[source], masks[output]
    constants = known.get(source, np.full(graph.channels(source), UNKNOWN))
    foldable = _foldable(graph, operator, constants)
    # Not only of the channels that go: a constant one that stays for others' sake needs no weights here.
    folded = _folded(graph, operator, constants, foldable)
    kernel_index = int(operator.inputs[OPERANDS[name][1]])
    codes = values(graph.flat, kernel_index)
    assert codes is not None
    if name == "DEPTHWISE_CONV_2D":
        codes = np.where(np.repeat(foldable, codes.shape[-1] // len(foldable)), 0, codes)[..., outputs]
    else:
        out_axis, in_axis = KERNEL_AXES[name]
        codes = np.where(foldable, 0, codes)
        codes = np.compress(inputs, np.compress(outputs, codes, out_axis), in_axis)
    _set(graph, kernel_index, codes.astype(np.int8), outputs)
    bias = graph.bias(name, operator)
    if bias is not None:
        sums = bias.astype(np.int64) + folded
        _set(graph, int(operator.inputs[OPERANDS[name][2]]), sums[outputs].astype(np.int32), outputs)


def _set(graph: _Graph, index: int, array: np.ndarray, kept: np.ndarray) -> None:
    """Gives a constant tensor another array, and the scales of the kept output channels."""
    tensor = graph.graph.tensors[index]
    set_values(graph.flat, tensor, array)
    quantization = tensor.quantization
    scales = None if quantization is None else quantization.scale  # none at the biases of some files
    if scales is not None and len(scales) > 1:
        quantization.scale = np.asarray(scales, np.float32)[kept]
        quantization.zeroPoint = np.asarray(quantization.zeroPoint, np.int64)[kept]


def _sliced_shape(graph: _Graph, index: int, masks: dict[int, np.ndarray]) -> np.ndarray:
    return np.array([*graph.shape(index)[:-1], masks[index].sum()], np.int32)


def _slice_reshape(graph: _Graph, operator: Any, masks: dict[int, np.ndarray]) -> None:
    target = _sliced_shape(graph, int(operator.outputs[0]), masks)
    if len(operator.inputs) > 1:
        operator.inputs = np.array([operator.inputs[0], add_constant(graph.flat, target)], np.int32)
    if operator.builtinOptions is not None:
        operator.builtinOptions.newShape = target


def _drop_constant_branches(
    graph: _Graph, known: dict[int, np.ndarray], masks: dict[int, np.ndarray]
) -> None:
    """Replaces what is constant and only added, subtracted or multiplied; what made it goes."""
    outputs = {int(index) for index in graph.graph.outputs}
    for index, codes in known.items():
        kept = codes[masks[index]]
        readers = [operator for operator in graph.operators if index in operator.inputs]
        if index in outputs or np.any(kept == UNKNOWN):
            continue
        # Something else has to give the sum its shape.
        if not all(
            graph.kind(reader) in ("ADD", "SUB", "MUL") and {*graph.computed(reader)} - {index}
            for reader in readers
        ):
            continue
        shape = (*(1 for _ in graph.shape(index)[1:]), len(kept))
        set_values(graph.flat, graph.graph.tensors[index], kept.astype(np.int8).reshape(shape))
    before = None
    while before != len(graph.graph.operators):
        before = len(graph.graph.operators)
        read_ = outputs | {
            int(i) for o in graph.graph.operators for i in o.inputs if not graph.constant(int(i))
        }
        graph.graph.operators = [o for o in graph.graph.operators if read_ & {int(i) for i in o.outputs}]


def gatherable(tflite: bytes) -> list[int]:
    """The kernels (by tensor index in the graph) of FULLY_CONNECTED operators that leave inputs unread."""
    graph = _Graph(read(tflite))
    found = []
    for operator in graph.operators:
        if graph.kind(operator) == "FULLY_CONNECTED":
            _, source, _ = _linear(graph, operator)
            unread = not graph.kernel("FULLY_CONNECTED", operator).any(axis=(0, 1)).all()
            if unread and len(graph.shape(source)) == 2:
                found.append(int(operator.inputs[1]))
    return found


def gather_inputs(tflite: bytes, kernels: Iterable[int]) -> bytes:
    """The file with a GATHER of the inputs that are read in front of these FULLY_CONNECTED operators.

    Args:
        kernels: their kernels, of those that :func:`gatherable` gives.
    """
    flat = read(tflite)
    graph = _Graph(flat)
    for operator in graph.operators:
        kernel = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
        if graph.kind(operator) != "FULLY_CONNECTED" or kernel not in kernels:
            continue
        _, source, _ = _linear(graph, operator)
        codes = values(flat, kernel)
        assert codes is not None
        read_ = np.flatnonzero(codes.any(axis=0))
        if not len(read_):
            read_ = np.zeros(1, np.int64)
        indices = add_constant(flat, read_.astype(np.int32))
        shape = (graph.shape(source)[0], len(read_))
        quantization = graph.graph.tensors[source].quantization
        gathered = add_tensor(flat, schema.TensorType.INT8, shape, quantization)
        options = schema.GatherOptionsT()
        options.axis = 1
        gather = new_operator(flat, "GATHER", [source, indices], [gathered], options)
        place = next(i for i, other in enumerate(graph.graph.operators) if other is operator)
        graph.graph.operators.insert(place, gather)
        operator.inputs = np.array([gathered, *operator.inputs[1:]], np.int32)
        set_values(flat, graph.graph.tensors[kernel], codes[:, read_])
    return write(flat)
