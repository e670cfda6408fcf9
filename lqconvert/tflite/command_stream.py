"""The weights in a file that Vela compiled for an Arm Ethos-U, read off its command stream.

A compiled file has an operator ``ethos-u`` with a command stream, a constant with the encoded weights, and
memory to compute in. The NPU copies encoded weights into that memory (DMA), and decodes them while it
computes. Here the commands are followed without computing anything: which bytes does each convolution decode?

Commands are those of Arm's Ethos-U55, U65 and U85 Technical Reference Manuals ("Command stream interface").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lqconvert.errors import LqError
from lqconvert.tflite.graph import Model, Operator
from lqconvert.tflite.packing import Kernel, kernels

#: The operator's name, for which TFLite Micro has AddEthosU().
ETHOS_U = "ethos-u"
#: The driver's actions in front of the commands, in the lowest byte of a word.
_CONFIG, _COMMANDS = 1, 2
#: Commands that do something. All others set a register.
_CONVOLUTION, _DEPTHWISE, _DMA = 0x002, 0x003, 0x010
#: Registers of 16 bits.
_IFM_PRECISION = 0x105
_IFM_DEPTH, _OFM_DEPTH, _BLOCK_DEPTH = 0x104, 0x113, 0x117
_KERNEL_WIDTH, _KERNEL_HEIGHT, _KERNEL_FLAGS = 0x120, 0x121, 0x122
_WEIGHT_REGION, _DMA_FROM_REGION, _DMA_TO_REGION = 0x128, 0x130, 0x131
#: Registers of 32 bits or more. Each core of the NPU has a stream of weights: a start and a length.
_DMA_FROM, _DMA_TO, _DMA_BYTES = 0x030, 0x031, 0x032
_STREAMS = ((0x020, 0x021), (0x090, 0x091))
_MORE_STREAMS_OF_U85 = ((0x092, 0x093), (0x094, 0x095))  # on others, these are for scales
#: The NPU takes 8 input channels at a time, and convolves with at most 8x8 elements of a kernel.
_INPUT_CHANNELS, _KERNEL_SIDE = 8, 8


@dataclass(frozen=True)
class Convolution:
    """A convolution of the NPU, for all output channels of a layer or for some of them.

    Attributes:
        shape: of its kernel: output channels, height, width, input channels (1 if depthwise).
        block_depth: the output channels that are computed together, of which the order of weights depends.
        by_part: whether weights are ordered by parts of the kernel, rather than by input channels.
        dilation: of height and width.
        input_bits: 8 or 16.
        weights: the decoded weights of each core, in the NPU's order, with zeros where it fills up.
    """

    depthwise: bool
    shape: tuple[int, int, int, int]
    block_depth: int
    by_part: bool
    dilation: tuple[int, int]
    input_bits: int
    weights: list[np.ndarray]


def check_weights(compiled: Model, source: Model, accelerator: str) -> None:
    """Checks that a compiled file has the codes of its source.

    On Ethos-U55 and U65 their order is compared too. The order of weights on U85 is not known, nor that of
    kernels to which Vela has given another shape; of those, the codes that are not zero have to be there.

    Raises:
        LqError: if codes differ.
    """
    on_cpu = [kernel.codes for kernel in kernels(compiled)]
    missing = {
        number: _volume(kernel)
        for number, kernel in enumerate(kernels(source))
        if not any(np.array_equal(kernel.codes, codes) for codes in on_cpu)
    }
    found = {number: np.zeros(len(volume), bool) for number, (volume, _) in missing.items()}
    others = []
    for convolution in convolutions(compiled, accelerator):
        for number, (volume, depthwise) in missing.items():
            place = _place(convolution, volume, depthwise, accelerator)
            if place is not None:
                found[number][place] = True
                break
        else:
            others.append(convolution)
    rest = [missing[number] for number in missing if not found[number].all()]
    ordered = "u85" not in accelerator
    if (ordered and any(_alike(*each) for each in itertools.product(others, rest))) or (
        rest and not _has_all(others, [volume.ravel() for volume, _ in rest])
    ):
        raise LqError(f"Vela's file for {accelerator} does not have the codes of the int8 file")


def _alike(convolution: Convolution, kernel: tuple[np.ndarray, bool]) -> bool:
    """Whether a convolution may have some of a kernel's output channels."""
    volume, depthwise = kernel
    return depthwise == convolution.depthwise and convolution.shape[1:] == volume.shape[1:]


def _has_all(convolutions: Sequence[Convolution], volumes: Sequence[np.ndarray]) -> bool:
    """Whether convolutions have all codes of kernels that are not zero, in any order."""
    decoded = [weights for each in convolutions for weights in each.weights]
    counts = [np.bincount(np.concatenate(codes or [np.zeros(1, int)]) + 256) for codes in (decoded, volumes)]
    ours, needed = (np.pad(count, (0, 1024 - len(count))) for count in counts)
    ours[256] = needed[256]  # zeros
    return bool(np.all(ours >= needed))


