from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from olac.backends.vector import compiled
from tests.backends.vector.example import NAME, Example


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_are_compiled_for_the_declared_types(example: Example) -> None:
    module = example.fresh()
    assert list(compiled.KERNELS) == [f"{NAME}.{name}" for name in ("products", "total", "scale", "twice")]
    assert not module.products.signatures  # nothing is compiled before the first call
    out = np.zeros(4)
    module.products(np.ones(4), out, 0, 4)
    assert len(module.products.signatures) == 2
    with pytest.raises(TypeError, match="No matching definition"):
        module.products(np.ones(4, dtype=np.float32), out, 0, 4)
    with pytest.raises(TypeError, match="No matching definition"):
        module.total(np.ones(8)[::2])
    assert len(module.total.signatures) == 1


def test_a_kernel_that_others_call_is_compiled_for_the_declared_types_alone(example: Example) -> None:
    module = example.fresh()
    module.twice(np.ones((2, 2)), 1.0)
    assert [str(types) for types in module.scale.signatures] == [str(types) for types in module.twice.signatures]


def test_fma_has_one_rounding(example: Example) -> None:
    module = example.fresh()
    rng = np.random.default_rng(0)
    a = rng.integers(1 << 52, 1 << 53, size=1000).astype(np.float64)
    out = np.zeros(1000)
    module.products(a, out, 0, 1000)
    exact = [int(x) * int(x) - int(x * x) for x in a]
    assert [int(x) for x in out] == exact and any(exact)


def test_sums_keep_their_order(example: Example) -> None:
    module = example.fresh()
    values = np.array([1e17, 1.0, 1.0, 1.0, 1.0, -1e17, 1.0, 1.0])
    expected = 0.0
    for value in values:
        expected += float(value)
    assert module.total(values) == expected == 2.0


def test_kernels_use_the_widest_vectors(example: Example) -> None:
    module = example.fresh()
    module.scale.ready()
    features = compiled.store().environment["features"].split(",")
    (text,) = module.scale.inspect_asm().values()
    if "+avx512f" in features:
        assert re.search(r"vfmadd\w*pd[^\n]*zmm", text)
    elif "+fma" in features:
        assert re.search(r"vfmadd\w*pd[^\n]*ymm", text)
    else:
        pytest.skip("no such vectors here")
    example.edit(
        '@kernel("void(f8[:, ::1], f8)")\ndef scale(a, by):\n    wide()\n',
        '@kernel("void(f8[:, ::1], f8)")\ndef scale(a, by):\n',
    )
    module = example.fresh()
    module.scale.ready()
    (text,) = module.scale.inspect_asm().values()
    assert "ymm" in text  # numba compiles for no less if it is not asked


def test_kernels_release_the_lock_of_python(example: Example) -> None:
    module = example.fresh()
    for made in compiled.KERNELS.values():
        assert made.targetoptions["nogil"] and not made.targetoptions.get("fastmath")
    assert module.low.targetoptions["nogil"]


def test_kernels_have_to_be_told_apart() -> None:
    def local(x: float) -> float:
        return x

    with pytest.raises(TypeError, match="not a function of a module"):
        compiled.kernel("f8(f8)")(local)
    with pytest.raises(TypeError, match="needs the types"):
        compiled.kernel()


def test_a_kernel_that_cannot_be_kept_is_a_mistake(example: Example) -> None:
    example.edit("@inline", "TABLE = np.arange(1 << 17).astype(np.float64)\n\n@inline")
    example.edit("    s = 0.0\n", "    s = TABLE[a.shape[0]]\n")
    module = example.fresh()
    with pytest.raises(TypeError, match="total can't be kept"):
        module.total(np.ones(3))


INSTALL = "numba is not installed (pip install 'olac[vector]')"
WITHOUT = """
    import sys
    sys.modules["numba"] = None
    sys.modules["llvmlite"] = None
    from olac.backends.vector import available, compiled
    from olac.backends.vector.compiled import fma, inline, kernel, known_answer, wide
    from olac.errors import BackendError

    @inline
    def twice(x):
        return 2.0 * x

    @kernel("f8(f8)")
    def f(x: float) -> float:
        wide()
        return fma(twice(x), 1.0, 0.0)

    assert twice(1.0) == 2.0
    for call in (lambda: f(1.0), lambda: fma(1.0, 1.0, 1.0), wide):
        try:
            call()
        except BackendError as error:
            assert "pip install 'olac[vector]'" in str(error), error
        else:
            raise AssertionError("no error")
    print(available.obstacle(), "|", available.why_unavailable())
"""


def test_without_numba_modules_can_be_imported() -> None:
    done = child(WITHOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{INSTALL} | {INSTALL}\n"


def test_numba_that_is_told_not_to_compile() -> None:
    done = child("from olac.backends.vector import available; print(available.obstacle())", NUMBA_DISABLE_JIT="1")
    assert done.stdout == "NUMBA_DISABLE_JIT is set\n", done.stderr


def test_olac_itself_does_not_import_numba() -> None:
    done = child("import sys, olac, olac.cli, olac.runtime; print('numba' in sys.modules)")
    assert done.stdout == "False\n", done.stderr
