"""Runs stages, one after another, in the processes that torchrun started: STAGES.json BASE RUNS [STEP].

STAGES.json: {name: changes of a stage of the toy's presets}. With STEP, each run ends before that step as if killed.
"""

import json
import sys
from pathlib import Path

from internvlu_train import loop
from internvlu_train.settings import changed
from internvlu_train.toy.presets import CPU


class Killed(Exception):
    pass


def main(stages: str, base: str, runs: str, stop: str = ""):
    for name, changes in json.loads(Path(stages).read_text(encoding="utf-8")).items():
        run = loop.Run(changed(CPU[name], changes), Path(base), Path(runs) / name)
        if stop:
            take_step = run.take_step

            def step_or_stop(run=run, take_step=take_step):
                if run.step == int(stop):
                    raise Killed
                return take_step()

            run.take_step = step_or_stop
        try:
            run.train()
        except Killed:
            continue


if __name__ == "__main__":
    main(*sys.argv[1:])
