"""What a job of SLURM is asked for, read off its script; tests/sites has a real SLURM."""

import shlex
import subprocess
import sys

import pytest

from pipeline.cluster import slurm
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.security import own_certificates, security_of, share_security, sweep_keys, temporary_files
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, InferenceError

ASKED = {
    "walltime": "1-00:30:00",
    "cores": 8,
    "gpus": 1,
    "gpu_type": "a100",
    "partition": "gpu",
    "account": "em",
    "modules": ("cuda/12.4", "odd name"),
    "prologue": ("source /shared/venv/bin/activate",),
    "directives": ("--qos=long",),
    "python": "/shared/venv/bin/python",
}


def script(folder, **asked):
    """The script of a job."""
    found = ClusterConfig(kind="slurm", workers=2, memory_gb=10, slurm={**ASKED, **asked})
    with slurm.SLURMCluster(
        **slurm._options(found, WorkerSpec(2, 8, 10**10, "cuda"), folder / "o.zarr.run" / "jobs", None)
    ) as cluster:
        return cluster.job_script()


def test_a_job_asks_for_what_the_configuration_says(tmp_path):
    """A site's queue believes nothing else."""
    found = script(tmp_path)
    for line in (
        "-J halotile-o.zarr",
        "-p gpu",
        "-A em",
        "--cpus-per-task=8",
        "-t 1-00:30:00",
        "--gres=gpu:a100:1",
        "--no-requeue",
        "--qos=long",
    ):
        assert f"#SBATCH {line}\n" in found
    assert "module load cuda/12.4\nmodule load 'odd name'\nsource /shared/venv/bin/activate\n" in found
    assert "/shared/venv/bin/python -m distributed.cli.dask_worker" in found
    assert "--nthreads 1 " in found
    assert "--gres=gpu:1\n" in script(tmp_path, gpu_type=None)
    assert "--gres" not in script(tmp_path, gpus=0)


def test_the_worker_is_ended_before_its_job_is(tmp_path):
    """Its nanny starts it again in seconds; a job that SLURM ends goes back to the end of the queue."""
    found = script(tmp_path)
    (asked,) = [line for line in found.splitlines() if "--mem=" in line]
    assert int(asked.partition("=")[2].removesuffix("M")) * 2**20 > 1.05 * 10**10
    assert "--memory-limit 9.31GiB" in found


def test_a_job_tells_its_worker_when_it_ends(tmp_path):
    """So that no tile is begun which could not be finished; and it leaves in order, before SLURM ends it."""
    found = script(tmp_path)
    assert f"export HALOTILE_ENDS=$(( $(date +%s) + {88_200 - slurm.END_SECONDS} ))" in found
    assert f"--lifetime {88_200 - slurm.END_SECONDS}s" in found


def test_variables_that_a_process_must_find_at_its_start_are_set_in_the_job(tmp_path):
    """The allocator reads them once; without them page faults cost as much as the arithmetic."""
    found = script(tmp_path)
    for line in ("OMP_NUM_THREADS=8", "MALLOC_ARENA_MAX=1", "THP_MEM_ALLOC_ENABLE=1"):
        assert f"export {line}\n" in found
    assert found.index("source /shared/venv/bin/activate") < found.index("export OMP_NUM_THREADS")


def test_keys_of_a_run_reach_its_jobs_by_files_of_its_own(tmp_path):
    """A key on a command line would be seen by everybody on the node, and loopback is open to all of them."""
    folder = tmp_path / "o.zarr.run" / "jobs"
    found = ClusterConfig(kind="slurm", workers=1, memory_gb=10, slurm=ASKED)
    with share_security(found, folder) as security:
        with slurm.SLURMCluster(**slurm._options(found, WorkerSpec(1, 8, 10**10, "cuda"), folder, security)) as cluster:
            text = cluster.job_script()
            assert cluster.scheduler_address.startswith("tls://")
        keys = list(folder.glob("tls-*/*"))
        assert f"--tls-key {folder}/tls-" in text
        assert "--worker-class pipeline.cluster.pages.WorkerWithoutPages" in text
        assert "PRIVATE KEY" not in text
        assert len(keys) == 3
        assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
    assert not list(folder.glob("tls-*"))


KEEP = """
import sys
from pathlib import Path
from pipeline.cluster.security import share_security
from pipeline.config import ClusterConfig
asked = {"walltime": "00:10:00", "cores": 1}
with share_security(ClusterConfig(kind="slurm", workers=1, memory_gb=10, slurm=asked), Path(sys.argv[1])):
    print("kept", flush=True)
    sys.stdin.readline()
"""


