"""Builds packages for a Cortex-M4, runs their self-tests in QEMU, and prints a table.

    lqconvert export model.codes.npz --target tflm --package cmake -o out/model.tflite
    python tests/bench/boards.py out/model-cmake --tflm CHECKOUT
    python tests/bench/boards.py out/model-cmake --tflm CHECKOUT --cmsis-nn CHECKOUT --cmsis CHECKOUT

It takes folders of `--package cmake`, and checkouts of tflite-micro (with what its makefile downloads), and
of CMSIS-NN and CMSIS_6 for Arm's optimized kernels. It needs arm-none-eabi-g++ with newlib, cmake, and
qemu-system-arm, whose machine mps2-an386 has a Cortex-M4. The libraries are built once and kept in
--folder. That takes minutes: they have all operators, and the linker leaves out those that a model lacks.

Flash is text and data of the program, with its self-test and the C library. Each package is then built with
one byte of its model changed, which the self-test must find.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

from lqconvert.tflite.flatbuffer import read

PROGRAMS = "arm-none-eabi-g++", "cmake", "qemu-system-arm"
PROCESSOR = "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16"
EMULATOR = "qemu-system-arm;-M;mps2-an386;-nographic;-semihosting-config;enable=on,target=native;-kernel"
#: Messages and the exit code go to QEMU by semihosting. QEMU loads .data to its place, so nothing copies it.
TOOLCHAIN = """\
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_CXX_COMPILER arm-none-eabi-g++)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_FLAGS_INIT "{processor} -ffunction-sections -fdata-sections")
set(CMAKE_CXX_FLAGS_INIT "${{CMAKE_C_FLAGS_INIT}}")
set(CMAKE_EXE_LINKER_FLAGS_INIT
    "--specs=nano.specs --specs=rdimon.specs -Wl,--gc-sections -T {folder}/board.ld {folder}/startup.o")
set(CMAKE_CROSSCOMPILING_EMULATOR {emulator})
"""
STARTUP = """\
#include <stdint.h>
extern uint32_t __stack[];
void _start(void);
static void Reset(void) {
  *(volatile uint32_t*)0xE000ED88 |= 0xFu << 20;  // lets the program use the FPU
  __asm volatile("dsb\\nisb");
  _start();
}
__attribute__((section(".vectors"), used)) const void* const vectors[] = {__stack, (void*)Reset};
"""
LINKER_SCRIPT = """\
MEMORY {
  FLASH (rx) : ORIGIN = 0x00000000, LENGTH = 4M
  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 4M
}
SECTIONS {
  .text : {
    KEEP(*(.vectors)) *(.text*) *(.rodata*) KEEP(*(.init)) KEEP(*(.fini))
    . = ALIGN(4);
    __preinit_array_start = .; KEEP(*(.preinit_array)) __preinit_array_end = .;
    __init_array_start = .; KEEP(*(SORT(.init_array.*))) KEEP(*(.init_array)) __init_array_end = .;
    __fini_array_start = .; KEEP(*(.fini_array)) __fini_array_end = .;
  } > FLASH
  .ARM.extab : { *(.ARM.extab*) } > FLASH
  .ARM.exidx : { __exidx_start = .; *(.ARM.exidx*) __exidx_end = .; } > FLASH
  .data : { *(.data*) } > RAM
  .bss : { __bss_start__ = .; *(.bss*) *(COMMON) __bss_end__ = .; } > RAM
  end = .; __end__ = .;
  __stack = ORIGIN(RAM) + LENGTH(RAM);
}
"""
#: TFLite Micro as its own makefile builds it, and once more with Arm's kernels in place of the portable ones.
LIBRARIES = """\
cmake_minimum_required(VERSION 3.16)
project(libraries C CXX)
set(CMAKE_CXX_STANDARD 17)
set(MICRO ${TFLM}/tensorflow/lite/micro)
set(DOWNLOADS ${MICRO}/tools/make/downloads)
include_directories(${TFLM} ${DOWNLOADS}/flatbuffers/include ${DOWNLOADS}/gemmlowp ${DOWNLOADS}/ruy)
add_compile_definitions(TF_LITE_STATIC_MEMORY KERNELS_OPTIMIZED_FOR_SPEED)
add_compile_options(-w "$<$<COMPILE_LANGUAGE:CXX>:-fno-rtti;-fno-exceptions;-fno-threadsafe-statics>")

