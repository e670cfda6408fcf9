"""Makes the smallest file for a target, and verifies that its outputs are those of the int8 file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from lqconvert.errors import BudgetMissed, LqError
from lqconvert.runtime.ethos_u import NpuFigures, compiled
from lqconvert.runtime.litert import KERNELS, isolated
from lqconvert.runtime.tflm import invoke_micro, run_micro
from lqconvert.tflite.boards import board
from lqconvert.tflite.c_source import operators
from lqconvert.tflite.command_stream import check_weights
from lqconvert.tflite.dead_channels import gather_inputs, gatherable, remove_dead_channels
from lqconvert.tflite.encoding import entropy_bits
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import Model
from lqconvert.tflite.io_types import Border, Passage
from lqconvert.tflite.packing import Encodings, Kernel, Packed, as_int8, assemble, name_kernels, pack
from lqconvert.tflite.targets import Target
from lqconvert.utils.compression import deflated

NO_BORDER = Border()
#: The number of inputs on which every file is compared, if there are as many.
VERIFIED_EXAMPLES = 256
#: A file that takes this many times as long as another is as fast: measurements differ by as much.
SAME_LATENCY = 1.1
#: A measurement of latency takes about this many seconds, and this many inferences.
LATENCY_SECONDS, LEAST_RUNS, MOST_RUNS = 0.5, 5, 50
#: TFLite Micro's portable kernels are slow, so only as many examples are scored as take this many seconds.
MICRO_SECONDS = 120


@dataclass(frozen=True)
class Limits:
    """The limits of a file on its target: bytes of arena, latency as a multiple of int8's, bytes of flash.

    A ``max_latency`` below 1, or a ``max_ram`` that the int8 file exceeds, makes :func:`lqconvert.quantize`
    remove channels. Learning aims at a size budget (:class:`lqconvert.Budget`); ``max_flash`` only refuses
    larger files.
    """

    max_ram: int | None = None
    max_latency: float | None = None
    max_flash: int | None = None

    def __post_init__(self) -> None:
        if self.max_latency is not None and not 0 < self.max_latency < math.inf:
            raise LqError(f"max_latency '{self.max_latency}': not a number above 0")

    @classmethod
    def of_board(cls, name: str) -> Limits:
        """The limits of a model on a board; see :mod:`lqconvert.tflite.boards`.

        Raises:
            LqError: if the board is not known.
        """
        found = board(name)
        return cls(max_ram=found.model_ram, max_flash=found.model_flash)

    def __str__(self) -> str:
        parts = [] if self.max_ram is None else [f"at most {self.max_ram:,} bytes of arena"]
        if self.max_latency is not None:
            parts.append(f"at most {self.max_latency:g} times as slow as int8")
        if self.max_flash is not None:
            parts.append(f"at most {self.max_flash:,} bytes of flash")
        return ", ".join(parts) or "none"


@dataclass(frozen=True)
class Executed:
    """A run of a file in its target's runtime: outputs by set of kernels, latency and arena.

    Those of an NPU are of LiteRT; latency and arena are estimates of its compiler.
    """

    outputs: dict[str, np.ndarray]
    latency_s: float
    arena_bytes: int | None  # None for LiteRT, which has no arena of a fixed size
    npu: NpuFigures | None = None


@dataclass(frozen=True)
class KernelRow:
    """How a kernel is stored: bytes as int8, at the codes' entropy, as stored, of overhead, and of RAM."""

    layer: str
    operator: str
    shape: tuple[int, ...]  # in the file, without removed channels
    packing: str
    int8_bytes: int
    entropy_bytes: int
    stored_bytes: int
    added_bytes: int
    unpacked_bytes: int  # of RAM to unpack it, on a microcontroller


