"""A path is checked before it is read: devices, pipes and folders give one line of an error."""

import os
import socket
import time

import pytest

from lqconvert.errors import LqError
from lqconvert.utils.input_files import open_regular, read_bytes, read_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="devices and pipes of POSIX")


def odd(kind, folder):
    """Something at a path that is no regular file."""
    path = folder / "odd"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        socket.socket(socket.AF_UNIX).bind("odd")
        os.chdir(here)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("device", "a device"),
        ("pipe", "a pipe"),
        ("folder", "a folder"),
        ("socket", "a socket"),
        ("circle", "cannot be read"),
        ("nothing", "no such file"),
    ],
)
def test_what_is_no_plain_file(kind, reason, tmp_path):
    path, start = odd(kind, tmp_path), time.monotonic()
    for read in (open_regular, read_bytes, read_text):
        with pytest.raises(LqError, match=f"odd: {reason}") as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - start < 1


def test_a_file_may_be_so_large(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert len(read_bytes(path, 11)) == 11
    assert read_text(path) == "one\ntwo"
    with pytest.raises(LqError, match=r"file: 11 bytes, more than lqconvert reads \(10\)"):
        read_bytes(path, 10)
    path.write_bytes(b"\xff")
    with pytest.raises(LqError, match="not a text in UTF-8"):
        read_text(path)
    with pytest.raises(LqError, match="cannot be read"):
        read_bytes("a\0b")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="a file of Linux")
def test_a_file_that_says_that_it_is_empty():
    assert read_bytes("/proc/self/maps")
    with pytest.raises(LqError, match="more than lqconvert reads"):
        read_bytes("/proc/self/maps", 10)