def _volume(kernel: Kernel) -> tuple[np.ndarray, bool]:
    """A kernel's codes [output channels, height, width, input channels], and whether it is depthwise."""
    codes = kernel.codes.astype(np.int16)
    if kernel.operator == "DEPTHWISE_CONV_2D":
        return codes[0].transpose(2, 0, 1)[..., np.newaxis], True
    if kernel.operator == "TRANSPOSE_CONV":  # a convolution with the kernel turned round
        return codes[:, ::-1, ::-1], False
    return codes.reshape(len(codes), 1, 1, -1) if codes.ndim == 2 else codes, False


def _place(convolution: Convolution, volume: np.ndarray, depthwise: bool, accelerator: str) -> slice | None:
    """The output channels of a kernel that a convolution has; None if it has others."""
    if "u85" in accelerator or not _alike(convolution, (volume, depthwise)):
        return None
    channels = convolution.shape[0]
    for start in range(len(volume) - channels + 1):
        part = volume[start : start + channels]
        if all(
            np.array_equal(
                weights, _in_order(part[core :: len(convolution.weights)], convolution, accelerator)
            )
            for core, weights in enumerate(convolution.weights)
        ):
            return slice(start, start + channels)
    return None


def _in_order(volume: np.ndarray, convolution: Convolution, accelerator: str) -> np.ndarray:
    """A core's codes in the order in which the NPU decodes them."""
    from ethosu import mlw_codec

    height, width = (_KERNEL_SIDE // dilation for dilation in convolution.dilation)
    encoded, _ = mlw_codec.reorder_encode(
        _INPUT_CHANNELS,
        4 if accelerator == "ethos-u55-32" else 8,  # the output channels that are computed at a time
        np.ascontiguousarray(volume),
        -(-convolution.block_depth // len(convolution.weights)),
        convolution.depthwise,
        convolution.by_part,
        convolution.input_bits,
        height,
        width,
    )
    return _decoded(bytes(encoded))


def _decoded(stream: bytes) -> np.ndarray:
    """A stream of encoded weights, decoded: int64."""
    from ethosu import mlw_codec

    return np.array(mlw_codec.decode(bytearray(stream)), np.int64)


def convolutions(compiled: Model, accelerator: str) -> Iterator[Convolution]:
    """The convolutions of a compiled file, in the order in which the NPU executes them."""
    graph = compiled.main
    for operator in graph.operators:
        if operator.code.shown_name == ETHOS_U:
            yield from _replayed(compiled, operator, "u85" in accelerator)


def _replayed(compiled: Model, operator: Operator, is_u85: bool) -> Iterator[Convolution]:
    stream, constants, *memories = (compiled.main.tensors[index] for index in operator.inputs[:4])
    regions = {0: constants.buffer.data}
    for number, tensor in enumerate(memories, 1):
        regions[number] = np.zeros(tensor.shape, np.uint8)
    low: dict[int, int] = {}
    high: dict[int, int] = {}
    for command, parameter, value in _commands(stream.buffer.data.view("<u4").tolist()):
        if value is not None:
            high[command] = value
        elif command == _DMA:
            _copy(regions, low, high)
        elif command in (_CONVOLUTION, _DEPTHWISE):
            encoded, flags = regions[low[_WEIGHT_REGION]], low[_KERNEL_FLAGS]
            streams = (*_STREAMS, *_MORE_STREAMS_OF_U85) if is_u85 else _STREAMS
            parts = [
                encoded[high[start] : high[start] + high[length]].tobytes()
                for start, length in streams
                if high.get(length)
            ]
            yield Convolution(
                depthwise=command == _DEPTHWISE,
                shape=(
                    low[_OFM_DEPTH] + 1,
                    low[_KERNEL_HEIGHT] + 1,
                    low[_KERNEL_WIDTH] + 1,
                    1 if command == _DEPTHWISE else low[_IFM_DEPTH] + 1,
                ),
                block_depth=low[_BLOCK_DEPTH] + 1,
                by_part=bool(flags & 4),
                dilation=(1 + (flags >> 4 & 1), 1 + (flags >> 3 & 1)),
                input_bits=8 << (low[_IFM_PRECISION] >> 2 & 3),
                weights=[_decoded(part) for part in parts],
            )
        else:
            low[command] = parameter


def _copy(regions: dict[int, np.ndarray], low: dict[int, int], high: dict[int, int]) -> None:
    """Does what a DMA command does. Copies to other places, such as tables of functions, are left out."""
    source, destination = regions.get(low[_DMA_FROM_REGION]), regions.get(low[_DMA_TO_REGION])
    if source is not None and destination is not None:
        start, end, count = high[_DMA_FROM], high[_DMA_TO], high[_DMA_BYTES]
        destination[end : end + count] = source[start : start + count]


def _commands(words: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
    """The commands: a number, a parameter of 16 bits, and the value of the registers of more bits."""
    place = 1  # behind the format's name
    while words[place] & 255 != _COMMANDS:
        place += 3 if words[place] & 255 == _CONFIG else 1
    count = words[place] >> 16 | (words[place] >> 8 & 255) << 16
    place += 1
    end = place + count
    while place < end:
        word = words[place]
        command, parameter = word & 0x3FF, word >> 16
        if word >> 14 & 3:
            yield command, parameter, parameter << 32 | words[place + 1]
            place += 2
        else:
            yield command, parameter, None
            place += 1
