"""Access to arrays that a kernel knows by address alone, as the keys of many rotations are.

Nothing checks an address or an index: who calls such a kernel keeps the arrays alive and has compared their sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from olac.backends.vector.compiled import missing, numba
from olac.errors import BackendError

if TYPE_CHECKING or numba is None:

    def load8(address: Any, index: Any) -> Any:
        """Elements index ... index + 7 of an array of int8, as doubles."""
        raise BackendError(missing)

    def load16(address: Any, index: Any) -> Any:
        """The same of int16."""
        raise BackendError(missing)

    def load32(address: Any, index: Any) -> Any:
        """The same of int32."""
        raise BackendError(missing)

    def load64(address: Any, index: Any) -> Any:
        """The same of float64."""
        raise BackendError(missing)

    def int_at(address: Any, index: Any) -> Any:
        """One element of an array of int32."""
        raise BackendError(missing)

    def gather(array: Any, at: Any, address: Any, index: Any) -> Any:
        """Elements at + order[index], ... at + order[index + 7] of an array of float64, for int32 at an address."""
        raise BackendError(missing)

else:
    from olac.backends.vector.addresses_llvm import (
        gather,
        int_at,
        load8,
        load16,
        load32,
        load64,
    )

__all__ = ["gather", "int_at", "load8", "load16", "load32", "load64"]
