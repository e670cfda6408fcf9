"""The typed view of .tflite files keeps what it has no fields for, and only it knows the schema."""

import ast
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from made_files import residual_network

import lqconvert.tflite
from lqconvert.tflite.editing import add_constant, add_tensor, drop_unused, new_operator
from lqconvert.tflite.flatbuffer import read, serialize, size_of, write
from lqconvert.tflite.graph import Buffer, Quantization


def made(kind, **fields):
    """One of the schema's objects."""
    thing = getattr(schema, f"{kind}T")()
    for name, value in fields.items():
        setattr(thing, name, value)
    return thing


def packed(tree) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def branching() -> bytes:
    """A file with parts that lqconvert does not edit: control flow, variables, unknown options, notes."""
    kinds, one = schema.TensorType, np.array([1], np.int32)
    quantization = made(
        "QuantizationParameters",
        scale=np.array([0.5], np.float32),
        zeroPoint=np.array([3], np.int64),
        min=np.array([-1], np.float32),
        max=np.array([1], np.float32),
        detailsType=schema.QuantizationDetails.CustomQuantization,
        details=made("CustomQuantization", custom=np.arange(5, dtype=np.uint8)),
    )
    tensors = [
        made("Tensor", shape=one, type=kinds.BOOL, buffer=1, name=b"\xff\xfe"),
        made(
            "Tensor", shape=np.array([1, 4], np.int32), type=kinds.INT8, buffer=2, quantization=quantization
        ),
        made("Tensor", shape=None, type=kinds.FLOAT16, buffer=3, hasRank=True),
        made("Tensor", shape=one, shapeSignature=np.array([-1], np.int32), type=kinds.INT8, isVariable=True),
    ]
    branch = made("IfOptions", thenSubgraphIndex=1, elseSubgraphIndex=1)
    operators = [
        made(
            "Operator",
            opcodeIndex=0,
            inputs=np.array([0, 1, -1], np.int32),
            outputs=np.array([2, 3], np.int32),
            builtinOptions=branch,
            builtinOptionsType=schema.BuiltinOptions.IfOptions,
            intermediates=one,
        ),
        made(
            "Operator",
            opcodeIndex=1,
            inputs=np.array([1], np.int32),
            outputs=np.array([3], np.int32),
            customOptions=np.arange(9, dtype=np.uint8),
            mutatingVariableInputs=np.array([True]),
        ),
    ]
    inner = [made("Tensor", shape=one, type=kinds.INT8, buffer=4, name=b"inner")]
    ports = {"inputs": [made("TensorMap", name=b"in", tensorIndex=1)], "outputs": []}
    signatures = [
        made("SignatureDef", signatureKey=b"main", **ports),
        made("SignatureDef", signatureKey=b"side", subgraphIndex=1),
    ]
    last = np.array([0], np.int32)
    tree = made(
        "Model",
        version=3,
        operatorCodes=[
            made("OperatorCode", builtinCode=schema.BuiltinOperator.IF, deprecatedBuiltinCode=118, version=2),
            made("OperatorCode", builtinCode=32, deprecatedBuiltinCode=32, customCode=b"Their\xffs"),
        ],
        subgraphs=[
            made(
                "SubGraph",
                tensors=tensors,
                operators=operators,
                inputs=one,
                outputs=np.array([2, 3], np.int32),
            ),
            made("SubGraph", tensors=inner, operators=[], inputs=last, outputs=last, name=b"then"),
        ],
        buffers=[made("Buffer"), *(made("Buffer", data=np.full(n, n, np.uint8)) for n in (1, 4, 2, 1))],
        metadata=[made("Metadata", name=b"notes", buffer=1)],
        metadataBuffer=np.array([7, 8], np.int32),
        signatureDefs=signatures,
        description=b"theirs",
    )
    return packed(tree)


def fields_of(thing):
    """All that there is in one of the schema's objects, and in those under it."""
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if isinstance(thing, list):
        return [fields_of(each) for each in thing]
    if hasattr(thing, "__dict__"):
        return {name: fields_of(value) for name, value in vars(thing).items()}
    return thing


def test_what_the_view_has_no_fields_for_survives():
    """Everything is used, except one buffer that equals another. Only that may change in the file."""
    tflite = branching()
    before, after = (
        fields_of(schema.ModelT.InitFromPackedBuf(data, 0)) for data in (tflite, serialize(read(tflite)))
    )
    before["subgraphs"][0]["tensors"][2]["shape"] = []  # LiteRT takes no shape for an unknown one
    for signature in before["signatureDefs"]:
        signature |= {side: signature[side] or [] for side in ("inputs", "outputs")}
    assert after == before
    dense = schema.ModelT.InitFromPackedBuf(write(read(tflite)), 0)
    assert len(dense.buffers) == 4
    dense = fields_of(dense)
    for graph in (*before["subgraphs"], *dense["subgraphs"]):
        for tensor in graph["tensors"]:
            del tensor["buffer"]
    assert dense | {"buffers": None} == before | {"buffers": None}


@pytest.mark.parametrize("make", [branching, lambda: residual_network(0)])
def test_writing_what_was_read_changes_nothing_more(make):
    once = write(read(make()))
    assert write(read(once)) == once
    assert size_of(read(once)) == len(once)


def test_sizes_are_known_without_writing():
    """Vectors of every length and type: the data behind them are padded as in the file."""
    rng = np.random.default_rng(0)
    model = read(residual_network(0))
    for _ in range(40):
        kind = rng.choice([np.int8, np.int16, np.int32, np.int64, np.float32])
        constant = add_constant(model, rng.integers(0, 2, rng.integers(0, 70)).astype(kind))
        model.main.tensors[constant].name = b"n" * int(rng.integers(0, 9))
        made = add_tensor(model, "INT8", (1,), Quantization.one(0.5))
        model.main.operators.append(new_operator(model, "RESHAPE", [constant], [made]))
        assert size_of(model) == len(write(model))


def test_a_copy_is_edited_alone():
    model = read(residual_network(0))
    before = write(model)
    other = model.copy()
    for tensor in other.main.tensors:
        tensor.name, tensor.quantization, tensor.shape = b"other", None, (1,)
        tensor.buffer = Buffer.of(np.ones(3, np.int8))
    for operator in other.main.operators:
        operator.inputs = operator.inputs[:1]
        if operator.name == "RESHAPE":
            operator.set_option("newShape", np.zeros(7, np.int32))
    other.main.operators.pop()
    drop_unused(other)
    assert write(model) == before != write(other)


def test_a_codes_last_match_is_taken_again():
    model = read(residual_network(0))
    count = len(model.codes)
    first = new_operator(model, "CONV_2D", [], [], version=3)
    assert first.code is model.main.operators[0].code
    assert new_operator(model, "CONV_2D", [], [], version=1).code is not first.code
    custom = new_operator(model, "CUSTOM", [], [], custom="A")
    assert new_operator(model, "CUSTOM", [], [], custom="A").code is custom.code
    assert new_operator(model, "CUSTOM", [], [], custom="B").code is not custom.code
    assert len(model.codes) == count + 3


@pytest.mark.parametrize(
    "path", Path(lqconvert.tflite.__file__).parent.glob("*.py"), ids=lambda path: path.stem
)
def test_only_one_module_has_untyped_objects(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
    assert ("Any" in names) == (path.stem == "flatbuffer")
