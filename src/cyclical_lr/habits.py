"""Keys of Lightning's and W&B's that people type and that are not here: what to give instead."""

HABITS = {
    "trainer.max_epochs": "iterations=N is the length",
    "trainer.max_steps": "iterations=N is the length",
    "trainer.limit_train_batches": "iterations=20 data=cifar10_sample makes a run short",
    "trainer.limit_val_batches": "iterations=20 data=cifar10_sample makes a run short",
    "trainer.fast_dev_run": "iterations=20 data=cifar10_sample makes a run short",
    "trainer.max_time": "stop it at any time: the same command goes on",
    "trainer.default_root_dir": "runs_dir=FOLDER is where runs keep their files",
    "trainer.val_check_interval": "eval_every=N is in iterations",
    "trainer.check_val_every_n_epoch": "eval_every=N is in iterations",
    "ckpt_path": "the same command goes on from the last checkpoint",
    "logger.group": "set WANDB_RUN_GROUP=NAME in the environment",
    "logger.tags": "set WANDB_TAGS=A,B in the environment",
}