file(GLOB COMMON ${MICRO}/*.cc ${MICRO}/arena_allocator/*.cc ${MICRO}/memory_planner/*.cc
     ${MICRO}/tflite_bridge/*.cc ${MICRO}/kernels/*.cc)
file(GLOB_RECURSE CORE ${TFLM}/tensorflow/lite/core/*.cc ${TFLM}/tensorflow/lite/kernels/*.cc
     ${TFLM}/tensorflow/compiler/*.cc)
list(APPEND COMMON ${CORE})
list(FILTER COMMON EXCLUDE REGEX "test|/mock_|/fake_|/detection_postprocess")
file(GLOB NAMES RELATIVE ${MICRO}/kernels/cmsis_nn ${MICRO}/kernels/cmsis_nn/*.cc)
list(TRANSFORM NAMES PREPEND ${MICRO}/kernels/ OUTPUT_VARIABLE PORTABLE)
list(TRANSFORM NAMES PREPEND ${MICRO}/kernels/cmsis_nn/ OUTPUT_VARIABLE FAST)
list(REMOVE_ITEM COMMON ${PORTABLE})
add_library(common OBJECT ${COMMON})
target_precompile_headers(common PRIVATE ${TFLM}/tensorflow/lite/micro/kernels/kernel_util.h
                          ${TFLM}/tensorflow/lite/micro/micro_log.h)
add_library(portable STATIC ${PORTABLE} $<TARGET_OBJECTS:common>)
if(CMSIS_NN)
  file(GLOB_RECURSE SOURCES ${CMSIS_NN}/Source/*.c)
  list(FILTER SOURCES EXCLUDE REGEX "_(f16|f32|flt)\\\\.c$")
  add_library(cmsis_nn STATIC ${FAST} ${SOURCES} $<TARGET_OBJECTS:common>)
  target_include_directories(cmsis_nn PRIVATE ${CMSIS_NN} ${CMSIS_NN}/Include ${CMSIS}/CMSIS/Core/Include)
  target_compile_definitions(cmsis_nn PRIVATE CMSIS_NN ARM_NN_ENABLE_F16=0 ARM_NN_ENABLE_F32=0)
endif()
"""
#: What a self-test ends with.
PASSED = re.compile(r"PASS: \d+ examples, (?P<arena>\d+) bytes of arena")
DIFFERS = re.compile(r"FAIL: (\d+ values differ, by at most \d+.*)")


def missing() -> str:
    """The programs that this needs and does not find, or nothing."""
    return ", ".join(each for each in PROGRAMS if shutil.which(each) is None)


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout


def _built(source: Path, build: Path, folder: Path, **settings: str | Path) -> None:
    given = [f"-D{name}={value}" for name, value in settings.items()]
    _run("cmake", "-S", source, "-B", build, f"-DCMAKE_TOOLCHAIN_FILE={folder / 'board.cmake'}", *given)
    _run("cmake", "--build", build, f"-j{os.cpu_count()}")


def libraries(folder: Path, tflm: Path, **cmsis: Path) -> dict[str, Path]:
    """Builds TFLite Micro for the board in a folder, if that is not done.

    Args:
        folder: an absolute path.
        cmsis: CMSIS_NN and CMSIS, checkouts, for Arm's kernels.

    Returns:
        The libraries, by their kernels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    toolchain = TOOLCHAIN.format(processor=PROCESSOR, emulator=EMULATOR, folder=folder)
    texts = {"board.cmake": toolchain, "startup.c": STARTUP, "board.ld": LINKER_SCRIPT}
    for name, text in {**texts, "CMakeLists.txt": LIBRARIES}.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # what is newer is built again
            path.write_text(text)
    startup = folder / "startup.c", "-o", folder / "startup.o"
    _run("arm-none-eabi-gcc", *PROCESSOR.split(), "-c", *startup)
    _built(folder, folder / "build", folder, TFLM=tflm, CMAKE_BUILD_TYPE="MinSizeRel", **cmsis)
    kernels = ("portable", "cmsis_nn") if cmsis else ("portable",)
    return {each: folder / "build" / f"lib{each}.a" for each in kernels}


def program(package: Path, build: Path, tflm: Path, library: Path) -> Path:
    """A package's self-test for the board, built with one of its :func:`libraries`."""
    _built(package, build, library.parents[1], TFLM_DIR=tflm, TFLM_LIBRARY=library)
    return build / "self_test"


def in_qemu(path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program. Its messages are in stderr, and the code is what its main returned."""
    return subprocess.run([*EMULATOR.split(";"), path], capture_output=True, text=True, timeout=300)


def change_a_byte(package: Path) -> None:
    """Changes a byte of the model that every output depends on: of the last layer's bias."""
    path = package / "src/model.cpp"
    text = path.read_text()
    places = list(re.finditer(r"0x(\w\w)", text))
    tflite = bytes(int(place[1], 16) for place in places)
    graph = read(tflite).main
    last = next(each for each in reversed(graph.operators) if each.name == "FULLY_CONNECTED")
    place = places[tflite.index(graph.tensors[last.inputs[2]].buffer.content) + 1]
    path.write_text(f"{text[: place.start(1)]}{int(place[1], 16) ^ 0x55:02x}{text[place.end(1) :]}")


def flash(path: Path) -> int:
    """The bytes of a program's text and data."""
    text, data, *_ = _run("arm-none-eabi-size", path).splitlines()[1].split()
    return int(text) + int(data)


def row(kernels: str, package: Path, path: Path) -> str:
    done = in_qemu(path)
    passed, differs = PASSED.search(done.stderr), DIFFERS.search(done.stderr)
    result = "PASS" if passed else differs[1] if differs else done.stderr
    arena = f"{int(passed['arena']):,}" if passed else ""
    return f"| {kernels} | {package.name} | {result} | {arena} | {flash(path):,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--tflm", type=Path, required=True)
    parser.add_argument("--cmsis-nn", type=Path)
    parser.add_argument("--cmsis", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/boards"))
    settings = parser.parse_args()
    if lacking := missing():
        parser.error(f"not installed: {lacking}")
    if (settings.cmsis_nn is None) != (settings.cmsis is None):
        parser.error("--cmsis-nn needs --cmsis, and the other way round")
    folder, tflm = settings.folder.resolve(), settings.tflm.resolve()
    arms = {}
    if settings.cmsis_nn is not None:
        arms = {"CMSIS_NN": settings.cmsis_nn.resolve(), "CMSIS": settings.cmsis.resolve()}
    built = libraries(folder, tflm, **arms)
    print("| kernels | package | self-test | arena | flash |\n| --- | --- | --- | ---: | ---: |")
    for package in settings.packages:
        for kernels, library in built.items():
            build = folder / package.name / kernels
            print(row(kernels, package, program(package, build, tflm, library)), flush=True)
        changed = folder / package.name / "changed"
        shutil.copytree(package, changed, dirs_exist_ok=True)
        change_a_byte(changed)
        path = program(changed, folder / package.name / "of_changed", tflm, built["portable"])
        print(row("portable", Path("the same, a byte changed"), path), flush=True)


if __name__ == "__main__":
    main()
