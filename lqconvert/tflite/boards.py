"""Common microcontroller boards, and what of their memory a model can have."""

from __future__ import annotations

from dataclasses import dataclass

from lqconvert.errors import LqError

KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Board:
    """A board: bytes of flash and RAM, and the page of its maker with these figures.

    A model may take half of each. The rest is for the program, its libraries, its stack and its buffers.
    """

    name: str
    chip: str
    flash: int
    ram: int
    source: str

    @property
    def model_flash(self) -> int:
        return self.flash // 2

    @property
    def model_ram(self) -> int:
        return self.ram // 2


_BOARDS = (
    Board(
        "arduino-nano-33-ble", "nRF52840", MB, 256 * KB, "https://docs.arduino.cc/hardware/nano-33-ble-sense"
    ),
    Board("arduino-portenta-h7", "STM32H747", 2 * MB, MB, "https://docs.arduino.cc/hardware/portenta-h7"),
    Board("arduino-uno-r4", "RA4M1", 256 * KB, 32 * KB, "https://docs.arduino.cc/hardware/uno-r4-minima"),
    Board("microbit-v2", "nRF52833", 512 * KB, 128 * KB, "https://tech.microbit.org/hardware"),
    Board(
        "raspberry-pi-pico",
        "RP2040",
        2 * MB,
        264 * KB,
        "https://www.raspberrypi.com/documentation/microcontrollers/pico-series.html",
    ),
    Board(
        "raspberry-pi-pico-2",
        "RP2350",
        4 * MB,
        520 * KB,
        "https://www.raspberrypi.com/documentation/microcontrollers/pico-series.html",
    ),
    Board(
        "esp32",
        "ESP32-WROOM-32",
        4 * MB,
        520 * KB,
        "https://www.espressif.com/sites/default/files/documentation/esp32-wroom-32_datasheet_en.pdf",
    ),
    Board(
        "esp32-c3",
        "ESP32-C3-MINI-1",
        4 * MB,
        400 * KB,
        "https://www.espressif.com/sites/default/files/documentation/esp32-c3-mini-1_datasheet_en.pdf",
    ),
    Board(
        "esp32-s3",
        "ESP32-S3-WROOM-1",
        8 * MB,
        512 * KB,
        "https://www.espressif.com/sites/default/files/documentation/esp32-s3-wroom-1_datasheet_en.pdf",
    ),
    Board(
        "nucleo-g071rb",
        "STM32G071RB",
        128 * KB,
        36 * KB,
        "https://www.st.com/en/microcontrollers-microprocessors/stm32g071rb.html",
    ),
    Board(
        "nucleo-l432kc",
        "STM32L432KC",
        256 * KB,
        64 * KB,
        "https://www.st.com/en/microcontrollers-microprocessors/stm32l432kc.html",
    ),
    Board(
        "nucleo-f446re",
        "STM32F446RE",
        512 * KB,
        128 * KB,
        "https://www.st.com/en/microcontrollers-microprocessors/stm32f446re.html",
    ),
    Board(
        "nucleo-h743zi",
        "STM32H743ZI",
        2 * MB,
        MB,
        "https://www.st.com/en/microcontrollers-microprocessors/stm32h743zi.html",
    ),
)
BOARDS = {board.name: board for board in _BOARDS}


def board(name: str) -> Board:
    """A board by name.

    Raises:
        LqError: if there is no such board.
    """
    if name not in BOARDS:
        raise LqError(f"board '{name}': not one of {', '.join(BOARDS)}")
    return BOARDS[name]
