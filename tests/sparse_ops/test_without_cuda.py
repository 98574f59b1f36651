"""On a machine without a CUDA device: code is made for one, and what would run it says what is missing."""

import subprocess
import sys

SCRIPT = """
import numpy as np, torch, tvm
from sparse_ops import devices
from sparse_ops.build import build
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)
    def forward(self, x):
        return torch.softmax(self.layer(x), -1)

x = torch.ones(3, 8)
made = port_component(Network(), (x,), "network", target=devices.parse_target("cuda:sm_90"), precision="float16")
folder = made.save("artifact")
for call in (lambda: made(x), lambda: Component.load(folder), lambda: devices.parse_target("cuda")):
    try:
        call()
    except ValueError as error:
        print(str(error).replace(str(folder), "artifact"))
"""


def test_code_for_a_device_is_made_and_not_run(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert not done.returncode, done.stderr
    run, load, target = done.stdout.splitlines()
    missing = "expected a CUDA device, given a machine on which TVM finds no CUDA"
    assert "made for the target" in run and f"and this machine has no such device: device: {missing}" in run
    assert "manifest.json: made for the target" in load and missing in load
    assert target.startswith(f"device: {missing}: it needs NVIDIA's driver")
