"""Pools of real processes: started beside other things, taken once, and ended with what started them."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import torch
from cryptography import x509
from distributed import LocalCluster
from distributed.security import Security

from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.kind import OpenCluster, WorkerSpec
from pipeline.cluster.pool import StartedWorkers, machine, open_pool, starting
from pipeline.cluster.security import check_security, own_certificates, own_security, security_of, temporary_files
from pipeline.cluster.settings import ALLOCATOR
from pipeline.config import ClusterConfig, TlsConfig
from pipeline.errors import ConfigError, InferenceError, ModelError, StorageError
from tests.cluster import work

LOCAL = ClusterConfig()
ONE = WorkerSpec(workers=1, threads=1, memory_bytes=10**9)


def workers_of_this_process() -> set[int]:
    """Process numbers of worker processes below this one."""
    return {p.pid for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())}


def test_a_pool_that_was_begun_is_the_one_that_is_taken(tmp_path):
    """A run's workers start while Prefect does; a second set beside them would cost the memory of both."""
    before = workers_of_this_process()
    with starting(LOCAL, ONE, tmp_path) as started:
        with open_pool(LOCAL, ONE, tmp_path, started) as pool:
            (number,) = pool.client.run(os.getpid).values()
            begun = workers_of_this_process() - before
            assert begun == {number}
        wait_for_end(begun)
        with open_pool(LOCAL, ONE, tmp_path, started) as pool:  # the rest of a run whose server died: they have ended
            (later,) = pool.client.run(os.getpid).values()
            assert later != number


def test_a_pool_that_nobody_takes_ends(tmp_path):
    """A run that is refused after its workers were begun must leave none."""
    before = workers_of_this_process()
    with starting(LOCAL, ONE, tmp_path):
        pass
    wait_for_end(workers_of_this_process() - before)


def test_a_pool_of_another_kind_is_not_taken(tmp_path):
    """Threads and memory are the plan's."""
    others = replace(ONE, threads=2)
    with starting(LOCAL, ONE, tmp_path) as started, open_pool(LOCAL, others, tmp_path, started) as pool:
        (threads,) = pool.client.run(work.environment, "OMP_NUM_THREADS").values()
        assert threads == "2"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "THP_MEM_ALLOC_ENABLE"])
def test_workers_keep_the_memory_that_they_free(tmp_path, name):
    """Dask's nanny has settings of its own; with them page faults cost more than the arithmetic."""
    before = os.environ.get(name)
    with open_pool(LOCAL, ONE, tmp_path) as pool:
        (found,) = pool.client.run(work.environment, name).values()
    assert found == ALLOCATOR[name]
    assert os.environ.get(name) == before


def wait_for_end(numbers: set[int]) -> None:
    """Wait until processes are gone."""
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_each_worker_sees_one_card_and_no_other_also_after_it_died(tmp_path, monkeypatch):
    """Two processes that share a card halve its memory, and the planner counted on all of it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5,7")
    with open_pool(ClusterConfig(kind="cuda"), WorkerSpec(2, 1, 10**9, "cuda"), tmp_path) as pool:
        pool.client.wait_for_workers(2, timeout=60)

        def seen() -> list[str]:
            return sorted(pool.client.run(work.environment, "CUDA_VISIBLE_DEVICES").values())

        assert seen() == ["3", "GPU-5"]
        victim = next(iter(pool.client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        wait_for_end({victim})
        pool.client.wait_for_workers(2, timeout=60)
        assert seen() == ["3", "GPU-5"]


def test_a_machine_without_a_card_is_no_cluster_of_kind_cuda(tmp_path, monkeypatch):
    """`cuda` is what one writes to be sure that nothing falls back to the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="finds no CUDA device"):
        machine(ClusterConfig(kind="cuda"))


def test_a_job_of_slurm_takes_no_more_than_it_was_given(monkeypatch):
    """Not every site confines its jobs; one that takes the whole node is ended, or ends its neighbours."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "300"}.items():
        monkeypatch.setenv(name, value)
    assert (machine(LOCAL).cores, machine(LOCAL).memory_bytes) == (1, 300 * 2**20)
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "200")
    assert machine(LOCAL).memory_bytes == 200 * 2**20


@pytest.fixture
def certificates(tmp_path) -> TlsConfig:
    """A site's: an authority that signs for itself."""
    temporary_files(tmp_path / "tls", own_certificates())
    return TlsConfig(**{f"{name}_file": str(tmp_path / f"tls/{name}.pem") for name in ("ca", "cert", "key")})


