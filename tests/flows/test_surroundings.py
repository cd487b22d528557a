"""Configuration of libraries, proxies, homes: what is wrong with them is told with the name of a file or a variable."""

from __future__ import annotations

from pathlib import Path

import dask.config
import pytest
from prefect.settings.models.root import Settings

from flows.commands.status import status
from flows.commands.surroundings import explain
from flows.server import proxies
from flows.server.proxies import settle_proxies, spare_loopback
from pipeline.errors import ConfigError


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No proxy, and no file of Prefect's but those of the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("content", [b"a: [", b"- a", b"a: \xff\xfe"])
def test_a_broken_file_of_dasks_is_named(content, tmp_path, capsys):
    """Dask reads it at its import, whatever the command."""
    path = tmp_path / "dask.yaml"
    path.write_bytes(content)
    assert status(lambda: len(list(dask.config.collect_yaml([str(path)])))) == 2
    assert f"A dask config file at '{path}' is malformed" in capsys.readouterr().err


def test_a_value_of_dasks_that_cannot_be_read_is_named_by_its_variable(monkeypatch):
    """Dask says which text is no time, and not where it stood."""
    monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "foo")
    with pytest.raises(KeyError, match="foo") as caught:
        dask.utils.parse_timedelta("foo")
    assert "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL" in str(explain(caught.value))


PREFECT = {
    "a variable": ({"PREFECT_LOGGING_LEVEL": "foo"}, {}, "PREFECT_LOGGING_LEVEL"),
    "a variable that is no JSON": ({"PREFECT_CLIENT_CUSTOM_HEADERS": "x"}, {}, "PREFECT_CLIENT_CUSTOM_HEADERS"),
    "a value in prefect.toml": ({}, {"prefect.toml": b"[api]\nrequest_timeout = 'soon'\n"}, "prefect.toml"),
    "a broken prefect.toml": ({}, {"prefect.toml": b"broken"}, "prefect.toml"),
    "a broken pyproject.toml": ({}, {"pyproject.toml": b"[tool.prefect]\na ="}, "pyproject.toml"),
    "broken profiles": ({}, {"profiles.toml": b'active = "x'}, "profiles.toml"),
    "profiles in latin-1": ({}, {"profiles.toml": b"# \xe9"}, "profiles.toml"),
    "a value in a profile": (
        {},
        {"profiles.toml": b'active = "a"\n[profiles.a]\nPREFECT_API_REQUEST_TIMEOUT = "soon"\n'},
        "profiles.toml",
    ),
    "a value in .env": ({}, {".env": b"PREFECT_API_REQUEST_TIMEOUT=soon\n"}, ".env"),
}


@pytest.mark.parametrize(("variables", "files", "named"), PREFECT.values(), ids=PREFECT)
def test_what_prefect_cannot_read_is_named(variables, files, named, monkeypatch, tmp_path):
    """A variable of a shell, a file beside the data, a profile of last year."""
    monkeypatch.setenv("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # as the command sets it: nobody is to remove that
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=r".") as caught:
        Settings()
    told = str(explain(caught.value))
    assert told.startswith("Prefect cannot read its settings: ")
    assert f"Correct or remove {tmp_path / named if files else named}".replace(str(tmp_path), f"'{tmp_path}") in told


def test_errors_of_our_own_keep_their_traceback():
    """A fault of Halotile's is none of the surroundings."""
    assert explain(ZeroDivisionError("ours")) is None
    with pytest.raises(ZeroDivisionError):
        status(lambda: 1 // 0)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, capsys):
    """A container that runs as a number nobody knows."""

    def lost() -> int:
        raise RuntimeError("Could not determine home directory.")

    assert status(lost) == 2
    assert "Set HOME" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_told_escaped(capsys):
    """JSON, pages and databases hold UTF-8 only."""
    assert status(lambda: len("caf\udce9".encode())) == 2
    assert "caf\\udce9" in capsys.readouterr().err


def test_a_package_that_cannot_be_imported_is_told(monkeypatch, capsys):
    """Somebody else's `dask` in PYTHONPATH, or a half of an installation."""
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert status(lambda: bool(__import__("no_such_package"))) == 2
    assert "No module named 'no_such_package'; PYTHONPATH is '/theirs'" in capsys.readouterr().err


# --- proxies ------------------------------------------------------------------------------------------------------------


def test_this_machine_is_spoken_to_without_a_proxy():
    """A proxy elsewhere knows another 127.0.0.1."""
    found = {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intern"}
    spare_loopback(found)
    assert found["no_proxy"] == found["NO_PROXY"] == "intern,127.0.0.1,localhost,::1"
    spare_loopback(found)
    assert found["NO_PROXY"] == "intern,127.0.0.1,localhost,::1"
    nothing: dict[str, str] = {}
    spare_loopback(nothing)
    assert nothing == {}


@pytest.fixture
def no_socks(monkeypatch):
    """As where the package socksio is not installed."""
    monkeypatch.setattr(proxies, "_can_speak_socks", lambda: False)


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:4200/api", "http://localhost/api"])
def test_a_proxy_that_nobody_needs_ends_no_run(url, monkeypatch, no_socks):
    """httpx makes a transport of every proxy that is named, and would fail for one that it does not use."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    settle_proxies(url)
    assert "ALL_PROXY" not in proxies.os.environ


@pytest.mark.parametrize(
    ("name", "proxy", "url"),
    [
        ("ALL_PROXY", "socks5://u:secret@h:1", "http://prefect.example.org/api"),
        ("all_proxy", "socks4://h:1", "http://prefect.example.org/api"),
        ("HTTPS_PROXY", "socks5h://h:1", None),
        ("http_proxy", "foo://h:1", None),
        ("HTTP_PROXY", "http://h:port", None),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_by_its_variable(name, proxy, url, monkeypatch, no_socks):
    """Its password is not shown."""
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigError, match=f"The proxy in {name}") as caught:
        settle_proxies(url)
    assert "secret" not in str(caught.value)


def test_a_proxy_that_can_be_used_is_left(monkeypatch):
    """Also one without a scheme, as curl takes it."""
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example.org:3128")
    settle_proxies("https://prefect.example.org/api")
    assert proxies.os.environ["HTTPS_PROXY"] == "proxy.example.org:3128"


def test_the_paths_are_looked_at_where_the_command_runs(tmp_path):
    """The fixture's premise: nothing of this checkout's pyproject.toml is read above."""
    assert Path.cwd() == tmp_path
