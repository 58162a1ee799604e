"""Makes the shipped images of the gate from gate.cu: run it after any change of that file, and commit what it writes.

    pip install --target A nvidia-cuda-nvrtc-cu11==11.8.89
    pip install --target B "nvidia-cuda-nvrtc==13.0.*"
    python -m zpipe.executors.cuda.compile A/nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2 B/nvidia/cu13/lib/libnvrtc.so.13

It needs no GPU and no toolkit: NVRTC makes cubins, too. Each image is of the oldest of these compilers that knows the device, since
a cubin runs on the drivers that came after its compiler, not on those of an earlier major version, and PTX on later drivers only.
11.8 knows all up to 9.0, with 7.2 (JetPack 5); 13.0 is the first that knows 11.0.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from zpipe.executors.cuda.images import FOLDER, MANIFEST, SOURCE, Image, source_digest

#: Volta's and Turing's, Ampere's, Ada's, Hopper's, Blackwell's: boards (7.2, 8.7, 11.0), cards and servers.
CAPABILITIES = ((7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))

#: The least that TensorRT for RTX runs on is also the least that later compilers know.
PTX_CAPABILITY = (7, 5)

#: IEEE division and subnormals are NVRTC's defaults, said once more because the codecs' bytes hang on them; fused multiply-add
#: would round once where NumPy rounds twice.
OPTIONS = ("--fmad=false", "--prec-div=true", "--ftz=false", "--std=c++14", "--ptxas-options=-v")

# What the assembler says of each kernel, and of each function it did not inline.
_REGISTERS = re.compile(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", re.DOTALL)
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")


class Nvrtc:
    """One version of NVIDIA's run-time compiler.

    Attributes:
        version: as `Driver.version` counts.
        capabilities: those it compiles for.
    """

    def __init__(self, path: str) -> None:
        for builtins in Path(path).parent.glob("libnvrtc-builtins.so*"):  # it opens them by name, wherever the loader looks
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(path)
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = 1000 * major.value + 10 * minor.value
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.capabilities = {divmod(number, 10) for number in known}

    def compile(self, capability: tuple[int, int], *, ptx: bool) -> tuple[bytes, str]:
        """(code, what the compiler says of it)."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None)
        target = "--gpu-architecture={}_{}{}".format("compute" if ptx else "sm", *capability)
        options = [option.encode() for option in (target, *OPTIONS)]
        try:
            self._call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        except OSError as exc:
            raise OSError(f"{exc}: {self._text(program, 'ProgramLog').decode()}") from exc
        code = self._text(program, "PTX" if ptx else "CUBIN")
        log = self._text(program, "ProgramLog").decode()
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        return code, log

    def _text(self, program: ctypes.c_void_p, kind: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{kind}", program, text)
        return text.raw if kind == "CUBIN" else text.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise OSError(f"{function}: found NVRTC's error {code}, expected 0")


def main(libraries: Sequence[str]) -> None:
    """Compile with the oldest of these libraries that knows a device, and write images and manifest.

    Raises:
        OSError: a library is not there, or does not compile the source.
        LookupError: none of them knows a device.
    """
    compilers = sorted(map(Nvrtc, libraries), key=lambda each: each.version)
    for stale in FOLDER.glob("*.z"):
        stale.unlink()
    images = [_image(compilers, capability, ptx=False) for capability in CAPABILITIES]
    images.append(_image(compilers, PTX_CAPABILITY, ptx=True))
    said = ",\n".join("    " + json.dumps(image._asdict()) for image in images)
    MANIFEST.write_text(f'{{\n  "source": "{source_digest()}",\n  "images": [\n{said}\n  ]\n}}\n')


def _image(compilers: Sequence[Nvrtc], capability: tuple[int, int], *, ptx: bool) -> Image:
    compiler = next((each for each in compilers if capability in each.capabilities), None)
    if compiler is None:
        raise LookupError(f"found no NVRTC for compute capability {capability}, expected 11.8 and 13.0")
    code, log = compiler.compile(capability, ptx=ptx)
    file = "gate-{}{}.{}.z".format(*capability, "ptx" if ptx else "cubin")
    (FOLDER / file).write_bytes(zlib.compress(code, 9))
    registers = {kernel: int(count) for kernel, count in _REGISTERS.findall(log)}
    return Image(file, ptx, capability, compiler.version, registers, sum(map(int, _SPILLS.findall(log))))


if __name__ == "__main__":
    main(sys.argv[1:])
