from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from olac.backends.vector import compiled, kernel_cache
from olac.backends.vector.kernel_cache import sources_digest
from tests.backends.vector.example import NAME, Example


def use(example: Example) -> int:
    """Compile or load all kernels of a new process, check one result, and say how many were compiled."""
    module = example.fresh()
    for made in compiled.KERNELS.values():
        made.ready()
    a = np.ones((2, 8))
    module.twice(a, 3.0)
    assert np.all(a == 13.0)
    return compiled.store().compiled


pytestmark = pytest.mark.filterwarnings("error")

KERNELS = 5  # lists of types in the example


def test_kernels_are_compiled_once(example: Example) -> None:
    assert use(example) == KERNELS
    assert len(example.files()) == KERNELS
    assert use(example) == 0
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in example.files())


def test_two_processes_at_once(example: Example) -> None:
    first, second = example.fresh(), example.fresh()
    for module in (first, second):
        for name in ("products", "total", "scale", "twice"):
            getattr(module, name).ready()
    assert use(example) == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_kernel_is_compiled_anew(example: Example, damage: str) -> None:
    use(example)
    (path,) = (path for path in example.files() if path.name.startswith("example.scale"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    changed = bytes(data)
    path.write_bytes({"flipped": changed, "cut": changed[:100], "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"compiled anew: .*example\.scale.*damaged") as caught:
        assert use(example) == 1
    assert len(caught) == 1
    assert use(example) == 0  # it was replaced


def test_a_pickle_of_somebody_else_is_not_loaded(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(example)
    loaded: list[bytes] = []
    monkeypatch.setattr(pickle, "loads", lambda data: loaded.append(data))
    for path in example.files():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="damaged"):
        use(example)
    assert not loaded


def test_a_file_under_the_name_of_another(example: Example) -> None:
    use(example)
    products, other = (path for path in example.files() if path.name.startswith("example.products"))
    other.write_bytes(products.read_bytes())  # undamaged, but for other types
    assert use(example) == 1


def test_contents_that_cannot_be_loaded(example: Example) -> None:
    use(example)
    store = compiled.store()
    path = example.files()[0]
    found = store.files.read(path.name)
    assert found is not None
    store.files.write(path.name, found[0], b"no pickle")
    with pytest.warns(UserWarning, match="can't be loaded"):
        assert use(example) == 1


@pytest.mark.parametrize("what", ["numba", "features"])
def test_other_releases_and_cpus(
    example: Example, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(example)
    usual = kernel_cache.KernelStore._environment
    monkeypatch.setattr(kernel_cache.KernelStore, "_environment", lambda self: {**usual(self), what: "other"})
    with caplog.at_level("INFO"):
        assert use(example) == KERNELS
    assert len([record for record in caplog.records if "compiling kernels for" in record.getMessage()]) == 1
    assert "do not fit" in caplog.text
    assert use(example) == 0
    monkeypatch.setattr(kernel_cache.KernelStore, "_environment", usual)
    assert use(example) == 0  # the others are still there: homes are shared between machines


def test_options_of_numba_that_change_the_code(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    use(example)
    monkeypatch.setattr(compiled.numba.config, "BOUNDSCHECK", 1)
    assert use(example) == KERNELS


def test_sources_that_changed(example: Example) -> None:
    use(example)
    example.edit("fma(a[i, j], by, 1.0)", "fma(a[i, j], by, 1.0) + 0.0")
    assert use(example) == KERNELS
    assert len(example.files()) == KERNELS  # the old ones were replaced
    assert use(example) == 0


def test_sources_of_modules_that_are_imported_count(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    example.fresh()
    sources_digest.cache_clear()
    before = sources_digest(NAME)
    texts = {name: kernel_cache._source(name) for name in ("olac.errors", "olac.backends.vector.compiled")}
    assert all(texts.values())
    usual = kernel_cache._source

    def change(module: str) -> None:
        monkeypatch.setattr(kernel_cache, "_source", lambda name: (usual(name) or "") + (" " if name == module else ""))
        sources_digest.cache_clear()

    for module in texts:
        change(module)
        assert sources_digest(NAME) != before
    change("olac.cli")
    assert sources_digest(NAME) == before  # it is not imported


def test_imports_by_relative_names(example: Example) -> None:
    example.fresh()
    source = "from . import team\nfrom .ring import Ring\nfrom ..session import Engine\nimport numpy"
    found = kernel_cache._imports(NAME, source)
    assert "olac.backends.vector.team" in found and "olac.backends.session" in found
    assert all(name.startswith("olac.") for name in found)


def test_no_folder_can_be_written(example: Example, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept, so each process compiles them anew") as caught:
        assert use(example) == KERNELS
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="not kept"):
        assert use(example) == KERNELS


def test_a_folder_of_another_user(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    use(example)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert use(example) == KERNELS


def test_sources_that_cannot_be_read(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "_source", lambda name: None)
    with pytest.warns(UserWarning, match="source of .* can't be read"):
        assert use(example) == KERNELS
    assert not example.files()


def test_a_source_that_was_edited_after_it_was_imported(example: Example) -> None:
    module = example.fresh()
    example.edit("by, 1.0", "by, 2.0")
    module.scale.ready()  # compiled from what was imported
    example.edit("by, 2.0", "by, 1.0")
    assert use(example) == KERNELS - 1
    example.edit("by, 1.0", "by, 2.0")
    module = example.fresh()
    a = np.ones((1, 1))
    module.scale(a, 3.0)
    assert a[0, 0] == 5.0
