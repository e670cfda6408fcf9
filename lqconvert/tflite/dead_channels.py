"""Removes dead channels from an int8 .tflite: channels that are constant, or that no operator reads.

Every tensor has a mask of the channels (of its last axis) that have to stay. The masks are the smallest ones
that fulfil what each operator needs: a linear operator needs the input channels for which its kept outputs
have weights, operators that work channel by channel need the same channels in and out, all others need
everything. A constant channel is not needed if its part of the sum can be added to the bias.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.tflite.editing import add_constant, add_tensor, drop_unused, new_operator
from lqconvert.tflite.flatbuffer import size_of
from lqconvert.tflite.graph import DTYPES, OPERANDS, Model, Operator

#: Operators that compute each output channel from the same input channel, and 0 from 0.
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
#: Those of them that give the same constant for a constant input.
CONSTANT_KEEPING = {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR"}
#: The three operators of a function that is looked up (:mod:`lqconvert.exporting.lookup`), value by value.
LOOKUP = {"CAST", "ADD", "GATHER"}
#: The axes of a kernel's output channels and of its input channels.
KERNEL_AXES = {"CONV_2D": (0, 3), "FULLY_CONNECTED": (0, 1), "TRANSPOSE_CONV": (0, 3)}
#: The relative error of runtimes' factors from sums to int16, which have 16 bits.
INT16_NOISE = 2.0**-15
UNKNOWN = 1 << 20  # not a possible code: the channel is not known to be constant


@dataclass(eq=False)
class _Linear:
    """A linear operator with a constant int8 kernel that covers all channels.

    Attributes:
        source, output, kernel: indices of tensors.
        codes: the kernel's codes.
        bias: int32 (int64 with int16 inputs), or None where it has none.
    """

    operator: Operator
    source: int
    output: int
    kernel: int
    codes: np.ndarray
    bias: np.ndarray | None

    @property
    def depthwise(self) -> bool:
        return self.operator.name == "DEPTHWISE_CONV_2D"

    @property
    def bias_index(self) -> int:
        return self.operator.inputs[OPERANDS[self.operator.name][2]]

    @cached_property
    def taps(self) -> np.ndarray:
        """Codes as [output channel, tap, input channel]; of a depthwise kernel [output channel, tap, 1]."""
        if self.depthwise:
            return self.codes.reshape(-1, self.codes.shape[-1]).T[:, :, np.newaxis]
        return self.codes.reshape(self.codes.shape[0], -1, self.codes.shape[-1])

    @cached_property
    def used(self) -> np.ndarray:
        """Whether an output channel has a code other than 0 for an input channel: bool [out, in]."""
        return np.asarray(self.taps.any(axis=1))

    @cached_property
    def sums(self) -> np.ndarray:
        """The sums of codes over all taps: int64 [out, in]."""
        return np.asarray(self.taps.sum(axis=1, dtype=np.int64))


class _Facts:
    """Properties of a model that the functions below need.

    Kinds and kernels are computed once: counting and slicing channels does not change them.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.graph = model, model.main
        self.operators = list(self.graph.operators)
        self._readers = Counter(index for operator in self.operators for index in {*operator.inputs})
        self._kinds: dict[Operator, str] = {}
        self._linear: dict[Operator, _Linear] = {}

    def shape(self, index: int) -> tuple[int, ...]:
        return self.graph.tensors[index].shape

    def channels(self, index: int) -> int:
        return self.shape(index)[-1] if self.shape(index) else 1

    def zero(self, index: int) -> int:
        """The code for 0."""
        return self.graph.tensors[index].zero_point

    def scales(self, index: int) -> np.ndarray:
        return self.graph.tensors[index].scales.astype(np.float64)

    def constant(self, index: int) -> bool:
        return self.graph.tensors[index].is_constant

    def computed(self, operator: Operator) -> list[int]:
        """The inputs that are not constants."""
        return [index for index in operator.operands if not self.constant(index)]

    def kind(self, operator: Operator) -> str:
        """The operator's name if this module can remove channels from it, otherwise ``opaque``."""
        if operator not in self._kinds:
            self._kinds[operator] = self.kind_now(operator)
        return self._kinds[operator]

    def linear(self, operator: Operator) -> _Linear:
        """The properties of a linear operator (its kind is in OPERANDS)."""
        if operator not in self._linear:
            source, kernel, bias = OPERANDS[operator.name]
            inputs, tensors = operator.inputs, self.graph.tensors
            codes = tensors[inputs[kernel]].values()
            assert codes is not None
            numbers = None if len(inputs) <= bias or inputs[bias] < 0 else tensors[inputs[bias]].values()
            self._linear[operator] = _Linear(
                operator, inputs[source], operator.outputs[0], inputs[kernel], codes, numbers
            )
        return self._linear[operator]

    def kind_now(self, operator: Operator) -> str:
        """The kind in the current graph, see :meth:`kind`."""
        name, computed = operator.name, self.computed(operator)
        if self._of_lookup(operator):
            return "LOOKUP"
        types = {self.graph.tensors[index].type for index in (*computed, *operator.outputs)}
        if types not in ({"INT8"}, {"INT16"}) or len(operator.outputs) != 1:
            return "opaque"
        if name in OPERANDS:
            return name if self._plain(operator) else "opaque"
        if name not in CHANNELWISE and name != "CONCATENATION":
            return "opaque"
        (output,) = operator.outputs
        counts = {self.channels(index) for index in (*computed, output)}
        if len(computed) != (2 if name in ("ADD", "SUB", "MUL") else 1) and name != "CONCATENATION":
            return "opaque"  # a constant operand
        if name == "RESHAPE":
            (source,), target = computed, self.shape(output)
            flat = len(target) == 2 and target[0] == 1 and self.shape(source)[0] == 1
            return name if flat or len(counts) == 1 else "opaque"
        if name == "CONCATENATION":
            rank = len(self.shape(output))
            last = operator.option("axis") % rank == rank - 1
            plain = operator.activation == "NONE"
            return name if last and plain and len(computed) == len(operator.inputs) else "opaque"
        if len(counts) != 1:
            return "opaque"
        if len({self.shape(index) for index in computed}) > 1:
            return "opaque"  # a broadcast operand
        if name in ("MEAN", "PAD"):
            settings = self.graph.tensors[operator.inputs[1]].values()
            rank = len(self.shape(computed[0]))
            if settings is None:
                return "opaque"
            touched = rank - 1 in np.atleast_1d(settings) % rank if name == "MEAN" else settings[-1].any()
            return "opaque" if touched else name
        return name

    def _of_lookup(self, operator: Operator) -> bool:
        """Whether an operator computes indices (int32) from codes (int8), or codes from indices."""
        computed, tensors = self.computed(operator), self.graph.tensors
        if operator.name not in LOOKUP or len(computed) != 1 or len(operator.outputs) != 1:
            return False
        (source,), (output,) = computed, operator.outputs
        types = tensors[source].type, tensors[output].type
        if operator.name == "CAST":
            return types == ("INT8", "INT32")
        constant = next(index for index in operator.operands if index != source)
        size = tensors[constant].shape
        if operator.name == "ADD":
            return types == ("INT32", "INT32") and math.prod(size) == 1
        return types == ("INT32", "INT8") and size == (256,) and operator.operands[0] == constant

    def _plain(self, operator: Operator) -> bool:
        """Whether a linear operator has a constant int8 kernel that covers all channels."""
        name = operator.name
        source, kernel = (operator.inputs[place] for place in OPERANDS[name][:2])
        codes = self.graph.tensors[kernel].values()
        if codes is None or codes.dtype != np.int8:
            return False
        others = [index for index in operator.inputs[OPERANDS[name][1] :] if index >= 0]
        if any(self.constant(index) and self._readers[index] != 1 for index in others):
            return False
        if name == "DEPTHWISE_CONV_2D":
            return bool(codes.shape[-1] == self.channels(source) * operator.option("depthMultiplier"))
        return bool(codes.shape[KERNEL_AXES[name][1]] == self.channels(source))


