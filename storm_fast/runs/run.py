"""The run folder: configuration, metrics, episodes, checkpoints. Everything a run leaves behind, and how it resumes.

    config.json  env.json  metrics.jsonl  episodes.jsonl  tensorboard/  demonstration.npz (if there is one)
    replay/<first>-<end>.npz     rows of the replay, each written once, by the checkpoint that came after them; kept
                                 while a checkpoint that can be resumed needs them
    ckpt/<step>/model.safetensors  state.pt  manifest.json     complete or absent: written aside, then renamed
    eval/<step>.json

The manifest holds the SHA-256 of every file a checkpoint needs; reading verifies it. `model.safetensors` is kept
for every checkpoint, `state.pt` (optimisers, random numbers, emulators) for the newest two.
"""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from storm_fast.config import Config, from_dict, to_dict
from storm_fast.errors import InputError
from storm_fast.runs.environment import environment

STATES_KEPT = 2


class Run:
    """One run folder, open for reading and writing."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self._saved_rows = 0  # replay rows that chunks on disk hold
        self._chunks: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, config: Config) -> "Run":
        """Make a new folder. Raises InputError where one exists."""
        check_free(path)
        for name in ("ckpt", "replay", "eval"):
            (path / name).mkdir(parents=True)
        _write(path / "config.json", _json(to_dict(config)))
        _write(path / "env.json", _json(environment()))
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing folder. Raises InputError where it is no run."""
        file = path / "config.json"
        if not file.is_file() or not (path / "ckpt").is_dir():
            raise InputError(f"want a run folder, with config.json and ckpt/; {path} is none")
        try:
            return cls(path, from_dict(json.loads(file.read_text())))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise InputError(f"want a readable {file}; {error}") from error

    def save_config(self) -> None:
        """Write the configuration again: a resumed run may have changed how long it is, and the like."""
        _write(self.path / "config.json", _json(to_dict(self.config)))

    def checkpoints(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(int(p.name) for p in (self.path / "ckpt").iterdir() if p.name.isdigit())

    @property
    def is_finished(self) -> bool:
        """Whether there is a checkpoint of the run's last step."""
        return max(self.checkpoints(), default=-1) >= self.config.steps

    def save_weights(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any] | None = None) -> None:
        """Write checkpoint `step`: weights and, to resume from, the state; complete or not at all."""
        final = self.path / "ckpt" / str(step)
        aside = final.with_name(f".{step}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(host, aside / "model.safetensors")
        if state is not None:
            torch.save(state, aside / "state.pt")
        files = {file.name: _digest(file) for file in sorted(aside.iterdir())}
        extra = self.path / "demonstration.npz"
        content = {"step": step, "files": files, "replay": self._chunks}
        content["demonstration"] = _digest(extra) if extra.exists() else None
        _write(aside / "manifest.json", _json({"sha256": _text_digest(content), "content": content}))
        for file in aside.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(final.parent)
        for old in self.checkpoints()[:-STATES_KEPT]:
            (self.path / "ckpt" / str(old) / "state.pt").unlink(missing_ok=True)
        self._drop_chunks()

    def save_replay_rows(self, first: int, rows: dict[str, Tensor]) -> None:
        """Write rows first, first + 1, ... of the replay as one compressed chunk."""
        count = len(rows["action"])
        if count == 0:
            return
        file = self.path / "replay" / f"{first}-{first + count}.npz"
        aside = file.with_name(f".{file.name}.tmp.npz")
        np.savez_compressed(aside, **{name: tensor.numpy() for name, tensor in rows.items()})  # type: ignore[arg-type]  # numpy's stub reads ** as allow_pickle
        _sync(aside)
        aside.rename(file)
        _sync(file.parent)
        self._chunks.append({"file": file.name, "first": first, "count": count, "sha256": _digest(file)})
        self._saved_rows = first + count

    def forget_replay_rows(self, first: int) -> None:
        """Leave chunks that end before row `first`, which the ring has overwritten, out of checkpoints from now on."""
        self._chunks = [chunk for chunk in self._chunks if chunk["first"] + chunk["count"] > first]

    def _drop_chunks(self) -> None:
        """Delete the chunks that no checkpoint needs from which this run can be resumed."""
        try:
            manifests = [self._manifest(step, only=()) for step in self.checkpoints()[-STATES_KEPT:]]
        except InputError:  # an older one is damaged: what it needs is not known, and nothing is lost by keeping it
            return
        needed = {chunk["file"] for manifest in manifests for chunk in manifest["replay"]}
        for file in (self.path / "replay").iterdir():
            if file.name not in needed:
                file.unlink()

    @property
    def saved_rows(self) -> int:
        """Replay rows that chunks on disk hold, counted from the run's start."""
        return self._saved_rows

    def load_weights(self, step: int) -> dict[str, Tensor]:
        """The verified weights of checkpoint `step`."""
        self._manifest(step, only=("model.safetensors",))
        return safetensors.torch.load_file(self.path / "ckpt" / str(step) / "model.safetensors")

    def load_state(self, step: int) -> tuple[dict[str, Any], list[tuple[int, dict[str, Tensor]]]]:
        """The verified state of checkpoint `step` and the chunks of its replay, in order, with their first rows."""
        manifest = self._manifest(step)
        if "state.pt" not in manifest["files"]:
            raise InputError(f"want a checkpoint to resume from; {step} in {self.path} holds weights alone")
        for chunk in manifest["replay"]:
            _verify(self.path / "replay" / chunk["file"], chunk["sha256"])
        state = torch.load(self.path / "ckpt" / str(step) / "state.pt", map_location="cpu", weights_only=True)
        chunks = []
        for chunk in manifest["replay"]:
            with np.load(self.path / "replay" / chunk["file"], allow_pickle=False) as file:
                chunks.append((chunk["first"], {name: torch.from_numpy(file[name]) for name in file}))
        self._chunks = manifest["replay"]
        self._saved_rows = max((c["first"] + c["count"] for c in self._chunks), default=0)
        return state, chunks

    def _manifest(self, step: int, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Read a checkpoint's manifest and verify its files."""
        folder = self.path / "ckpt" / str(step)
        if step not in self.checkpoints():
            have = ", ".join(map(str, self.checkpoints())) or "none"
            raise InputError(f"want a checkpoint of {self.path} ({have}); got {step}")
        try:
            whole = json.loads((folder / "manifest.json").read_text())
            manifest: dict[str, Any] = whole["content"]
            if whole["sha256"] != _text_digest(manifest):
                raise ValueError("its SHA-256 differs, so it is damaged")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"want a readable {folder / 'manifest.json'}; {error!r}") from error
        if manifest["demonstration"] is not None and only is None:
            _verify(self.path / "demonstration.npz", manifest["demonstration"])
        for name, digest in manifest["files"].items():
            if only is None or name in only:
                _verify(folder / name, digest)
        return manifest

    def rewind_logs(self, step: int) -> None:
        """Drop the rows of metrics and episodes that lie beyond a checkpoint, so that a resumed run rewrites them."""
        for name in ("metrics.jsonl", "episodes.jsonl"):
            file = self.path / name
            if file.exists():
                lines = file.read_text().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
                _write(file, "".join(kept))

    def append_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl or episodes.jsonl; numbers that JSON has no word for, such as NaN, as null."""
        finite = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in rows
        ]
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in finite)


def check_free(path: Path) -> None:
    """Raise InputError where a new run's folder already exists."""
    if path.exists():
        raise InputError(f"want a folder that does not exist yet; {path} does (--resume {path} continues a run)")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _text_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _verify(file: Path, digest: str) -> None:
    if not file.is_file():
        raise InputError(f"want {file}, which the checkpoint needs; it is missing")
    if _digest(file) != digest:
        raise InputError(
            f"want {file} as it was written; its SHA-256 differs, so the file is damaged "
            f"(an older checkpoint that does not need it is used when the newer ones in ckpt/ are moved away)"
        )


def _write(file: Path, text: str) -> None:
    """Replace a file's content at once."""
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text(text)
    _sync(aside)
    aside.rename(file)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
