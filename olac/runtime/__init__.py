"""Running compiled programs: the client's side and the server's."""

from olac.runtime.client import Client
from olac.runtime.encryptor import Encryptor, PublicKey
from olac.runtime.estimates import Forecast, forecast
from olac.runtime.key_parts import KeyFolder, load_keys, save_parts
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys
from olac.runtime.server import Progress, Server

__all__ = [
    "Client",
    "EncryptedInput",
    "EncryptedResult",
    "Encryptor",
    "EvaluationKeys",
    "Forecast",
    "KeyFolder",
    "Progress",
    "PublicKey",
    "Server",
    "forecast",
    "load_keys",
    "save_parts",
]
