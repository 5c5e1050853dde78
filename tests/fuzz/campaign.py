"""One run of the fuzzer over some targets: the seeds it starts from, what it found, and how far it came."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.contract import SECONDS, Target

REGRESSIONS = Path(__file__).parent / "regressions"
_ROOT = Path(__file__).resolve().parents[2]
_MAX_MEMORY_MIB = 2048
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_PROGRESS = re.compile(r"^#(\d+)\s.*?\bcov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run over one target came to; ``found`` is the input that broke the promise, ``said`` how."""

    target: str
    runs: int
    coverage: int
    features: int
    corpus: int
    found: Path | None
    said: str


def fuzz(target: Target, *, runs: int, seconds: int, seed: int, keep: Path) -> Outcome:
    """Run one target until an input breaks its promise, or *runs* inputs or *seconds* (0: no end) are over.

    Such an input is put in a directory of the target's in *keep*.
    """
    with tempfile.TemporaryDirectory(prefix="tdefs-fuzz-") as work:
        corpus, artifacts, words = Path(work, "corpus"), Path(work, "found"), Path(work, "words")
        corpus.mkdir()
        artifacts.mkdir()
        for number, content in enumerate([*target.seeds(), *_kept(target)]):
            (corpus / f"seed-{number}").write_bytes(content)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.worker", target.name, str(corpus)),
                *(f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={target.max_size}"),
                *(f"-timeout={SECONDS:.0f}", f"-rss_limit_mb={_MAX_MEMORY_MIB}", f"-artifact_prefix={artifacts}/"),
                *((f"-dict={words}",) if target.words else ()),
            ],
            cwd=_ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            check=False,
        )
        said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
        found = None
        for artifact in sorted(artifacts.iterdir()):
            found = keep / target.name / artifact.name
            found.parent.mkdir(parents=True, exist_ok=True)
            found.write_bytes(artifact.read_bytes())
    progress = _PROGRESS.findall(said)
    executed, coverage, features, size = map(int, progress[-1]) if progress else (0, 0, 0, 0)
    finished = _DONE.search(said)
    executed = int(finished[1]) if finished else executed
    failed = done.returncode != 0
    tail = "\n".join(line for line in said.splitlines() if not line.startswith(("INFO:", "#")))[-3000:]
    return Outcome(target.name, executed, coverage, features, size, found, tail if failed else "")


def _kept(target: Target) -> list[bytes]:
    return [path.read_bytes() for path in sorted((REGRESSIONS / target.name).glob("*"))]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)
