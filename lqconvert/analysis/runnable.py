"""Opens a .tflite of any tool, or a Keras model as its float32 .tflite, and runs it once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lqconvert.errors import CannotRun, LqError
from lqconvert.keras_loader.in_memory import ModelLike, model_name
from lqconvert.runtime.litert import isolated
from lqconvert.runtime.tflm import invoke_micro, run_micro
from lqconvert.tasks import Output
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import Port, text_of
from lqconvert.tflite.interface import Detail, Interface, real, together
from lqconvert.tflite.packing import only_for_micro
from lqconvert.tflite.targets import LITERT, TFLM, Target, find_targets
from lqconvert.utils.input_files import read_bytes
from lqconvert.utils.text import printable

#: In TFLite Micro, the seconds of an inference are the median over this many.
MICRO_RUNS = 16


@dataclass(frozen=True)
class Runnable:
    """A .tflite that has run in its target's runtime."""

    name: str
    tflite: bytes
    target: Target
    interface: Interface
    latency_s: float
    arena_bytes: int | None
    outputs: tuple[Output, ...]  # in the order in which predict returns them
    order: tuple[int, ...]  # for each of them, its place in the file

    def predict(self, batches: Iterable[Any]) -> np.ndarray:
        """Outputs (float32 [n, ...]) for batches of real, preprocessed inputs."""
        parts = real(self._codes(batches), self.interface.outputs)
        return together([parts[place] for place in self.order])

    def _codes(self, batches: Iterable[Any]) -> np.ndarray:
        inputs = (self.interface.quantize(x) for x in batches)
        if self.target.is_micro:
            return invoke_micro(self.tflite, np.concatenate(list(inputs)))  # one process for all batches
        try:
            with isolated(self.tflite) as file:
                return np.concatenate([file.invoke(x) for x in inputs])
        except CannotRun as error:
            raise CannotRun(f"{self.name}: {error}") from error


def open_file(
    file: ModelLike,
    *,
    target: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_model: bool = False,
) -> Runnable:
    """Reads a .tflite, or makes a Keras model's float32 .tflite, and runs it once; see :func:`evaluate`."""
    name = model_name(file)
    if isinstance(file, (str, Path)) and not Path(file).exists():
        raise LqError(f"{name}: no such file")
    try:
        if isinstance(file, (str, Path)) and Path(file).suffix == ".tflite":
            tflite = read_bytes(file)
        else:
            tflite = _float32(file, input_shape, trust_model)
        (runs_on,) = find_targets(target or (TFLM if only_for_micro(read(tflite)) else LITERT))
        runs_on.check_installed()
        if runs_on.is_micro:
            interface = Interface.of(tflite)
            micro = run_micro(tflite, interface.random_examples(MICRO_RUNS))
            latency_s, arena_bytes = micro.latency_s, micro.arena_bytes
        else:
            with isolated(tflite) as ran:
                interface, latency_s, arena_bytes = Interface(ran.inputs, ran.outputs), ran.latency_s, None
        interface = _named(tflite, interface)
        outputs = tuple(outputs_of(tflite, interface))
        order = tuple(range(len(outputs)))
        return Runnable(name, tflite, runs_on, interface, latency_s, arena_bytes, outputs, order)
    except LqError as error:
        raise error if printable(name) in str(error) else type(error)(f"{name}: {error}") from error


def _float32(model: ModelLike, input_shape: tuple[int, ...] | None, trust_model: bool) -> bytes:
    from lqconvert.exporting.export import convert
    from lqconvert.keras_loader.load import load_model

    return convert(load_model(model, input_shape=input_shape, trust_model=trust_model), integer=False)


def aligned(files: Sequence[Runnable]) -> list[Runnable]:
    """The files, with the same names and order of outputs.

    Outputs with equal names belong together. Some converters write NAME_0, NAME_1, ... in the order of the
    model's outputs, but store them in another order. Outputs with other names are matched by their place.

    Raises:
        LqError: if outputs that belong together have different sizes.
    """
    ordered = [_numbered(file) for file in files]
    outputs = next((file.outputs for file in ordered if not _numbers(file)), ordered[0].outputs)
    return [_like(file, outputs, files[0].name) for file in ordered]


def _numbers(file: Runnable) -> list[int]:
    """The numbers of outputs that are called NAME_0, NAME_1, ...; empty for other names."""
    found = [re.fullmatch(r"(.+)_([0-9]{1,9})", output.name) for output in file.outputs]
    if len(found) < 2 or len({each and each[1] for each in found}) > 1 or found[0] is None:
        return []
    return [int(each[2]) for each in found if each]


def _numbered(file: Runnable) -> Runnable:
    numbers = _numbers(file)
    return _reordered(file, sorted(range(len(numbers)), key=numbers.__getitem__)) if numbers else file


def _like(file: Runnable, outputs: tuple[Output, ...], other: str) -> Runnable:
    names, wanted = ([output.name for output in each] for each in (file.outputs, outputs))
    if len(set(names)) == len(names) and set(names) == set(wanted):
        file = _reordered(file, [names.index(name) for name in wanted])
    sizes, expected = ([output.size for output in each] for each in (file.outputs, outputs))
    if len(sizes) > 1 and sizes != expected:
        raise LqError(f"{file.name} has outputs of {sizes} values, {other} of {expected}: no data fit both")
    return dataclasses.replace(file, outputs=outputs) if len(sizes) > 1 else file


def _reordered(file: Runnable, places: Sequence[int]) -> Runnable:
    return dataclasses.replace(
        file,
        outputs=tuple(file.outputs[place] for place in places),
        order=tuple(file.order[place] for place in places),
    )


def _named(tflite: bytes, interface: Interface) -> Interface:
    """The same interface with the names by which programs find inputs and outputs: those of the signature."""
    model = read(tflite)
    for signature in model.signatures or []:
        if signature.graph == 0:
            return Interface(
                _renamed(interface.inputs, model.main.inputs, signature.inputs),
                _renamed(interface.outputs, model.main.outputs, signature.outputs),
            )
    return interface


def _renamed(details: list[Detail], indices: Sequence[int], ports: list[Port]) -> list[Detail]:
    names = {port.tensor: text_of(port.name) for port in ports}
    if len(set(names.values())) < len(ports) or not set(indices) <= set(names):
        return details
    renamed = [detail.copy() for detail in details]
    for detail, index in zip(renamed, indices, strict=True):
        detail["name"] = names[index]
    return renamed


#: Operators that compute probabilities or unit vectors, and operators that do not change values.
ACTIVATIONS = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid", "L2_NORMALIZATION": "l2"}
UNCHANGED = ("QUANTIZE", "DEQUANTIZE", "RESHAPE")


def outputs_of(tflite: bytes, interface: Interface) -> list[Output]:
    """The file's outputs in order, as far as they are known."""
    graph = read(tflite).main
    makers = {index: operator for operator in graph.operators for index in operator.outputs}

    def activation(index: int) -> str:
        operator = makers.get(index)
        name = operator.name if operator is not None else ""
        if operator is not None and name in UNCHANGED and operator.inputs:
            del makers[index]  # operators of a hostile file may form a circle
            return activation(operator.inputs[0])
        return ACTIVATIONS.get(name, "")

    return [
        Output(plain_name(detail["name"]), tuple(int(n) for n in detail["shape"][1:]), activation(index))
        for detail, index in zip(interface.outputs, graph.outputs, strict=True)
    ]


def plain_name(name: str) -> str:
    """The name of an input or output, without the parts that converters add."""
    return re.sub(r"^serving_default_|:0$", "", name).removesuffix("_quantized")
