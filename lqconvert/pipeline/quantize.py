"""Quantizes a float model and writes verified .tflite files. Each step is a module with the step's name."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lqconvert.analysis.runnable import outputs_of
from lqconvert.data.arrays import DataLike, data_name
from lqconvert.data.dataset import Data, Split, as_numpy
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.data.sources import load_data
from lqconvert.errors import BudgetMissed, Interrupted, LqError
from lqconvert.exporting.codes import Codes, Int8File
from lqconvert.exporting.export import Exported, convert, export, learned_codes
from lqconvert.keras_loader.in_memory import ModelLike, default_output
from lqconvert.metrics import agreement, guesses
from lqconvert.pipeline.prepare import Prepared, checksum, paths_of, prepare
from lqconvert.pipeline.settings import OutputSettings, Settings
from lqconvert.quantization.model_outputs import joined, predict
from lqconvert.reports.evidence import Evidence
from lqconvert.reports.report import ClassRecall, Exports, Measured, Report, TargetFile, layer_rows, versions
from lqconvert.reports.shortfall import shortfall
from lqconvert.runtime.layer_snr import LayerNoise, layer_noise
from lqconvert.runtime.litert import Runner, isolated
from lqconvert.runtime.verify import (
    NO_BORDER,
    VERIFIED_EXAMPLES,
    Limits,
    deployed,
    examples_in,
    execute,
    run,
    smallest,
    verify,
)
from lqconvert.tasks import Score
from lqconvert.tflite.c_source import c_sources
from lqconvert.tflite.interface import Interface
from lqconvert.tflite.io_types import Border, Passage, border_of
from lqconvert.tflite.packages import PACKAGES, SelfTest, examples_of_test, package_files, suits
from lqconvert.tflite.scaling_code import left_out
from lqconvert.tflite.targets import LITERT, TFLM, Target
from lqconvert.training.budget import POINT, Budget
from lqconvert.training.checkpoint import locked
from lqconvert.training.distribution import Distribution
from lqconvert.training.finetune import Finetuned, Progress, finetune
from lqconvert.training.post_train import post_train
from lqconvert.training.trainer import assign, values
from lqconvert.utils.compression import gzipped
from lqconvert.utils.output_files import Paths, Writer, make_folders, write_all

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lqconvert.pipeline.settings import ExportKeywords, QuantizeKeywords

log = logging.getLogger(__name__)

#: The noise of layers is measured on as many examples as the float file computes in this time, within limits.
#: (LiteRT's built-in kernels, which keep intermediate results, take 25 times as long.)
NOISE_SECONDS, LEAST_NOISE_EXAMPLES = 0.25, 8


def quantize(
    model: ModelLike,
    data: DataLike,
    output: str | Path | None = None,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    distribution: Distribution | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    tick: Callable[[int, int], None] = lambda *_: None,
    **keywords: Unpack[QuantizeKeywords],
) -> Report:
    """Quantizes a Keras model and writes OUTPUT (.tflite), OUTPUT.codes.npz and OUTPUT.report.json.

    Progress, and what was detected, is logged (logger "lqconvert", level INFO).

    Args:
        model: a .h5 or .keras file, a SavedModel folder, or a model of Keras 3 or tf_keras in memory.
        data: a name or a file, or arrays in memory; see :func:`lqconvert.load_data`.
        output: the path of the .tflite. Its folder is created. By default, it has the model's name and lies
            next to the model's file (in the working folder for a model in memory). With several targets,
            the others get files of their own: OUTPUT.tflm.tflite.
        settings: the values that keywords change. None: the defaults.
        resume: continue an interrupted run with the same output. The result is that of an uninterrupted run.
            Without a checkpoint, the run starts at the first step.
        distribution: the devices that share each batch; one device by default. With several processes, start
            all of them with the same arguments. They return the same report, but only the chief writes files.
        progress: called with the state of fine-tuning at every evaluation on the validation split.
        tick: called about every second of fine-tuning, with the step and the number of steps of the run.
        keywords: the settings, see :class:`lqconvert.pipeline.settings.QuantizeKeywords`.

    Returns:
        The report, measured on the written file.

    Raises:
        LqError: for every mistake of the user. Then nothing is written.
        BudgetMissed: if no weights hold the user's budget. If weights hold it, but no file of them holds the
            budget or the limits, only the codes are written.
        Interrupted: if Ctrl-C came before any weights held the budget.
    """
    settings = Settings.of(keywords, settings)
    minutes = settings.training.max_minutes
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    distribution = distribution or Distribution()
    output = default_output(model, ".tflite") if output is None else output
    with distribution.placed(output, settings.output.report) as (output, page):
        ready = prepare(model, data, output, settings.replaced(report=page), resume=resume)
        distribution.check_alike(
            ready.identity | {"model within the limits": checksum(*ready.pruned.get_weights())}
        )
        if distribution.replicas > 1:
            log.info(f"each batch is split over {distribution}")
        if ready.checkpoint is not None:
            log.info(f"continuing from step {ready.checkpoint.step:,}")
        elif resume:
            log.info("no checkpoint to continue from: starting at the first step")
        elif ready.paths.checkpoint.exists():
            log.warning(
                f"starting from the beginning, although {ready.paths.checkpoint} has an interrupted run",
                extra={"hint": "resume"},
            )
        make_folders([ready.paths.first, ready.paths.page or ready.paths.first])
        with locked(ready.paths.first):
            finetuned = _learn(ready, distribution, deadline, progress, tick)
            _judge(ready, finetuned)
            report = _export(ready, finetuned)
            if finetuned.finished:
                ready.paths.checkpoint.unlink(missing_ok=True)
            return report


def _learn(
    ready: Prepared,
    distribution: Distribution,
    deadline: float,
    progress: Callable[[Progress], None],
    tick: Callable[[int, int], None],
) -> Finetuned:
    """Fine-tunes. Rounds the original weights if there are no epochs, or if that makes a better file."""
    if not ready.finetuning.steps:
        return _rounded(ready, progress)
    path, original = ready.paths.checkpoint, values(ready.quantized.variables)
    finetuned = finetune(
        ready.quantized,
        ready.folded,
        ready.data,
        ready.preprocess,
        ready.finetuning,
        file_size=_file_size(ready),
        checkpoint=ready.checkpoint,
        distribution=distribution,
        deadline=deadline,
        save=lambda state: replace(state, units=ready.units).save(path, ready.identity),
        progress=progress,
        tick=tick,
    )
    budget = ready.settings.budget
    far = budget.max_size is not None and finetuned.margin < -POINT
    poor = not finetuned.holds or finetuned.best.step == 0 or far
    alone = distribution.replicas == 1
    if not (budget.steers and poor and alone and finetuned.finished and time.monotonic() < deadline):
        return finetuned
    trained = values(ready.quantized.variables)
    assign(ready.quantized.variables, original)
    rounded = _rounded(ready)
    if rounded.rank(budget) <= finetuned.rank(budget):
        assign(ready.quantized.variables, trained)
        return finetuned
    best = replace(rounded.best, step=0)
    return replace(finetuned, best=best, holds=rounded.holds, curve=[best, *finetuned.curve])


def _rounded(ready: Prepared, progress: Callable[[Progress], None] = lambda _: None) -> Finetuned:
    """Rounds the original weights."""
    return post_train(
        ready.quantized,
        ready.folded,
        ready.pruned,
        ready.data,
        ready.preprocess,
        seed=ready.settings.seed,
        budget=ready.settings.budget,
        file_size=_file_size(ready),
        progress=progress,
    )


def _file_size(ready: Prepared) -> Callable[[Codes], int]:
    """(codes) -> the bytes of their file for the first target."""
    target, latency = ready.targets[0], ready.settings.limits.max_latency
    if target.is_micro and latency is not None and latency < 1:  # there is no time for unpacking
        target = target.within(0)

    def size(codes: Codes) -> int:
        tflite = ready.border.around(smallest(ready.template.fill(codes), target).tflite)
        return len(deployed(tflite, target))

    return size


def _judge(ready: Prepared, finetuned: Finetuned) -> None:
    """Logs whether the budget holds. Raises an error if the user set a budget that does not hold."""
    budget, path, best = ready.settings.budget, ready.paths.checkpoint, finetuned.best
    if budget.max_drop is not None:
        labels = ready.data.heads.criterion_labels
        when = f"at step {best.step:,}" if ready.finetuning.steps else "without training"
        for label, quality, floor, tolerance in zip(
            labels, best.qualities, finetuned.required, finetuned.tolerances, strict=True
        ):
            log.info(
                f"budget ({budget}): validation quality ({label}) {when} is {quality:.4f}, required is "
                f"{floor:.4f} minus {tolerance:.4f} for sampling error; one point is 0.01"
            )
        if finetuned.seen and not ready.steers_on_test:
            log.warning(
                "the float model is as good on validation data as on training data; if it was trained on "
                "both, it has memorized them, and the budget is stricter than it looks"
            )
        if finetuned.holds and not best.step:
            what = "fine-tuned weights" if ready.finetuning.steps else "coarser rounding"
            log.warning(f"no {what} held the budget: the file has the original weights")
    if not finetuned.holds:
        if not finetuned.finished and (budget.asked or budget.max_size is not None):
            raise Interrupted(f"the run was interrupted: {_missed(budget, finetuned)}", hint="resume")
        if budget.asked:
            path.unlink(missing_ok=True)
            raise BudgetMissed(_missed(budget, finetuned))
        log.warning(_best_so_far(ready, finetuned), extra={"hint": "max_drop"})
    if not finetuned.finished:
        log.warning("the run was interrupted: the best file so far is written", extra={"hint": "resume"})


def _export(ready: Prepared, finetuned: Finetuned) -> Report:
    """Writes the files, and a report with measurements of them."""
    paths, data, preprocess = ready.paths, ready.data, ready.preprocess
    budget, limits = ready.settings.budget, ready.settings.limits
    quantized = ready.quantized
    exported = export(quantized, ready.batches)
    float_tflite = convert(ready.folded, integer=False)

    heads = data.heads
    teacher = predict(joined(ready.model), data.test, preprocess)
    fine_tuned = predict(joined(quantized), data.test, preprocess)
    runner, float_latency = Runner(exported.tflite), Runner(float_tflite).latency()
    outputs = runner.run(as_numpy(x) for _, x, _ in data.test.batches(256, preprocessing=preprocess))
    classifies = heads.single is not None and heads.single.answers_classes
    int8_file = Int8File(
        exported.tflite, exported.order, (preprocess.scale, preprocess.offset), preprocess.front
    )
    codes: dict[Path, Writer] = {
        paths.codes: lambda path: learned_codes(quantized).save(path, int8_file),
    }
    try:
        made = _files(int8_file, runner, ready.border, paths, ready.targets, limits, data, teacher)
        files = made.files
        if budget.max_size is not None and files[0].proven.size > budget.max_size:
            raise BudgetMissed(
                f"no file of {budget}: the smallest verified file has {files[0].proven.size:,} bytes"
            )
    except LqError as error:
        write_all(codes)
        if finetuned.finished:
            paths.checkpoint.unlink(missing_ok=True)
        hint = f"the codes are in {paths.codes}: lqconvert export makes files of them"
        raise type(error)(f"{error}; {hint}") from error
    interface = Interface.of(ready.border.around(exported.tflite))
    input_scales, output_scales = interface.quantizations

    @functools.cache
    def noise() -> list[LayerNoise]:
        count = min(max(LEAST_NOISE_EXAMPLES, int(NOISE_SECONDS / float_latency)), VERIFIED_EXAMPLES)
        some = data.test.pick(_mixed(data.test)[:count])
        _, x, _ = next(iter(some.batches(count, preprocessing=preprocess)))
        return layer_noise(float_tflite, exported.tflite, as_numpy(x))

    report = Report(
        model=ready.name,
        data=data.name,
        splits=data.sizes,
        settings=ready.settings,
        tasks={head.output.name: head.describe() for head in heads},
        criteria=heads.criterion_labels,
        float_=Measured.of(float_tflite, heads.scores(teacher, data.test.y, teacher), float_latency),
        int8=Measured.of(exported.tflite, heads.scores(outputs, data.test.y, teacher), runner.latency()),
        files=files,
        agreement_with_graph=agreement(outputs, fine_tuned) if classifies else None,
        agreement_with_float=agreement(outputs, teacher) if classifies else None,
        max_lsb_from_graph=float(np.max(np.abs(outputs - fine_tuned) / runner.output_steps)),
        input_types=interface.input_types,
        inputs=input_scales,
        front=preprocess.front,
        front_code=left_out(preprocess.front, ready.border, exported.tflite),
        input_shift=ready.input_shift,
        outputs=output_scales,
        float_layers=ready.float_layers,
        layers=layer_rows(exported.codes),
        classes=_recalls(data, teacher, made.first),
        bar=finetuned.required if budget.max_drop is not None else None,
        best=finetuned.best,
        curve=finetuned.curve,
        finished=finetuned.finished,
        warning=shortfall(files[0].scores, files[0].float_scores, heads.criterion_labels, noise),
        versions=versions(),
    )
    page: dict[Path, Writer] = {}
    if paths.page is not None:
        text = _page(report, data, exported, noise(), made, teacher)
        page[paths.page] = _writer(text.encode())
    writers = {
        **made.writers,
        **codes,
        **page,
        paths.report: lambda path: path.write_bytes(report.to_json().encode()),
    }
    make_folders(writers)
    write_all(writers)
    log.info(f"wrote {', '.join(map(str, writers))}")
    if report.warning:
        log.warning(report.warning)
    return report


def _recalls(
    data: Data, teacher: np.ndarray, made: tuple[np.ndarray, np.ndarray] | None
) -> list[ClassRecall]:
    """The recall of each class of each output, by the float model and by the first target's file."""
    assert made is not None  # a run has data
    places, outputs = made
    heads, rows = data.heads, []
    labels = heads.cut_labels(data.test.y[places])
    for head, truth, before, after in zip(
        heads, labels, heads.cut(teacher[places]), heads.cut(outputs), strict=True
    ):
        if not head.classifies:
            continue
        flat = (each.reshape(len(truth), -1) for each in (before, after))
        was, now = (guesses(each, head.threshold) == truth for each in flat)
        for label in np.unique(truth):
            of = truth == label
            name = head.class_names[label] if label < len(head.class_names) else str(label)
            output = head.output.name if len(heads) > 1 else ""
            rows.append(
                ClassRecall(output, name, int(of.sum()), float(was[of].mean()), float(now[of].mean()))
            )
    return rows


