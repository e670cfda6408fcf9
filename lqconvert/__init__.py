"""Learned quantization of trained Keras models: integer-only .tflite files, measured.

    report = lqconvert.quantize("model.h5", "mnist", "out/model.tflite")   # a model file and a data set
    report = lqconvert.quantize(model, (x, y))                             # a model and arrays in memory
    model = lqconvert.rewrite(float_model)                                 # a tf_keras model that you can fit
    tflite = lqconvert.export(model).tflite                                # its integer-only .tflite

TensorFlow is imported when a name is first used, not when the package is imported. Runs log their progress to
the logger "lqconvert". Nothing is printed unless this logger, or the root logger, has a handler.
"""

import logging
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: The module of each public name. It is imported when the name is first used.
_HOMES = {
    # Complete runs
    "export_codes": "pipeline.quantize",
    "plan": "pipeline.plan",
    "quantize": "pipeline.quantize",
    "sweep": "sweeps.study",
    # Their arguments and results
    "Budget": "training.budget",
    "Data": "data.dataset",
    "Distribution": "training.distribution",
    "Exports": "reports.report",
    "Limits": "runtime.verify",
    "Plan": "pipeline.plan",
    "Preprocessing": "data.preprocessing",
    "Report": "reports.report",
    "Settings": "pipeline.settings",
    "Split": "data.dataset",
    "Wishes": "tasks",
    "target": "tflite.targets",
    # Steps
    "calibrate": "quantization.calibrate",
    "export": "exporting.export",
    "load_data": "data.sources",
    "load_model": "keras_loader.load",
    "rewrite": "quantization.rewrite",
    "QuantizedLayer": "quantization.layers",
    "WeightQuantizer": "quantization.layers",
    # Schemes
    "Difference": "quantization.schemes",
    "GradientThreshold": "quantization.schemes",
    "Inverse": "quantization.schemes",
    "LSQ": "quantization.schemes",
    "MaxBin": "quantization.schemes",
    "Rate": "quantization.schemes",
    "Scheme": "quantization.schemes",
    # Inspecting and measuring files
    "check": "analysis.check",
    "compare": "analysis.compare",
    "evaluate": "analysis.evaluate",
    "explain": "analysis.explain",
    "inspect": "analysis.inspect",
    "Check": "analysis.check",
    "Comparison": "analysis.compare",
    "Evaluation": "analysis.evaluate",
    "Explanation": "analysis.explain",
    "Measurements": "analysis.check",
    # Errors
    "BudgetMissed": "errors",
    "Interrupted": "errors",
    "LqError": "errors",
}
__all__ = [*_HOMES]

logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:  # the same for type checkers and editors, which do not run __getattr__
    from lqconvert.analysis.check import Check as Check
    from lqconvert.analysis.check import Measurements as Measurements
    from lqconvert.analysis.check import check as check
    from lqconvert.analysis.compare import Comparison as Comparison
    from lqconvert.analysis.compare import compare as compare
    from lqconvert.analysis.evaluate import Evaluation as Evaluation
    from lqconvert.analysis.evaluate import evaluate as evaluate
    from lqconvert.analysis.explain import Explanation as Explanation
    from lqconvert.analysis.explain import explain as explain
    from lqconvert.analysis.inspect import inspect as inspect
    from lqconvert.data.dataset import Data as Data
    from lqconvert.data.dataset import Split as Split
    from lqconvert.data.preprocessing import Preprocessing as Preprocessing
    from lqconvert.data.sources import load_data as load_data
    from lqconvert.errors import BudgetMissed as BudgetMissed
    from lqconvert.errors import Interrupted as Interrupted
    from lqconvert.errors import LqError as LqError
    from lqconvert.exporting.export import export as export
    from lqconvert.keras_loader.load import load_model as load_model
    from lqconvert.pipeline.plan import Plan as Plan
    from lqconvert.pipeline.plan import plan as plan
    from lqconvert.pipeline.quantize import export_codes as export_codes
    from lqconvert.pipeline.quantize import quantize as quantize
    from lqconvert.pipeline.settings import Settings as Settings
    from lqconvert.quantization.calibrate import calibrate as calibrate
    from lqconvert.quantization.layers import QuantizedLayer as QuantizedLayer
    from lqconvert.quantization.layers import WeightQuantizer as WeightQuantizer
    from lqconvert.quantization.rewrite import rewrite as rewrite
    from lqconvert.quantization.schemes import LSQ as LSQ
    from lqconvert.quantization.schemes import Difference as Difference
    from lqconvert.quantization.schemes import GradientThreshold as GradientThreshold
    from lqconvert.quantization.schemes import Inverse as Inverse
    from lqconvert.quantization.schemes import MaxBin as MaxBin
    from lqconvert.quantization.schemes import Rate as Rate
    from lqconvert.quantization.schemes import Scheme as Scheme
    from lqconvert.reports.report import Exports as Exports
    from lqconvert.reports.report import Report as Report
    from lqconvert.runtime.verify import Limits as Limits
    from lqconvert.sweeps.study import sweep as sweep
    from lqconvert.tasks import Wishes as Wishes
    from lqconvert.tflite.targets import target as target
    from lqconvert.training.budget import Budget as Budget
    from lqconvert.training.distribution import Distribution as Distribution
else:

    def __getattr__(name):
        from importlib import import_module

        if name in _HOMES:
            return getattr(import_module(f"lqconvert.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'lqconvert' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
