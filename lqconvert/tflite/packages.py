"""A .tflite as a folder that builds: the model, a C++ class that runs it, and a test of known outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from lqconvert.tflite.c_source import c_sources, keeps_state, operators, resolver_lines, with_margin
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.interface import Detail, Interface, split
from lqconvert.tflite.io_types import FLOAT_NOISE, Passage
from lqconvert.utils.text import c_comment, c_string

#: The number of examples in a self-test, if their inputs take no more flash than this.
MOST_EXAMPLES, MOST_TEST_BYTES = 16, 64_000
#: The arena of a model whose arena was not measured.
ARENA_GUESS = 128 << 10
#: The steps by which TFLite Micro's outputs may differ from LiteRT's, which rounds differently.
KERNELS_APART = 3


@dataclass(frozen=True)
class Package:
    """A build system, and the library for it that has TensorFlow Lite Micro.

    Attributes:
        folder: of the sources, inside the package.
        main: the template of the program, and the file's name. "NAME" stands for the package's folder.
        files: other files, by name, with their templates.
        library: what the package needs, in words.
        has_decode: whether the library has TFLite Micro's DECODE.
        header: to include first, so that Arduino finds the library.
        dense_scales: whether the library executes a FULLY_CONNECTED operator with a scale for each unit.
    """

    name: str
    folder: str
    main: tuple[str, str]
    files: Mapping[str, str]
    library: str
    has_decode: bool
    header: str = ""
    dense_scales: bool = True


_SOURCES = {
    "network.h": "network.h",
    "network.cpp": "network.cpp",
    "self_test.h": "self_test.h",
    "self_test.cpp": "self_test.cpp",
}
PACKAGES = {
    package.name: package
    for package in (
        Package(
            "cmake",
            "src",
            ("main.cpp", "main.cpp"),
            {"CMakeLists.txt": "cmake.txt"},
            "a checkout of tflite-micro",
            True,
        ),
        Package(
            "esp-idf",
            "main",
            ("main.cpp", "main.cpp"),
            {
                "CMakeLists.txt": "esp_project.txt",
                "main/CMakeLists.txt": "esp_main.txt",
                "main/idf_component.yml": "idf_component.yml",
            },
            "the component espressif/esp-tflite-micro",
            True,
        ),
        Package(
            "arduino",
            "",
            ("NAME.ino", "sketch.ino"),
            {},
            "the library Arduino_TensorFlowLite for the Nano 33 BLE",
            False,
            header="TensorFlowLite.h",
            dense_scales=False,  # it takes the first scale for all, and does not say so
        ),
        Package(
            "zephyr",
            "src",
            ("main.cpp", "main.cpp"),
            {"CMakeLists.txt": "zephyr.txt", "prj.conf": "prj.conf"},
            "Zephyr's module tflite-micro",
            False,
        ),
    )
}


@dataclass(frozen=True)
class SelfTest:
    """Examples, with the outputs that a file gives for them.

    Attributes:
        inputs, outputs: for each input and output [n, values], in the file's types.
        tolerances: for each output, how far it may be apart, in codes or (float32) in real values.
        runtime: what gave the outputs.
        of_micro: whether that was TFLite Micro.
        arena_bytes: of TFLite Micro, if it was.
    """

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    tolerances: list[float]
    runtime: str
    of_micro: bool
    arena_bytes: int | None

    @classmethod
    def of(
        cls,
        passage: Passage,
        inputs: np.ndarray,
        outputs: np.ndarray,
        *,
        runtime: str,
        arena_bytes: int | None,
    ) -> SelfTest:
        """A test of examples [n, ...] and their outputs, as the outer :class:`Interface` has them."""
        inner, outer = passage.inner, passage.outer
        of_micro = arena_bytes is not None
        steps = 0 if of_micro else KERNELS_APART
        tolerances = [
            _tolerance(steps, code, shown) for code, shown in zip(inner.outputs, outer.outputs, strict=True)
        ]
        parts = _parts(inputs, outer.inputs), _parts(outputs, outer.outputs)
        return cls(*parts, tolerances, runtime, of_micro, arena_bytes)


def _tolerance(steps: int, inner: Detail, outer: Detail) -> float:
    """Steps of an output inside a file's border, in its unit outside. Floats may have rounding errors."""
    inside, outside = inner["quantization"][0], outer["quantization"][0]
    if np.dtype(outer["dtype"]).kind == "f":
        return float((steps + FLOAT_NOISE) * inside)
    return float(round(steps * inside / outside)) if outside else 0.0


def _parts(examples: np.ndarray, details: Sequence[Detail]) -> list[np.ndarray]:
    parts = split(examples, [detail["shape"] for detail in details])
    return [
        part.reshape(len(part), -1).astype(detail["dtype"])
        for part, detail in zip(parts, details, strict=True)
    ]


