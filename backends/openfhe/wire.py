"""Puts coefficient words into OpenFHE objects and takes them out, without ever parsing bytes from outside.

If bytes are hostile, OpenFHE's parser crashes, allocates without bound or accepts nonsense. So only coefficients travel
between processes, as arrays of uint64 words. The receiver makes an object of the same kind itself, with a key pair of
no further use, serialises it, and replaces its words by those received, each checked to be less than its prime. Every
other byte that reaches the parser was written by this process.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

from olac.backends.openfhe.context import Prepared, make_context
from olac.backends.openfhe.library import load
from olac.backends.openfhe.words import Template, extract, template
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.errors import BackendError
from olac.system.forks import begin_use

TAG_PATTERN = re.compile(rb"[0-9a-f]{32}")


class Wire:
    """Words of ciphertexts and keys for one set of parameters; get the one of this process from `wire(parameters)`.

    Attributes:
        parameters, context: as given, and OpenFHE's context for them.
        length: words in a block.
        key_primes: the primes of one polynomial of an evaluation key.
        templates: by name, made when they are first needed.
        layouts: where blocks are in OpenFHE's bytes of evaluation keys, by their size and the number of blocks.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.context = make_context(parameters)
        self.length = parameters.ring_dimension
        self.key_primes = parameters.primes + parameters.special_primes
        self._fhe = load()
        self.templates: dict[str, Template] = {}
        self.layouts: dict[tuple[int, int], tuple[int, ...]] = {}
        # So that threads do not make the same object twice. A thread that holds it waits for no other lock.
        self._lock = threading.RLock()
        self._spare: Any = None

    def automorphism_index(self, step: int) -> int:
        """Where OpenFHE's maps hold the key of a rotation step, or of conjugation (`conjugation_step`)."""
        if step == self.parameters.conjugation_step:
            return 2 * self.parameters.ring_dimension - 1
        index: int = self.context.FindAutomorphismIndex(step)
        return index

    # Ciphertexts -----------------------------------------------------------------------------------------------------

    def ciphertext_words(self, ciphertext: Any, level: int) -> Words:
        """The words, shape (2, level + 1, N), of a ciphertext at a level of olac's."""
        primes = self.parameters.primes[: level + 1]
        data = self._fhe.Serialize(ciphertext, self._fhe.BINARY)
        return extract(data, primes * 2, self.length).reshape(2, level + 1, self.length)

    def ciphertext(self, words: Words, level: int, tag: str) -> Any:
        """A ciphertext of noise degree 1 and its level's canonical scale; words of shape (2, level + 1, N)."""
        data = self._ciphertext_template(level).fill(words.reshape(-1, self.length), tag)
        parsed = self._fhe.DeserializeCiphertextString(data, self._fhe.BINARY)
        # Objects of the wheel's extension, and their clones, run code that was not compiled to be fast: a network
        # without bootstraps took twice as long. A sum is a clone of its first operand, so that is a ciphertext of the
        # library itself, with words of zero.
        encrypted = self._encrypted(level)
        zero = self.context.EvalSub(encrypted, encrypted)
        zero.SetKeyTag(tag)
        return self.context.EvalAdd(zero, parsed)

    def _encrypted(self, level: int) -> Any:
        """Zeros, encrypted at the canonical scale of a level."""
        plain = self.context.MakeCKKSPackedPlaintext([0.0] * self.parameters.slots, 1, self.parameters.depth - level)
        return self.context.Encrypt(self.spare, plain)

    def _ciphertext_template(self, level: int) -> Template:
        name = f"ciphertext {level}"
        if name in self.templates:
            return self.templates[name]
        with self._lock:
            data = self._fhe.Serialize(self._encrypted(level), self._fhe.BINARY)
            primes = self.parameters.primes[: level + 1] * 2
            self.templates[name] = template(data, primes, self.length, self.spare.GetKeyTag())
        return self.templates[name]

    # Secret keys -----------------------------------------------------------------------------------------------------

    def secret_key_words(self, key: Any) -> Words:
        """The words, shape (limbs, N), of a secret key."""
        return extract(self._fhe.Serialize(key, self._fhe.BINARY), self.parameters.primes, self.length)

    def secret_key(self, words: Words, tag: str) -> Any:
        """A secret key from words of shape (limbs, N)."""
        name = "secret key"
        if name not in self.templates:
            data = self._fhe.Serialize(self.spare, self._fhe.BINARY)
            self.templates[name] = template(data, self.parameters.primes, self.length, self.spare.GetKeyTag())
        return self._fhe.DeserializePrivateKeyString(self.templates[name].fill(words, tag), self._fhe.BINARY)

    # Public keys -----------------------------------------------------------------------------------------------------

    def public_key(self, words: Words, tag: str) -> Any:
        """A public key from the words, shape (2, limbs, N), of an encryption of zero under the secret key."""
        name = "public key"
        if name not in self.templates:
            key = self.context.KeyGen().publicKey
            data = self._fhe.Serialize(key, self._fhe.BINARY)
            self.templates[name] = template(data, self.parameters.primes * 2, self.length, key.GetKeyTag())
        data = self.templates[name].fill(words.reshape(-1, self.length), tag)
        return self._fhe.DeserializePublicKeyString(data, self._fhe.BINARY)

    # Evaluation keys -------------------------------------------------------------------------------------------------

    @property
    def evaluation_key_primes(self) -> tuple[int, ...]:
        """The primes of the blocks of one evaluation key: 2 polynomials for each digit."""
        return self.key_primes * (2 * self.parameters.digits)

    @property
    def special_indices(self) -> tuple[int, int, int]:
        """The automorphism indices of the keys into the sparser secret, back from it, and of conjugation.

        No rotation has one of these.
        """
        order = 2 * self.parameters.ring_dimension
        return order - 4, order - 2, order - 1

    def special_key_primes(self, index: int) -> tuple[int, ...]:
        """The primes of the blocks of a key with a special index."""
        short = index == self.special_indices[0]
        return self.parameters.encapsulation_primes * 2 if short else self.evaluation_key_primes

    # Bootstraps and templates ----------------------------------------------------------------------------------------

    def prepare_bootstraps(self) -> Prepared:
        """See `Prepared`."""
        return Prepared(self.context, self.parameters)

    @property
    def spare(self) -> Any:
        """A secret key that protects nothing, with which templates are made."""
        with self._lock:
            if self._spare is None:
                key = self.context.KeyGen().secretKey
                if TAG_PATTERN.fullmatch(key.GetKeyTag().encode()) is None:
                    raise BackendError(f"OpenFHE gave the key tag {key.GetKeyTag()!r}, expected 32 hexadecimal digits")
                self._spare = key
            return self._spare


def wire(parameters: Parameters) -> Wire:
    """The wire of this process for these parameters.

    Raises:
        ForkError: the process was forked after OpenFHE was used.
    """
    begin_use()
    with _LOCK:
        return _wire(parameters)


_LOCK = threading.Lock()
_wire = functools.lru_cache(maxsize=4)(Wire)
