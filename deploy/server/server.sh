#!/bin/bash
# A Prefect server on this machine, and workers for it. Settings: server.env beside this script (HALOTILE_SERVER_ENV names
# another); what the environment sets already comes first. `prefect` is the one on PATH, or the checkout's .venv.
#
#     server.sh start           start the server, wait until it is healthy
#     server.sh stop            end it
#     server.sh status          say whether it is healthy; status 1 where it is not
#     server.sh backup          copy the database to PREFECT_HOME/backups
#     server.sh migrate         bring the database up to the installed Prefect
#     server.sh upgrade         stop, backup, migrate, start: after Prefect or Halotile was updated
#     server.sh worker [POOL]   a worker of the pool (halotile), in the foreground
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=${HALOTILE_SERVER_ENV:-$here/server.env}
while IFS= read -r line || [ -n "$line" ]; do
    [[ $line =~ ^([A-Z_]+)=(.*)$ ]] || continue
    [ -n "${!BASH_REMATCH[1]+set}" ] || export "${BASH_REMATCH[1]}=${BASH_REMATCH[2]}"
done < "$settings"

command -v prefect > /dev/null || PATH=$here/../../.venv/bin:$PATH
command -v prefect > /dev/null || { echo "prefect is not on PATH. Activate the environment that Halotile is installed in." >&2; exit 1; }
python=$(dirname "$(command -v prefect)")/python
home=${PREFECT_HOME:-$HOME/.prefect}
pid_file=$home/halotile-server.pid
log=$home/halotile-server.log

running() { [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2> /dev/null; }

healthy() {
    "$python" -c 'import sys, urllib.request as r
sys.exit(r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=5).read() != b"true")' \
        "$PREFECT_API_URL/health" 2> /dev/null
}

start() {
    if running; then echo "the server runs already (process $(cat "$pid_file"))"; return; fi
    if healthy; then echo "another server answers at $PREFECT_API_URL already; nothing was started" >&2; exit 1; fi
    mkdir -p "$home"
    nohup setsid prefect server start >> "$log" 2>&1 < /dev/null &
    echo $! > "$pid_file"
    for _ in $(seq 240); do
        if healthy; then echo "healthy: ${PREFECT_API_URL%/api} (process $(cat "$pid_file"), log $log)"; return; fi
        running || break
        sleep 0.5
    done
    echo "the server did not become healthy; the end of $log:" >&2
    tail -n 15 "$log" >&2
    stop > /dev/null
    exit 1
}

stop() {
    if ! running; then echo "no server runs that this script started"; rm -f "$pid_file"; return; fi
    local pid; pid=$(cat "$pid_file")
    kill -TERM "$pid"
    for _ in $(seq 60); do running || break; sleep 0.5; done
    running && kill -KILL "$pid"
    rm -f "$pid_file"
    echo "stopped"
}

status() {
    if healthy; then echo "healthy: ${PREFECT_API_URL%/api}"; else echo "not healthy: ${PREFECT_API_URL%/api}"; return 1; fi
}

backup() {
    mkdir -p "$home/backups"
    (umask 077 && "$python" - "$home/backups/$(date -u +%Y%m%dT%H%M%SZ)" << 'PYTHON'
import contextlib, os, sqlite3, subprocess, sys
from pathlib import Path

from prefect.settings import get_current_settings
from sqlalchemy.engine import make_url

target = sys.argv[1]
found = get_current_settings().server.database.connection_url
url = make_url(found.get_secret_value()) if found else None
if url is None or url.get_backend_name() == "sqlite":
    source = Path(url.database) if url else get_current_settings().home / "prefect.db"
    if not source.is_file():
        sys.exit(f"no database at {source}: nothing to copy")
    target += ".db"
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)
else:
    target += ".dump"
    login = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password, "PGDATABASE": url.database}
    environment = os.environ | {name: str(value) for name, value in login.items() if value is not None}
    subprocess.run(["pg_dump", "--format=custom", f"--file={target}"], env=environment, check=True)
print(f"backup {target}")
PYTHON
    )
}

migrate() { prefect server database upgrade -y; }

upgrade() {
    stop
    backup
    migrate
    start
}

case ${1:-} in
    start | stop | status | backup | migrate | upgrade) "$1" ;;
    worker) exec prefect worker start --pool "${2:-halotile}" ;;
    *) sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2; exit 2 ;;
esac