def examples_of_test(interface: Interface) -> int:
    """The number of examples in a self-test: fewer if inputs or outputs are large."""
    ports = (*interface.inputs, *interface.outputs)
    size = sum(int(np.prod(each["shape"])) * np.dtype(each["dtype"]).itemsize for each in ports)
    return max(1, min(MOST_EXAMPLES, MOST_TEST_BYTES // size))


def suits(name: str, tflite: bytes) -> bool:
    """Whether a package's library executes the Dense layers of a file as they are."""
    scales = [
        graph.tensors[operator.inputs[1]].quantization
        for graph in read(tflite).graphs
        for operator in graph.operators
        if operator.name == "FULLY_CONNECTED"
    ]
    several = any(each is not None and each.scales is not None and len(each.scales) > 1 for each in scales)
    return PACKAGES[name].dense_scales or not several


def package_paths(name: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a package in a folder: those that lqconvert renews, and those that then are the user's."""
    package = PACKAGES[name]
    sources = folder / package.folder
    own = [sources / each for each in (*_SOURCES, "model.h", "model.cpp")]
    users = [sources / package.main[0].replace("NAME", folder.name)]
    return [folder / "README.md", *own], [*users, *(folder / each for each in package.files)]


def package_files(
    name: str,
    folder: Path,
    tflite: bytes,
    test: SelfTest,
    *,
    title: str,
    arena_bytes: int | None,
    preprocess: tuple[float, float],
    classes: Sequence[str] = (),
    front_code: dict[str, str] | None = None,
    columns: int = 0,
) -> dict[Path, str]:
    """The files of a package, by path.

    Args:
        folder: of the package.
        title: the model's name.
        arena_bytes: as for :func:`lqconvert.tflite.c_source.c_sources`.
        preprocess: scale and offset of raw pixels.
        classes: their names, in the order of the output.
        front_code: code that scales the columns of the input, if the program has to.
        columns: their number.
    """
    package, interface, names = PACKAGES[name], Interface.of(tflite), operators(tflite)
    templates = files("lqconvert").joinpath("templates/package")
    declaration, *adders = resolver_lines(names)
    is_image = len(interface.inputs) == 1 and len(interface.inputs[0]["shape"]) == 4 and not columns
    inputs = [_port(*each) for each in zip(interface.inputs, test.inputs, strict=True)]
    outputs = [_port(*each) for each in zip(interface.outputs, test.outputs, strict=True)]
    for port, tolerance in zip(outputs, test.tolerances, strict=True):
        port["tolerance"] = tolerance
    fields: dict[str, object] = {
        "package": name,
        "title": c_comment(title),
        "size": len(tflite),
        "arena": ARENA_GUESS if arena_bytes is None else with_margin(arena_bytes),
        "measured": arena_bytes is not None,
        "operators": names,
        "runtime": test.runtime,
        "of_micro": test.of_micro,
        "is_float": any(port["type"] == "float32" for port in outputs),
        "library": package.library,
        "library_header": package.header,
        "build": (templates / f"build-{name}.md").read_text(encoding="utf-8").rstrip(),
        "resolver": declaration,
        "adders": [line.rstrip(";") for line in adders],
        "inputs": inputs,
        "outputs": outputs,
        "pixels": {"scale": float(preprocess[0]), "offset": float(preprocess[1])} if is_image else None,
        "classes": [c_string(each) for each in classes],
        "columns": columns,
        "stateful": keeps_state(tflite),
        "examples": len(test.inputs[0]),
    }
    sources = folder / package.folder
    header, body = c_sources(tflite, sources / "model.tflite", arena_bytes, front_code).items()
    main, template = package.main
    rendered = {
        folder / "README.md": "README.md",
        **{folder / path: template for path, template in package.files.items()},
        **{sources / path: template for path, template in _SOURCES.items()},
        sources / main.replace("NAME", folder.name): template,
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    texts = {}
    for path, each in rendered.items():
        source = (templates / each).read_text(encoding="utf-8")
        texts[path] = environment.from_string(source).render(fields) + "\n"
    return {**texts, header[0]: header[1], sources / "model.cpp": body[1]}


def _port(detail: Detail, rows: np.ndarray) -> dict[str, object]:
    """An input or output and its values in the self-test, as the templates take them."""
    kind = np.dtype(detail["dtype"])
    is_float = kind.kind == "f"
    values = [[f"{float(v)!r}f" if is_float else str(int(v)) for v in row] for row in rows]
    return {
        "name": c_comment(detail["name"]),
        "type": kind.name,
        "ctype": "float" if is_float else f"{kind.name}_t",
        "shape": "x".join(str(n) for n in detail["shape"]),
        "size": rows.shape[1],
        "rows": [f"{{{', '.join(row)}}}" for row in values],
    }
