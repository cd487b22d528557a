"""An upload in a process of its own: a folder copied file by file, with pauses, as `cp -p` and `rsync -t` do: old times are kept.

    python upload.py SOURCE TARGET

Says so when it pauses, and goes on when it is told to (a line each way). Says `last` before what makes the last file whole.
"""

import os
import shutil
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
files = sorted(path for path in source.rglob("*") if path.is_file())
for number, path in enumerate(files, 1):
    place = target / path.relative_to(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    with place.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        print("last" if number == len(files) else "paused", flush=True)
        input()
        file.write(content[len(content) // 2 :])
    shutil.copystat(path, place)
    os.utime(place, (1e9, 1e9))
    if number < len(files):
        print("paused", flush=True)
        input()
