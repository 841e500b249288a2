"""Runs stages, one after another, in the processes that torchrun started: RUNS.json BASE FOLDER.

RUNS.json: {name of the run: [stage of the toy's presets, its changes, step before which it is killed, or null]}.
"""

import json
import sys
from pathlib import Path

from internvlu_train import loop
from internvlu_train.settings import changed
from internvlu_train.toy.presets import CPU


class Killed(Exception):
    pass


def main(runs: str, base: str, folder: str):
    for name, (stage, changes, end) in json.loads(Path(runs).read_text(encoding="utf-8")).items():
        run = loop.Run(changed(CPU[stage], changes), Path(base), Path(folder) / name)
        take_step = run._take_step

        def step_or_stop(run=run, take_step=take_step, end=end):
            if run.step == end:
                raise Killed
            return take_step()

        run._take_step = step_or_stop
        try:
            run.train()
        except Killed:
            continue


if __name__ == "__main__":
    main(*sys.argv[1:])
