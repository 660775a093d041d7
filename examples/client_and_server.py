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
# # Client and server as two processes
#
# The client is this process. The server is a process of its own: `olac run` in another folder. They share files only,
# and the secret key is never in the server's folder. docs/tutorials/two-machines.md explains each step.

# %%
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import olac
from olac.runtime import EncryptedResult

place = Path(tempfile.mkdtemp(prefix="olac-example-"))
server_folder, client_folder = place / "server", place / "client"
server_folder.mkdir()
client_folder.mkdir()

# %% [markdown]
# ## The owner of the model compiles it
#
# The server gets the program. The client gets a description without weights.

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
program = olac.compile(model, torch.rand(256, 1, 8, 8).split(64))
program.save(server_folder / "model.olac")
program.client().save(client_folder / "model.json")

# %% [markdown]
# ## The client makes keys and encrypts

# %%
description = olac.ClientProgram.load(client_folder / "model.json")
client = olac.Client(description)
client.generate_keys().save(server_folder / "evaluation.keys")
client.save_secret_key(client_folder / "secret.key")

pictures = np.random.default_rng(0).random((4, 1, 8, 8))
encrypted = client.encrypt(pictures)
encrypted.save(server_folder / "input.olac")

# %% [markdown]
# ## The server runs the program
#
# It is another process, which sees its own folder: no picture and no secret key are in it.

# %%
assert not list(server_folder.rglob("secret.key"))
subprocess.run(
    ["olac", "run", "model.olac", "evaluation.keys", "input.olac", "result.olac"], cwd=server_folder, check=True
)

# %% [markdown]
# ## The client decrypts

# %%
result = EncryptedResult.load(description, server_folder / "result.olac")
outputs = client.decrypt(result, of=encrypted)
with torch.no_grad():
    expected = model(torch.tensor(pictures).float()).numpy()
print(f"largest difference from the network: {np.abs(outputs - expected).max():.4f}")
assert np.abs(outputs - expected).max() < 0.1