def _page(
    report: Report,
    data: Data,
    exported: Exported,
    noise: list[LayerNoise],
    made: _Made,
    teacher: np.ndarray,
) -> str:
    """The report as HTML, with the outputs of the float model and of the first target's file."""
    from lqconvert.reports.html import render
    from lqconvert.reports.pictures import pictures_of

    assert made.first is not None  # a run has data
    examples, outputs = made.first
    evidence = Evidence(
        codes=exported.codes,
        noise=noise,
        heads=data.heads,
        labels=data.test.y[examples],
        float_outputs=teacher[examples],
        outputs=outputs,
        numbers=examples,
        pictures=lambda places: pictures_of(data.test, examples[places]),
    )
    return render(report, evidence)


def export_codes(
    codes: str | Path,
    output: str | Path,
    *,
    data: DataLike | None = None,
    **keywords: Unpack[ExportKeywords],
) -> Exports:
    """Makes files for other targets from the codes of an earlier run, without training.

    Args:
        codes: the .codes.npz that :func:`quantize` wrote.
        output: as for :func:`quantize`.
        data: labelled data. Files are verified and scored on its test split, or else verified on random
            inputs.
        keywords: see :class:`lqconvert.pipeline.settings.ExportKeywords`.

    Raises:
        LqError: for every mistake of the user. Then nothing is written.
        BudgetMissed: if no file is within the limits.
    """
    settings = OutputSettings.of(keywords)
    Border(settings.io or "int8")
    targets = settings.runtimes
    paths = paths_of(output, targets, settings)
    int8_file = Int8File.load(Path(codes))
    try:
        with isolated(int8_file.tflite) as file:
            interface = Interface(file.inputs, file.outputs)
        ports = *interface.inputs, *interface.outputs
        types = {np.dtype(detail["dtype"]).name for detail in ports} - {"int32"}
        if not types <= {"int8"} and types != {"int16"}:
            raise LqError("its inputs and outputs are not int8")
        columns = [shape[-1:] for shape in interface.input_shapes.values()]
        if int8_file.front is not None and columns != [(len(int8_file.front.center),)]:
            raise LqError("its input does not match the scaling in front of it")
    except (LqError, RuntimeError, ValueError) as error:
        raise LqError(f"{codes}: LiteRT cannot load the int8 file in it ({error})") from error
    loaded = None
    if data is not None:
        loaded = load_data(data, interface.input_shapes, outputs_of(int8_file.tflite, interface))
        if not loaded.labelled:
            raise LqError(f"{data_name(data)}: has no labels to score by", hint="no_data")
    border = border_of(int8_file.front, settings.io, 16 if "int16" in types else 8)
    made = _files(int8_file, interface, border, paths, targets, settings.limits or Limits(), loaded, None)
    make_folders(made.writers)
    write_all(made.writers)
    return Exports(
        str(codes),
        len(int8_file.tflite),
        made.files,
        left_out(int8_file.front, border, int8_file.tflite),
        [str(path) for path in made.writers],
    )


