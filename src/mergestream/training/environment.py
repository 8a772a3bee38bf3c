"""Where Lightning learns which process this is; left to itself, it would guess, and differently from `processes`."""

from __future__ import annotations

import os
import socket

import torch
from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment

from mergestream.runtime import processes
from mergestream.runtime.errors import AgreedError

FIRST_PORT, PORTS = 10007, 20011  # below the ports that a system gives to connections of its own


class OneDeviceEach(ClusterEnvironment):
    """The placement of this process for Lightning, to which every process is a node with one device.

    So the processes may be spread over the nodes unevenly, and each may see one GPU alone or those of its neighbours.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return processes.placement().size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return processes.placement().rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return processes.placement().rank


def meeting_point() -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT for the processes of srun, which sets neither.

    Each step has a port of its own, since two steps of a job may run at the same time.
    """
    env = os.environ
    here = processes.placement()
    nodes = env.get("SLURM_STEP_NODELIST", "")
    alone = here.local_size == here.size
    address = "127.0.0.1" if alone else SLURMEnvironment.resolve_root_node_address(nodes)
    step = 7919 * int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0))
    known = {name: env[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in env}
    return {"MASTER_ADDR": address, "MASTER_PORT": str(FIRST_PORT + step % PORTS), **known}


def require_own_devices(device: torch.device) -> None:
    """Check that no two processes compute on the same GPU.

    Raises:
        AgreedError: if two do.
    """
    if device.type != "cuda" or not processes.grouped():
        return
    # Some launchers show every process the same GPU, and then NCCL fails without saying why.
    own = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
    found = processes.gathered(own)
    if len(set(found)) < len(found):
        node = str(next(name for name in found if found.count(name) > 1)).split()[0]
        raise AgreedError(
            f"every process needs a GPU of its own; several on {node} see the same one. Start one for each "
            "GPU (srun --gpus-per-task=1), or write accelerator=cpu."
        )
