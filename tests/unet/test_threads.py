"""Threads: what a worker has is what the plan has, or it says so before it computes."""

import os
import subprocess

import pytest
import torch

from pipeline.cluster import slurm
from pipeline.cluster.settings import worker_environment
from pipeline.errors import InferenceError
from pipeline.networks.threads import Threads, check_threads, threads
from pipeline.thread_variables import forget, lowered

SOUND = {"set": 2, "limit": 2**31 - 1, "dynamic": False, "bound": False, "cores": 4}
MEDDLERS = {
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "{0}",
    "OMP_THREAD_LIMIT": "1",
    "OMP_NUM_THREADS": "4,2",
    "GOMP_CPU_AFFINITY": "0",
    "KMP_AFFINITY": "compact",
    "MKL_DYNAMIC": "TRUE",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
}


def test_a_driver_forgets_what_would_tie_it_and_keeps_the_rest():
    """A number of threads for itself is a driver's own business, and the way out of a crash of MKL stays."""
    kept = {"MKL_NUM_THREADS": "3", "KMP_DUPLICATE_LIB_OK": "TRUE", "PATH": "/bin", "OMPI_COMM_WORLD_RANK": "0"}
    found = {**MEDDLERS, **kept}
    forget(found)
    assert found == kept


def test_a_job_of_slurm_forgets_what_its_site_says(tmp_path):
    """Modules of MPI and of compilers set such variables on the node, after the driver's own were taken away."""
    shell = f"{slurm._FORGET}; env"
    given = {**MEDDLERS, "KMP_DUPLICATE_LIB_OK": "TRUE", "PATH": os.environ["PATH"]}
    found = subprocess.run(["bash", "-uec", shell], env=given, capture_output=True, text=True, check=True).stdout
    names = {line.partition("=")[0] for line in found.splitlines()}
    assert not names & set(MEDDLERS)
    assert {"KMP_DUPLICATE_LIB_OK", "PATH"} <= names


def test_a_worker_is_told_what_undoes_what_cannot_be_taken_away():
    """The image of a pod may have any of them."""
    found = worker_environment(3)
    assert (found["OMP_PROC_BIND"], found["OMP_DYNAMIC"], found["OMP_NUM_THREADS"]) == ("false", "false", "3")
    assert int(found["OMP_THREAD_LIMIT"]) > 10**6


@pytest.mark.parametrize("wrong", [{"set": 1}, {"set": 3}, {"limit": 1}, {"dynamic": True}])
def test_other_threads_than_the_plans_are_refused(wrong):
    """Their bytes would be others than the fingerprint says."""
    with pytest.raises(InferenceError, match=r"The plan has 2 compute thread\(s\) a worker.*OMP_THREAD_LIMIT"):
        check_threads(Threads(**{**SOUND, **wrong}), 2)


def test_a_worker_on_fewer_cores_than_its_driver_counted_on_is_refused():
    """All workers on one core: a run of a day takes a week, and nothing says so."""
    with pytest.raises(InferenceError, match=r"1 of the 4 core\(s\).*OMP_PROC_BIND"):
        check_threads(Threads(**{**SOUND, "cores": 1}), 2, promised_cores=4)


def test_what_only_costs_time_is_told():
    """A plan for more threads than there are cores is legal: it resumes anywhere."""
    assert check_threads(Threads(**SOUND), 2, promised_cores=4) == []
    (told,) = check_threads(Threads(**{**SOUND, "cores": 1}), 2)
    assert "2 compute threads share 1 core(s)" in told
    (told,) = check_threads(Threads(**{**SOUND, "bound": True}), 2)
    assert "OMP_PROC_BIND" in told


def test_a_lower_precision_than_the_plans_is_seen():
    """The library would compute in bfloat16 where the plan says float32."""
    assert lowered({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "NVIDIA_TF32_OVERRIDE": "0"}) == [
        "ONEDNN_DEFAULT_FPMATH_MODE=BF16"
    ]


def test_this_process_is_looked_at_as_it_is():
    """OpenMP and the kernel are asked, not the environment: somebody else may have started the worker."""
    found = threads()
    assert (found.set, found.dynamic, found.bound) == (torch.get_num_threads(), False, False)
    assert found.limit > 10**6
    assert found.cores == len(os.sched_getaffinity(0))