@dataclass
class _Made:
    """A file for each target, with its measurements.

    If there are data, ``first`` is what the first file was scored on: indices into the test split, and its
    outputs there, float32 [n, ...].
    """

    writers: dict[Path, Writer] = field(default_factory=dict)
    files: list[TargetFile] = field(default_factory=list)
    first: tuple[np.ndarray, np.ndarray] | None = None


def _files(
    int8_file: Int8File,
    interface: Interface,
    border: Border,
    paths: Paths,
    targets: Sequence[Target],
    limits: Limits,
    data: Data | None,
    teacher: np.ndarray | None,
) -> _Made:
    """Verifies and scores a file for each target, with the border's inputs and outputs."""
    if data is None:
        inputs = interface.random_examples(VERIFIED_EXAMPLES)
    else:
        # In random order: a part may be enough, and data are often sorted by class.
        order = _mixed(data.test)
        some = data.test.pick(order[:VERIFIED_EXAMPLES])
        inputs = np.concatenate([x for x, _ in _coded_batches(interface, int8_file.feeding(NO_BORDER), some)])
    made, outer = _Made(), Interface.of(border.around(int8_file.tflite))
    front_code = left_out(int8_file.front, border, int8_file.tflite)
    for target in targets:
        path = paths.tflite(target.name)
        tflite, verified = verify(int8_file.tflite, target, inputs, int8_file.layers, limits, border)
        scores: tuple[Score, ...] = ()
        float_scores: tuple[Score, ...] = ()
        scored = 0
        if data is not None:
            # What this machine cannot run is scored as the int8 file in LiteRT.
            ran, on = (tflite, target) if verified.examples else (border.around(int8_file.tflite), LITERT)
            scored = examples_in(on, verified.latency_s or 0.0, data.test.size)
            part = order[:scored]
            batches = _coded_batches(outer, int8_file.feeding(border), data.test.pick(part))
            codes, labels = run(ran, on, batches)
            outputs = outer.dequantize(codes)
            answers = None if teacher is None else teacher[part]
            scores = data.heads.scores(outputs, labels, answers)
            made.first = made.first or (part, outputs)
            if answers is not None:
                float_scores = data.heads.scores(answers, labels, answers)
        made.writers[path] = _writer(tflite)
        path, tflite = paths.deployed(target.name), deployed(tflite, target)
        made.writers[path] = _writer(tflite)
        made.files.append(TargetFile(str(path), scores, float_scores, scored, verified))
        if paths.gzip:
            made.writers[paths.download(target.name)] = _writer(gzipped(tflite))
        sources: dict[Path, str] = {}
        if target.name in paths.sources:
            sources = c_sources(tflite, path, verified.arena_bytes, front_code)
        if paths.package is not None and paths.package.target == target.name:
            if not suits(paths.package.name, tflite):
                library = PACKAGES[paths.package.name].library
                what = f"{library} takes one scale for a Dense layer: outputs will be wrong"
                log.warning(what, extra={"hint": "one_scale"})
            front = None if front_code is None else int8_file.front
            test = _self_test(int8_file, tflite, inputs, border)
            texts = package_files(
                paths.package.name,
                paths.package.folder,
                tflite,
                test,
                title=paths.first.stem,
                arena_bytes=verified.arena_bytes or test.arena_bytes,
                preprocess=int8_file.preprocess,
                classes=[] if data is None else data.class_names,
                front_code=front_code,
                columns=0 if front is None else len(front.center),
            )
            sources |= {source: texts[source] for source in paths.packaged}
        for source, text in sources.items():
            made.writers[source] = _writer(text.encode())
    return made