def keeping(folder) -> subprocess.Popen:
    """A driver that has its keys in a folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", KEEP, str(folder)], text=True, **pipes)
    assert process.stdout
    assert process.stdout.readline() == "kept\n"
    return process


def test_keys_that_a_killed_driver_left_go_with_the_next_and_those_of_a_living_one_stay(tmp_path):
    """They are no secret of a run any more, and nobody else knows that; two goes over a dataset have one folder for their keys."""
    folder = tmp_path / "o.zarr.run" / "jobs"
    with keeping(folder) as killed:
        (left,) = folder.glob("tls-*/")
        killed.kill()
    assert (left / "key.pem").is_file()
    with keeping(folder) as living:
        assert not left.exists()
        (kept,) = folder.glob("tls-*/")
        with keeping(folder) as another:
            sweep_keys(folder)
            assert len([*folder.glob("tls-*/key.pem")]) == 2
            another.communicate("\n", timeout=60)
        sweep_keys(folder)
        assert [*folder.glob("tls-*/")] == [kept]
        assert (kept / "key.pem").is_file()
        living.communicate("\n", timeout=60)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", ["my data", "it's; exit 9", 'a "b" $HOME `id`', "100% (é) & next"])
def test_paths_with_any_signs_are_single_words_of_the_script(tmp_path, name):
    """dask-jobqueue joins the words of its command with spaces: a key in `my data` was two words, and no worker had it."""
    folder = tmp_path / name / "o o.zarr.run" / "jobs"
    keys = tmp_path / name / "tls"
    temporary_files(keys, own_certificates())
    files = {f"{part}_file": str(keys / f"{part}.pem") for part in ("ca", "cert", "key")}
    asked = {**ASKED, "python": None, "account": "e m", "log_directory": str(tmp_path / "lo gs")}
    found = ClusterConfig(kind="slurm", workers=1, memory_gb=10, slurm=asked, security=files)
    with slurm.SLURMCluster(
        **slurm._options(found, WorkerSpec(1, 8, 10**10, "cuda"), folder, security_of(found.security))
    ) as c:
        text = c.job_script()
    command = text[text.index(sys.executable) :]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for option, part in (("--tls-key", "key"), ("--tls-cert", "cert"), ("--tls-ca-file", "ca")):
        assert words[words.index(option) + 1] == str(keys / f"{part}.pem")
    assert words.count("--tls-key") == 1
    lines = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert ["-A", "e m"] in lines
    assert ["-J", "halotile-o o.zarr"] in lines
    assert [line for line in lines if line[0] in "-e-o"] == [
        [f"-{end[0]}", f"{tmp_path}/lo gs/halotile-o o.zarr-%J.{end}"] for end in ("err", "out")
    ]


def test_a_folder_whose_name_would_be_a_line_of_the_script_is_refused(tmp_path):
    """A line break in a folder's name would begin another directive, or a command."""
    spec = WorkerSpec(1, 8, 10**10, "cuda")
    odd, even = (tmp_path / name / "jobs" for name in ("o\n#SBATCH --wrap=x.zarr.run", "o.zarr.run"))
    for folder, logs in ((odd, None), (odd, tmp_path), (even, odd)):
        asked = ClusterConfig(
            kind="slurm", workers=1, memory_gb=10, slurm={**ASKED, "log_directory": logs and str(logs)}
        )
        with pytest.raises(ConfigError, match=r"cannot have their logs and keys in .*Give the folder another name"):
            slurm._options(asked, spec, folder, None)


def test_a_percent_sign_in_the_logs_folder_is_none_of_slurms(tmp_path):
    """`%j` in a path is the job's number."""
    asked = {**ASKED, "log_directory": str(tmp_path / "50%j")}
    assert f"\n#SBATCH -e {tmp_path}/50%%j/halotile-o.zarr-%J.err\n" in script(tmp_path, **asked)


def test_jobs_that_end_before_their_worker_joins_are_told_with_the_end_of_their_log(tmp_path):
    """A queue full of jobs that fail at once is how one loses an account."""
    (tmp_path / "halotile-12.err").write_text("a\nb\nno such module\n")
    found = slurm._Jobs.__new__(slurm._Jobs)
    found._in_vain, found._logs = 3, tmp_path
    with pytest.raises(InferenceError, match=r"(?s)3 jobs of SLURM.*no such module.*cluster\.slurm\.python"):
        raise found._useless("12")
