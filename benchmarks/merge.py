"""Join run directories that several machines filled: python -m benchmarks.merge OUT RUN RUN …

Each machine draws and scores its part, python -m benchmarks.run … --shard K/N --batch-size B, into a directory of its
own. Joined, they are the directory that one machine would have made: the same command without --shard then measures
what needs all pictures, and summarises. Blocks are copied whole, after their pictures have been held to the digest in
the journal; sources stay as they are, and a merge that was interrupted can be started again.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.prompts import read_prompts
from benchmarks.screen import guarded
from benchmarks.store import HEADER, JOURNAL, ImageSet, Journal, Run, difference, read_header, write_whole


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Join run directories."""

    out: Annotated[Path, tyro.conf.Positional]
    """Directory of the whole run; may be one that an earlier merge made"""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of its parts"""


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    drawn, total = merge(arguments.out, arguments.runs)
    print(f"{arguments.out}: {drawn} of {total} blocks; the command of its parts, without --shard, does the rest")
    return 0


def merge(out: Path, sources: Sequence[Path]) -> tuple[int, int]:
    """Copy every block of some run directories into `out`; return how many of how many blocks it holds then.

    Raises UserError where they are not parts of one run, or a part is damaged; what was copied stays."""
    if not sources:
        raise UserError("nothing to join: name the run directories after the one they go into")
    headers = {source: read_header(source) for source in sources}
    whole = read_header(out) if (out / HEADER).exists() else dict(headers[sources[0]])
    if not (out / HEADER).exists() and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds other things than a run; name another folder to join into")
    for source, header in headers.items():
        _refuse_another_run(source, header, out, whole)
        whole["sets"] = {**header["sets"], **whole["sets"]}
    (out / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "locks" / "run.lock"):
        text = json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_whole(out / HEADER, text.encode())
    run = _opened(out, whole)
    for source, header in headers.items():
        part = _opened(source, header)
        for name in header["sets"]:
            image_set = _image_set(source, header, name)
            write_whole(out / name / "prompts.jsonl", (source / name / "prompts.jsonl").read_bytes())
            _copy_pictures(part, run, image_set)
            _copy_evidence(source / name / "evidence", out / name / "evidence")
    sets = [_image_set(out, whole, name) for name in whole["sets"]]
    blocks = [(image_set, block) for image_set in sets for block in range(run.count_blocks(image_set))]
    return sum(run.drawn(*block) is not None for block in blocks), len(blocks)


def _opened(path: Path, header: Mapping[str, Any]) -> Run:
    return Run(path, header["block_size"], Journal(path / JOURNAL))


def _image_set(path: Path, header: Mapping[str, Any], name: str) -> ImageSet:
    prompts = read_prompts(path / name / "prompts.jsonl")
    images = header["sets"][name]["images_per_prompt"]
    return ImageSet(name=name, prompts=prompts, images_per_prompt=images, protocol=None)


def _refuse_another_run(source: Path, header: Mapping[str, Any], out: Path, whole: Mapping[str, Any]) -> None:
    shared = header["sets"].keys() & whole["sets"].keys()
    here, there = ({**h, "sets": {name: h["sets"][name] for name in shared}} for h in (header, whole))
    if found := difference(there, here):
        key, was, given = found
        raise UserError(
            f"{source}: not a part of the run in {out}: {key} = {given!r}, there {was!r}; nothing was copied"
        )


def _copy_pictures(part: Run, run: Run, image_set: ImageSet) -> None:
    for block in range(part.count_blocks(image_set)):
        entry = part.drawn(image_set, block)
        if entry is None:
            continue
        present = run.drawn(image_set, block)
        if present:
            if present["pictures"] != entry["pictures"]:
                raise UserError(
                    f"{part.path}: block {block} of {image_set.name} has other pictures than {run.path}: was one of "
                    "the parts drawn on another kind of device? draw the run on one kind, or keep one of the two"
                )
            continue
        contents = [part.image(image_set.name, item).read_bytes() for item in part.block(image_set, block)]
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
        if digest != entry["pictures"]:
            raise UserError(
                f"{part.path}: block {block} of {image_set.name} is not what its journal says; copy the directory "
                "again, or delete the block's pictures and draw them again"
            )
        facts = {k: v for k, v in entry.items() if k not in ("set", "block", "pictures", "time")}
        run.keep_pictures(image_set, block, contents, **facts)


def _copy_evidence(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(source).parts):
            continue  # a temporary file of a killed process
        there = target / path.relative_to(source)
        content = path.read_bytes()
        if not there.exists():
            write_whole(there, content)
        elif there.read_bytes() != content:
            raise UserError(f"{path}: other rows than {there}, of the same pictures; delete one and score it again")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.merge", description=__doc__))))