def _self_test(int8_file: Int8File, tflite: bytes, inputs: np.ndarray, border: Border) -> SelfTest:
    """Some inputs of a file, and its outputs: TFLite Micro's, or the int8 file's in LiteRT without that."""
    passage = Passage(border, int8_file.tflite)
    entering, _ = passage.into(inputs[: examples_of_test(passage.outer)])
    micro = TFLM.is_installed
    ran, on = (tflite, TFLM) if micro else (border.around(int8_file.tflite), LITERT)
    executed = execute(ran, on, entering)
    (outputs, *_) = executed.outputs.values()
    return SelfTest.of(passage, entering, outputs, runtime=on.runtime, arena_bytes=executed.arena_bytes)


def _mixed(split: Split) -> np.ndarray:
    """The indices of a split's examples in random order."""
    return np.random.default_rng(0).permutation(split.size)


def _coded_batches(
    interface: Interface, preprocess: Preprocessing, split: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A split's inputs as a file takes them, and its labels."""
    for _, x, y in split.batches(256, preprocessing=preprocess):
        yield interface.quantize(as_numpy(x)), y.numpy()


def _writer(data: bytes) -> Writer:
    return lambda path: path.write_bytes(data)


def _missed(budget: Budget, finetuned: Finetuned) -> str:
    if budget.max_size is not None:
        smallest = min(point.bytes for point in finetuned.curve)
        return f"no file of {budget}: the smallest had {smallest:,} bytes"
    best = finetuned.best
    reached = zip(best.qualities, finetuned.required, strict=True)
    worst = min(reached, key=lambda pair: pair[0] - pair[1])
    listed = f"{worst[0]:.4f} at {best.bytes:,} bytes, required is {worst[1]:.4f}"
    return f"no file with {budget}: the best validation quality was {listed}"


def _best_so_far(ready: Prepared, finetuned: Finetuned) -> str:
    """The warning if the user set no budget, and no file is as good as the float model."""
    best = finetuned.best
    drops = {
        label: 100 * (floor - quality)
        for label, quality, floor in zip(
            ready.data.heads.criterion_labels, best.qualities, finetuned.required, strict=True
        )
    }
    label = max(drops, key=lambda name: drops[name])
    weights = "the original weights" if not best.step else f"the weights of step {best.step:,}"
    return (
        f"no file is as good as the float model on validation data. The best one is written: {weights}, "
        f"{drops[label]:.2f} points below it in quality ({label})"
    )
