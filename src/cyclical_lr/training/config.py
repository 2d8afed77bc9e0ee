"""From what Hydra composed to what a run computes: checked, plain, described."""

import difflib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyclical_lr import records
from cyclical_lr.habits import HABITS
from cyclical_lr.records import ConfigError, build, is_foreign
from cyclical_lr.training import tracking

MOST_ITERATIONS = 100_000_000
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bf16"}
TOP_LEVEL = (
    *("experiment", "seed", "iterations", "eval_every", "engine", "compress", "checkpoint_seconds", "threads"),
    *("results_dir", "runs_dir", "model", "data", "solver", "schedule", "trainer", "logger", "cluster"),
)
TRAINER, MORE_TRAINER = ("accelerator", "devices", "precision"), ("emulate_bf16", "strategy")
DATA_HAS = ("prepare_data", "setup", "train_blocks", "eval_blocks", "batch_size")
"""What training uses of a data module, beside `train` and `test`, which `setup` makes."""
LOGGER = ("kind", "project", "entity", "mode")
CLUSTER, MORE_CLUSTER = (
    ("kind", "snapshot"),
    ("partition", "account", "qos", "time", "cpus", "gpus", "memory", "parallel", "setup", "sbatch"),
)
"""All keys that there are: Hydra takes `+typo=1` and `~eval_every`, `check` does not; those named MORE may be missing.

The groups with a `_target_` have its arguments.
"""

TYPES: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    int | None: ("an integer or null", (int, type(None))),
    float: ("a finite number", (int, float)),
    str | Path | None: ("a folder or a file", (str, type(None))),
}
"""What a class's arguments of these types may be in a config."""


def compose_config(conf: Path, overrides: Iterable[str]) -> DictConfig:
    """The config that `scripts/run.py OVERRIDES` would run. `conf` is the folder of config files.

    Raises:
        ConfigError: a user's own file has the name of one in `conf`, behind which Hydra would hide it.
    """
    if not OmegaConf.has_resolver("repository"):  # in a notebook, say: scripts have theirs
        OmegaConf.register_new_resolver("repository", lambda: str(conf.resolve().parent))
    if GlobalHydra.instance().is_initialized():  # inside scripts/run.py, which composed from the same folder
        return _composed(conf, overrides)
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return _composed(conf, overrides)


def _composed(conf: Path, overrides: Iterable[str]) -> DictConfig:
    cfg = compose("run", overrides=list(overrides))
    sources = GlobalHydra.instance().config_loader().get_sources()
    for folder in {Path(source.path).resolve() for source in sources if source.scheme() == "file"} - {conf.resolve()}:
        for ours in sorted(conf.rglob("*.yaml")):
            if (file := folder / ours.relative_to(conf)).is_file():
                raise ConfigError(f"--config-dir: {file} would never be read, since {ours} comes first; rename it")
    return cfg


