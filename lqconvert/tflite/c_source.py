"""A .tflite as C++ sources for a microcontroller: the bytes, and the constants that the program needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lqconvert.errors import LqError
from lqconvert.tflite.command_stream import ETHOS_U
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.interface import Detail, Interface
from lqconvert.tflite.packing import DECODE
from lqconvert.utils.text import c_comment, c_identifier, c_include

#: Operator names that MicroMutableOpResolver spells differently from the schema's name in CamelCase.
_ADDERS = {
    DECODE: "Decode",
    ETHOS_U: "EthosU",
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "MAX_POOL_2D": "MaxPool2D",
    "AVERAGE_POOL_2D": "AveragePool2D",
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "L2_POOL_2D": "L2Pool2D",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}


def operators(tflite: bytes) -> list[str]:
    """The operators of a file by their names in the schema. Custom operators have their own names."""
    graphs = read(tflite).graphs  # a loop has its own
    return sorted({operator.code.shown_name for graph in graphs for operator in graph.operators})


def keeps_state(tflite: bytes) -> bool:
    """Whether results depend on earlier runs, until the program resets the interpreter."""
    return any(tensor.variable for graph in read(tflite).graphs for tensor in graph.tensors)


def resolver_lines(names: list[str]) -> list[str]:
    """The C++ lines that make a MicroMutableOpResolver for these operators."""

    def adder(name: str) -> str:
        return _ADDERS.get(name) or c_identifier("".join(word.capitalize() for word in name.split("_")))

    return [
        f"tflite::MicroMutableOpResolver<{len(names)}> resolver;",
        *(f"resolver.Add{adder(name)}();" for name in names),
    ]


def with_margin(arena_bytes: int) -> int:
    """A tenth more than measured, rounded up to a multiple of 16 bytes.

    >>> with_margin(6688)
    7360
    """
    return -(-arena_bytes * 11 // 160) * 16


def _ports(symbol: str, side: str, details: Sequence[Detail]) -> list[str]:
    """The lines for the inputs or outputs. Several are numbered as the interpreter numbers them."""
    lines = []
    for number, detail in enumerate(details):
        name = side if len(details) == 1 else f"{side}_{number}"
        scale, zero = detail["quantization"]
        what = f"{np.dtype(detail['dtype']).name} {'x'.join(str(n) for n in detail['shape'])}"
        if len(details) > 1:
            what += f" {c_comment(detail['name'])}"
        if not scale:
            lines.append(f"// {name}: {what}, as it is")
            continue
        lines.append(f"// {name}: {what}, real value = ({name} - zero_point) * scale")
        lines.append(f"constexpr float g_{symbol}_{name}_scale = {float(scale)!r}f;")
        lines.append(f"constexpr int g_{symbol}_{name}_zero_point = {int(zero)};")
    return lines


def including(header: Path) -> str:
    """The line that includes a header.

    Raises:
        LqError: if no C++ source can include a file of this name.
    """
    try:
        return c_include(header.name)
    except ValueError as error:
        raise LqError(
            f"{header}: no C++ source can include a file of this name; give another name"
        ) from error


def c_sources(
    tflite: bytes, path: Path, arena_bytes: int | None, front_code: dict[str, str] | None = None
) -> dict[Path, str]:
    """The .cc and the .h of a file.

    Args:
        path: of the .tflite. The sources and their symbols are named after it.
        arena_bytes: measured on a 64-bit computer, whose pointers are twice as long as a microcontroller's.
            For a file that is compiled for an NPU: what the NPU needs of the arena.
        front_code: code that scales the input, if the program has to (see
            :mod:`lqconvert.tflite.scaling_code`).

    Raises:
        LqError: if no C++ source can include a file of this name.
    """
    symbol, header = c_identifier(path.stem), path.with_suffix(".h")
    lines = [
        f"// {c_comment(path.name)}: an int8 model for TensorFlow Lite Micro, made by lqconvert.",
        "#pragma once",
        "",
    ]
    headers = ["<cstddef>", "<cstdint>"] if front_code is None else ["<cstddef>", "<cstdint>", "<math.h>"]
    lines += [*(f"#include {header}" for header in headers), ""]
    lines += [
        f"extern const unsigned char g_{symbol}[];",
        f"constexpr size_t g_{symbol}_len = {len(tflite)};",
    ]
    names = operators(tflite)
    if ETHOS_U in names:
        lines.append(f"// The NPU computes in {arena_bytes} bytes of the tensor arena, as Vela reckons.")
        lines.append("// TFLite Micro's own data, some kilobytes, are in the arena too.")
    elif arena_bytes is not None:
        lines.append(
            f"// Of the tensor arena: {arena_bytes} measured on a 64-bit computer, and a tenth more."
        )
        lines.append(f"constexpr size_t g_{symbol}_arena_bytes = {with_margin(arena_bytes)};")
    else:
        lines.append("// The tensor arena was not measured: begin with plenty, and print arena_used_bytes().")
    interface = Interface.of(tflite)
    lines += _ports(symbol, "input", interface.inputs) + _ports(symbol, "output", interface.outputs)
    if front_code is not None:
        body = front_code["c"].splitlines()
        lines += ["", f"namespace g_{symbol}_columns {{", "", *body, "", "}  // namespace"]
    if keeps_state(tflite):
        lines += [
            "",
            "// The model keeps its state from one run to the next.",
            "// Call interpreter.Reset() before each sequence.",
        ]
    lines += ["", "// The operators that the model uses:"]
    lines += [f"//   {line}" for line in resolver_lines(names)]
    rows = np.frombuffer(tflite, np.uint8)
    body = [", ".join(f"0x{byte:02x}" for byte in rows[i : i + 12]) for i in range(0, len(rows), 12)]
    source = [including(header), "", f"alignas(16) const unsigned char g_{symbol}[] = {{"]
    source += [f"    {row}," for row in body] + ["};"]
    return {header: "\n".join(lines) + "\n", path.with_suffix(".cc"): "\n".join(source) + "\n"}
