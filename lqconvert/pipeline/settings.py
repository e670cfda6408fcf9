"""The settings of a run, which the public functions' keywords and the command line's options make.

Each default stands here once; ``None`` stands for one that depends on the scheme, the model or the data.
TensorFlow is not imported, so that help texts can read the defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lqconvert.data.preprocessing import Preprocessing
from lqconvert.quantization.recipes import DEFAULT_SCHEME
from lqconvert.tasks import Wishes
from lqconvert.training.budget import Budget

if TYPE_CHECKING:
    from lqconvert.quantization.schemes import Scheme
    from lqconvert.runtime.verify import Limits
    from lqconvert.tflite.targets import Target


class ExportKeywords(TypedDict, total=False):
    """Keywords of all functions that write files for targets.

    Attributes:
        targets: the runtimes to make a file for, by name ("litert", "tflm") or as
            :func:`lqconvert.target` gives them with options; budgets of bytes are of the first one's.
            "litert" by default.
        limits: what files may take on their targets.
        io: the type of inputs and outputs: "int8", "uint8", "int16" or "float32". By default int8, but
            float32 where columns of different ranges are scaled in front of the quantization. With another
            type than float32 that scaling is left to the program around the file.
        c_array: write OUTPUT.cc and OUTPUT.h beside the .tflite for tflm.
        gzip: write OUTPUT.tflite.gz, too: a download that any inflater reads.
    """

    targets: Sequence[str | Target]
    limits: Limits | None
    io: str | None
    c_array: bool
    gzip: bool


class QuantizeKeywords(ExportKeywords, total=False):
    """Keywords of :func:`lqconvert.quantize`; those of :class:`ExportKeywords` are among them.

    Attributes:
        report: write the report as a page with figures, too: an .html file that loads nothing.
        input_shape, trust_model: see :func:`lqconvert.load_model`.
        strict: refuse a model that has layers without integer kernels; they compute in float else (on
            litert; tflm always refuses).
        preprocess: what the model was trained on; found out by scoring the float model when None.
        wishes: what outputs are for and how they are scored, where that is not to be found out.
        steer_on: "validation", or "test-half": steer on one half of the test part and report on the other,
            which "auto" does where the float model was trained on the validation split.
        scheme: how scales are learned; ``Rate()`` by default.
        granularity: which weights share a scale; one for each output channel by default, but one
            for a Dense kernel with ``Rate()``: each scale costs bytes.
        rounding: "nearest", or "floor" as in the thesis.
        start: the scale that all weights start from; calibrated by default.
        budget: what the file may lose or weigh. By default it is to lose nothing, and is the best that was
            reached where that is not to be had; where a scheme is given, there is no budget. Schemes without
            a penalty take none.
        epochs, learning_rate: what suits the scheme, by default. Epochs that are given are no more than that:
            by default, small data sets are passed over more often. 0 epochs are post-training quantization,
            which takes seconds.
        max_minutes: when fine-tuning is to end, counted from the call, with the best so far; its cycles are
            shortened to that. Files are exported and proven after it.
        batch_size: examples of a step.
        seed: of all random choices.
        minimum_steps, minimum_cycle: the steps that fine-tuning takes at least, and each cycle of a run with
            a budget, where no epochs are given.
        save_seconds: between two checkpoints.
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
    budget: Budget | None
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
    """How the model is read, and what it may hold."""

    input_shape: tuple[int, ...] | None = None
    trust_model: bool = False
    strict: bool = False


@dataclass(frozen=True)
class DataSettings:
    """What the model takes of the data, and how its outputs are scored."""

    preprocess: Preprocessing | None = None
    wishes: Wishes = field(default_factory=Wishes)
    steer_on: str = "auto"


@dataclass(frozen=True)
class QuantizationSettings:
    """How weights become codes."""

    scheme: Scheme | None = None
    granularity: str | None = None
    rounding: str = "nearest"
    start: float | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """How the quantized model is fine-tuned."""

    budget: Budget | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    max_minutes: float | None = None
    batch_size: int = 128
    seed: int = 0
    minimum_steps: int = 500
    minimum_cycle: int = 300
    save_seconds: float = 60


@dataclass(frozen=True)
class OutputSettings:
    """Which files are written."""

    targets: Sequence[str | Target] = ("litert",)
    limits: Limits | None = None
    io: str | None = None
    c_array: bool = False
    gzip: bool = False
    report: str | Path | None = None

    @classmethod
    def of(cls, keywords: Mapping[str, object]) -> OutputSettings:
        """The settings that keywords stand for; None is the default."""
        return dataclasses.replace(DEFAULTS.output, **_given(keywords))

    @property
    def runtimes(self) -> tuple[Target, ...]:
        """The targets, those that are given by name, too."""
        from lqconvert.tflite.targets import find_targets

        return find_targets(self.targets)


@dataclass(frozen=True)
class Settings:
    """All settings of a run. The properties are what is in force where the user left it open."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    @classmethod
    def of(cls, keywords: Mapping[str, object], settings: Settings | None = None) -> Settings:
        """The settings with what keywords change of them; a keyword that is None changes nothing.

        Args:
            settings: DEFAULTS where None.

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
        """The same with other values, each in the group that has a field of its name.

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
        return self.scheme.recipe.epochs if self.training.epochs is None else self.training.epochs

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate or self.scheme.recipe.learning_rate

    @property
    def limits(self) -> Limits:
        from lqconvert.runtime.verify import Limits

        return self.output.limits or Limits()


def _given(keywords: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if value is not None}


#: What holds where the user asks for nothing.
DEFAULTS = Settings()
