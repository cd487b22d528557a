"""An upload in a process of its own: a folder copied file by file, with pauses, as `cp -p` and `rsync -t` do: old times are kept.

    python upload.py SOURCE TARGET PAUSE FINISHED

Writes FINISHED right before the last file is.
"""

import os
import shutil
import sys
import time
from pathlib import Path

source, target, pause, finished = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
files = sorted(path for path in source.rglob("*") if path.is_file())
for number, path in enumerate(files, 1):
    place = target / path.relative_to(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    with place.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(pause)
        if number == len(files):
            finished.touch()
        file.write(content[len(content) // 2 :])
    shutil.copystat(path, place)
    os.utime(place, (1e9, 1e9))
    if number < len(files):
        time.sleep(pause)
