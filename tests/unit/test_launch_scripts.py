"""The scripts of a launch, compared with golden files: what a person reads before submitting it.

A changed template is looked at, then taken over: `python -m tests.unit.test_launch_scripts`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch.clusters.folder import Kind
from launch.clusters.jobs import absolute, check_here, jobs_of
from launch.clusters.scripts import chain_script, job_script
from launch.config import load_job_config

GOLDEN = Path(__file__).with_name("golden")
KEPT = (
    "local-all.sh",
    "local-train.sh",
    "slurm-evaluate.sh",
    "slurm-train.sh",
)  # the others differ in the command alone
FOLDER = Path("/shared/launches/20261201-120000-tldr")
BASE = [
    "--run.out=/shared/runs/tldr",
    "--data.pairs=/shared/pairs",
    "--data.corpus=/shared/corpus",
    "--dev.data=/shared/beir",
    "--launch.venv=/shared/venv",
    "--launch.jobs=train,embed,index,evaluate",
]
NODES = [
    "--run.ranks=16",
    "--run.nodes=2",
    "--slurm.partition=gpu",
    "--slurm.account=search",
    "--slurm.gpus_per_node=8",
    "--slurm.cpus_per_task=96",
    "--slurm.memory=900G",
    "--slurm.extra=--constraint=h100 --comment='two words'",
    '--launch.prologue=["module load cuda/12.8", "ulimit -l unlimited"]',
    '--launch.env=["NCCL_IB_HCA=mlx5", "WORDS=a \'b\' $c"]',
    "--launch.secrets_file=/home/me/keys",
]


def scripts(kind: Kind, overrides: list[str]) -> dict[str, str]:
    config = load_job_config(None, overrides)
    jobs = jobs_of(config, FOLDER / "config.toml")
    texts = {f"{kind}-{job.name}.sh": job_script(config, job, kind=kind, folder=FOLDER) for job in jobs}
    return {**texts, "local-all.sh": chain_script(kind, FOLDER, jobs)} if kind == "local" else texts


def all_scripts() -> dict[str, str]:
    return scripts("slurm", [*BASE, *NODES]) | scripts("local", BASE)


@pytest.mark.parametrize("name", KEPT)
def test_a_script_is_the_golden_one(name: str) -> None:
    assert all_scripts()[name] == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", sorted(all_scripts()))
def test_bash_can_read_a_script_and_shellcheck_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(all_scripts()[name])
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--severity=warning", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_values_reach_the_job_as_they_are(tmp_path: Path) -> None:
    """A blank, a quote, a dollar in a path or a value is no shell."""
    odd = tmp_path / "a b$c'd"
    (odd / "bin").mkdir(parents=True)
    (odd / "bin/dipole").write_text('#!/bin/sh\nprintf "%s\\n" "$WORDS" "$@"\n')
    (odd / "bin/dipole").chmod(0o755)
    config = load_job_config(
        None, [f"--launch.venv={odd}", f"--run.out={odd / 'run'}", "--launch.env=WORDS=x 'y' $z"]
    )
    (job,) = jobs_of(absolute(config), odd / "config.toml")
    script = tmp_path / "train.sh"
    script.write_text(job_script(config, job, kind="local", folder=odd))
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-4:-1] == ["x 'y' $z", "train", str(odd / "config.toml")]
    assert (odd / "train.exit").read_text() == "0\n"


def test_a_secrets_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("A_KEY=planted\n")
    keys.chmod(0o644)
    config = load_job_config(None, [f"--run.out={tmp_path / 'run'}", f"--launch.secrets_file={keys}"])
    (job,) = jobs_of(config, tmp_path / "config.toml")
    script = tmp_path / "train.sh"
    script.write_text(job_script(config, job, kind="local", folder=tmp_path))
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"others may read {keys}; chmod 600 it" in done.stdout
    assert (tmp_path / "train.exit").read_text() == "2\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--launch.env=WANDB_API_KEY=1234"], "launch.env would write WANDB_API_KEY into the script"),
        (["--launch.env=nothing"], "launch.env holds 'nothing', wanted NAME=value"),
        (["--launch.jobs=embed,train"], "so the order is train, embed, index, evaluate"),
        (["--launch.name=a b"], "may hold letters, digits"),
        (["--run.ranks=3", "--run.nodes=2"], "does not divide over run.nodes = 2; set run.ranks to 2 or 4"),
        (["--slurm.time_limit=tomorrow"], "wanted minutes, HH:MM:SS or DAYS-HH:MM:SS"),
        (["--slurm.extra=--a b"], "slurm.extra holds 'b'; write flags and values as one word"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load_job_config(None, overrides)


def test_a_signed_address_is_refused() -> None:
    config = load_job_config(None, ["--data.pairs=https://host/pairs?signature=planted"])
    with pytest.raises(UserError, match=r"data\.pairs holds an address with a password or signature in it") as caught:
        absolute(config)
    assert "planted" not in str(caught.value)


def test_what_is_not_there_is_said_before_anything_is_launched(tmp_path: Path) -> None:
    config = load_job_config(None, [f"--data.pairs={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"nowhere, which does not exist here; nothing was launched"):
        check_here(config)


def test_a_job_without_its_input_is_refused() -> None:
    config = load_job_config(None, ["--launch.jobs=embed"])
    with pytest.raises(UserError, match=r"job embed needs embed\.corpus or data\.corpus"):
        jobs_of(config, FOLDER / "config.toml")


def test_a_run_config_may_say_where_it_runs(tmp_path: Path) -> None:
    """One file for both: `dipole train` reads past the sections of a launch."""
    from launch.config import RunConfig, load_config, to_toml

    path = tmp_path / "c.toml"
    path.write_text('[train]\nsteps = 3\n[slurm]\npartition = "gpu"\n')
    config = load_config(path)
    assert type(config) is RunConfig
    assert config.train.steps == 3
    assert "slurm" not in to_toml(config)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in KEPT:
        (GOLDEN / name).write_text(all_scripts()[name])
