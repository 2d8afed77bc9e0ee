#!/usr/bin/env python
"""Run what is missing of a study: every experiment that it lists, for every seed.

    python scripts/study.py +study=NAME [seeds=N] [KEY=VALUE ...]

NAME is a file in conf/study/, or the path of one of your own; seeds=N means seeds 0 to N - 1; every other override goes
to each run, as in scripts/run.py (trainer=gpu, logger=none, results_dir=...).

One run after another, all experiments of a seed before the next seed, so that intervals narrow evenly. Finished runs
are left alone and interrupted ones go on: stop it with Ctrl-C, and start it again, whenever you like. A run that fails
does not stop the others. Exit codes: 0 all done, 1 some failed, 2 unusable input.
"""

import logging
import sys
import time
from pathlib import Path

import yaml
from omegaconf import OmegaConf

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
log = logging.getLogger("study")


def main(arguments: list[str]) -> int:
    files = {file.stem: file for file in sorted((CONF / "study").glob("*.yaml"))}
    if not arguments or {"-h", "--help"} & set(arguments):
        about = (f"  {name:<18} {file.read_text().splitlines()[0].lstrip('# ')}" for name, file in files.items())
        print(__doc__, "Studies", *about, sep="\n")
        return 0

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    own = {key.lstrip("+"): value for key, _, value in (a.partition("=") for a in arguments)}
    common = [a for a in arguments if a.partition("=")[0] not in ("+study", "study", "seeds")]
    name, seeds = own.get("study", ""), own.get("seeds", "1")
    file = files.get(name, Path(name))
    if not file.is_file():
        return refuse(f"study: there is no {name!r}; expected a file or one of {', '.join(files)}")
    if not seeds.isdecimal() or int(seeds) < 1 or "seed" in own:
        return refuse(f"seeds: expected seeds=N with a whole number N >= 1 and no seed=, got {' '.join(arguments)}")

    from cyclical_lr import records  # imported here: what is above stays quick
    from cyclical_lr.training.config import check, compose_config, describe, plain
    from cyclical_lr.training.run import run, summary

    planned = []
    try:
        for seed in range(int(seeds)):
            for arm in yaml.safe_load(file.read_text())["experiments"]:
                cfg = compose_config(CONF, [*f"+experiment={arm}".split(), *common, f"seed={seed}"])
                plan = plain(cfg)
                check(plan)
                planned.append((f"{arm} seed {seed}", cfg, describe(plan, seed), Path(plan["results_dir"])))
    except (records.ConfigError, KeyError, TypeError) as error:
        return refuse(str(error))

    missing = [one for one in planned if not records.is_over(one[3], records.run_id(one[2]))]
    log.info("%d of %d runs are done, %d are missing", len(planned) - len(missing), len(planned), len(missing))
    left = sum(config["iterations"] for _, _, config, _ in missing)
    trained, started, failed = 0, time.monotonic(), []
    for number, (title, cfg, config, results) in enumerate(missing, 1):
        hours = left / trained * (time.monotonic() - started) / 3600 if trained else None
        log.info("[%d/%d] %s%s", number, len(missing), title, f", about {hours:.1f} h left in all" if hours else "")
        try:
            for outcome in run(cfg, CONF):
                if outcome.fresh and outcome.record is not None:
                    log.info(summary(outcome.record, CONF, results))
                    trained += config["iterations"]
        except Exception as error:  # the other runs of a study do not depend on this one
            log.error("%s failed: %s: %s", title, type(error).__name__, error)
            failed.append(title)
        left -= config["iterations"]
    for title in failed:
        log.error("failed: %s", title)
    return 1 if failed else 0


def refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
