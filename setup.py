"""The native core; everything else about the package is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

LIMITED_API = "0x030B0000"  # Python 3.11: the first stable ABI with the buffer protocol

setup(
    ext_modules=[
        Extension(
            "embridge.allocator._core",
            sources=sorted(glob("allocator/_core*.c")),
            depends=sorted(glob("allocator/*.h") + glob("allocator/native/*.h")),
            define_macros=[("Py_LIMITED_API", LIMITED_API)],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