@dataclass(frozen=True)
class Verified:
    """A file for a target, with its measurements and those of the plain int8 file.

    For an NPU, size, latency and arena are those of the compiled file. Without the target's interpreter,
    nothing is measured but the size: there are no examples, and no latency.
    """

    target: str
    size: int
    deflated_bytes: int
    runtime: str  # package and version that it was verified in
    examples: int
    deviation: dict[str, int]  # largest difference from the int8 file's outputs, in steps, by set of kernels
    latency_s: float | None
    int8_latency_s: float | None
    arena_bytes: int | None
    int8_arena_bytes: int | None
    int8_size: int
    operators: list[str]
    kernels: list[KernelRow]
    refused: list[str]  # changes that gave other outputs or exceeded the limits, and were not used
    npu: NpuFigures | None = None
    int8_npu: NpuFigures | None = None


def execute(tflite: bytes, target: Target, inputs: np.ndarray) -> Executed:
    """Runs a file on inputs [n, ...] in a target's runtime.

    Raises:
        CannotRun: if the runtime cannot run it. The message has its reason.
    """
    if target.is_micro:
        micro = run_micro(tflite, inputs)
        return Executed({"TFLite Micro": micro.outputs}, micro.latency_s, micro.arena_bytes)
    with isolated(tflite, tuple(KERNELS)) as file:
        outputs, latency_s = file.invoke_all(inputs), file.latency_s
    if not target.accelerator:
        return Executed(outputs, latency_s, None)
    npu = compiled(tflite, target.accelerator).figures
    return Executed(outputs, npu.seconds, npu.arena_bytes, npu)


def deployed(tflite: bytes, target: Target) -> bytes:
    """What goes onto the device: the file itself, or what an NPU's compiler makes of it."""
    return compiled(tflite, target.accelerator).tflite if target.accelerator else tflite


def check_runs(tflite: bytes, target: Target) -> int | None:
    """Runs an int8 file in a target's runtime, and returns the arena's bytes, if it has an arena.

    Raises:
        LqError: with the runtime's reason if it cannot run the file.
    """
    return execute(tflite, target, _zeros(tflite)).arena_bytes


def _zeros(tflite: bytes) -> np.ndarray:
    """An input of a file, [1, ...]: zeros."""
    graph = read(tflite).main
    shapes = [graph.tensors[index].shape[1:] for index in graph.inputs]
    shape = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)
    return np.zeros((1, *shape), np.int8)


@dataclass(frozen=True)
class Excess:
    """The factors by which a file exceeds its limits. Up to 1, it is within them; 0: there is no limit."""

    ram: float = 0.0
    latency: float = 0.0

    @property
    def name(self) -> str:
        """The limit that is exceeded most."""
        return "ram" if self.ram > self.latency else "latency"

    @property
    def most(self) -> float:
        return max(self.ram, self.latency)

    def __str__(self) -> str:
        given = {"RAM": self.ram, "latency": self.latency}
        return " and ".join(f"{factor:.2f} times the {name}" for name, factor in given.items() if factor) + (
            " that is allowed"
        )


def excess(tflite: bytes, plain: bytes, target: Target, limits: Limits) -> Excess:
    """How far a file exceeds its limits of RAM and latency.

    Args:
        plain: the int8 file with all channels, which ``max_latency`` refers to.

    Raises:
        LqError: if the target's interpreter is not installed.
    """
    if not target.is_installed:
        raise LqError(f"the limits ({limits}) cannot be measured without {target.package}")
    pair = (tflite, _zeros(tflite)), (plain, _zeros(plain))
    ram = latency = 0.0
    if limits.max_ram is not None:
        ram = (execute(tflite, target, _zeros(tflite)).arena_bytes or 0) / limits.max_ram
    if limits.max_latency is not None:
        latency = median(_latency_ratios(pair, target, 3)) / limits.max_latency
    return Excess(ram, latency)


