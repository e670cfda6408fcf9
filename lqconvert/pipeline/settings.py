"""The settings of a run, made from the keywords of public functions or from the command line's options.

Each default is defined here once. ``None`` means that the default depends on the scheme, the model or the
data. This module does not import TensorFlow, so that help texts can read the defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lqconvert.data.preprocessing import Preprocessing
from lqconvert.errors import LqError
from lqconvert.quantization.recipes import DEFAULT_SCHEME, EFFORTS
from lqconvert.tasks import Wishes
from lqconvert.training.budget import Budget

if TYPE_CHECKING:
    from lqconvert.quantization.schemes import Scheme
    from lqconvert.runtime.verify import Limits
    from lqconvert.tflite.targets import Target


class ExportKeywords(TypedDict, total=False):
    """Keywords of all functions that write files for targets.

    Attributes:
        targets: the runtimes to make files for, by name ("litert", "tflm") or from :func:`lqconvert.target`.
            A size budget is that of the first target's file. "litert" by default.
        limits: RAM and latency limits of the files.
        io: the type of inputs and outputs: "int8", "uint8", "int16" or "float32". By default that of the
            activations (int8 or int16), but float32 if input columns are scaled in float in front of the
            quantized part. With another type, your program has to scale them.
        c_array: also write OUTPUT.cc and OUTPUT.h next to the .tflite for tflm.
        gzip: also write OUTPUT.tflite.gz, for downloads.
        package: also write a folder OUTPUT-PACKAGE that builds for a microcontroller, with a self-test:
            "cmake", "esp-idf", "arduino" or "zephyr".
    """

    targets: Sequence[str | Target]
    limits: Limits | None
    io: str | None
    c_array: bool
    gzip: bool
    package: str | None


class QuantizeKeywords(ExportKeywords, total=False):
    """Keywords of :func:`lqconvert.quantize`, including those of :class:`ExportKeywords`.

    Attributes:
        report: also write the report as a page with charts: an .html file that loads nothing.
        input_shape, trust_model: see :func:`lqconvert.load_model`.
        strict: refuse a model that has layers without integer kernels. Otherwise they compute in float
            (on litert; tflm always refuses them).
        preprocess: how inputs were scaled for training. None: it is detected by scoring the float model.
        wishes: the tasks and metrics of outputs. Without them, they are detected.
        steer_on: "validation", or "test-half": budgets are judged on one half of the test part, and the
            report uses the other half. "auto" does this if the float model was trained on the validation
            split.
        scheme: how scales are learned; ``Rate()`` by default.
        granularity: which weights share a scale. By default one for each output channel; with ``Rate()``
            one for a whole Dense kernel, because each scale takes bytes.
        rounding: "nearest", or "floor" as in the thesis.
        start: the starting value of all scales; calibrated by default.
        activations: the bits of activations: 8, or 16 for results that need finer steps than int8 has. The
            file takes up to twice the RAM, and in LiteRT several times the time.
        budget: the accuracy or size budget. By default the file may lose nothing; if that is not possible,
            the best file is written. If a scheme is given, there is no budget by default. Schemes without a
            penalty cannot have one.
        effort: "fast" (no training: post-training quantization, in seconds), "normal" or "high" (four times
            the steps, for smaller files).
        epochs, learning_rate: they depend on the scheme by default. If you give epochs, they count instead of
            the effort, and no steps are added; by default, small data sets get more epochs.
        max_minutes: stop fine-tuning after this time, counted from the call, and use the best weights so far.
            Cycles are shortened accordingly. Files are exported and verified after that.
        batch_size: training examples in a step.
        seed: of all random choices.
        minimum_steps, minimum_cycle: if epochs are not given, the smallest number of steps of fine-tuning,
            and of each cycle of a run with a budget.
        save_seconds: the time between two checkpoints.
    """

    report: str | Path | None
    input_shape: tuple[int, ...] | None
    trust_model: bool
    strict: bool
    preprocess: Preprocessing | None
    wishes: Wishes | None
    steer_on: str
    scheme: Scheme | None
    granularity: str | None
    rounding: str
    start: float | None
    activations: int
    budget: Budget | None
    effort: str
    epochs: int | None
    learning_rate: float | None
    max_minutes: float | None
    batch_size: int
    seed: int
    minimum_steps: int
    minimum_cycle: int
    save_seconds: float


@dataclass(frozen=True)
class ModelSettings:
    """How the model is read, and whether layers may stay float."""

    input_shape: tuple[int, ...] | None = None
    trust_model: bool = False
    strict: bool = False


@dataclass(frozen=True)
class DataSettings:
    """How the data are preprocessed, and how outputs are scored."""

    preprocess: Preprocessing | None = None
    wishes: Wishes = field(default_factory=Wishes)
    steer_on: str = "auto"


@dataclass(frozen=True)
class QuantizationSettings:
    """How weights are quantized."""

    scheme: Scheme | None = None
    granularity: str | None = None
    rounding: str = "nearest"
    start: float | None = None
    activations: int = 8

    def __post_init__(self) -> None:
        if self.activations not in (8, 16):
            raise LqError(f"activations '{self.activations}': not 8 or 16 bits")


@dataclass(frozen=True)
class TrainingSettings:
    """How the quantized model is fine-tuned."""

    budget: Budget | None = None
    effort: str = "normal"
    epochs: int | None = None
    learning_rate: float | None = None
    max_minutes: float | None = None
    batch_size: int = 128
    seed: int = 0
    minimum_steps: int = 500
    minimum_cycle: int = 300
    save_seconds: float = 60

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise LqError(f"effort '{self.effort}': not one of {', '.join(EFFORTS)}")


@dataclass(frozen=True)
class OutputSettings:
    """Which files are written."""

    targets: Sequence[str | Target] = ("litert",)
    limits: Limits | None = None
    io: str | None = None
    c_array: bool = False
    gzip: bool = False
    package: str | None = None
    report: str | Path | None = None

    @classmethod
    def of(cls, keywords: Mapping[str, object]) -> OutputSettings:
        """The settings from keywords. None stands for the default."""
        return dataclasses.replace(DEFAULTS.output, **_given(keywords))

    @property
    def runtimes(self) -> tuple[Target, ...]:
        """The targets as objects, with the RAM that they have; names are looked up."""
        from lqconvert.tflite.targets import find_targets

        max_ram = None if self.limits is None else self.limits.max_ram
        return tuple(target.within(max_ram) for target in find_targets(self.targets))


@dataclass(frozen=True)
class Settings:
    """All settings of a run. The properties fill in the defaults of what the user left open."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    @classmethod
    def of(cls, keywords: Mapping[str, object], settings: Settings | None = None) -> Settings:
        """The settings with changes from keywords. A keyword that is None changes nothing.

        Args:
            settings: the values to change. None: DEFAULTS.

        Raises:
            TypeError: for a keyword that is no setting.
        """
        return (settings or DEFAULTS).replaced(**_given(keywords))

    def changes(self) -> dict[str, Any]:
        """The settings that are not the defaults, by name."""
        defaults = DEFAULTS._values()
        return {name: value for name, value in self._values().items() if value != defaults[name]}

    def _values(self) -> dict[str, Any]:
        groups = [getattr(self, group.name) for group in dataclasses.fields(self)]
        return {each.name: getattr(part, each.name) for part in groups for each in dataclasses.fields(part)}

    def replaced(self, **values: Any) -> Settings:
        """A copy with other values, each in the group that has a field of this name.

        >>> DEFAULTS.replaced(seed=1).training.seed
        1
        """
        groups = {}
        for group in dataclasses.fields(self):
            part = getattr(self, group.name)
            names = [each.name for each in dataclasses.fields(part) if each.name in values]
            groups[group.name] = dataclasses.replace(part, **{name: values.pop(name) for name in names})
        if values:
            raise TypeError(f"no setting is called {', '.join(values)}")
        return Settings(**groups)

    @property
    def scheme(self) -> Scheme:
        from lqconvert.quantization.schemes import SCHEMES

        return self.quantization.scheme or SCHEMES[DEFAULT_SCHEME]()

    @property
    def granularity(self) -> str:
        return self.quantization.granularity or self.scheme.recipe.granularity

    @property
    def budget(self) -> Budget:
        max_drop = 0.0 if self.quantization.scheme is None else None
        return self.training.budget or Budget(max_drop, asked=False)

    @property
    def epochs(self) -> int:
        given = self.training.epochs
        return self.scheme.recipe.epochs * EFFORTS[self.training.effort] if given is None else given

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate or self.scheme.recipe.learning_rate

    @property
    def limits(self) -> Limits:
        from lqconvert.runtime.verify import Limits

        return self.output.limits or Limits()


def _given(keywords: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if value is not None}


#: The settings if the user gives none.
DEFAULTS = Settings()