def remove_dead_channels(model: Model) -> Model:
    """The model without channels that are constant or unread. Its outputs are identical, code by code.

    If that does not make the file smaller, the model is returned unchanged: layers of equal widths can share
    their zero points in the file.

    Inputs and outputs of the file stay unchanged, and so does everything next to unknown operators.
    """
    smaller = model.copy()
    facts = _Facts(smaller)
    known = _constants(facts)
    masks = _needed(facts, known)
    for operator in facts.operators:
        _slice(facts, operator, known, masks)
    _drop_constant_branches(facts, known, masks)
    for index in masks:
        tensor = facts.graph.tensors[index]
        if not tensor.is_constant and tensor.shape:
            tensor.shape = _sliced_shape(facts, index, masks)
    drop_unused(smaller)
    return smaller if size_of(smaller) <= size_of(model) else model


def _known(facts: _Facts, known: dict[int, np.ndarray], index: int) -> np.ndarray:
    """For each channel of a tensor, the code that it always has, or UNKNOWN."""
    return known.get(index, np.full(facts.channels(index), UNKNOWN))


def _constants(facts: _Facts) -> dict[int, np.ndarray]:
    """For each computed tensor and channel, the code that it always has, or UNKNOWN."""
    known: dict[int, np.ndarray] = {}
    for operator in facts.operators:
        kind, output = facts.kind(operator), operator.outputs[0]
        inputs = facts.computed(operator)
        if kind in OPERANDS:
            linear = facts.linear(operator)
            known[output] = _linear_constants(facts, linear, _known(facts, known, linear.source))
        elif kind in CONSTANT_KEEPING and facts.zero(inputs[0]) == facts.zero(output):
            codes = _known(facts, known, inputs[0])
            codes = np.tile(codes, facts.channels(output) // facts.channels(inputs[0]))
            if kind.endswith("POOL_2D"):
                limits = _activation_range(facts, operator, output)
                codes = np.where(codes == UNKNOWN, UNKNOWN, np.clip(codes, *limits))
            known[output] = codes
        elif kind == "LOOKUP":
            known[output] = _looked_up(facts, operator, _known(facts, known, inputs[0]))
        elif kind == "CONCATENATION":
            zeros = [
                np.where(_known(facts, known, index) == facts.zero(index), facts.zero(output), UNKNOWN)
                for index in inputs
            ]
            known[output] = np.concatenate(zeros)
        elif kind in CHANNELWISE:
            zero = [_known(facts, known, index) == facts.zero(index) for index in inputs]
            all_zero = np.any(zero, axis=0) if kind == "MUL" else np.all(zero, axis=0)
            known[output] = np.where(all_zero, facts.zero(output), UNKNOWN)
    return known


def _looked_up(facts: _Facts, operator: Operator, codes: np.ndarray) -> np.ndarray:
    """The results of one of the operators of a lookup, for each channel's code or UNKNOWN."""
    if operator.name == "CAST":
        return codes
    constant = next(index for index in operator.operands if facts.constant(index))
    values = facts.graph.tensors[constant].values()
    assert values is not None
    values, unknown = values.astype(np.int64), codes == UNKNOWN
    if operator.name == "ADD":
        return np.where(unknown, UNKNOWN, codes + values.ravel())
    return np.where(unknown, UNKNOWN, values[np.where(unknown, 0, codes)])


def _foldable(facts: _Facts, linear: _Linear, known: np.ndarray) -> np.ndarray:
    """Input channels that add the same constant to a linear operator's sums at every position."""
    operator = linear.operator
    zero: np.ndarray = np.equal(known, facts.zero(linear.source))
    padded = operator.name == "TRANSPOSE_CONV" or (
        operator.name != "FULLY_CONNECTED"
        and operator.option("padding") == schema.Padding.SAME
        and linear.taps.shape[1] > 1
    )
    return zero if padded or linear.bias is None else np.not_equal(known, UNKNOWN)


def _folded(facts: _Facts, linear: _Linear, known: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The constants (int64) that these input channels add to each output channel's sum."""
    steps = np.where(channels & (known != UNKNOWN), known - facts.zero(linear.source), 0)
    if not steps.any():
        return np.zeros(len(linear.taps), np.int64)
    if linear.depthwise:
        return np.asarray(linear.sums[:, 0] * np.repeat(steps, len(linear.sums) // len(steps)))
    return np.asarray(linear.sums @ steps)


def _linear_constants(facts: _Facts, linear: _Linear, known: np.ndarray) -> np.ndarray:
    output, used = linear.output, linear.used
    foldable = _foldable(facts, linear, known)
    if linear.depthwise:
        constant = ~used[:, 0] | np.repeat(foldable, len(used) // len(foldable))
    else:
        constant = ~used[:, ~foldable].any(axis=1)
    sums = _folded(facts, linear, known, foldable) + (0 if linear.bias is None else linear.bias)
    factor = facts.scales(linear.source)[0] * facts.scales(linear.kernel) / facts.scales(output)[0]
    exact = sums * factor
    limits = _activation_range(facts, linear.operator, output)
    low, high = (limit - facts.zero(output) for limit in limits)
    # Runtimes differ in how they round halves, and sums that an earlier rounding made a half.
    noise = 1e-6 if facts.graph.tensors[output].type == "INT8" else INT16_NOISE
    margin = factor + noise * (1 + np.abs(exact))
    sure = (np.abs(exact - np.floor(exact) - 0.5) > margin) | (exact < low - 1) | (exact > high + 1)
    codes = np.clip(np.round(exact), low, high) + facts.zero(output)
    return np.where(constant & sure, codes, UNKNOWN).astype(np.int64)


def _activation_range(facts: _Facts, operator: Operator, output: int) -> tuple[int, int]:
    """The lowest and highest code after a fused activation."""
    limits = {"RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
    low, high = (
        limit / facts.scales(output)[0] + facts.zero(output)
        for limit in limits.get(operator.activation, (-np.inf, np.inf))
    )
    codes = np.iinfo(DTYPES[facts.graph.tensors[output].type].__name__)
    return max(codes.min, round(max(low, codes.min))), min(codes.max, round(min(high, codes.max)))


class _Masks(dict[int, np.ndarray]):
    """The channels that have to stay, for each computed tensor that an operator was asked about."""

    def __init__(self, facts: _Facts) -> None:
        super().__init__()
        self.facts = facts

    def __missing__(self, index: int) -> np.ndarray:
        self[index] = np.zeros(self.facts.channels(index), bool)
        return self[index]

    def need(self, index: int, channels: np.ndarray | bool) -> None:
        self[index] = self[index] | channels


def _needed(facts: _Facts, known: dict[int, np.ndarray]) -> _Masks:
    """The smallest masks that fulfil what every operator needs of its inputs and outputs."""
    masks = _Masks(facts)
    for index in (*facts.graph.inputs, *facts.graph.outputs):
        masks.need(index, True)
    while True:
        before = dict(masks)
        for operator in reversed(facts.operators):
            _need(facts, operator, known, masks)
        if all(index in before and np.array_equal(before[index], now) for index, now in masks.items()):
            return masks
        for channels in masks.values():
            if not channels.any():
                channels[0] = True  # a tensor needs at least one channel


def _need(facts: _Facts, operator: Operator, known: dict[int, np.ndarray], masks: _Masks) -> None:
    """Adds the channels that an operator needs, given the current masks."""
    kind, inputs, (output, *others) = facts.kind(operator), facts.computed(operator), operator.outputs
    if kind == "opaque":
        for index in (*inputs, output, *others):
            masks.need(index, True)
    elif kind in OPERANDS:
        _need_linear(facts, facts.linear(operator), known, masks)
    elif kind == "CONCATENATION":
        ends = np.cumsum([facts.channels(index) for index in inputs])[:-1]
        for index, part in zip(inputs, np.split(masks[output], ends), strict=True):
            masks.need(index, part)
        masks.need(output, np.concatenate([masks[index] for index in inputs]))
    else:
        # A flattened tensor repeats its channels, so each channel stays or goes as a whole.
        sources = {index: facts.channels(index) for index in inputs}
        for index, count in sources.items():
            masks.need(index, np.asarray(masks[output].reshape(-1, count).any(axis=0)))
        for index, count in sources.items():
            masks.need(output, np.tile(masks[index], facts.channels(output) // count))


def _need_linear(facts: _Facts, linear: _Linear, known: dict[int, np.ndarray], masks: _Masks) -> None:
    source, output, used = linear.source, linear.output, linear.used
    foldable = _foldable(facts, linear, _known(facts, known, source))
    if linear.depthwise:
        times = len(used) // len(foldable)
        # A depthwise kernel has the same number of outputs for each input, at least one.
        masks.need(source, np.asarray(masks[output].reshape(-1, times).any(axis=1)))
        masks.need(output, np.repeat(masks[source], times))
    else:
        masks.need(source, used[masks[output]].any(axis=0) & ~foldable)


def _slice(facts: _Facts, operator: Operator, known: dict[int, np.ndarray], masks: _Masks) -> None:
    """Removes the dropped channels from an operator's constants."""
    kind = facts.kind(operator)
    if kind == "RESHAPE":
        _slice_reshape(facts, operator, masks)
    if kind in OPERANDS:
        _slice_linear(facts, facts.linear(operator), known, masks)


def _slice_linear(facts: _Facts, linear: _Linear, known: dict[int, np.ndarray], masks: _Masks) -> None:
    operator, output = linear.operator, linear.output
    if operator.name == "TRANSPOSE_CONV":  # its first input is the shape of its output
        shape = add_constant(facts.model, np.array(_sliced_shape(facts, output, masks), np.int32))
        operator.inputs = (shape, *operator.inputs[1:])
    inputs, outputs = masks[linear.source], masks[output]
    constants = _known(facts, known, linear.source)
    foldable = _foldable(facts, linear, constants)
    # Also of constant channels that stay because another operator needs them: they need no weights here.
    folded = _folded(facts, linear, constants, foldable)
    if foldable.any() or not inputs.all() or not outputs.all():
        codes = _sliced_kernel(linear, foldable, inputs, outputs).astype(np.int8)
        _set(facts, linear.kernel, codes, outputs)
    if linear.bias is not None:
        sums = linear.bias.astype(np.int64) + folded
        _set(facts, linear.bias_index, sums[outputs].astype(linear.bias.dtype), outputs)


def _sliced_kernel(
    linear: _Linear, foldable: np.ndarray, inputs: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
    codes = linear.codes
    if linear.depthwise:
        return np.where(np.repeat(foldable, codes.shape[-1] // len(foldable)), 0, codes)[..., outputs]
    out_axis, in_axis = KERNEL_AXES[linear.operator.name]
    codes = np.where(foldable, 0, codes)
    return np.compress(inputs, np.compress(outputs, codes, out_axis), in_axis)


def _set(facts: _Facts, index: int, array: np.ndarray, kept: np.ndarray) -> None:
    """Gives a constant tensor another array. ``kept`` selects the scales of output channels."""
    tensor = facts.graph.tensors[index]
    tensor.set_values(array)
    if tensor.quantization is not None and len(tensor.scales) > 1:  # biases in some files have no scales
        scales, zero_points = tensor.scales[kept], tensor.zero_points[kept]
        tensor.quantization = replace(tensor.quantization, scales=scales, zero_points=zero_points)


def _sliced_shape(facts: _Facts, index: int, masks: _Masks) -> tuple[int, ...]:
    return (*facts.shape(index)[:-1], int(masks[index].sum()))


def _slice_reshape(facts: _Facts, operator: Operator, masks: _Masks) -> None:
    target = np.array(_sliced_shape(facts, operator.outputs[0], masks), np.int32)
    if len(operator.inputs) > 1:
        operator.inputs = (operator.inputs[0], add_constant(facts.model, target))
    if operator.options is not None:
        operator.set_option("newShape", target)


def _drop_constant_branches(facts: _Facts, known: dict[int, np.ndarray], masks: _Masks) -> None:
    """Replaces constants that are only added, subtracted or multiplied, and drops what computed them."""
    graph = facts.graph
    for index, codes in known.items():
        kept = codes[masks[index]]
        readers = [operator for operator in facts.operators if index in operator.inputs]
        if index in graph.outputs or np.any(kept == UNKNOWN):
            continue
        # Another input has to have the shape of the result.
        if not all(
            facts.kind_now(reader) in ("ADD", "SUB", "MUL") and {*facts.computed(reader)} - {index}
            for reader in readers
        ):
            continue
        shape = (*(1 for _ in facts.shape(index)[1:]), len(kept))
        tensor = graph.tensors[index]
        tensor.set_values(kept.astype(DTYPES[tensor.type]).reshape(shape))
    before = None
    while before != len(graph.operators):
        before = len(graph.operators)
        read = {i for each in graph.operators for i in facts.computed(each)} | {*graph.outputs}
        graph.operators = [each for each in graph.operators if read & {*each.outputs}]


def gatherable(model: Model) -> list[int]:
    """The kernels (tensor indices in the graph) of FULLY_CONNECTED operators that do not read all inputs."""
    facts = _Facts(model)
    found = []
    for operator in facts.operators:
        if facts.kind(operator) == "FULLY_CONNECTED":
            linear = facts.linear(operator)
            if not linear.used.any(axis=0).all() and len(facts.shape(linear.source)) == 2:
                found.append(linear.kernel)
    return found


def gather_inputs(model: Model, kernels: Iterable[int]) -> Model:
    """The model with a GATHER of the inputs that these FULLY_CONNECTED operators read, in front of each.

    Args:
        kernels: some of those from :func:`gatherable`.
    """
    gathering, wanted = model.copy(), {*kernels}
    facts = _Facts(gathering)
    for operator in facts.operators:
        if facts.kind(operator) == "FULLY_CONNECTED" and operator.inputs[1] in wanted:
            _gather(facts, facts.linear(operator))
    drop_unused(gathering)
    return gathering


def _gather(facts: _Facts, linear: _Linear) -> None:
    model, graph, operator = facts.model, facts.graph, linear.operator
    read = np.flatnonzero(linear.codes.any(axis=0))
    if not len(read):
        read = np.zeros(1, np.int64)
    indices = add_constant(model, read.astype(np.int32))
    shape = (facts.shape(linear.source)[0], len(read))
    source = graph.tensors[linear.source]
    gathered = add_tensor(model, source.type, shape, source.quantization)
    options = schema.GatherOptionsT()
    options.axis = 1
    gather = new_operator(model, "GATHER", [linear.source, indices], [gathered], options)
    graph.operators.insert(graph.operators.index(operator), gather)
    operator.inputs = (gathered, *operator.inputs[1:])
    graph.tensors[linear.kernel].set_values(linear.codes[:, read])
