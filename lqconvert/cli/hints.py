"""The options that help with errors and warnings. The messages themselves state facts and name no options."""

from __future__ import annotations

#: What to do, by the ``hint`` of an LqError or a log record. A hint without a row is the name of an option.
HINTS = {
    "activations": "leave out --activations",
    "allow_float": "without --strict they stay float",
    "baseline": "give --baseline (a model) or --against (saved measurements)",
    "baseline_model": "give labels, or --baseline (a model)",
    "classes": "name the model's classes with --classes FILE",
    "data": "give --data",
    "fewer_channels": "lqconvert quantize with these limits removes channels",
    "fresh_start": "leave out --resume",
    "input_shape": "give --input-shape",
    "known_preprocess": "if they are right, give --preprocess",
    "litert": "with --target litert they stay float",
    "max_drop": "set --max-drop to allow a drop",
    "no_decode": "use --target tflm-no-decode, or int8",
    "measured": "use --target tflm-no-decode",
    "no_data": "leave out --data",
    "no_preprocess": "leave out --preprocess",
    "one_scale": "quantize with --granularity mixed",
    "raw": "--task raw compares outputs with the float model's",
    "restart": "start all of them again, with --resume",
    "resume": "to continue it, add --resume",
    "save_baseline": "save measurements with --save-baseline",
    "save_data": "save them with --data",
    "test_half": "leave out --steer-on",
    "tflm": "use --target tflm",
    "trust_model": "give --trust-model",
}


def with_hint(message: str, hint: str | None) -> str:
    """A message, followed by the option that helps.

    >>> with_hint("the input size is unknown", "input_shape")
    'the input size is unknown; give --input-shape'
    >>> with_hint("inputs are used as they are", "preprocess")
    'inputs are used as they are; see --preprocess'
    """
    if hint is None:
        return message
    return f"{message}; {HINTS.get(hint) or 'see --' + hint.replace('_', '-')}"