def run(
    tflite: bytes, target: Target, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of a file for batches (inputs, labels) in its target's runtime, and the labels."""
    if target.is_micro:  # one process for all batches
        inputs, labels = map(np.concatenate, zip(*batches, strict=True))
        return invoke_micro(tflite, inputs), labels
    with isolated(tflite) as file:
        outputs, labels = map(np.concatenate, zip(*((file.invoke(x), y) for x, y in batches), strict=True))
    return outputs, labels


def examples_in(target: Target, latency_s: float, size: int) -> int:
    """The number of test examples on which a file is scored: all ``size``, unless its runtime is slow."""
    if not target.is_micro:
        return size
    return min(size, max(VERIFIED_EXAMPLES, int(MICRO_SECONDS / latency_s)))


def smallest(tflite: bytes, target: Target) -> Packed:
    """The smallest file for a target, without running it: to estimate sizes during training."""
    return _pack_gathered(remove_dead_channels(read(tflite)), target, {}, target.gathers, Encodings())


def verify(
    tflite: bytes,
    target: Target,
    inputs: np.ndarray,
    layers: list[str],
    limits: Limits,
    border: Border = NO_BORDER,
) -> tuple[bytes, Verified]:
    """Packs an int8 file for a target and verifies it. A packing that changes outputs is not used.

    Outputs must be identical to int8's in TFLite Micro and in LiteRT's XNNPACK. In LiteRT's built-in kernels,
    which round differently for some shapes, they may differ by one step, or by the difference between these
    kernels and XNNPACK on the int8 file. (If ``target`` names the built-in kernels as the exact ones, the
    other way round.)

    If the target's interpreter is not installed, the smallest file is returned as it is.

    Args:
        inputs: int8 [n, ...] to compare outputs on.
        layers: the layers' names, in the order of the file's kernels.
        border: conversions of inputs and outputs, which are added before the file is run.

    Raises:
        LqError: if the target cannot run the int8 file, or limits cannot be measured.
        BudgetMissed: if no file is within the limits.
    """
    if not target.is_installed:
        return _unverified(tflite, target, layers, limits, border)
    if target.is_micro and target.prefer == "latency":  # unpacking always takes longer
        target = target.within(0)
    passage = Passage(border, tflite)
    entering, inputs = passage.into(inputs[:VERIFIED_EXAMPLES])
    plain = execute(tflite, target, inputs)
    named = read(tflite)
    name_kernels(named, layers)
    base, gathers, refused = remove_dead_channels(named), target.gathers, []
    forbidden: dict[str, set[str]] = {}
    encodings, wanted = Encodings(), _preferred(limits, target, plain)

    def forbid(number: int, why: str) -> None:
        layer, packing = packed.kernels[number].name, packed.packings[number]
        forbidden.setdefault(layer, set()).add(packing)
        refused.append(f"{packing} for '{layer}': {why}")

    while True:
        packed = _pack_gathered(base, target, forbidden, gathers, encodings)
        try:
            executed = _execute_and_compare(packed.tflite, target, inputs, plain)
        except LqError as error:
            culprits = [n for n, name in enumerate(packed.packings) if name != "int8"]
            if base is not named and not _same(write(base), target, inputs, plain):
                refused.append(f"removing dead channels: {error}")
                base = named
            elif culprits:
                alone = [n for n in culprits if not _same(_only(packed, n), target, inputs, plain)]
                for number in alone or culprits:
                    forbid(number, str(error))
            elif gathers:
                refused.append(f"gathering inputs: {error}")
                gathers = False
            else:
                raise
            continue
        finished = border.around(packed.tflite)
        if border != NO_BORDER:
            executed = _within(passage, execute(finished, target, entering))
            _refuse_other(executed, plain, target)
        pair = (finished, entering[:1]), (tflite, inputs[:1])
        over = _over(pair, target, executed, plain, wanted)
        if not over:
            break
        number = max(range(len(packed.kernels)), key=lambda n: _load(packed, n))
        if _load(packed, number):
            forbid(number, over)
        elif gathers:
            gathers = False
        elif wanted != limits:  # what is preferred need not be reached
            wanted = limits
        else:
            raise BudgetMissed(
                f"no file for {target.name} is within the limits: the most economical one needs {over}",
                hint="fewer_channels",
            )
    on_device = deployed(finished, target)
    _check_flash(on_device, target, limits, executed.arena_bytes)
    if target.accelerator:
        check_weights(read(on_device), read(finished), target.accelerator)
    verified = Verified(
        target=target.name,
        size=len(on_device),
        deflated_bytes=deflated(on_device),
        runtime=target.runtime,
        examples=len(inputs),
        deviation={
            kernels: _apart(outputs, plain.outputs[kernels]) for kernels, outputs in executed.outputs.items()
        },
        latency_s=executed.latency_s,
        int8_latency_s=plain.latency_s,
        arena_bytes=executed.arena_bytes,
        int8_arena_bytes=plain.arena_bytes,
        int8_size=len(tflite),
        operators=operators(finished),
        kernels=_rows(packed),
        refused=refused,
        npu=executed.npu,
        int8_npu=plain.npu,
    )
    return finished, verified


def _check_flash(tflite: bytes, target: Target, limits: Limits, arena_bytes: int | None = None) -> None:
    """Raises BudgetMissed if a file takes more flash than it may."""
    if limits.max_flash is not None and len(tflite) > limits.max_flash:
        arena = "" if arena_bytes is None else f" (and {arena_bytes:,} bytes of arena)"
        raise BudgetMissed(
            f"no file for {target.name} is within the limits: the smallest one takes {len(tflite):,} bytes "
            f"of flash{arena}, {limits.max_flash:,} are allowed"
        )


def _unverified(
    tflite: bytes, target: Target, layers: list[str], limits: Limits, border: Border
) -> tuple[bytes, Verified]:
    """The smallest file, which nothing on this machine can run."""
    if replace(limits, max_flash=None) != Limits():
        raise LqError(f"the limits ({limits}) cannot be measured without {target.package}")
    target = target.within(0) if target.prefer in ("ram", "latency") else target
    named = read(tflite)
    name_kernels(named, layers)
    packed = _pack_gathered(remove_dead_channels(named), target, {}, target.gathers, Encodings())
    finished = border.around(packed.tflite)
    _check_flash(finished, target, limits)
    verified = Verified(
        target=target.name,
        size=len(finished),
        deflated_bytes=deflated(finished),
        runtime="",
        examples=0,
        deviation={},
        latency_s=None,
        int8_latency_s=None,
        arena_bytes=None,
        int8_arena_bytes=None,
        int8_size=len(tflite),
        operators=operators(finished),
        kernels=_rows(packed),
        refused=[],
    )
    return finished, verified


def _pack_gathered(
    base: Model, target: Target, forbidden: dict[str, set[str]], gathers: bool, encodings: Encodings
) -> Packed:
    """The smallest packed file. It may gather the inputs that are read, if that makes it smaller."""

    def packed(model: Model) -> Packed:
        return pack(
            model,
            target.packings,
            forbidden,
            needless=target.needless,
            encodings=encodings,
            least_gain=target.least_gain,
            room=target.room,
        )

    best = packed(base)
    gathered: list[int] = []
    for kernel in gatherable(base) if gathers else ():
        trial = packed(gather_inputs(base, [*gathered, kernel]))
        if trial.size < best.size:
            best = trial
            gathered.append(kernel)
    return best


def _apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in steps; 255 if the shapes differ."""
    if a.shape != b.shape:
        return 255
    return int(np.abs(a.astype(np.int32) - b).max(initial=0))


def _execute_and_compare(tflite: bytes, target: Target, inputs: np.ndarray, plain: Executed) -> Executed:
    """Runs a file and compares its outputs with those of the int8 file, ``plain``.

    Raises:
        LqError: if it cannot run, or its outputs differ.
    """
    executed = execute(tflite, target, inputs)
    _refuse_other(executed, plain, target)
    return executed


def _refuse_other(executed: Executed, plain: Executed, target: Target) -> None:
    """Raises an LqError if outputs differ from the int8 file's."""
    spread = max(_apart(outputs, plain.outputs[target.exact]) for outputs in plain.outputs.values())
    for kernels, outputs in executed.outputs.items():
        allowed = 0 if kernels == target.exact else max(1, spread)
        apart = _apart(outputs, plain.outputs[kernels])
        if apart > allowed:
            raise LqError(f"{kernels} computes up to {apart} steps off")


def _within(passage: Passage, executed: Executed) -> Executed:
    """The run of a file with a border, its outputs converted back to int8."""
    outputs = {kernels: passage.out_of(found) for kernels, found in executed.outputs.items()}
    return replace(executed, outputs=outputs)


def _same(tflite: bytes, target: Target, inputs: np.ndarray, plain: Executed) -> bool:
    try:
        _execute_and_compare(tflite, target, inputs, plain)
    except LqError:
        return False
    return True


def _only(packed: Packed, number: int) -> bytes:
    """The file with one kernel packed as chosen, and all others as int8."""
    plain = [as_int8(kernel) for kernel in packed.kernels]
    chosen = [*plain[:number], packed.chosen[number], *plain[number + 1 :]]
    return write(assemble(packed.source, packed.kernels, chosen))


def _over(
    pair: Sequence[tuple[bytes, np.ndarray]],
    target: Target,
    executed: Executed,
    plain: Executed,
    limits: Limits,
) -> str:
    """The limit that a file exceeds, in words; empty if none.

    Args:
        pair: the file and the int8 file, each with one input.
    """
    arena = executed.arena_bytes
    if limits.max_ram is not None and arena is not None and arena > limits.max_ram:
        return f"{arena:,} bytes of arena, {limits.max_ram:,} are allowed"
    ratio = executed.latency_s / plain.latency_s
    if limits.max_latency is None or ratio <= limits.max_latency:
        return ""
    # Something else may have slowed down a single measurement.
    ratio = median([ratio, *_latency_ratios(pair, target, 4)])
    if ratio <= limits.max_latency:
        return ""
    return f"{ratio:.2f} times int8's latency, {limits.max_latency:g} are allowed"


def _latency_ratios(pair: Sequence[tuple[bytes, np.ndarray]], target: Target, times: int) -> list[float]:
    """The latency of the first file as a multiple of the second one's, measured several times."""
    found = []
    plain, example = pair[1]
    once = execute(plain, target, example).latency_s
    runs = int(min(max(LATENCY_SECONDS / once, LEAST_RUNS), MOST_RUNS))
    for _ in range(times):
        measured, reference = (execute(file, target, np.repeat(x, runs, 0)) for file, x in pair)
        found.append(measured.latency_s / reference.latency_s)
    return found


def _preferred(limits: Limits, target: Target, plain: Executed) -> Limits:
    """The limits of a file that costs no more of what is preferred than the int8 file, ``plain``."""
    if target.prefer == "ram" and plain.arena_bytes is not None:
        return replace(limits, max_ram=min(plain.arena_bytes, limits.max_ram or plain.arena_bytes))
    if target.prefer == "latency":
        return replace(limits, max_latency=min(SAME_LATENCY, limits.max_latency or SAME_LATENCY))
    return limits


def _load(packed: Packed, number: int) -> int:
    """The memory, and about in proportion the time, that unpacking a kernel takes in each inference."""
    return packed.chosen[number].unpacked_bytes(packed.kernels[number])


def _rows(packed: Packed) -> list[KernelRow]:
    def row(number: int, kernel: Kernel) -> KernelRow:
        stored_bytes, added_bytes = packed.bytes_of(number)
        return KernelRow(
            layer=kernel.name,
            operator=kernel.operator,
            shape=kernel.codes.shape,
            packing=packed.packings[number],
            int8_bytes=kernel.codes.size,
            entropy_bytes=round(entropy_bits(kernel.codes) / 8),
            stored_bytes=stored_bytes,
            added_bytes=added_bytes,
            unpacked_bytes=packed.chosen[number].unpacked_bytes(kernel),
        )

    return [row(number, kernel) for number, kernel in enumerate(packed.kernels)]
