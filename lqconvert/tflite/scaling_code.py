"""Code that scales input columns, for programs whose file does not do it."""

from __future__ import annotations

import numpy as np

from lqconvert.data.preprocessing import Front
from lqconvert.tflite.interface import Detail, Interface, code_range
from lqconvert.tflite.io_types import Border

_KOTLIN = {"int8": "Byte", "uint8": "Byte", "int16": "Short"}

_C = """\
static const float center[] = {{{center}}};
static const float codes_per_unit[] = {{{rate}}};

// What the model takes for a value in a column of its input.
static inline {kind}_t input_code(float x, int column) {{
  const float code = roundf((x - center[column]) * codes_per_unit[column]) + ({zero_point});
  return ({kind}_t)(code < {low} ? {low} : code > {high} ? {high} : code);
}}
"""
_PYTHON = """\
center = np.array([{center}], np.float32)
codes_per_unit = np.array([{rate}], np.float32)

def input_codes(x):  # float32 [..., columns]
    codes = np.round((x - center) * codes_per_unit) + ({zero_point})
    return np.clip(codes, {low}, {high}).astype(np.{kind})
"""
_KOTLIN_CODE = """\
val center = floatArrayOf({center_f})
val codesPerUnit = floatArrayOf({rate_f})

// What the model takes for a value in a column of its input.
fun inputCode(x: Float, column: Int): {kotlin} =
    (Math.round((x - center[column]) * codesPerUnit[column]) + ({zero_point}))
        .coerceIn({low}, {high}).to{kotlin}()
"""
_TEMPLATES = {"c": _C, "python": _PYTHON, "kotlin": _KOTLIN_CODE}


def left_out(front: Front | None, border: Border, tflite: bytes) -> dict[str, str] | None:
    """The code in "c", "python" and "kotlin", if an int8 file does not have the front within its border."""
    if front is None or border.front is not None:
        return None
    (detail,) = Interface.of(border.around(tflite)).inputs
    return {language: front_code(front, detail, language) for language in _TEMPLATES}


def front_code(front: Front, detail: Detail, language: str) -> str:
    """A function that converts real values in columns to codes of an input."""
    scale, zero_point = detail["quantization"]
    (low, high), kind = code_range(detail), np.dtype(detail["dtype"]).name
    center, factor = front.arrays
    numbers = {"center": center, "rate": factor / np.float32(scale)}
    texts = {
        f"{name}{mark}": ", ".join(f"{_text(number)}{mark[1:]}" for number in values)
        for name, values in numbers.items()
        for mark in ("", "_f")
    }
    if language == "c":
        texts |= {name: texts[f"{name}_f"] for name in numbers}
    return _TEMPLATES[language].format(
        **texts, zero_point=zero_point, low=low, high=high, kind=kind, kotlin=_KOTLIN[kind]
    )


def _text(number: np.float32) -> str:
    """A float32 in digits that convert back to the same number, with a point or an exponent."""
    return repr(float(str(number)))