def label(plan: Mapping[str, Any], conf: Path) -> str:
    """The label of the runs in `plan`; the unchanged card of their experiment is read from the folder `conf`.

    Raises:
        ConfigError: there is no card of that name, or it is none without what the command line adds.
    """
    name, card = plan["experiment"], None
    if not isinstance(name, str | None):
        raise ConfigError(f"experiment: expected the name of a card, got {name!r}; write it in quotes")
    if not name:
        compose_config(conf, [])  # which refuses a user's file that would never be read
    else:
        try:
            # Without a folder: what the card itself says of the data, not what lies where it looks for them.
            quoted = name.replace("'", "\\'")
            unchanged = compose_config(conf, [f"+experiment='{quoted}'", "++data.root=null"])
        except MissingConfigException as error:
            raise ConfigError(
                f"experiment: there is no card {name!r}, by which the run calls itself; a card's `experiment:` is its "
                "file's name, and one of your own needs --config-dir FOLDER (not hydra.searchpath)"
            ) from error
        try:
            alone = plain(unchanged)
            check(alone)
            card = describe(alone, 0)
        except ConfigError as error:
            raise ConfigError(
                f"experiment: the card {name!r} has to be whole by itself; labels say what differs from it ({error})"
            ) from error
    return records.label(name or "custom", describe(plan, seeds(plan["seed"])[0]), card)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` as plain containers, every interpolation resolved.

    Raises:
        ConfigError: an unknown key, a mandatory value is missing or an interpolation fails.
    """
    _check_keys("", map(str, cfg), (), TOP_LEVEL)  # before values are found to be missing for want of the right key
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        card = "" if "." in key and cfg.get("experiment") else ", or +experiment=NAME, whose card has it"
        raise ConfigError(f"{key}: no usable value ({str(error).splitlines()[0]}); give {key}=VALUE{card}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def check(plan: Mapping[str, Any]) -> None:
    """Refuse what would fail, or be ignored, later.

    Raises:
        ConfigError: unknown key, or a value out of range; names key, value and remedy.
    """
    for group in ("model", "data", "solver", "schedule", "trainer", "logger", "cluster"):
        if not isinstance(plan.get(group), Mapping):
            raise ConfigError(f"{group}: expected {group}=NAME, got {plan.get(group)!r}; --help lists the names")
    _check_keys("", plan, TOP_LEVEL)
    for group in ("model", "data", "solver", "schedule"):
        if "_target_" not in plan[group]:
            raise ConfigError(
                f"{group}._target_: there is none; give {group}=NAME or +{group}._target_=CLASS, and no ~{group}"
            )
        _check_targets(group, plan[group])
    _check_keys("trainer", plan["trainer"], TRAINER, MORE_TRAINER)
    _check_keys("logger", plan["logger"], LOGGER)
    tracking.check(plan["logger"]["kind"], plan["logger"]["mode"])
    _check_cluster(plan["cluster"])
    for key in ("iterations", "eval_every", "compress"):
        _check_whole(key, plan[key], 1)
    if plan["iterations"] > MOST_ITERATIONS:
        most = f"{MOST_ITERATIONS:,}, whose LRs are computed before the first"
        raise ConfigError(f"iterations: expected at most {most}, got {plan['iterations']:,}")
    if plan["engine"] not in ("auto", "reference", "fast"):
        raise ConfigError(f"engine: expected 'auto', 'reference' or 'fast', got {plan['engine']!r}")
    if plan["threads"] is not None:
        _check_whole("threads", plan["threads"], 1)
    seconds = plan["checkpoint_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise ConfigError(f"checkpoint_seconds: expected a number of seconds >= 0, got {seconds!r}")
    if plan["iterations"] % plan["compress"]:
        raise ConfigError(f"compress: expected a divisor of iterations={plan['iterations']}, got {plan['compress']}")
    for key in ("results_dir", "runs_dir"):
        if not isinstance(plan[key], str) or not plan[key]:
            raise ConfigError(f"{key}: expected a folder, got {plan[key]!r}; give {key}=FOLDER or leave it out")
    results, folder = (Path(plan[key]).resolve() for key in ("results_dir", "runs_dir"))
    if any(folder.is_relative_to(path(results, "any").parent) for path in (records.record_path, records.curve_path)):
        apart = f"apart from the records in {plan['results_dir']}, got {plan['runs_dir']}"
        raise ConfigError(f"runs_dir: expected a folder {apart}; give another runs_dir=FOLDER")
    for key in ("name", "num_classes"):
        if key not in plan["data"]:
            raise ConfigError(f"data.{key}: there is none, and labels and the network need it; give +data.{key}=VALUE")
    if plan["model"].get("num_classes", plan["data"]["num_classes"]) != plan["data"]["num_classes"]:
        ours, theirs = plan["model"]["num_classes"], plan["data"]["num_classes"]
        raise ConfigError(f"model.num_classes: expected data.num_classes={theirs}, got {ours}; leave it out")
    seeds(plan["seed"])
    _check_whole("trainer.devices", plan["trainer"]["devices"], 1)
    if plan["trainer"]["devices"] > 1:
        raise ConfigError(
            f"trainer.devices: expected 1, got {plan['trainer']['devices']}: Lightning would start a process for each "
            "by the same command line, and with -m each would run the whole sweep again. For one run on several "
            "devices use trainer=ddp, and torchrun or srun to start its ranks"
        )
    _check_strategy(plan["trainer"].get("strategy"), plan["seed"])
    if plan["trainer"]["accelerator"] not in ("cpu", "gpu"):
        got = plan["trainer"]["accelerator"]
        raise ConfigError(f"trainer.accelerator: expected 'cpu' or 'gpu', got {got!r}; use trainer=cpu or trainer=gpu")
    if plan["trainer"]["precision"] not in PRECISIONS:
        known, got = ", ".join(PRECISIONS), plan["trainer"]["precision"]
        raise ConfigError(f"trainer.precision: expected one of {known}, got {got!r}")
    if not isinstance(plan["trainer"].get("emulate_bf16", False), bool):
        raise ConfigError(f"trainer.emulate_bf16: expected true or false, got {plan['trainer']['emulate_bf16']!r}")


def check_parts(plan: Mapping[str, Any]) -> None:
    """Refuse what the classes of a checked `plan` refuse, and a network that does not take the set's images.

    Nothing is computed, and no data are read. A network or solver that is not this package's is left to the run.

    Raises:
        ConfigError: names the key, or the network and the set.
    """
    _check_parts(json.dumps({key: plan[key] for key in ("data", "model", "solver")}, default=str))


@cache  # a study has them once per seed
def _check_parts(parts: str) -> None:
    plan = json.loads(parts)
    data = build(plan["data"])
    if missing := [name for name in DATA_HAS if not hasattr(data, name)]:
        raise ConfigError(
            f"data._target_: expected a data module like cyclical_lr.data.cifar.CifarData, got "
            f"{plan['data']['_target_']}, without {', '.join(missing)}; make it a subclass of that one, whose setup() "
            "gives train and test"
        )
    if is_foreign(plan["model"]):
        return
    with torch.device("meta"), torch.no_grad():  # shapes alone
        network = build(plan["model"])
        if not is_foreign(plan["solver"]):
            build(plan["solver"], network)
        if not hasattr(data, "image_shape"):
            return
        try:
            network.eval()(torch.empty(1, *data.image_shape))
        except (ValueError, RuntimeError) as error:
            shape = " x ".join(map(str, data.image_shape))
            raise ConfigError(
                f"model: expected a network that takes the images of data.name={data.name}, {shape}, got "
                f"{type(network).__name__} ({str(error).splitlines()[0]}); take another model= or data="
            ) from error


def check_network(plan: Mapping[str, Any], data: Any) -> None:
    """Refuse a network from elsewhere that gives no scores for the images of a set; one made for this is tried.

    Raises:
        ConfigError: names the class, and what is missing.
    """
    target, classes = plan["model"]["_target_"], plan["data"]["num_classes"]
    if not is_foreign(plan["model"]) or not hasattr(data, "image_shape"):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            scores = build(plan["model"]).eval()(torch.zeros(2, *data.image_shape))
        except Exception:  # the run will tell where, and leave a record
            return
    got = list(scores.shape) if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
    if not isinstance(got, list) or len(got) != 2 or got[1] < classes:
        raise ConfigError(f"model: expected {target} to score n images as [n, {classes}], got {got} of 2")


def _check_strategy(strategy: Any, seed: Any) -> None:
    if strategy not in (None, "ddp"):
        raise ConfigError(f"trainer.strategy: expected 'ddp' or nothing, got {strategy!r}; use trainer=ddp")
    if strategy == "ddp" and len(seeds(seed)) > 1:
        raise ConfigError(f"seed: expected one with trainer.strategy=ddp, got {seed!r}; start its ranks once per seed")


def _check_keys(where: str, given: Iterable[str], needed: Iterable[str], more: Iterable[str] = ()) -> None:
    given, needed = list(given), list(needed)
    allowed = [*needed, *more]
    for key in needed:
        if key not in given:
            path = f"{where}.{key}" if where else key
            raise ConfigError(f"{path}: there is none; give +{path}=VALUE, or no '~{path}'")
    for key in given:
        if key not in allowed:
            path = f"{where}.{key}" if where else key
            close = difflib.get_close_matches(key, allowed, 1)
            known = sorted(each for each in allowed if not each.startswith("_"))
            others = f"expected one of {', '.join(known)}" if known else "it takes none"
            meant = HABITS.get(path) or (f"did you mean {close[0]}?" if close else others)
            away = f"; if the experiment sets it, take it away with '~{path}'" if where else ""
            raise ConfigError(f"{path}: there is no such key; {meant}{away}")


def _check_targets(where: str, node: Any) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            target = records.locate(node["_target_"])
            partial = ("_partial_",) if where.startswith("schedule") else ()  # a function of the iteration
            parameters = inspect.signature(target).parameters.values()
            is_ours = where.startswith("schedule") and target.__module__.startswith(records.PACKAGE)  # has own rules
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):  # which takes any key
                names = [parameter.name for parameter in parameters][where == "solver" :]  # whose first is the network
                _check_keys(where, node, (), ["_target_", "_convert_", *partial, *names])
            for parameter in parameters:
                known = [kind for kind in TYPES if kind == parameter.annotation]  # which may have no hash
                if parameter.name in node and known and not is_ours:
                    expected, types = TYPES[known[0]]
                    value = node[parameter.name]
                    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
                    if not fits or (isinstance(value, float) and not math.isfinite(value)):
                        raise ConfigError(f"{where}.{parameter.name}: expected {expected}, got {value!r}")
        for key, value in node.items():
            _check_targets(f"{where}.{key}", value)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _check_targets(f"{where}.{position}", value)  # as Hydra spells it on the command line
    elif isinstance(node, float) and not math.isfinite(node):  # which no id can be made of
        raise ConfigError(f"{where}: expected a finite number, got {node!r}")


def _check_cluster(cluster: Mapping[str, Any]) -> None:
    _check_keys("cluster", cluster, CLUSTER, MORE_CLUSTER)
    for key in ("time", "cpus", "gpus", "memory", "parallel"):
        if cluster.get(key) is not None:
            _check_whole(f"cluster.{key}", cluster[key], 1)
    if cluster["kind"] not in ("local", "slurm"):
        raise ConfigError(f"cluster.kind: expected 'local' or 'slurm', got {cluster['kind']!r}; use cluster=NAME")
    if not isinstance(cluster["snapshot"], bool):
        raise ConfigError(f"cluster.snapshot: expected true or false, got {cluster['snapshot']!r}")
    setup, sbatch = cluster.get("setup", []), cluster.get("sbatch", {})
    if not (isinstance(setup, list) and all(isinstance(line, str) for line in setup)):
        raise ConfigError(f"cluster.setup: expected a list of shell lines, such as [module load cuda], got {setup!r}")
    if not isinstance(sbatch, Mapping):
        raise ConfigError(f"cluster.sbatch: expected sbatch's options, such as {{constraint: avx512}}, got {sbatch!r}")


def _check_whole(key: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        meant = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise ConfigError(f"{key}: expected a whole number >= {least}, got {value!r}{meant}")


def check_writable(key: str, folder: Path) -> None:
    """Make the folder of that key where it is missing.

    Raises:
        ConfigError: nothing can be written there, or its name has a ~ that no shell has replaced.
    """
    if str(folder).startswith("~"):
        raise ConfigError(f"{key}: expected a folder, got {folder}; write out what ~ stands for")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # without a name: nothing is left where this process is killed
            pass
    except OSError as error:
        raise ConfigError(f"{key}: cannot write to {folder} ({error.strerror}); give another {key}=...") from error


def check_hydra(hydra: Any) -> None:
    """Refuse a working directory of each job's own.

    Raises:
        ConfigError: Hydra is to change it.
    """
    if hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir: expected false, got true: a relative results_dir, runs_dir or data.root would be another "
            "folder in each job; leave it out, each run has a folder of its own in runs_dir"
        )


def seeds(value: Any) -> list[int]:
    """The seeds of a run or of several that share a process: `seed=0`, `seed=[0,1,2]`.

    Raises:
        ConfigError: not whole numbers from 0 to 2^32 - 1, or one twice.
    """
    listed = value if isinstance(value, list) else [value]
    if not listed or len(set(map(str, listed))) < len(listed):
        raise ConfigError(f"seed: expected one or more different seeds, got {value!r}")
    for seed in listed:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            is_text = isinstance(seed, str) and seed.isdecimal()
            of_text = "; 'seed=\"${oc.decode:${oc.env:X}}\"' reads X as a number" if is_text else ""
            said = f"seed: expected whole numbers from 0 to 2^32 - 1, such as 0 or [0,1,2], got {value!r}{of_text}"
            raise ConfigError(said)
    return listed


def describe(plan: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The part of a config that a record keeps: what `records.identity` hashes, plus `eval_every`.

    A data class that takes whatever set it finds says by a function `identified` which one that is.
    """
    config = {key: plan[key] for key in ("model", "data", "solver", "schedule", "iterations", "eval_every", "compress")}
    config["iterations"] = plan["iterations"] // plan["compress"]
    identified = getattr(records.locate(plan["data"]["_target_"]), "identified", dict)
    config["data"] = {k: v for k, v in identified(plan["data"]).items() if k not in records.WHEREABOUTS}
    return {
        **config,
        **records.lr_sha256(config),
        "precision": PRECISIONS[plan["trainer"]["precision"]],
        "seed": seed,
    }