@contextmanager
def somebody_elses(*, security: Security | None = None) -> Iterator[str]:
    """A scheduler with two workers, as a site runs them; gives its address."""
    protocol = "tls" if security else "tcp"
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", protocol=protocol, security=security, memory_limit="2GB",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


def test_a_scheduler_that_runs_is_taken_and_left_running(tmp_path):
    """A site's cluster is not ours to end."""
    with somebody_elses() as address:
        config = ClusterConfig(kind="address", address=address)
        found = machine(config)
        assert (found.workers, found.memory_bytes, found.device) == (2, 4 * 10**9, "cpu")
        for _ in range(2):
            with open_pool(config, WorkerSpec(2, 1, 10**9), tmp_path) as pool:
                tried = Work(work.ready, work.nothing, "run")
                assert sorted(o.result for o in dispatch(pool, tried, range(20), retries=0)) == list(range(20))
        assert machine(config).workers == 2


def test_workers_of_an_allocation_are_there_for_every_pool_of_it(tmp_path):
    """A run whose Prefect server died opens a second one; the allocation's tasks end with the run, not with a pool."""
    there: Future[tuple[OpenCluster, float]] = Future()
    with somebody_elses() as address:
        there.set_result((OpenCluster(address), 0.0))
        started = StartedWorkers(LOCAL, None, there, ExitStack())
        for spec in (ONE, replace(ONE, threads=2)):
            with open_pool(LOCAL, spec, tmp_path, started) as pool:
                assert pool.client.scheduler.address == address
                assert len(pool.client.run(os.getpid)) == 2


def test_a_scheduler_that_asks_for_certificates_gets_them(tmp_path, certificates):
    """Whoever reaches an open scheduler runs code on it; with TLS only those who hold a key do."""
    with somebody_elses(security=security_of(certificates)) as address:
        assert address.startswith("tls://")
        config = ClusterConfig(kind="address", address=address, security=certificates)
        with open_pool(config, WorkerSpec(2, 1, 10**9), tmp_path) as pool:
            tried = Work(work.ready, work.nothing, "run")
            assert [o.result for o in dispatch(pool, tried, range(1), retries=0)] == [0]
        others = config.model_copy(update={"security": "none"})
        with pytest.raises(InferenceError, match="cannot be reached"), open_pool(others, ONE, tmp_path):
            pass


def test_a_scheduler_that_is_not_there_is_told(tmp_path, monkeypatch):
    """The address is what people mistype."""
    monkeypatch.setattr("pipeline.cluster.kind.CONNECT_SECONDS", 1)
    with pytest.raises(InferenceError, match=r"The scheduler at 'tcp://127\.0\.0\.1:9' cannot be reached"):
        machine(ClusterConfig(kind="address", address="tcp://127.0.0.1:9"))


def test_a_scheduler_that_says_nothing_is_told(monkeypatch):
    """Something else listens there, or a proxy whose other end is gone; Dask's client would wait for ever."""
    monkeypatch.setattr("pipeline.cluster.kind.CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InferenceError, match=rf"'{address}' cannot be reached \(no answer within 1 s\)"):
            machine(ClusterConfig(kind="address", address=address))


def test_certificates_that_are_not_there_are_told(tmp_path):
    """Before anything is started."""
    nowhere = TlsConfig(ca_file="/nowhere/ca.pem", cert_file="/nowhere/cert.pem", key_file="/nowhere/key.pem")
    for kind in ("local", "cuda", "address"):
        config = ClusterConfig(kind=kind, security=nowhere, address="tls://127.0.0.1:9")
        with pytest.raises(ConfigError, match=r"cluster\.security names '/nowhere/ca\.pem'"):
            machine(config)
    with (
        pytest.raises(ConfigError, match=r"cluster\.security names '/nowhere/ca\.pem'"),
        open_pool(config, ONE, tmp_path),
    ):
        pass


def test_certificates_that_do_not_belong_together_are_told(tmp_path, certificates):
    """Before anything is started: else each party would drop the others' connections, for reasons that nobody sees."""
    check_security(ClusterConfig(security=certificates))
    temporary_files(tmp_path / "others", own_certificates())
    other = {name: str(tmp_path / f"others/{name}.pem") for name in ("ca", "key")}
    (tmp_path / "none.pem").write_text("no certificate\n")
    (tmp_path / "locked.pem").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    (tmp_path / "locked.pem").chmod(0o600)
    for wrong in (
        {"key_file": other["key"]},
        {"ca_file": other["ca"]},
        {"cert_file": str(tmp_path / "none.pem")},
        {"ca_file": str(tmp_path / "none.pem")},
        {"key_file": str(tmp_path / "locked.pem")},
    ):
        named = certificates.model_copy(update=wrong)
        with pytest.raises(ConfigError, match=r"cluster\.security names ca_file"):
            machine(ClusterConfig(security=named))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_may_read_is_refused(certificates, monkeypatch, mode):
    """Whoever reads it runs code as its owner; ssh refuses such keys, too."""
    key = Path(certificates.key_file)
    key.chmod(mode)
    with pytest.raises(ConfigError, match=rf"other users may open \(mode {mode:04o}\).*`chmod 600 {key}`"):
        machine(ClusterConfig(security=certificates))
    with monkeypatch.context() as other:  # a site's, which root gives to a group
        other.setattr(os, "getuid", lambda: key.stat().st_uid + 1)
        machine(ClusterConfig(security=certificates))
    key.chmod(0o400)
    machine(ClusterConfig(security=certificates))


def test_keys_of_a_run_are_readable_by_its_user_only(tmp_path):
    """They lie on a file system that others see."""
    temporary_files(tmp_path / "tls", own_certificates())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.pem": 0o600, "cert.pem": 0o600, "key.pem": 0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


def test_certificates_of_a_run_outlive_it_and_hold_where_clocks_differ():
    """A node whose clock is behind would take none of them; a run may take months."""
    found = x509.load_pem_x509_certificate(str(own_certificates().tls_worker_cert).encode())
    assert found.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=20)
    assert found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=1000)


