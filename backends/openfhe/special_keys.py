"""The keys that only bootstraps use, which OpenFHE makes together with rotation keys and never alone."""

from __future__ import annotations

from typing import Any

from olac.backends.openfhe.context import chain_of, make_small_context, set_up_bootstrapping
from olac.backends.openfhe.key_maps import KEY_MAPS, others_aside
from olac.backends.openfhe.library import load
from olac.backends.openfhe.memory_files import MemoryFile
from olac.backends.openfhe.wire import TAG_PATTERN, Wire
from olac.backends.openfhe.words import Template, new_tag, template
from olac.errors import BackendError


def make_bootstrap_keys(ready: Wire, context: Any, key: Any, tag: str) -> int:
    """Make the special keys of a secret key of the context, and as few rotation keys as possible, under a tag.

    Only within `others_aside`. Returns the number of slots of the set-up that they were made for.
    """
    # Half of the slots and a level for each layer: of all set-ups this has the fewest rotations. A quarter if the
    # program's bootstraps have half, because their set-up would be replaced.
    log_slots = ready.parameters.log_ring - 2
    log_slots -= log_slots == ready.parameters.log_bootstrap_slots
    half = 1 << log_slots
    set_up_bootstrapping(context, ready.parameters, precompute=False, slots=half, budget=(log_slots, log_slots))
    own = key.GetKeyTag()
    key.SetKeyTag(tag)
    try:
        context.EvalBootstrapKeyGen(key, half)
    finally:
        key.SetKeyTag(own)
    return half


def special_template(ready: Wire) -> Template:
    """Of an EvalKeyMap with the key into the sparser secret."""
    name, index = "special key", ready.special_indices[0]
    if name in ready.templates:
        return ready.templates[name]
    with KEY_MAPS.changing():
        if name in ready.templates:  # another thread made it in the meantime
            return ready.templates[name]
        # The basis of this key is q_0 and two primes that the ring decides, whatever the levels are.
        context = make_small_context(ready.parameters)
        if chain_of(context) == ready.parameters.primes[:1]:
            data = _picked(ready, context, context.KeyGen().secretKey, index)
        else:
            data = _picked(ready, ready.context, ready.spare, index)
        # The sparser secret has a tag of its own.
        (tag,) = set(TAG_PATTERN.findall(data))
        ready.templates[name] = template(data, ready.special_key_primes(index), ready.length, tag.decode())
    return ready.templates[name]


def _picked(ready: Wire, context: Any, key: Any, index: int) -> bytes:
    """Bytes of an EvalKeyMap with one special key, which OpenFHE picks only from a file that it wrote itself."""
    fhe, tag = load(), new_tag()
    container = fhe.CryptoContext
    with others_aside(), MemoryFile() as file:
        slots = make_bootstrap_keys(ready, context, key, tag)
        if not fhe.SerializeEvalBootstrapKey(file.path, fhe.BINARY, context, tag, slots):
            raise BackendError(f"OpenFHE can't write {file.path}")
        container.ClearEvalAutomorphismKeys()
        if not fhe.DeserializeEvalBootstrapKey(file.path, fhe.BINARY, tag, [index]):
            raise BackendError(f"OpenFHE can't read {file.path}")
        data: bytes = fhe.Serialize(container.GetEvalAutomorphismKeyMap(tag), fhe.BINARY)
    return data
