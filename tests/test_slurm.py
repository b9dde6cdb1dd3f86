"""The examples for Slurm, as far as a machine without it can tell: stand-ins for `srun` and its kin run in place."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_INS = {
    "srun": 'for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" || exit 1; done',
    "scontrol": "printf 'node-a\\nnode-b\\n'",
    "python": 'echo "rank=$RANK local=$LOCAL_RANK $*" >> "$CALLS"; [ "$RANK" != "$FAILS" ]',
    "accelerate": 'echo "$*" >> "$CALLS"',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Environment of a job on two nodes with two GPUs each; calls are written to $CALLS."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]"}
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "FAILS": "none", **slurm}


def calls(script: str, arguments: list[str], job: dict[str, str]) -> list[str]:
    subprocess.run(["bash", ROOT / script, *arguments], env=job, check=True, timeout=60)
    return sorted(Path(job["CALLS"]).read_text().splitlines())


def test_the_evaluation_starts_one_process_for_each_gpu_with_flags_that_exist(job: dict[str, str]) -> None:
    from benchmarks.run import Arguments

    lines = calls("benchmarks/slurm/evaluate.sbatch", ["a model", "full", "runs/x"], job)
    command = "-m benchmarks.run --model a model --suite full --out runs/x --offline"
    assert lines == [f"rank={n} local={n % 2} {command}" for n in range(4)]
    assert {"model", "suite", "out", "offline", "shard", "batch_size"} <= Arguments.__dataclass_fields__.keys()


def test_an_evaluation_of_which_a_process_fails_fails(job: dict[str, str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        calls("benchmarks/slurm/evaluate.sbatch", ["m", "full", "runs/x"], {**job, "FAILS": "1"})


def test_the_training_joins_its_nodes_under_the_first_one(job: dict[str, str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    from trainers.run import Arguments

    lines = calls("trainers/slurm/train.sbatch", ["rtdmd", "my config.toml", "runs/x"], job)
    for node, line in enumerate(lines):
        options, _, ours = line.removeprefix("launch ").partition(" -m ")
        parsed = launch_command_parser().parse_args([*options.split(), "-m", *ours.split()])
        assert (parsed.num_machines, parsed.machine_rank, parsed.num_processes) == (2, node, 4)
        assert (parsed.main_process_ip, parsed.main_process_port, parsed.module) == ("node-a", 20007, True)
        assert ours == "trainers.run rtdmd --config my config.toml --out runs/x"
    assert len(lines) == 2 and {"method", "config", "out"} <= Arguments.__dataclass_fields__.keys()