def test_keys_on_a_file_system_that_shows_them_are_refused(tmp_path, monkeypatch):
    """Some (CIFS, FUSE) give every file one mode: whoever reads a key runs code as its owner."""
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **kept: real(path, flags, 0o644, **kept))
    with pytest.raises(StorageError, match="shows a key to others"):
        temporary_files(tmp_path / "tls", own_certificates())
    assert (tmp_path / "tls/ca.part").read_text() == ""


def test_a_scheduler_of_ours_is_encrypted_on_every_address_unless_told():
    """Every user of a machine reaches its loopback, and may run code where nobody asks who it is."""
    for place in ({}, {"host": "localhost"}, {"host": "127.0.0.2"}, {"host": "10.0.0.1"}, {"interface": "ib0"}):
        assert own_security(ClusterConfig(**place)) is not None
        assert own_security(ClusterConfig(**place, security="none")) is None


def ports_of(pid: int) -> set[int]:
    """Those that a process listens on."""
    return {c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == "LISTEN"}


@pytest.mark.parametrize(("security", "scheme"), [("auto", "tls"), ("none", "tcp")])
def test_a_scheduler_and_its_workers_open_no_port_but_the_one_that_they_speak_on(tmp_path, security, scheme):
    """Dask's own serve pages on further ones, which ask for nothing."""
    before = ports_of(os.getpid())
    with open_pool(ClusterConfig(security=security), ONE, tmp_path) as pool:
        assert pool.client.scheduler.address.startswith(f"{scheme}://127.0.0.1:")
        ((address, number),) = pool.client.run(os.getpid).items()
        assert address.startswith(f"{scheme}://127.0.0.1:")
        assert ports_of(number) == {int(address.rpartition(":")[2])}
        assert len(ports_of(os.getpid()) - before) == 2  # scheduler and nanny


@pytest.mark.parametrize("place", [{"host": "192.0.2.7"}, {"interface": "nope0"}])
def test_a_place_that_this_machine_does_not_have_is_told(tmp_path, place):
    """Copied from another machine's YAML; Dask says that the cluster failed to start."""
    ((key, value),) = place.items()
    config = ClusterConfig(**place)
    with pytest.raises(ConfigError, match=rf"cluster has `{key}: {value}`"), open_pool(config, ONE, tmp_path):
        pass


def test_pages_that_cannot_be_drawn_are_refused(monkeypatch):
    """Before any work, where what draws them is not installed; and in pods, whose ports others reach."""
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ConfigError, match="bokeh, which draws Dask's pages, is not installed"):
        machine(ClusterConfig(dashboard=True))
    with pytest.raises(ValueError, match="kind kubernetes serves no dashboard"):
        ClusterConfig(kind="kubernetes", workers=1, memory_gb=1, kubernetes={"image": "i", "cores": 1}, dashboard=True)
