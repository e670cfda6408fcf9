"""Packed files have the same bytes as before, and their sizes are known without writing them."""

import hashlib

import numpy as np
import pytest
from made_files import residual_network
from single_operator import SHAPES, single_operator

from lqconvert.runtime.verify import smallest
from lqconvert.tflite.flatbuffer import read, size_of, write
from lqconvert.tflite.graph import OPERANDS
from lqconvert.tflite.packing import Kernel, as_int8, assemble, kernels, pack
from lqconvert.tflite.targets import RUNTIMES, target

PACKED_FOR = {
    "litert": target("litert"),
    "int4 convolutions": target("litert", int4_convolutions=True),
    "tflm": target("tflm", prefer="flash"),
    "tflm, all stripped": target("tflm", prefer="flash", strip_all=True),
}


def one_operator(operator: str, zeros: float = 0.9, spread: float = 2.0, unread: int = 0) -> bytes:
    rng = np.random.default_rng(5)
    shape = SHAPES[operator](3, 24, 20)[0]
    codes = np.rint(rng.normal(0, spread, shape)) * (rng.random(shape) >= zeros)
    codes[..., :unread] = 0
    return single_operator(operator, codes.astype(np.int8), operator != "FULLY_CONNECTED", k=3, rng=rng)


MADE = {
    "few zeros": lambda: residual_network(0, zeros=0.3, spread=6.0),
    "many zeros": lambda: residual_network(1, (16, 24), zeros=0.9, spread=1.5, dead=0.1),
    "small codes": lambda: residual_network(2, zeros=0.6, spread=1.0, blocks=2),
    "wide": lambda: residual_network(3, (32, 48), zeros=0.95, spread=3.0, dead=0.0),
    "dead": lambda: residual_network(4, (16, 16), zeros=0.8, dead=0.7),
    **{name: lambda name=name: one_operator(name) for name in OPERANDS},
    "unread inputs": lambda: one_operator("FULLY_CONNECTED", 0.0, 25.0, unread=60),
}
#: For each file, the first digits of its packed files' SHA-256, in the order of PACKED_FOR.
DIGESTS = {
    "few zeros": "7afbb8f848fd 7afbb8f848fd 9518f574f0f2 9518f574f0f2",
    "many zeros": "341ca3da4b0a ec5538c6c9a4 10f537535ed0 10f537535ed0",
    "small codes": "6dd3388b3cd4 7111782439a0 5e79e2368332 5e79e2368332",
    "wide": "ee8b2ec6c08c 89c0ad77b80b 930368c5b310 930368c5b310",
    "dead": "8050eff744dc 5e2edbdcf662 cfb885abfc9f cfb885abfc9f",
    "CONV_2D": "fcc9fb3214c9 fcc9fb3214c9 22174423dc9a 22174423dc9a",
    "DEPTHWISE_CONV_2D": "24b40afc82a5 072f5d2e85e3 9f282ec13983 9f282ec13983",
    "FULLY_CONNECTED": "e5003826dff8 e5003826dff8 5ecb8cb4b338 5ecb8cb4b338",
    "TRANSPOSE_CONV": "2e81d14f777b 2e81d14f777b 5a2de5fd0e0a 5a2de5fd0e0a",
    "unread inputs": "ba42d28dc62e ba42d28dc62e 711c762891aa 711c762891aa",
}


@pytest.mark.parametrize("name", MADE)
def test_packed_files_are_the_same_bytes(name):
    tflite = MADE[name]()
    packed = [smallest(tflite, each) for each in PACKED_FOR.values()]
    assert [hashlib.sha256(each.tflite).hexdigest()[:12] for each in packed] == DIGESTS[name].split()
    assert [len(each.tflite) for each in packed] == [each.size for each in packed]


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_smallest_is_found_by_sizes_alone(name):
    """As it would be by writing every trial."""
    model, packings = read(MADE["many zeros"]()), RUNTIMES[name].packings
    found = kernels(model)
    chosen = [as_int8(kernel) for kernel in found]

    def trials(kernel: Kernel):
        encoded = [packing.encode(kernel) for packing in packings if packing.fits(kernel)]
        smaller = [each for each in encoded if each is not None and each.size < kernel.codes.size]
        return sorted(smaller, key=lambda each: each.size)

    best = len(write(assemble(model, found, chosen)))
    for _ in range(2):
        for n in sorted(range(len(found)), key=lambda n: -found[n].codes.size):
            for stored in trials(found[n]):
                trial = [*chosen[:n], stored, *chosen[n + 1 :]]
                assembled = assemble(model, found, trial)
                size = len(write(assembled))
                assert size == size_of(assembled)
                if size < best:
                    best, chosen = size, trial
    packed = pack(model, packings)
    assert packed.packings == [stored.packing for stored in chosen]
    assert packed.tflite == write(assemble(model, found, chosen))
    assert set(packed.packings) != {"int8"}


def test_packing_leaves_the_model_as_it_was():
    model = read(MADE["many zeros"]())
    before = write(model)
    for each in PACKED_FOR.values():
        pack(model, each.packings, needless=each.needless)
        assert write(model) == before
