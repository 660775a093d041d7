# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A server over HTTP
#
# `olac serve` runs as a process of its own and keeps programs, keys and jobs of many clients. The client here is this
# process, with `olac.RemoteServer`. It needs `pip install 'olac[serve]'`. docs/serving.md has all options.

# %%
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import nn

import olac
from olac.runtime import save_parts

place = Path(tempfile.mkdtemp(prefix="olac-example-"))
with socket.socket() as free:  # a port that nobody uses
    free.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{free.getsockname()[1]}"

# %% [markdown]
# ## The server publishes a program and starts

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
olac.compile(model, torch.rand(256, 1, 8, 8).split(64)).save(place / "model.olac")
subprocess.run(["olac", "publish", "model.olac", "published"], cwd=place, check=True)
server_process = subprocess.Popen(
    ["olac", "serve", "--data", "published", "--memory", "2GB", "--port", address.rsplit(":", 1)[1]],
    cwd=place,
    stderr=subprocess.DEVNULL,
)

# %% [markdown]
# ## The client waits for the server, sends its keys, and asks

# %%
try:
    for _ in range(600):
        try:
            urllib.request.urlopen(address + "/healthz", timeout=5).close()
            break
        except OSError:
            assert server_process.poll() is None, "the server ended"
            time.sleep(0.1)

    server = olac.RemoteServer(address, "model")
    client = olac.Client(server.program)  # a description, without weights
    server.upload_keys(save_parts(client.generate_keys(), place / "keys"))
    pictures = np.random.default_rng(0).random((4, 1, 8, 8))
    encrypted = client.encrypt(pictures)
    outputs = client.decrypt(server.run(encrypted), of=encrypted)
finally:
    server_process.terminate()
    server_process.wait()

with torch.no_grad():
    expected = model(torch.tensor(pictures).float()).numpy()
print(f"largest difference from the network: {np.abs(outputs - expected).max():.4f}")
assert np.abs(outputs - expected).max() < 0.1
