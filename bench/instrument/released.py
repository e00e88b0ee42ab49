"""The authors' released code, in the same phases as ours: STORM_RELEASED=DIR names a checkout of it.

Nothing of it is kept here. On a GPU it runs as it is; on a CPU from a copy in a temporary folder, in which what says
"cuda" says "cpu" and the gradient scaler, which CPUs lack and bf16 does not need, is off. Each call runs under the
settings that its train.py makes for its process, which are not ours. It needs einops, yacs and tensorboardX.
"""

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SETTINGS = (  # train.py 216, 217; seed_np_torch in utils.py
    (torch.backends.cuda.matmul, "fp32_precision", "tf32"),  # its allow_tf32, whose getter refuses settings as ours
    (torch.backends.cudnn.conv, "fp32_precision", "tf32"),  # type: ignore[attr-defined]  # made at run time
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "benchmark", False),
)
_ON_CPU = (
    ('"cuda"', '"cpu"'),
    ("'cuda'", "'cpu'"),
    (".cuda()", ".cpu()"),
    ("GradScaler(enabled=self.use_amp)", "GradScaler(enabled=False)"),
)


def why_absent() -> str | None:
    """What keeps the released code from being measured; None where nothing does."""
    folder = os.environ.get("STORM_RELEASED")
    if folder is None:
        return "STORM_RELEASED names no checkout"
    if not (Path(folder) / "sub_models" / "world_models.py").is_file():
        return f"STORM_RELEASED={folder} is no checkout of it"
    missing = [name for name in ("einops", "yacs", "tensorboardX") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


@contextmanager
def as_it_runs() -> Iterator[None]:
    """Torch's settings as the released code makes them; ours again at the end."""
    before = [getattr(where, name) for where, name, _ in _SETTINGS]
    for where, name, value in _SETTINGS:
        setattr(where, name, value)
    try:
        yield
    finally:
        for (where, name, _), value in zip(_SETTINGS, before, strict=True):
            setattr(where, name, value)


@cache
def _importable(device: torch.device) -> str:
    """The folder to import it from; a copy is deleted when the process ends."""
    source = Path(os.environ["STORM_RELEASED"])
    if device.type == "cuda":
        return str(source)
    copy = Path(tempfile.mkdtemp(prefix="storm-released-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(source, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    for file in copy.rglob("*.py"):
        text = file.read_text()
        for cuda, cpu in _ON_CPU:
            text = text.replace(cuda, cpu)
        file.write_text(text)
    return str(copy)


class Released:
    """Its world model, agent and replay at full size, as its configuration file has them."""

    def __init__(self, device: torch.device, num_actions: int, dtype: torch.dtype, seed: int = 0) -> None:
        """Build it. `dtype` is of its autocast: bfloat16 as released, or float32, without."""
        sys.path.insert(0, _importable(device))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                agents = importlib.import_module("agents")
                world_models = importlib.import_module("sub_models.world_models")
                replay_buffer = importlib.import_module("replay_buffer")
                torch.manual_seed(seed)
                self.world_model = world_models.WorldModel(3, num_actions, 64, 512, 2, 8).to(device)
                self.actor_critic = agents.ActorCriticAgent(1536, 2, 512, num_actions, 0.985, 0.95, 3e-4).to(device)
        finally:
            sys.path.pop(0)
        for module in (self.world_model, self.actor_critic):
            module.use_amp = dtype == torch.bfloat16
            module.tensor_dtype = dtype
        self.replay = replay_buffer.ReplayBuffer((64, 64, 3), 1, 2000, 0, store_on_gpu=True)
        self.device = device
        self.context_obs: list[Any] = []
        self.context_action: list[Any] = []
        self.obs_NYXP = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
        names = ("act", "append", "model", "imagine", "agent")
        self.calls = {name: as_it_runs()(getattr(self, name)) for name in names}
        for _ in range(200):
            self.append()
        for _ in range(16):
            self.remember(np.zeros(1))

    @torch.no_grad()
    def act(self) -> None:
        """One action from 16 frames."""
        self.world_model.eval()
        self.actor_critic.eval()
        z_11Z, h_11D = self.world_model.calc_last_dist_feat(
            self.world_model.encode_obs(torch.cat(self.context_obs, dim=1)),
            torch.Tensor(np.stack(self.context_action, axis=1)).to(self.device),
        )
        self.remember(self.actor_critic.sample_as_env_action(torch.cat([z_11Z, h_11D], dim=-1)))

    def remember(self, action_N: Any) -> None:
        """Keep the newest 16 frames and actions."""
        frame = torch.Tensor(self.obs_NYXP).to(self.device).permute(0, 3, 1, 2)[:, None] / 255
        self.context_obs = [*self.context_obs, frame][-16:]
        self.context_action = [*self.context_action, action_N][-16:]

    def append(self) -> None:
        """One step into the replay."""
        zero = np.zeros(1, np.float32)
        self.replay.append(self.obs_NYXP, zero, zero, zero)

    def model(self) -> None:
        """One world-model update on 16 x 64, its metrics read as its logger reads them."""
        self.world_model.update(*self.replay.sample(16, 0, 64), logger=_Logger())

    @torch.no_grad()
    def imagine(self) -> None:
        """One rollout of 1024 x (8 + 16)."""
        self.world_model.eval()
        self.actor_critic.eval()
        obs, action, _, _ = self.replay.sample(1024, 0, 8)
        self.trajectory = self.world_model.imagine_data(self.actor_critic, obs, action, 1024, 16, False, None)

    def agent(self) -> None:
        """One agent update on that rollout."""
        latent, action, reward, end = self.trajectory
        self.actor_critic.update(latent, action, None, None, reward, end, logger=_Logger())


class _Logger:
    """Takes what is logged and drops it; the reads from the device have been made."""

    def log(self, tag: str, value: Any) -> None:
        """Nothing."""
